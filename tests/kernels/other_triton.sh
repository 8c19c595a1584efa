#!/usr/bin/env bash
# The kernels' tests with another torch and triton than those of .venv, in an environment of its own; not in `make test`.
#
#     tests/kernels/other_triton.sh [PYTHON] [TORCH] [TRITON]
#
# What can be had differs from place to place: PIP_OPTIONS goes to pip (an index of CPU builds, say).
set -euo pipefail
python=${1:-python3} torch=${2:-2.11.*} triton=${3:-3.6.*}
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder"
# Wheels for the CPU bring no triton, those for CUDA bring their own: either way this one is put in last.
"$folder/bin/pip" install --quiet ${PIP_OPTIONS:-} "torch==$torch" numpy pytest
"$folder/bin/pip" install --quiet --no-deps ${PIP_OPTIONS:-} "triton==$triton"
"$folder/bin/python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'

cd "$root"
export TRITON_CACHE_DIR="$folder/cache" OPENBLAS_NUM_THREADS=1
run() { "$folder/bin/python" -m pytest --noconftest -p no:cacheprovider -q "$@"; }
TRITON_INTERPRET=1 run tests/kernels/test_triton.py
TRITON_INTERPRET=1 run tests/kernels/test_ops.py
run -m "" tests/kernels/test_offline.py

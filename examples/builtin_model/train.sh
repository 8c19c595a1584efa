#!/bin/sh
# Train the built-in model from nothing and write it into the package. Interrupted, the same command goes on.
#
#     examples/builtin_model/train.sh [FOLDER]
set -e
runs=${1:-runs/builtin}
here=$(dirname "$0")

stage() {
    name=$1
    shift
    if [ -e "$runs/$name/README.md" ]; then
        echo "$name: done"
    elif [ -e "$runs/$name/config.toml" ]; then
        vidlose finetune --resume "$runs/$name"
    else
        vidlose finetune --config "$here/$name.toml" --cache "$runs/cache" -o "$runs/$name" "$@"
    fi
}

mkdir -p "$runs"
stage images
stage images-longer --model "$runs/images/model"
stage motion --model "$runs/images-longer/model"
python "$here/export_model.py" "$runs/motion/model" "$runs/motion/motion_module.safetensors"

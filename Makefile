# `make demo` and `make test` set everything up by themselves; both can be repeated.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes of one thread each: small tensors gain nothing from more threads, and threads that share cores lose.
# A file stays with one of them: the README's commands need what those before them made.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow test-full check kernels style bench bench-gpu clean

demo: $(READY)  ## endless video from the built-in model, to out/demo.mp4, and its contact sheet
	mkdir -p out
	$(BIN)/vidlose fifo --prompt "a red ball bouncing over green hills at sunset, the camera pans left" \
		--frames 64 --uniform-latents --seed 1 --output out/demo.mp4 --overwrite
	$(BIN)/python examples/contact_sheet.py out/demo.mp4 out/demo.png

test: $(READY)  ## the tests
	$(PYTEST)

test-slow: $(READY)  ## those that `make test` leaves out, of processes that are killed, say: minutes
	$(PYTEST) -m slow

test-full: $(READY)  ## models of real size with random weights: 7 GB of disk, 10 GB of memory, minutes
	VIDLOSE_TEST_FULL=1 $(BIN)/python -m pytest tests/full -s

check: $(READY)  ## lint, types, tests; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vidlose
	$(PYTEST)

kernels: $(READY)  ## faults put into them by hand, their benchmarks on nothing, another Triton: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kernels.mutants
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.gpu --smoke steps module diff norm fifo
	tests/kernels/other_triton.sh $(BIN)/python

style: $(READY)  ## fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure; rows are appended to tests/benchmarks/results.csv
	$(BIN)/python -m tests.benchmarks.fifo
	$(BIN)/python -m tests.benchmarks.first_frame
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.world
	$(BIN)/python -m tests.benchmarks.autoencoder
	$(BIN)/python -m tests.benchmarks.finetune
	$(BIN)/python -m tests.benchmarks.analysis

bench-gpu: $(READY)  ## the same for what needs a CUDA device
	$(BIN)/python -m tests.benchmarks.gpu

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vidlose needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf out build *.egg-info

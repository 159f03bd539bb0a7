# `make demo` and `make test` are all a newcomer needs; each target makes the environment it runs in.
PYTHON ?= python3
BIN := .venv/bin
DEMO = $(if $(OVERWRITE),--overwrite,--resume auto)
# The tests run in three processes, each notebook or file of tests in one of them, the longest first: some wait for processes that they have started.
PYTEST := python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test check lowest notebooks docs lab wheel clean

help:
	@echo "make demo       install, pre-train on garments among clutter, show what was learned (runs/demo)"
	@echo "make test       everything that must hold: export, layering, notebooks, pytest"
	@echo "make notebooks  run every notebook from a fresh kernel; export the library, clean, write README.md"
	@echo "make docs       build the book's site, strictly: _build/site/index.html"
	@echo "make lab        read and run the book in JupyterLab"
	@echo "make check      the quick part of the tests, without notebooks: a minute"
	@echo "make lowest     the tests with the oldest supported version of every library"
	@echo "make wheel      build the wheel, install it alone in a bare environment, run its commands there"

.venv/.venv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

.venv/.user: .venv/.venv settings.ini setup.py
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.dev: .venv/.user
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

demo: .venv/.user
	$(BIN)/mae_pretrain --recipe cluttered --output_dir runs/demo $(DEMO)
	$(BIN)/mae_finetune --recipe cluttered_finetune --encoder runs/demo --output_dir runs/demo_finetune $(DEMO)
	$(BIN)/mae_finetune --recipe cluttered_scratch --output_dir runs/demo_scratch $(DEMO)
	$(BIN)/mae_report runs/demo runs/demo_finetune runs/demo_scratch

test: .venv/.dev
	$(BIN)/$(PYTEST)

check: .venv/.dev
	$(BIN)/$(PYTEST) -n 2 tests -m "not slow"

.venv-lowest/.dev: .venv/.dev settings.ini setup.py
	$(PYTHON) -m venv --clear .venv-lowest
	$(BIN)/uv pip compile --quiet --python .venv-lowest/bin/python --no-deps --resolution lowest-direct --output-file .venv-lowest/lowest.txt setup.py
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --constraints .venv-lowest/lowest.txt --editable '.[dev]'
	@touch $@

lowest: .venv-lowest/.dev
	.venv-lowest/bin/$(PYTEST) tests --ignore tests/test_site.py --ignore tests/test_layout.py

notebooks: .venv/.dev
	$(BIN)/nbdev_export
	$(BIN)/python tools/run_nbs.py --force
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

docs: .venv/.dev
	$(BIN)/python docs/build.py

lab: .venv/.dev
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

wheel: .venv/.dev
	$(BIN)/python tools/check_wheel.py

clean:
	rm -rf .venv .venv-lowest _build build dist *.egg-info

# make demo | make test | make test-slow: each sets up what it needs, once, in .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
THREADS ?= $(shell nproc 2>/dev/null || echo 2)
# make test DETECTRON2=/path/to/a/checkout runs on upstream Detectron2
export PYTHONPATH := $(if $(DETECTRON2),$(DETECTRON2):$(PYTHONPATH),$(PYTHONPATH))

.PHONY: setup demo test test-slow lint doctor clean

setup: $(READY)

$(READY): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	$(BIN)/python -m grounding_dino.ops.build
	touch $@

demo: $(READY)
	$(BIN)/python demo/demo.py --input demo/pictures --output output/demo

doctor: $(READY)
	$(BIN)/python tools/doctor.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy grounding_dino

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info output

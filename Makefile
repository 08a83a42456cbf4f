# make demo | make test | make test-slow | make doctor: each first sets up, once, what it needs in .venv: to use the
# project, or also to work on it
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev

INPUT ?=
OUTPUT ?= output/demo
TEXT ?=
ARGS ?=

VERSION_CHECK := import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	"Python %d.%d is not supported, 3.10 to 3.13 are: name another one, as in make demo PYTHON=python3.12" % v)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint doctor docs docs-check build clean

help:
	@echo "make demo        detect in demo/pictures; table on the screen, pictures in output/demo"
	@echo "                 make demo INPUT=folder OUTPUT=folder TEXT='red circle . blue star .'"
	@echo "make test        linter, types and fast tests; make test ARGS='-k prompt' for some of them"
	@echo "make test-slow   the tests that take long"
	@echo "                 make test DETECTRON2=/path/to/checkout: on upstream Detectron2"
	@echo "make doctor      what is installed, and the first thing to fix"
	@echo "make docs        the documents as a site, in output/site; needs no network"
	@echo "make docs-check  run the commands of the documents on small stand-ins; ARGS='README.md' for some"
	@echo "make build       wheel and source distribution, in dist"
	@echo "make clean       remove .venv and everything built"
	@echo "PYTHON=python3.12 chooses the interpreter for .venv"

setup: $(DEV_READY)

# A stamp is made last, so whatever was interrupted is taken up again by the next call.
$(READY): pyproject.toml setup.py
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || { \
		command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON): make demo PYTHON=... names another"; exit 1; }; \
		$(PYTHON) -c '$(VERSION_CHECK)' || exit 1; \
		$(PYTHON) -m venv --clear $(VENV) || { echo "no virtual environment: apt-get install python3-venv?"; exit 1; }; }
	@$(BIN)/python -c '$(VERSION_CHECK)'
	$(BIN)/python -m pip install --quiet --upgrade pip || true
	$(BIN)/python -m pip install --editable .
	$(BIN)/python -m grounding_dino.ops.build
	@touch $@

$(DEV_READY): $(READY)
	$(BIN)/python -m pip install --editable ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python demo/demo.py $(if $(INPUT),--input $(INPUT),--example) $(if $(TEXT),--text "$(TEXT)") \
		--output $(OUTPUT) $(ARGS)

doctor: $(READY)
	$(BIN)/python tools/doctor.py

docs: $(DEV_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "output/site/index.html"

docs-check: $(DEV_READY)
	PYTHONPATH="tests$${PYTHONPATH:+:$$PYTHONPATH}" $(BIN)/python -m documents.check $(ARGS)

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy grounding_dino

# Upstream comes before everything else on the path; what it imports and this project does not is installed beside it.
ifdef DETECTRON2
test test-slow: export PYTHONPATH := $(abspath $(DETECTRON2))$(if $(PYTHONPATH),:$(PYTHONPATH))
UPSTREAM := upstream
endif

.PHONY: upstream
upstream: $(DEV_READY)
	@test -f "$(DETECTRON2)/detectron2/__init__.py" || { echo "$(DETECTRON2) is not a checkout of Detectron2"; exit 1; }
	@$(BIN)/python -c "import cloudpickle, hydra, matplotlib, omegaconf" 2>/dev/null || \
		$(BIN)/python -m pip install cloudpickle hydra-core matplotlib omegaconf

test: lint $(UPSTREAM)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(DEV_READY) $(UPSTREAM)
	$(BIN)/python -m pytest -m slow $(ARGS)

# What they hold is said by setup.py and MANIFEST.in. The wheel is built from the source distribution.
build: $(DEV_READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info output

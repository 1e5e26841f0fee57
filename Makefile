# Every command here does its own set-up: a virtual environment in .venv, behind a stamp file.
#
#   make demo                                    the whole road once, in minutes
#   make demo ARGS="--steps 20 --num-videos 16"  smaller
#   make test check                              what CI runs
#
# With uv on PATH it installs through uv (make UV= ... takes pip), else through python3 and pip.
# PIP_FIND_LINKS, a folder of wheels, is honoured by both; so is PYTHON=python3.12.
# The CPU build of torch, a tenth of the size:  UV_TORCH_BACKEND=cpu make demo  with uv;
# with pip, set PIP_EXTRA_INDEX_URL to the CPU index that PyTorch's install page names.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PARTIAL := $(VENV)/.installing
UV ?= $(shell command -v uv 2>/dev/null)
PYTHON ?= python3
RUN ?= runs/demo/run
ARGS ?=
# Should a test hang where its time limit cannot reach it (inside C code), say where, and end.
HUNG := -o faulthandler_timeout=360 -o faulthandler_exit_on_timeout=true
# Should a test end its process, name it and stop: pytest-xdist 3.8 waits for ever where it goes on by files.
HUNG += --max-worker-restart=0
# A file's tests stay together, as they share what is dear to make. ARGS="-n 0 --pdb" looks into one.
TEST_PROCESSES ?= 2
IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup demo test test-slow check format smoke bench bench-gpu ui gallery clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make .venv with everything in it, and nothing else
	@echo "done: $(VENV) holds all of foreframe; next: make demo, or $(BIN)/foreframe --help"

demo: $(STAMP) ## Videos, shards, two ranks of training, a probe and a report in runs/demo
	@$(BIN)/foreframe demo $(ARGS)

test: $(STAMP) ## Tests on CPU, without network: all but slow and gpu
	@$(BIN)/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist loadfile $(HUNG) $(ARGS)

test-slow: $(STAMP) ## Long fault and statistics runs
	@$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

check: $(STAMP) ## Format, lint, types, who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Let ruff write what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

smoke: $(STAMP) ## Test this machine's GPU, or its CPU: attention, steps, save, resume
	@$(BIN)/foreframe smoke $(ARGS)

ui: $(STAMP) ## The MLflow pages of RUN=runs/demo/run
	@$(BIN)/foreframe ui $(RUN) $(ARGS)

bench: $(STAMP) ## What this machine's CPU does, in minutes; ARGS="--peer vjepa2=CHECKOUT" beside Meta's code
	@$(BIN)/python -m benchmarks.cpu $(ARGS)

bench-gpu: $(STAMP) ## All that one GPU is measured for, in under nine minutes
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

gallery: $(STAMP) ## docs/gallery.md and its pictures, from short runs on the demo's shards (after make demo)
	@$(BIN)/python -m benchmarks.gallery $(ARGS)

clean: ## Remove .venv, caches and build leftovers; runs/ and data/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last. PARTIAL stands from the first package to the last, so that a set-up that was
# cut short is thrown away and not patched up.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@if [ -e $(PARTIAL) ]; then echo "the last set-up was cut short; starting over"; rm -rf $(VENV); fi
	@if [ -e $(VENV) ] && ! $(BIN)/python -c '' 2>/dev/null; then rm -rf $(VENV); fi
	@if [ -e $(VENV) ] && ! $(BIN)/python -c '$(IS_SUPPORTED)'; then \
	  echo "$(VENV) holds a Python older than 3.11: make clean, then the same command again" >&2; exit 1; fi
	@python=; for each in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if "$$each" -c '$(IS_SUPPORTED)' 2>/dev/null; then python=$$each; break; fi; done; \
	if [ -n "$(UV)" ]; then $(install-with-uv); else $(install-with-pip); fi
	@rm -f $(PARTIAL) && touch $@

define install-with-uv
echo "setting up $(VENV) with uv"; \
if [ -n "$$PIP_FIND_LINKS" ] && [ -z "$$UV_FIND_LINKS" ]; then \
  UV_FIND_LINKS=$$(echo $$PIP_FIND_LINKS | tr ' ' ','); export UV_FIND_LINKS; fi; \
[ -e $(VENV) ] || "$(UV)" venv --quiet --python "$${python:-3.12}" $(VENV) || exit 1; \
touch $(PARTIAL); \
"$(UV)" pip install --python $(BIN)/python --constraint constraints.txt --editable ".[all,dev]" || exit 1
endef

define install-with-pip
echo "setting up $(VENV) with pip; the first time takes minutes"; \
if [ -z "$$python" ]; then echo "no Python of 3.11 or newer: on Debian or Ubuntu, \
sudo apt install python3 python3-venv (or python3.11 python3.11-venv); or name one with PYTHON=..." >&2; exit 1; fi; \
if [ ! -e $(VENV) ]; then \
  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
    echo "$$python cannot make virtual environments: sudo apt install python$$version-venv" >&2; exit 1; fi; \
  "$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
fi; \
touch $(PARTIAL); \
$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip || exit 1; \
$(BIN)/python -m pip install --constraint constraints.txt --editable ".[all,dev]" || exit 1
endef

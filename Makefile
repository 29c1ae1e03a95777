# The few commands of the house. Each makes .venv first, once: a repeat installs nothing and needs no network.
#
#   make demo     from raw text to a Hugging Face model that writes, on whatever machine this is
#   make reproduce  the paper's recipe in small, three ways: a GPU's size, or the toy size where there is none
#   make test     the whole test suite
#   make test-layouts  every legal layout against Hugging Face's curve: 25 minutes on two cores
#   make test-faults   kills, signals, full disks, stuck ranks, lost hosts, damaged files, bad numbers: twelve minutes
#   make lint     ruff, mypy, codespell
#   make format   let ruff rewrite what it can
#
# PYTHON=... picks the interpreter (3.11 or later) that .venv is made with.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
STAMP := $(VENV)/installed
CODE := tinyllama_mcore tools examples tests setup.py

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

.PHONY: demo reproduce test test-layouts test-faults lint format

demo: $(STAMP)
	python examples/demo.py --overwrite

reproduce: $(STAMP)
	python -m examples.reproduce

test: $(STAMP)
	python -m pytest -n 2 --dist loadfile

test-layouts: $(STAMP)
	python -m pytest $(addprefix tests/distributed/test_,curves.py guards.py keys.py options.py resume.py) tests/examples/test_reproduce.py --all-layouts

test-faults: $(STAMP)
	python -m pytest -m faults --kills 50 --ends 2 --all-layouts

lint: $(STAMP)
	ruff check $(CODE)
	ruff format --check $(CODE)
	mypy
	codespell

format: $(STAMP)
	ruff check --fix $(CODE)
	ruff format $(CODE)

# DeepSpeed comes as source: its setup imports torch, and DS_BUILD_OPS=0 leaves its kernels to be built when used.
$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later was found: give one as PYTHON=/path/to/python"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	python -m pip install --quiet -c constraints.txt setuptools wheel torch
	DS_BUILD_OPS=0 python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# Two commands matter: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c .ci/constraints.txt

.PHONY: demo test install dev docs readme export bench clean

demo: .venv/base  ## train on phantom spines, segment held-out ones, print Dice, write runs/demo/
	$(BIN)/verdiff demo

test: .venv/dev  ## every check that a change must pass
	$(BIN)/python .ci/check.py

install: .venv/base
dev: .venv/dev

.venv/torch: .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	@touch $@

.venv/base: .venv/torch pyproject.toml
	$(PIP) -e .
	@touch $@

.venv/dev: .venv/torch pyproject.toml
	$(PIP) -e ".[dev]"
	@touch $@ .venv/base

export: .venv/dev  ## write verdiff/ from nbs/
	$(BIN)/nbdev-export

readme: .venv/dev  ## write README.md from nbs/index.ipynb
	$(BIN)/python .ci/check.py --write-readme

docs: .venv/dev  ## build the site (needs Quarto)
	$(BIN)/nbdev-docs

bench: .venv/dev  ## seconds and ratios against other libraries, measured in one run
	mkdir -p bench/results
	$(BIN)/python bench/networks.py --json bench/results/networks.json
	$(BIN)/python bench/segment.py

clean:
	rm -rf .venv _proc _docs build *.egg-info

# Two commands matter: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c .ci/constraints.txt
NAME ?=

.PHONY: help demo test install dev nb pages preview screenshots sliders docs readme export repo bench long fuzz clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/base  ## train on phantom spines, segment held-out ones, print Dice, write runs/demo/
	$(BIN)/verdiff demo

test: .venv/dev  ## every check that a change must pass (.ci/check.py --list names them)
	$(BIN)/python .ci/check.py

install: .venv/base  ## the package and the command, into .venv
dev: .venv/dev  ## the same with everything that the checks and the pages need

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

nb: .venv/dev  ## sync, export and run one notebook: make nb NAME=06_forward
	.ci/nb $(NAME)

export: .venv/dev  ## write verdiff/ from nbs/
	$(BIN)/nbdev-export

pages: .venv/dev  ## what a reader of the site would miss, page by page: make pages [NAME="06_forward library/settings"]
	$(BIN)/python .ci/pages.py $(NAME)

preview: .venv/dev  ## the site without Quarto, into _preview/: make preview [NAME=06_forward]
	$(BIN)/python .ci/preview.py $(NAME)

screenshots: .venv/dev  ## the same, photographed at 1280 and 390 pixels into _preview/shots/ (needs Chromium)
	$(BIN)/python .ci/preview.py --shots $(NAME)

sliders: .venv/dev  ## move every slider of the pages in JupyterLab, in a browser (needs Chromium): make sliders [NAME=06_forward]
	$(BIN)/python .ci/sliders.py $(NAME)

readme: .venv/dev  ## write README.md and nbs/llms.txt from the notebooks
	$(BIN)/python .ci/check.py --write-readme

docs: .venv/dev  ## build the site into _docs/ (needs Quarto)
	PYTHONPATH=$(CURDIR)/.ci:$(CURDIR) $(BIN)/nbdev-docs

repo: .venv/dev  ## move to another address: make repo OWNER=somebody REPO=name
	$(BIN)/python .ci/repo.py $(OWNER) $(REPO)
	$(BIN)/nbdev-export
	$(BIN)/python .ci/check.py --write-readme

bench: .venv/dev  ## seconds and ratios against other libraries, measured in one run
	mkdir -p bench/results
	$(BIN)/python bench/networks.py --json bench/results/networks.json
	$(BIN)/python bench/segment.py

fuzz: .venv/dev  ## thousands of damaged and hostile inputs through every reader and command (about 10 minutes)
	$(BIN)/python tests/robustness/fuzz.py --json bench/results/robustness.json

long: .venv/base  ## train for hours in the background, or go on with it (VERDIFF_XRAY, VERDIFF_LONG; LONG="--finish 400")
	PYTHONPATH=. $(BIN)/python bench/long.py $(LONG)

gpu: .venv/base  ## what only a GPU can do, resumable, a call within nine minutes (VERDIFF_XRAY; GPU="--parts roof")
	PYTHONPATH=. $(BIN)/python bench/gpu.py $(GPU)

clean:  ## remove .venv and whatever was built
	rm -rf .venv _proc _docs _preview build *.egg-info

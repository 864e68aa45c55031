# make reproduce   run the reproduction notebooks, render their tables into reports/
#                  PROFILE=embedded PAPERS=all SEEDS=0,1 DEVICE=cpu OUT=reports FORCE=1, all optional
# make test        undefined names, every notebook as a test, and pytest beside it
# make docs        the notebooks as a web site in _docs/
# make lab         JupyterLab on the notebooks
# make readme      nbs/index.ipynb run again, and README.md from it
# make picture     the report's first screen as README shows it; takes a Chromium
# make export      the package from the notebooks
#
# Each of them first makes the virtual environment .venv, or brings it up to date when pyproject.toml has changed;
# `docs` adds what only the site needs.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.stamp
SITE := .venv/.stamp-docs

# A misspelt variable would be ignored, and everything run instead of a part. What the environment holds is not meant for us.
KNOWN := PROFILE PAPERS SEEDS DEVICE OUT FORCE PYTHON
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(sort $(filter-out $(KNOWN) MAKEFLAGS SHELL,$(GIVEN)))
ifneq ($(UNKNOWN),)
$(error unknown variable $(UNKNOWN); known are: $(KNOWN))
endif

.PHONY: help reproduce test test-notebooks test-package docs lab readme picture export
help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

$(READY): pyproject.toml
	@test -x $(BIN)/pip || { echo "Making .venv; this takes a few minutes and about 6 GB, once."; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --editable .
	@touch $@

$(SITE): $(READY)
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --editable ".[docs]"
	@touch $@

reproduce: $(READY)
	$(BIN)/atr-nb reproduce $(if $(PROFILE),--profile "$(PROFILE)") $(if $(PAPERS),--papers "$(PAPERS)") $(if $(SEEDS),--seeds "$(SEEDS)") \
	  $(if $(DEVICE),--device "$(DEVICE)") $(if $(OUT),--out "$(OUT)") $(if $(FORCE),--force)

# The notebooks in reproduce/ run with their smallest profile in tests/test_cli.py; two guides are measurements of an hour.
# Notebooks and pytest side by side, so that no core is idle while one of them waits for its longest test.
test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/ruff check --quiet --no-cache --select F atr_nb
	@$(MAKE) --no-print-directory --keep-going --jobs 2 test-notebooks test-package

test-notebooks:
	$(BIN)/nbdev-test --n-workers 2 --timing --skip-folder-re '^([_.].*|reproduce)$$' \
	  --skip-file-re '^([_.].*|benchmarks.*|difficulty.*)$$'

test-package:
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# Beside the old site first, so that a site which cannot be made does not cost the one that is there.
docs: $(SITE)
	rm -rf build/docs
	$(BIN)/sphinx-build --quiet --jobs auto -c docs -d build/docs/doctrees . build/docs/html
	rm -rf _docs
	mv build/docs/html _docs
	@echo "The site: _docs/index.html"

lab: $(READY)
	$(BIN)/jupyter lab nbs

readme: $(READY)
	$(BIN)/atr-nb readme

export: $(READY)
	$(BIN)/nbdev-export

CHROMIUM = $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
picture:
	$(or $(CHROMIUM),$(error no Chromium is installed)) --headless=new --no-sandbox --hide-scrollbars --window-size=1240,820 \
	  --screenshot=reports/first_screen.png "file://$(CURDIR)/reports/index.html"

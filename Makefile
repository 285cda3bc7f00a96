# make tutorial | make test: the two commands; `make help` lists the rest. Needs python3 (3.10-3.12), make, a package index.
PYTHON  ?= python3
PROFILE ?= cpu
PADDLE  ?= $(if $(PADDLE_GPU)$(filter gpu,$(PROFILE)),gpu,cpu)
# requirements instead of the extra gpu, such as a Paddle 3 of Paddle's own package index (PADDLE_INDEX)
OTHER   := $(if $(filter gpu,$(PADDLE)),$(PADDLE_GPU))
VENV    ?= .venv$(if $(filter-out cpu,$(PADDLE)),-$(PADDLE))
SUFFIX  := $(if $(filter-out cpu,$(PROFILE)),-$(PROFILE))$(if $(filter-out cpu gpu,$(PADDLE)),-$(PADDLE))
OUTPUT  ?= output/tutorial$(SUFFIX)
SEEDS   ?= 1
EXTRAS  := $(if $(OTHER),,$(PADDLE),)weights,jpeg,notebook,watch,search,deploy,serve,dev,test
READY   := $(VENV)/.ready-$(PADDLE)$(if $(OTHER),-$(subst =,,$(firstword $(OTHER))))
BIN     := $(VENV)/bin

.PHONY: help tutorial profile test test-gpu venv lab export docs clean distclean
.DEFAULT_GOAL := help

help:             ## this list
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "make %-10s %s\n", $$1, $$2}'
	@echo "variables: PROFILE=smoke|cpu|gpu  DATA=folder  OUTPUT=folder  SEEDS=3  PADDLE=cpu|cpu26|gpu  PYTHON=python3.11  VENV=folder"
	@echo "another Paddle for GPUs: PADDLE_GPU='paddlepaddle-gpu==3.3.1 paddle2onnx==2.1.0' PADDLE_INDEX=URL (of its package index)"

tutorial: profile $(READY) ## the nine notebooks of nbs/00_tutorials, then output/tutorial/report.html (PROFILE, DATA, OUTPUT, SEEDS)
	@$(if $(filter gpu,$(PROFILE)),$(BIN)/python -c 'from ppcls_nb.gpu import exit_without_gpu; exit_without_gpu("PROFILE=gpu")')
	@$(BIN)/ppcls-run nbs/00_tutorials -f nbs/00_tutorials/profiles/$(PROFILE).yaml $(if $(DATA),-p data='$(DATA)') \
	  -o '$(OUTPUT)' --seeds '$(SEEDS)'
	@if [ '$(SEEDS)' -gt 1 ]; then $(BIN)/ppcls-ledger '$(OUTPUT)' --seeds '$(SEEDS)' --profile '$(PROFILE)'; fi

test-gpu: $(READY) ## the tests on a GPU: make test-gpu PADDLE=gpu; without a GPU the same code on the CPU, as far as it can
	@$(BIN)/python -m pytest -m gpu tests

profile:
	@case '$(PROFILE)' in smoke|cpu|gpu) ;; *) echo "PROFILE=$(PROFILE): expected smoke, cpu or gpu"; exit 2;; esac

test: $(VENV)/.ready-docs ## every check: notebooks clean, export and README in sync, notebook tests, pytest (with the smoke tutorial)
	@$(BIN)/python tools/checks.py all

venv: $(READY)    ## .venv with the pinned requirements (PYTHON, PADDLE, VENV)

lab: $(READY)     ## JupyterLab on nbs/
	@$(BIN)/python -c 'import ppcls_nb; from jupyterlab.labapp import main; main()' nbs

export: $(READY)  ## clean the notebooks, then write ppcls_nb/ and README.md from them
	@$(BIN)/nbdev_clean
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/checks.py write-readme

docs: $(VENV)/.ready-docs ## the site in _docs/: executed lessons, tutorials, report, API; checked in Chromium where there is one
	@$(BIN)/python tools/make_site.py

clean: $(READY)   ## nbdev_clean (run counts and stray metadata out of the notebooks); built pages and caches removed
	@$(BIN)/nbdev_clean
	@rm -rf _docs .cache build dist .pytest_cache

distclean:        ## remove the environments too; data/ and output/ stay
	@rm -rf _docs .cache build dist .pytest_cache *.egg-info .venv .venv-*

# One stamp for each Paddle line, written when everything is installed: an interrupted install is done again.
$(READY): settings.ini setup.py pyproject.toml
	@case '$(PADDLE)' in cpu|cpu26|gpu) ;; *) echo "PADDLE=$(PADDLE): expected cpu, cpu26 or gpu"; exit 2;; esac
	@command -v '$(PYTHON)' >/dev/null || { echo "$(PYTHON) not found: apt-get install -y python3 python3-venv"; exit 2; }
	@'$(PYTHON)' -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("$(PYTHON) is Python %d.%d; Paddle needs 3.10, 3.11 or 3.12: make $(MAKECMDGOALS) PYTHON=python3.11" % v)'
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: apt-get install -y python3-venv"; exit 2; }
	@'$(BIN)/python' -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear '$(VENV)'
	@echo "installing $(EXTRAS) into $(VENV) (a minute or two)" && rm -f '$(VENV)'/.ready-*
	@'$(BIN)/python' -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' \
	  $(foreach requirement,$(OTHER),'$(requirement)') $(if $(PADDLE_INDEX),--extra-index-url '$(PADDLE_INDEX)')
	@'$(BIN)/python' -c 'import ppcls_nb'
	@touch '$@'

$(VENV)/.ready-docs: $(READY)
	@'$(BIN)/python' -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch '$@'

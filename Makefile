# Every target says what it does: run `make`. Nothing is needed but Python 3.11 or later and make itself.
# pip options, such as an index of CPU builds of torch where none is at hand, go in here:
#   make setup PIP_ARGS="…"   options for pip, such as an index of CPU builds of torch

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

HERE := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
VENV := $(HERE)/.venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_ARGS ?=
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done; true)

# Another kind of processor: the oldest instructions that each library has, and two threads where the tests take one.
# Two cases of each test are enough there: the others take the same way through the same libraries.
OTHER := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem \
	STEMMA_TEST_THREADS=2 STEMMA_TEST_CASES=1 OMP_WAIT_POLICY=passive

# Two workers: each begins with the files of its half, whose fixtures it makes alone, then helps the other out.
TWO := -n 2 --dist worksteal

.PHONY: help setup demo test check fix slow other bench figures schemas site clean

help: ## say what each target does
	@grep -hE '^[a-z]+:.*## ' '$(HERE)/Makefile' | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(READY) ## make .venv with everything that the demo and the tests need (again only when pyproject.toml changed)

$(READY): $(HERE)/pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Stemma needs Python 3.11 or later; set it with: make setup PYTHON=/path/to/python' >&2; exit 1; }
	@test -x '$(BIN)/python' || { echo 'making $(VENV) with $(PYTHON)' >&2; \
	  '$(PYTHON)' -m venv '$(VENV)' 2>/dev/null || '$(PYTHON)' -m venv --without-pip --clear '$(VENV)'; }
	@echo 'installing Stemma and its test tools: about a minute' >&2
	@cd '$(HERE)' && if '$(BIN)/python' -m pip --version >/dev/null 2>&1; \
	  then '$(BIN)/python' -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'; \
	  else '$(PYTHON)' -m pip --python '$(BIN)/python' install -qq $(PIP_ARGS) --editable '.[test]'; fi
	@touch '$(READY)'

demo: $(READY) ## build a family of small networks, enrol it, trace a disguised suspect
	@'$(BIN)/stemma' demo

test: $(READY) ## checks and the fast tests, two at a time; fails if either does
	@cd '$(HERE)' && code=0; $(MAKE) --no-print-directory check || code=$$?; \
	  '$(BIN)/python' -m pytest $(TWO) -m 'not slow' || code=$$?; exit $$code

check: $(READY) ## formatting, lint, types, dead code, and who may import whom
	@cd '$(HERE)' && '$(BIN)/ruff' format --check --quiet .
	@cd '$(HERE)' && '$(BIN)/ruff' check --quiet .
	@cd '$(HERE)' && '$(BIN)/ty' check --quiet src
	@cd '$(HERE)' && '$(BIN)/vulture'
	@cd '$(HERE)' && { found=$$('$(BIN)/lint-imports' 2>&1) || { echo "$$found"; exit 1; }; }

fix: $(READY) ## repair what can be repaired by itself: formatting, import order, simple lint
	@cd '$(HERE)' && '$(BIN)/ruff' check --fix --quiet . ; '$(BIN)/ruff' format --quiet .

slow: $(READY) ## the slow tests, two at a time
	@cd '$(HERE)' && '$(BIN)/python' -m pytest $(TWO) -m slow || { code=$$?; test $$code -eq 5; }

other: $(READY) ## tests as another kind of processor runs them, but for documents: what is trained anew there changes no result
	@cd '$(HERE)' && cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	  env $(OTHER) STEMMA_CACHE="$$cache" '$(BIN)/python' -m pytest $(TWO) -m 'not anywhere'

bench: $(READY) ## measure speed and error rates (STEMMA_DATA=DIR: the data sets), and write benchmarks/results
	@cd '$(HERE)' && for f in benchmarks/*.py; do echo "$$f" >&2; '$(BIN)/python' "$$f"; done

figures: $(READY) ## write the measured figures of benchmarks/results into the documents
	@'$(BIN)/python' '$(HERE)/docs/figures.py'

site: $(READY) ## the documents as a site, in build/site (installs Sphinx into .venv)
	@cd '$(HERE)' && '$(BIN)/python' -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --editable '.[docs]'
	@cd '$(HERE)' && '$(BIN)/python' -m sphinx -q -b html docs build/site && echo 'see build/site/index.html'

schemas: $(READY) ## write the JSON schemas of all documents into docs/schemas
	@'$(BIN)/python' '$(HERE)/docs/schemas.py'

clean: ## remove what these targets made (the environment, the demo, caches)
	@cd '$(HERE)' && rm -rf .venv demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

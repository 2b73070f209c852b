# make demo    set up, then run the quickstart      make check   lint and types
# make test    set up, then run all tests           make bench   measure against TRL (installs it apart)
# make ecosystem   other people's clients (openai, lm-eval, inspect-ai, its-hub; installed apart) against `posttrain serve`
# make test-long  what takes half an hour: whole recipes and jobs on several processes, killed and resumed; searches of the plan
# make test-ray    a job on a real Ray cluster of this machine (installs Ray apart)
# make site    the documentation as a site, links and anchors checked    make gallery   the same with reports of runs
# make dist    wheel and sdist, looked into, installed into an empty environment, and the quickstart from there
# make test-vllm   a real vLLM on the CPU, installed apart: its servers against our engines
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two environments in one folder: what a user has (the core, which the demo proves to be enough), and with it what the
# tests and checks need (linters, a type checker, the packages of the extras).
USER_READY := $(VENV)/.installed
READY := $(VENV)/.ready

.PHONY: demo test test-quick test-long test-ray test-vllm check format bench ecosystem site gallery dist clean

$(USER_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(USER_READY)

$(READY): $(USER_READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,audit,rl,serve,metrics]'
	touch $(READY)

demo: $(USER_READY)
	$(BIN)/posttrain quickstart

test: $(READY)
	$(BIN)/python -m pytest -n 2 --durations=25

test-long: $(READY)
	$(BIN)/python -m pytest -n 2 -m long

test-quick: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow and not long"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(PYTHON) -m venv $(VENV)-peer
	$(VENV)-peer/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)-peer/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/constraints.txt trl peft datasets
	$(BIN)/python -m benchmarks.against_trl --peer $(VENV)-peer/bin/python

# The clients' pins and ours do not agree everywhere, so they have an environment of their own; the server runs in ours.
CLIENTS_READY := $(VENV)-ecosystem/.ready
CLIENTS := $(VENV)-ecosystem/bin/python

$(CLIENTS_READY): tests/ecosystem/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-ecosystem
	$(CLIENTS) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(CLIENTS) -m pip install --quiet --disable-pip-version-check -r tests/ecosystem/requirements.txt -e .
	touch $(CLIENTS_READY)

ecosystem: $(READY) $(CLIENTS_READY)
	POSTTRAIN_COMMAND=$(BIN)/posttrain $(CLIENTS) -m pytest -m ecosystem tests/ecosystem

# The site's generator has an environment of its own: nothing of it is needed to write a page.
SITE_READY := $(VENV)-site/.ready
SITE := NO_MKDOCS_2_WARNING=1 $(VENV)-site/bin/mkdocs build --strict --config-file build/site-pages/mkdocs.yml

$(SITE_READY): docs/requirements.txt
	$(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $(SITE_READY)

site: $(READY) $(SITE_READY)
	$(BIN)/python -m tools.site
	$(SITE)

gallery: $(READY) $(SITE_READY)
	$(BIN)/python -m tools.site --gallery
	$(SITE)

dist: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m tools.dist

# Ray is a launcher for who has a cluster of it: its tests, with a real one of two nodes on this machine, have an
# environment of their own; `make test` leaves them out where Ray is not installed.
RAY_READY := $(VENV)-ray/.ready

$(RAY_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $(RAY_READY)

test-ray: $(RAY_READY)
	$(VENV)-ray/bin/python -m pytest -m "slow or not slow" tests/unit/launching/test_ray.py

# vLLM pins its own torch and much else, so its servers have an environment of their own; the tests run in ours. torch
# comes first, from the same place as ours. What is built for another torch, and serves pictures and sound, goes again.
VLLM_READY := $(VENV)-vllm/.ready
VLLM := $(VENV)-vllm/bin/python

$(VLLM_READY): tests/vllm/requirements.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VLLM) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM) -m pip install --quiet --disable-pip-version-check -r tests/vllm/requirements.txt
	$(VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_READY)

test-vllm: $(READY) $(VLLM_READY)
	POSTTRAIN_VLLM_PYTHON=$(VLLM) $(BIN)/python -m pytest -m vllm tests/vllm

clean:
	rm -rf $(VENV) $(VENV)-peer $(VENV)-ecosystem $(VENV)-ray $(VENV)-vllm $(VENV)-site $(VENV)-dist build dist *.egg-info

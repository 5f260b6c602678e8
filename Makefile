# make demo   the whole method on a laptop: data, expert, calibration, and messages through NeMo Guardrails
# make test   the tests
# Both create .venv and install what they need. Other targets: make lint, make test-hosts, make test-slow,
# make test-faults, make fuzz, make red-team, make lock, make docs-tables, make operate, make clean.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Models come from installed packages here, and nothing reports home.
export HF_HUB_OFFLINE := 1
export DO_NOT_TRACK := 1

# Other versions of NeMo Guardrails than the one in .venv, which is the newest.
HOSTS := 0.24.0

# A file's tests share servers and policies, so they stay in one process.
PARALLEL := -n 2 --dist loadfile

.PHONY: demo test test-hosts test-slow test-faults fuzz red-team lock docs-tables operate lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -3

demo: $(VENV)/.demo
	$(BIN)/ctd-calibrate demo --to demo-output

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL)

# Each version lies in a folder of its own, in front of the installed one.
test-hosts: $(VENV)/.dev $(HOSTS:%=$(VENV)/hosts/%)
	@set -e; for host in $(HOSTS); do echo "NeMo Guardrails $$host"; \
	  PYTHONPATH=$(CURDIR)/$(VENV)/hosts/$$host CTD_TEST_HOST=$$host $(BIN)/python -m pytest $(PARALLEL) tests/nemo; done

$(VENV)/hosts/%: $(VENV)/.dev
	$(PIP) --no-deps --target $@ nemoguardrails==$*

# The statistics in full, and what else is too slow for every day.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m slow

# Writes its figures to docs/reliability.md; takes about forty minutes.
test-faults: $(VENV)/.dev $(HOSTS:%=$(VENV)/hosts/%)
	$(BIN)/python -m pytest tests/faults tests/nemo/test_doors.py --faults=full
	@set -e; for host in $(HOSTS); do echo "NeMo Guardrails $$host"; \
	  PYTHONPATH=$(CURDIR)/$(VENV)/hosts/$$host CTD_TEST_HOST=$$host $(BIN)/python -m pytest tests/nemo/test_doors.py --faults=full; done

# Each target for FUZZ_SECONDS; what crashes is left in fuzz-output.
FUZZ_SECONDS := 60
fuzz: $(VENV)/.dev
	$(PIP) -e '.[fuzz]'
	@mkdir -p fuzz-output
	@set -e; for target in verdict normaliser policy body; do echo "Fuzzing: $$target"; \
	  $(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 \
	  -verbosity=0 -artifact_prefix=fuzz-output/; done

# Every dependency of every extra at one version, with hashes of its files; needs the package index. torch is not among
# them: there is a build for each device, and constraints.txt has its version.
lock: $(VENV)/.dev
	$(PIP) pip-tools
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/python -m piptools compile --quiet --all-extras --generate-hashes \
	  --strip-extras --unsafe-package torch --unsafe-package ctd-guardrail --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	  --constraint constraints.txt --output-file requirements.lock pyproject.toml

# The tables of settings in docs/, from the models.
docs-tables: $(VENV)/.dev
	$(BIN)/python -m tools.settings_tables

# Sidecar, judge and Prometheus (apt-get install prometheus) on this machine, and every panel of the dashboard.
operate: $(VENV)/.dev
	$(BIN)/python -m benchmarks.operations.dashboard --picture docs/images/dashboard.png

# garak, a public scanner, against a NeMo Guardrails server and the sidecar, all on loopback. With the demonstration's rail
# it writes its figures to docs/red-team.md; about five minutes after the installation and the demonstration.
GARAK := 0.17.1
SCANNER := .venv-red-team
RAIL := demo-output/rails
HARMLESS := demo-output/data/unseen.jsonl
ifeq ($(RAIL),demo-output/rails)
red-team: PAGE := --page docs/red-team.md
red-team: | $(RAIL)/policy/policy.json
endif
red-team: $(VENV)/.dev $(SCANNER)/.garak-$(GARAK)
	$(BIN)/python -m benchmarks.operations.red_team $(RAIL) --harmless $(HARMLESS) \
	  --python $(SCANNER)/bin/python --to red-team-output $(PAGE)

# An environment of its own: garak brings over a hundred packages, some of them pinned.
$(SCANNER)/.garak-$(GARAK):
	$(PYTHON) -m venv $(SCANNER)
	$(SCANNER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(SCANNER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt garak==$(GARAK)
	@touch $@

demo-output/rails/policy/policy.json: | $(VENV)/.dev
	$(BIN)/ctd-calibrate demo --to demo-output

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(SCANNER) demo-output fuzz-output red-team-output build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	# torch first, and alone: whatever depends on it then finds it and does not bring a build for another device.
	@echo "Installing torch (a minute or so)..."
	$(PIP) torch

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing ctd-guardrail and what it needs (a minute or two)..."
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing ctd-guardrail and its development tools (a minute or two)..."
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

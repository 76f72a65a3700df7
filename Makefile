# SPDX-License-Identifier: Apache-2.0
# Names for commands; what they do is in tools/ and in the `cube` and `measured-image` commands.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install up down outputs token env test check lock bench bench-verify fuzz
PYTHON ?= python3
BIN := .venv/bin
DOMAIN ?= acme

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | sed 's/\$$\$$/$$/' | expand -t 20

install:
	@$(PYTHON) tools/packages.py

up: install ## Build, boot, attest, admit; ask the model one question; say how to go on.
	@$(BIN)/python tools/local.py up

down: install ## Remove everything that `up` started.
	@$(BIN)/python tools/local.py down

outputs: install ## The stack's outputs as JSON.
	@$(BIN)/python tools/local.py outputs

token: install ## A token of a domain: make -s token DOMAIN=acme
	@$(BIN)/cube token issue $(DOMAIN)

env: install ## Exports for a shell: eval "$$(make -s env)"
	@$(BIN)/python tools/local.py env

check: install ## Format, lint, types, import rules and fast tests; no root, no engine, at most 2 minutes.
	@$(BIN)/python -m pytest -q -m "not slow and not engine and not image and not machine"

test: install ## All tests.
	@$(BIN)/python tools/local.py prepare
	@$(BIN)/python -m pytest -q

lock: install ## Refresh requirements.lock.
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/lock_requirements.py

bench: install ## Times per phase, three runs, median.
	@$(BIN)/python bench/up.py

bench-verify: install ## What a verdict costs, beside yardsticks measured in the same run.
	@$(BIN)/python bench/verify.py

fuzz: install ## Fuzz every parser of bytes from outside: make fuzz FUZZ="--seconds 60"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-fuzz.lock
	@$(BIN)/python tests/fuzz/run.py --corpus build/fuzz/corpus --output build/fuzz/last $(FUZZ)

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.schoolhouse-installed
SOURCES := src tests bench

.PHONY: help setup quickstart test check fmt bench golden docs debian-packages gym

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

setup: $(STAMP) ## make .venv with everything pinned (CPU build of torch, no compiler needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}; name another with make PYTHON=python3.12")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into .venv (about 1 GB with torch's CPU build, a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

quickstart: setup ## teach an open model to reason, on this machine (25 minutes on two cores)
	$(BIN)/schoolhouse run recipes/quickstart.toml

test: setup debian-packages gym ## run the whole test suite
	$(BIN)/python -m pytest

# The kernels want a compiler, the report's screenshot test a real browser; without them those tests are skipped.
debian-packages:
	@command -v c++ >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && \
		echo "installing g++ for the kernels" && { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ libc6-dev python3-dev; } >/dev/null 2>&1; } || \
		echo "there is no C++ compiler; the kernels' tests will be skipped (Debian: apt-get install g++)"
	@if command -v chromium >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "installing chromium for the browser tests"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
			>/dev/null 2>&1 || echo "chromium could not be installed; the browser tests will be skipped"; \
	else echo "there is no chromium; the browser tests will be skipped (Debian: apt-get install chromium)"; fi

# One of Reasoning Gym's own dependencies is built from source.
gym: setup
	@$(BIN)/python -c 'import reasoning_gym' 2>/dev/null || \
		$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[gym]' 2>/dev/null || \
		echo "reasoning-gym cannot be built here; its tests will be skipped (Debian: apt-get install g++ python3-dev)"

check: setup ## lint, formatting, types, layers
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup ## format the code and mend what can be mended
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: setup ## list the benchmarks, each a command whose result lies beside it, and what they found
	@grep -lE '^    python bench/' bench/*.py | while read -r file; do \
		printf '  %s %s\n      %s\n' "$(BIN)/python" "$$file" "$$(sed -nE '1s/^"""([^"]*).*/\1/p' "$$file")"; done
	@$(BIN)/python bench/table.py

golden: setup ## keep the curves of tiny trainings anew, after a change that means to change them
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/golden/test_curves.py

docs: setup ## write docs/recipes.md anew, and check every command, symbol and link in the documentation
	$(BIN)/python tests/recipe_keys.py
	$(BIN)/python -m pytest tests/cli tests/unit/test_house.py tests/unit/test_papers.py

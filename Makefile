# Needs Python 3.11 or newer and make; everything else goes into .venv. Paths are relative, so that a checkout may stand
# anywhere, in a folder with blanks too.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv/bin/python
READY := .venv/.ready
LESSONS := .venv/.lessons

.DEFAULT_GOAL := help
.PHONY: help demo test nightly mutants claims lessons bench oracles format clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "PYTHON=python3.13 chooses the interpreter of a new .venv (now: $(PYTHON)); WORKERS=4 the test processes."

demo: $(READY) ## train, adapt, compress and question a small Llama here; writes runs/demo/report.html
	@.venv/bin/puna demo

test: $(READY) ## lint, types and every test that belongs to a change
	$(VENV) -m ruff check
	$(VENV) -m ruff format --check
	$(VENV) -m mypy
	OMP_NUM_THREADS=1 $(VENV) -m pytest -n $(WORKERS)

nightly: $(READY) mutants ## the same laws with larger counts, and the mutants
	PUNA_COUNTS=nightly OMP_NUM_THREADS=1 $(VENV) -m pytest -n $(WORKERS) -m "not gpu" -o timeout=3600

mutants: $(READY) ## break each law on purpose; its test must fail
	OMP_NUM_THREADS=1 $(VENV) tests/mutants/run.py

claims: $(READY) ## run the commands of docs/claims.toml again, and write docs/claims.md
	$(VENV) -m tests.claims

lessons: $(READY) $(LESSONS) ## run the chapters of docs/zh as notebooks (build/lessons), and write them in Simplified Chinese (docs/zh-hans)
	$(VENV) bench/lessons.py

bench: $(READY) ## our training step beside transformers, and what a conversion costs
	$(VENV) bench/train.py
	$(VENV) bench/convert.py

oracles: $(READY) .oracles/llama.cpp ## build llama.cpp (10 minutes), ask it, and record what it says in tests/oracles/fixtures
	OMP_NUM_THREADS=1 $(VENV) -m tests.oracles.llama_cpp

.oracles/llama.cpp:
	@mkdir -p .oracles/source
	$(PYTHON) -m venv .oracles/llama
	.oracles/llama/bin/python -m pip download --quiet --no-deps --no-binary=:all: -d .oracles/source llama-cpp-python==0.3.36
	tar xzf .oracles/source/llama_cpp_python-0.3.36.tar.gz -C .oracles/source
	.oracles/llama/bin/python -m pip install --quiet ./.oracles/source/llama_cpp_python-0.3.36
	@ln -sfn source/llama_cpp_python-0.3.36/vendor/llama.cpp .oracles/llama.cpp

format: $(READY) ## rewrite the sources as ruff would have them
	$(VENV) -m ruff check --fix
	$(VENV) -m ruff format

clean: ## remove .venv and every cache, but no run
	rm -rf .venv build dist docs/zh-hans ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		found=$$($(PYTHON) -V 2>/dev/null | head -n 1); \
		echo "error: Puna needs Python 3.11 or newer; $(PYTHON) is $${found:-no such program}" >&2; \
		echo "hint: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up .venv; this happens once and takes some minutes"
	@$(PYTHON) -m venv .venv
	@$(VENV) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(READY)

$(LESSONS): pyproject.toml constraints.txt | $(READY)
	@$(VENV) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(LESSONS)

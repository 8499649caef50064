# make demo and make test need Python 3.10 to 3.13 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/moe-eval run --output_dir benchmark_results/demo_$$(date +%Y%m%dT%H%M%S)
	@echo "The run is in MLflow: start '$(BIN)/mlflow ui' here and open http://127.0.0.1:5000, experiment moe_eval."

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/house/counts.py

# The constraints pin what the tests ran with; torch is the CPU build of that version where an index has one.
$(VENV)/.installed: pyproject.toml constraints.txt packaging/startup_hook.py packaging/moe_eval.pth
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v < (3, 14) else "moe_eval needs Python 3.10 to 3.13, and %s is %d.%d: run make PYTHON=python3.12 (or another of them)." % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)

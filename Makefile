# make demo: set everything up, run grids/digits.yaml on this machine, leave report.html
# make test: set everything up and run the tests; make test-long: the slow ones too; make lint: style and types
# make golden: keep what the methods compute now, after a version was raised

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_NUM_THREADS := 1

.PHONY: demo test test-long golden lint clean

demo: $(READY)
	$(BIN)/lethe run grids/digits.yaml
	$(BIN)/lethe report --format md
	$(BIN)/lethe report --out report.html

# Two processes, each with whole files: more would starve the Ray clusters that some tests start. In the order
# of the folders: files with few tests are often the slowest ones, and must not be left for the end.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(READY)
	$(BIN)/python -m pytest -m "long or not long"

golden: $(READY)
	$(BIN)/python -m tests.contract.golden

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Lethe needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	@touch $(READY)

clean:
	rm -rf $(VENV) results report.html *.egg-info build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

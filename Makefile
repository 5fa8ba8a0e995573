# make demo   builds .venv, installs, simulates four hospitals and writes runs/demo/report.html
# make test   builds .venv if needed, checks style and types, runs the whole test suite
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# A .venv that was left half-made has no pip and is made anew; where Python lacks ensurepip, its own pip fills .venv.
HAS_PIP := $(BIN)/python -m pip --version >/dev/null 2>&1

.PHONY: install demo test lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("wardround needs Python 3.11, 3.12 or 3.13 (a library it reads DICOM with has no package for later ones), this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.13 ...") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	$(HAS_PIP) || $(PYTHON) -m venv --clear .venv || $(PYTHON) -m venv --clear --without-pip .venv
	pip="$(BIN)/python -m pip"; $(HAS_PIP) || pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	$$pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/wardround simulate configs/demo.toml --fresh

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# In the order of the folders: the slow files of tests/simulation come in the middle, and quick ones fill the end.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache

# Two targets need nothing else: `make demo` and `make test`.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	$(PYTHON) -m hamming_engine demo $(QUESTIONS)

test: $(INSTALLED)
	$(PYTHON) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(INSTALLED)
	$(PYTHON) -m pip install --quiet --editable '.[bench,demo]'
	$(PYTHON) benchmarks/flat.py
	$(PYTHON) benchmarks/packing.py
	$(PYTHON) benchmarks/streaming.py
	$(PYTHON) benchmarks/store.py
	$(PYTHON) benchmarks/asymmetric.py
	$(PYTHON) benchmarks/quality.py
	$(PYTHON) benchmarks/ann.py
	$(PYTHON) benchmarks/training.py
	$(PYTHON) benchmarks/finetuning.py
	$(PYTHON) benchmarks/report.py
	cd notebooks && $(abspath $(VENV))/bin/jupyter execute --inplace \
		benchmarks.ipynb quality.ipynb training.ipynb

$(INSTALLED): pyproject.toml
	python3 -m venv $(VENV)
	# First, and this one: what else needs it takes what is there, and not gigabytes for a GPU.
	$(PYTHON) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .cache build *.egg-info

# A fresh machine needs only Python 3.11 or newer: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-browser docs attack test-cluster check format clean

demo: $(INSTALLED)  ## pre-train a small ResNet on built-in photographs, and try it on others
	$(BIN)/fastmim pretrain --config examples/demo.yaml --out runs/demo
	$(BIN)/fastmim visualise runs/demo --images samples://coffee,chelsea --out runs/demo/unseen.png

test: $(INSTALLED)  ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-browser: $(INSTALLED)  ## the report in a browser; needs: apt-get install chromium chromium-driver
	$(BIN)/python -m pytest -m browser tests

docs: $(INSTALLED)  ## build the documentation site in build/docs, with warnings as errors
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

SCALE ?= 1
SEED ?= 0
attack: $(INSTALLED)  ## try to break the promises: SCALE=0.05 SEED=1 ONLY="kills disks" CASE=17 RECORD=attack.json
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m attack $(ONLY) --scale $(SCALE) --seed $(SEED) \
		$(if $(CASE),--case $(CASE)) $(if $(RECORD),--record $(RECORD))

test-cluster: $(INSTALLED)  ## run a job on a Slurm cluster made on this machine; as root, with slurm-wlm and munge
	OMP_NUM_THREADS=1 $(BIN)/python tests/cluster/run.py

check: $(INSTALLED)  ## check style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/lint-imports

format: $(INSTALLED)  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# constraints.txt pins a matching torch and torchvision; pip alone may install a pair that does not match.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info src/*.egg-info

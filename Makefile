# Every target sets itself up: all it needs is Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-exhaustive bench lint pythons triton-versions

demo: $(INSTALLED)
	@echo 'prompt: hacker:'
	@$(BIN)/event-tensor generate demo --prompt 'hacker:' --max-new-tokens 120

# a file's tests share what they have compiled, and so stay in one process
test: lint
	$(BIN)/pytest -n 2 --dist loadfile -q

# the cases of which `make test` takes a sample, all of them; about a quarter of an hour
test-exhaustive: $(INSTALLED)
	$(BIN)/python benchmarks/protocol/suite_time.py --exhaustive

bench: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/cpu/decode.py

# every supported Python that is there, each in an environment of its own
pythons:
	.ci/pythons

# the GPU worker compiled by the oldest and the newest supported Triton; needs no GPU
triton-versions:
	$(PYTHON) benchmarks/gpu/triton_versions.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

# `make demo` and `make test` do all the set-up on a fresh machine; nothing else need be installed first but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check package slow clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo

test: check
	$(BIN)/python -m pytest --cov -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The checks that take minutes: every photo of every model, and the rules in onnx's own evaluator.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Builds the wheel, compares its contents with the repository, and tries it in a clean venv outside the checkout.
package: $(VENV)/.dev
	$(BIN)/python -m scripts.check_wheel

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cpu,demo]'
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cpu,demo,dev]'
	# The tests need its architectures, which are plain Python. Without its dependencies: its compiled operators, which no
	# classifier uses, belong to one build of torch, and pip would replace the build above to suit them.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchvision==0.29.2
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output

# `make demo` and `make test` do all the set-up on a fresh machine; nothing else need be installed first but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check package slow openvino hosts triton gpu clean

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

# Recipro-CAM and RISE beside openvino-xai.
openvino: $(VENV)/.dev $(VENV)-openvino/.ready
	$(BIN)/python -m pytest tests/packages/test_openvino_xai.py

# explain.onnx in Node, and in Chromium if it is installed.
hosts: $(VENV)/.dev tests/hosts/node_modules/.ready
	$(BIN)/python -m pytest tests/hosts

# The models of --triton in a Triton server.
triton: $(VENV)-triton/.ready
	$(VENV)-triton/bin/python -m pytest tests/triton

# On a machine with an NVIDIA GPU: what needs one (under compute-sanitizer too, where that is installed), and the benchmark.
gpu: $(VENV)-gpu/.ready
	$(VENV)-gpu/bin/python -m pytest -m gpu tests/gpu
	$(VENV)-gpu/bin/python -m benchmarks.gpu -o docs/gpu.md

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
	# The methods are compared with these. Without their dependencies, which would bring that torchvision's torch, pymongo
	# and more; what they import is in `dev`.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps captum==0.9.0 grad-cam==1.5.7 torchcam==0.5.0 \
		torchray==1.0.0.2 ttach==0.0.3
	touch $@

# onnxruntime-gpu instead of onnxruntime: both install the same package.
$(VENV)-gpu/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/pip install --quiet --disable-pip-version-check --editable '.[gpu,demo,dev]'
	$(VENV)-gpu/bin/pip install --quiet --disable-pip-version-check --no-deps torchvision==0.29.2
	touch $@

# NumPy 1 and an OpenVINO of 2024, so an environment of its own.
$(VENV)-openvino/.ready: Makefile
	$(PYTHON) -m venv $(VENV)-openvino
	$(VENV)-openvino/bin/pip install --quiet --disable-pip-version-check openvino-xai==1.1.0
	touch $@

# Without scripts: that of onnxruntime-node fetches CUDA.
tests/hosts/node_modules/.ready: tests/hosts/package.json
	cd tests/hosts && npm install --ignore-scripts --no-audit --no-fund --no-package-lock
	touch $@

# NumPy 1 and an older protobuf; the server's Python backend needs the engine.
$(VENV)-triton/.ready: Makefile pyproject.toml
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/pip install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0 'numpy<2' pytest==9.2.0 \
		--editable '.[cpu]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-openvino $(VENV)-triton $(VENV)-gpu tests/hosts/node_modules build dist *.egg-info demo-output

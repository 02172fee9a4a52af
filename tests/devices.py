"""The devices of the engine, for tests that each of them must pass."""

import importlib.util

import pytest

CPU, OPENVINO = "cpu", "openvino"

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs openvino: pip install 'ada-sise-engine[openvino]'"
)
DEVICES = [CPU, pytest.param(OPENVINO, marks=needs_openvino)]
"""To parametrise tests with."""

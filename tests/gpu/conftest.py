"""What needs an NVIDIA GPU; elsewhere it is skipped, and pytest says so."""

import pytest

from engine.backends.onnxruntime_cuda import expect_cuda
from engine.errors import BackendError


def missing() -> str:
    """Say why there is no GPU; empty if there is one."""
    try:
        expect_cuda()
    except BackendError as err:
        return str(err)
    return ""


@pytest.fixture(autouse=True, scope="package")
def _gpu() -> None:
    if reason := missing():
        pytest.skip(f"needs an NVIDIA GPU: {reason}")

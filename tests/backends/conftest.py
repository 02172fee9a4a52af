from pathlib import Path

import onnx
import pytest

from tests.tiny_cnn import tiny_cnn


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """The tiny CNN in a file."""
    onnx.save(tiny_cnn(), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"

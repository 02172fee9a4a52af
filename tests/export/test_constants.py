import re

import numpy as np
import pytest

from engine.errors import ModelError
from engine.export.constants import LARGEST_TENSOR, compute
from tests.export.networks import node


def test_outputs_come_in_order() -> None:
    split = node("Split", "x parts", "left right", axis=0)
    left, right = compute(split, {"x": np.arange(5.0), "parts": np.array([2, 3])}, 17)
    assert (left.tolist(), right.tolist()) == ([0, 1], [2, 3, 4])


def test_large_inputs_are_computed_with() -> None:
    x = np.arange(3000, dtype=np.float32).reshape(30, 100)
    (y,) = compute(node("Transpose", "x", "y"), {"x": x}, 17)
    np.testing.assert_array_equal(y, x.T)


def test_nan_and_infinity_give_no_warning() -> None:
    (y,) = compute(node("Div", "a b", "y"), {"a": np.float32([1, 0]), "b": np.float32([0, 0])}, 17)
    assert str(y.tolist()) == "[inf, nan]"


def test_output_that_is_too_large_is_not_computed() -> None:
    text = (
        "ConstantOfShape node 'node_y': makes 'y' of shape [1048576, 1048576] from constants; expected at most "
        f"{LARGEST_TENSOR} elements: check the file"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(text)}$"):
        compute(node("ConstantOfShape", "s", "y"), {"s": np.array([1 << 20, 1 << 20])}, 17)


def test_node_that_does_not_fit_its_inputs() -> None:
    text = (
        "Squeeze node 'node_y': cannot be computed from its constant inputs: axis 2 is out of bounds for array of "
        "dimension 1; expected a node that fits them, by the ONNX specification"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(text)}$"):
        compute(node("Squeeze", "x axes", "y"), {"x": np.ones(1, np.float32), "axes": np.array([2])}, 17)

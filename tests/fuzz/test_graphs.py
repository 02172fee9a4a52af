import numpy as np
import onnx
import pytest

from tests.fuzz.models import MODELS
from tests.fuzz.stage import Stage


def test_a_mutated_model_is_refused_or_explains(stage: Stage) -> None:
    counts = stage.search("graph", 600)
    assert counts["refused"] > 300
    assert counts["done"] > 10


@pytest.mark.parametrize("name", MODELS)
def test_without_edits_every_model_explains(name: str, stage: Stage) -> None:
    outcome = stage.attempt(stage.unedited(name))
    assert (outcome.kind, outcome.message) == ("done", "exported")


def test_the_models_cover_the_operators_that_classifiers_contain() -> None:
    found = {node.op_type for make in MODELS.values() for node in make(np.random.default_rng(0)).graph.node}
    expected = {"Conv", "BatchNormalization", "Concat", "Pad", "Slice", "Reshape", "Resize", "If", "Gemm", "MatMul"}
    assert expected <= found
    assert all(onnx.defs.has(name) for name in found - {"Twice"})

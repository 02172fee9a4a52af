from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import engine
from benchmarks.half_precision import KEPT, NEAREST, compare, figures, rounded, table
from engine.backends.half import TYPES
from tests.tiny_cnn import photo_pixels


def test_a_network_beside_itself(tiny_bundle: Path) -> None:
    with engine.load(tiny_bundle, tune=False) as explainer:
        one = explainer.explain(photo_pixels(), visualization_maps=True)
    found = figures([(one, one)])
    assert [found[name] for name in ("maps_median", "maps_largest", "same_cuts")] == [0, 0, 1]
    assert [found[f"rho_{name}"] for name in ("median", "tenth", "worst", "worst_with_same_cuts")] == [1] * 4


@pytest.mark.parametrize("way", [NEAREST, KEPT])
def test_only_half_precision_is_left(way: str, tiny_bundle: Path) -> None:
    graph = tiny_bundle / "forward.onnx"
    before = {own.name: numpy_helper.to_array(own) for own in onnx.load(str(graph)).graph.initializer}
    for precision, kind in TYPES.items():
        for tensor in onnx.load_from_string(rounded(graph, precision, way)).graph.initializer:
            values = numpy_helper.to_array(tensor)
            np.testing.assert_array_equal(values, values.astype(kind).astype(values.dtype))
            nearest = before[tensor.name].astype(kind).astype(values.dtype)
            if way == NEAREST:
                np.testing.assert_array_equal(values, nearest)
    assert way == NEAREST or rounded(graph, "float16", KEPT) != rounded(graph, "float16", NEAREST)


def test_the_table(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo_pixels()).save(tmp_path / "photo.png")
    with engine.load(tiny_bundle, tune=False) as explainer:
        rows = compare("tiny", explainer, [tmp_path / "photo.png"], tmp_path)
    assert [(row["precision"], row["weights"]) for row in rows] == [(p, w) for p in TYPES for w in (NEAREST, KEPT)]
    assert all(0 < row["maps_median"] < 1 and row["rho_worst"] < 1 for row in rows)
    rows[0]["rho_worst_with_same_cuts"] = None
    text = table({"machine": {}, "photos": 1, "rows": rows})
    assert text.count("| tiny | ") == 4

"""One image before the network."""

import pytest

import engine
from tests.tiny_cnn import photo_pixels


@pytest.mark.parametrize("method", ["layer-cam", "gradient", "full-grad", "recipro-cam", "group-cam"])
def test_opening_a_graph_is_a_phase_of_the_first_call(tiny_bundle, method: str) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    first, second = (explainer.explain(photo_pixels(), method=method).timings_ms for _ in range(2))
    assert ("open" in first) == (method != "group-cam")
    assert "open" not in second
    for timings in (first, second):
        parts = sum(ms for phase, ms in timings.items() if phase != "total")
        assert 0 < parts <= timings["total"]

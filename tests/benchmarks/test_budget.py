"""The comparison's own logic: the forms it adds to the engine's methods, its goals, and what beats what."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import engine
from benchmarks.budget_picture import draw
from benchmarks.budget_table import Way, beat_all_presets, forwards, frontier, goals, quantiles, shown, tables_of
from benchmarks.machine import write_between
from benchmarks.rivals import BundleModule, OpenvinoXai, UnavailableError
from benchmarks.ways import Budgeted, Elsewhere, EqualScores, ExactHeatmaps, Found, Likeness, Strongest, find_with
from engine.evaluation import Cost
from engine.spelling import spell
from tests.reference import method as reference
from tests.tiny_cnn import HEIGHT, WIDTH, photo_pixels


@pytest.fixture(scope="module")
def explainer(tiny_bundle: Path) -> engine.Explainer:
    return engine.load(tiny_bundle, threads=1, tune=False)


def rebuilt(explainer: engine.Explainer, count: int | None, equal: bool) -> np.ndarray:
    """The heatmap of the strongest masks, in proportion to each layer's, from the reference's formulas."""
    exact, maps = explainer.explain(photo_pixels()), explainer.probe(photo_pixels()).tap().maps
    layers = list(zip(exact.layers, maps, strict=True))
    kept = [[c for c in layer.selected_channels if not reference.is_flat(own[c])] for layer, own in layers]
    order = sorted((n / len(of), -layer, of[n]) for layer, of in enumerate(kept) for n in range(len(of)))[:count]
    views = []
    for number, (layer, of_layer) in enumerate(layers):
        channels = [channel for _, place, channel in order if place == -number]
        known = dict(zip(layer.selected_channels, layer.scores, strict=True))
        scores = [1.0 if equal else known[channel] for channel in channels]
        views.append(reference.visualization_map(scores, of_layer[channels], HEIGHT, WIDTH) if channels else None)
    heatmap, _ = reference.fuse(views)
    return heatmap


@pytest.mark.parametrize("count", [3, 5, 7])
def test_the_strongest_masks_and_no_others(explainer: engine.Explainer, count: int) -> None:
    found = explainer.explain(photo_pixels(), method=Strongest(masks=count))
    np.testing.assert_allclose(found.heatmap, rebuilt(explainer, count, equal=False), atol=1e-5)
    assert found.evaluations == {"tapped": 1, "forward": count}
    assert found.scored == count < found.scorable


def test_the_strongest_of_all_masks_are_exact(explainer: engine.Explainer) -> None:
    exact = explainer.explain(photo_pixels())
    found = explainer.explain(photo_pixels(), method=Strongest(masks=10**6))
    np.testing.assert_array_equal(found.heatmap, exact.heatmap)


def test_equal_scores_ask_the_network_nothing(explainer: engine.Explainer) -> None:
    found = explainer.explain(photo_pixels(), method=EqualScores())
    np.testing.assert_allclose(found.heatmap, rebuilt(explainer, None, equal=True), atol=1e-5)
    assert found.evaluations == {"tapped": 1}
    assert np.abs(found.heatmap - explainer.explain(photo_pixels()).heatmap).max() > 0.01


def test_budgeted_is_the_budget(explainer: engine.Explainer) -> None:
    found = explainer.explain(photo_pixels(), method=Budgeted(masks=5))
    np.testing.assert_array_equal(found.heatmap, explainer.explain(photo_pixels(), max_masks=5).heatmap)
    assert found.scored == 5


def test_what_is_found_elsewhere_is_passed_on(explainer: engine.Explainer) -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def find(image: np.ndarray, target: int) -> Found:
        asked.append((image.shape, target))
        heatmap = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
        return Found(heatmap=heatmap, milliseconds=3.0, evaluations={"forward": 42})

    way = Elsewhere(way="another", find=find)
    found = explainer.explain(photo_pixels(), 3, method=way)
    assert asked == [((1, 3, HEIGHT, WIDTH), 3)]
    assert found.heatmap[0, 1] == pytest.approx(1 / (HEIGHT * WIDTH - 1))
    assert found.evaluations == {"forward": 42}
    assert spell(way) == "elsewhere:way=another"


def test_another_explainer_is_asked_as_the_way_is_spelled(explainer: engine.Explainer) -> None:
    image = explainer.probe(photo_pixels()).image
    found = find_with(explainer, "ada-sise:preset=fast:rule=positive")(image, 2)
    other = explainer.explain(image, 2, preset="fast", rule="positive")
    np.testing.assert_array_equal(found.heatmap, other.heatmap)
    assert found.evaluations == other.evaluations
    assert found.milliseconds > 0


def test_likeness_is_spearmans_with_the_exact_heatmap(explainer: engine.Explainer) -> None:
    calls = []

    def explain(*arguments: Any, **options: Any) -> engine.Explanation:
        calls.append(arguments[1])
        return explainer.explain(*arguments, **options)

    likeness = Likeness(exact=ExactHeatmaps(SimpleNamespace(explain=explain)))  # type: ignore[arg-type]
    image = explainer.probe(photo_pixels()).image
    for target in (1, 1, 2):
        other = explainer.explain(image, target, method="grad-cam")
        exact = explainer.explain(image, target).heatmap
        explained: Any = SimpleNamespace(heatmap=other.heatmap, image=image, explanation=other)
        expected = stats.spearmanr(other.heatmap.ravel(), exact.ravel()).statistic
        assert likeness.compute(explained) == pytest.approx(expected, abs=1e-9)
    assert calls == [1, 2]
    assert repr(likeness) == "Likeness()"


def test_the_bundle_in_torch_computes_the_same_logits(explainer: engine.Explainer) -> None:
    probe = explainer.probe(photo_pixels())
    with torch.inference_mode():
        logits = BundleModule(explainer.bundle)(torch.from_numpy(probe.image)).numpy()
    np.testing.assert_allclose(logits, probe.logits, atol=1e-5)


def test_a_package_that_is_not_installed(tmp_path: Path) -> None:
    python = tmp_path / "python"
    with pytest.raises(UnavailableError, match=f"^{re.escape(str(python))} is not there: make openvino$"):
        OpenvinoXai(python, tmp_path / "model.onnx", "relu3")


def test_quantiles() -> None:
    assert quantiles([0.5, 0.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.0]) == pytest.approx((0.5, 0.1, 0.0))


def test_heads_are_no_forward_passes() -> None:
    counts = {"tapped": 1.0, "last_layer": 1.0, "forward.int8": 20.5, "head": 49.0, "head.grad": 1.0, "forward": 3.0}
    cost = Cost(pairs=1, photos=1, failures=0, milliseconds=1.0, scored=1.0, evaluations=counts)
    assert forwards(cost) == 25.5


def ways(*entries: tuple[str, float | None, float]) -> list[Way]:
    return [Way(name=name, cost=cost, quality={"ebpg": quality}) for name, cost, quality in entries]


PRESETS = (("ada-sise", 300.0, 60.0), ("ada-sise:preset=fast, int8", 20.0, 58.0))


@pytest.mark.parametrize(
    ("other", "beats"),
    [
        (("cam", 10.0, 61.0), True),
        (("cam", 10.0, 59.0), False),  # better than one preset only
        (("cam", 30.0, 61.0), False),  # faster than one preset only
        (("cam", 20.0, 61.0), False),  # as fast as one
        (("cam", 10.0, 60.0), False),  # as good as one
        (("cam", None, 61.0), False),  # not timed
    ],
)
def test_what_beats_every_preset(other: tuple[str, float | None, float], beats: bool) -> None:
    assert beat_all_presets(ways(*PRESETS, other), "ebpg") == (["cam"] if beats else [])


def test_frontier() -> None:
    known = ways(("a", 5, 1), ("b", 1, 0.5), ("c", 1, 0.4), ("d", 2, 0.5), ("e", 9, 2), ("f", None, 9), ("g", 9, 1.5))
    assert [way.name for way in frontier(known, "ebpg")] == ["b", "a", "e"]


MEASURE = {"name": "drop", "title": "Drop", "unit": "%", "higher_is_better": False}


def of_way(forwards: float, mean: float, difference: Sequence[float] | None, rho: Sequence[float]) -> dict[str, Any]:
    values = {"mean": [mean, None, None], "difference": difference}
    return {"pairs": 8, "forwards": forwards, "measures": {"drop": values}, "spearman": list(rho)}


@pytest.fixture
def entry() -> dict[str, Any]:
    return {
        "pairs": 8,
        "photos": 6,
        "measures": [MEASURE],
        "left out": {"rise": "no time"},
        "ways": {
            "ada-sise": of_way(300, 10.0, None, (1, 1, 1)),
            "ada-sise:preset=fast": of_way(26, 10.4, (0.4, -0.5, 1.5), (0.97, 0.9, 0.7)),
            "budgeted:masks=50": of_way(51, 10.2, (0.2, -0.5, 1.5), (0.879, 0.8, 0.7)),
            "budgeted:masks=100": of_way(101, 9.0, (-1.1, -2.5, 0.5), (0.93, 0.8, 0.7)),
            "ada-sise, int8": of_way(300, 10.0, (0.0, -0.1, 0.1), (0.995, 0.97, 0.949)),
            "grad-cam": of_way(1, 9.0, (-1.0, -2.5, 0.5), (0.7, 0.5, 0.3)),
        },
    }


def test_goals(entry: dict[str, Any]) -> None:
    assert goals(entry) == [
        "- **not met**: 100 masks, Drop within one point of exact: -1.1 (-2.5 … +0.5)",
        "- **met**: 100 masks, median ρ with exact at least 0.93: 0.930",
        "- **not met**: 50 masks, median ρ with exact at least 0.88: 0.879",
        "- **not met**: int8, every mask: ρ with exact at least 0.99 in the median, 0.95 at worst: 0.995, 0.949",
        "- **met**: nothing is with fewer forward passes and better by all measures than every preset",
        "- with fewer forward passes than every preset, and better by Drop alone: grad-cam",
    ]


def test_ways_are_compared_on_the_pairs_that_they_share_with_exact(entry: dict[str, Any]) -> None:
    # By its own mean the way loses little; on the same pairs exact loses less.
    entry["ways"]["grad-cam"] = of_way(1, 5.0, (3.0, 1.0, 4.0), (0.7, 0.5, 0.3))
    assert goals(entry)[-1] == "- with fewer forward passes than every preset, and better by Drop alone: nothing"


def test_times_are_judged_when_every_preset_has_one(entry: dict[str, Any]) -> None:
    times = {"ada-sise": 900.0, "ada-sise:preset=fast": 90.0, "grad-cam": 20.0}
    entry["times"] = {way: {"median": ms, "low": ms - 1, "high": ms + 1} for way, ms in times.items()}
    assert not any("faster" in line for line in goals(entry))
    entry["times"]["ada-sise, int8"] = {"median": 500.0, "low": 1.0, "high": 2.0}
    assert goals(entry)[-1] == "- faster than every preset, and better by Drop alone: grad-cam"


def test_tables(entry: dict[str, Any]) -> None:
    entry["times"] = {"ada-sise": {"median": 900.4, "low": 880.0, "high": 1920.0}}
    speed = {"median": 130.0, "low": 90.0, "high": 140.0}
    resnet50 = {"masks": 2081, "rounds": 5, "torch": speed, "fast": speed, "ratio": speed}
    lines = tables_of({"net": entry, "resnet50": resnet50}, {"net": Path("images/net.png")})
    assert "| ada-sise | 8 | 300 | 900 (880 … 1,920) | 10.0 | 1.000 / 1.000 / 1.000 |" in lines
    assert "| 50 | estimated | 10.2; +0.2 (-0.5 … +1.5) | 0.879 / 0.800 / 0.700 |" in lines
    assert "- Left out: rise, no time" in lines
    assert "- **met**: `fast` in int8 at least 100 times as fast: 130 (90 … 140)" in lines


def test_curves_are_no_ways_of_their_own(entry: dict[str, Any]) -> None:
    assert shown(entry) == ["ada-sise", "ada-sise:preset=fast", "ada-sise, int8", "grad-cam"]


def test_the_picture_has_a_row_for_times(entry: dict[str, Any], tmp_path: Path) -> None:
    draw(entry, "net", tmp_path / "one.png")
    entry["times"] = {way: {"median": 5.0} for way in entry["ways"]}
    draw(entry, "net", tmp_path / "two.png")
    one, two = (np.fromfile(tmp_path / name, ">u4")[4:6] for name in ("one.png", "two.png"))
    assert one[0] == two[0]
    assert one[1] < two[1]


def test_tables_replace_those_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("head\n<a>\nold\n<b>\nfoot\n", encoding="utf-8")
    for _ in range(2):
        write_between(page, ("<a>", "<b>"), ["new", "lines"])
        assert page.read_text(encoding="utf-8") == "head\n<a>\n\nnew\nlines\n<b>\nfoot\n"

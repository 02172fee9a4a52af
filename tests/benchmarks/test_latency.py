"""The benchmark's judgements: when engine and torch disagree, and which targets are met."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine
from benchmarks.latency import compare
from benchmarks.latency_table import table
from benchmarks.torch_eager import TorchExplanation
from tests.tiny_cnn import photo_pixels


@pytest.fixture(scope="module")
def result(tiny_bundle: Path) -> engine.Explanation:
    return engine.load(tiny_bundle, threads=1).explain(photo_pixels(), rule="positive")


@pytest.fixture
def twin(result: engine.Explanation) -> TorchExplanation:
    """The engine's own result as torch would return it, without the channels that were not scored."""
    scored = [~np.isnan(layer.scores) for layer in result.layers]
    return TorchExplanation(
        heatmap=torch.from_numpy(result.heatmap),
        target=result.target,
        selected=[torch.from_numpy(layer.selected_channels) for layer in result.layers],
        channels=[torch.from_numpy(layer.selected_channels[s]) for layer, s in zip(result.layers, scored, strict=True)],
        scores=[torch.from_numpy(layer.scores[s]) for layer, s in zip(result.layers, scored, strict=True)],
        total_s=2.0,
        score_s=1.0,
    )


def test_equal_results(result: engine.Explanation, twin: TorchExplanation) -> None:
    assert compare(result, twin) == {"other_masks": 0, "scores": 0.0, "heatmap_mean": 0.0}
    assert twin.masks == result.scored


@pytest.mark.parametrize("fault", ["mask", "score", "NaN", "heatmap"])
def test_results_that_disagree(result: engine.Explanation, twin: TorchExplanation, fault: str) -> None:
    others, score, mean = 0, "0.0e+00", "0.0e+00"
    if fault == "mask":
        twin = dataclasses.replace(twin, selected=[twin.selected[0][:-1], *twin.selected[1:]])
        others = 1
    elif fault == "score":
        twin.scores[1][0] += 0.002
        score = "2.0e-03"
    elif fault == "NaN":
        twin.scores[2][0] = torch.nan
        score = "nan"
    else:
        twin = dataclasses.replace(twin, heatmap=twin.heatmap.double() + 0.0025)
        mean = "2.5e-03"
    text = (
        f"the engine and torch disagree: {others} of {result.scored} masks selected by one and not the other "
        f"(allowed 1%), scores by {score} (allowed 1e-03), the heatmap by {mean} in the mean (allowed 1e-03)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        compare(result, twin)


def test_flat_maps_that_differ(result: engine.Explanation, twin: TorchExplanation) -> None:
    twin = dataclasses.replace(twin, channels=[twin.channels[0][1:], *twin.channels[1:]])
    text = "layer 'relu1': the engine and torch disagree on which maps are flat"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        compare(result, twin)


def report(**changes: Any) -> dict[str, Any]:
    """What is measured of a ResNet-50, in round figures."""
    timings = {"prepare": 1.0, "tap": 300.0, "select": 1.0, "score": 3700.0, "combine": 3.0, "fuse": 5.0}
    row = {
        "name": "resnet50",
        "weights_mb": 100.0,
        "load_average": 0.25,
        "masks": 100,
        "target": 3,
        "agreement": {"other_masks": 0, "scores": 1e-5, "heatmap_mean": 2e-7},
        "bare_ms": [4000.0, 3900.0, 4100.0],
        "bare_spread": 0.05,
        "engine_ms": [timings | {"total": total} for total in (4010.0, 3910.0, 4110.0)],
        "ratio": {
            "total": {"median": 0.9756, "low": 0.97, "high": 0.98, "confidence": 0.75},
            "score": {"median": 0.99, "low": 0.985, "high": 0.995, "confidence": 0.75},
        },
        "torch": {
            "torch": {"masks": [100, 100, 100], "total_s": [10.0, 9.0, 12.5], "score_s": [9.0, 8.0, 12.0]},
            "torch, channels last": {"masks": [100], "total_s": [6.25], "score_s": [6.0]},
            "torch.compile": {"failure": "RuntimeError: no compiler"},
        },
        "footprint": {
            "start_mb": 10.0,
            "import_s": 0.2,
            "loaded_mb": 450.0,
            "load_s": 0.6,
            "peak_mb": 1110.0,
            "runs": [0],
        },
    }
    options = {"threads": 2, "batch": 8, "pairs": 3, "repeats": 3}
    return {"machine": {"commit": "abc", "cores": 2}, "options": options, "models": [row | changes]}


def test_targets_that_are_met_and_not() -> None:
    text = table(report())
    lines = text[text.index("## Targets") : text.index("## Speed")].splitlines()[4:-1]
    assert lines == [
        "| resnet50: engine ÷ bare at least 0.97 | 0.976 (0.970 … 0.980) | yes |",
        "| resnet50: at least 2 times torch | 2.49 | yes |",
        "| resnet50: at least 2 times torch, channels last | 1.56 | no |",
        "| resnet50: loads in at most 1.5 s | 0.60 s | yes |",
        "| resnet50: peak at most 2.5 × the weights of two sessions + 600 MB = 1100 MB | 1100 MB | yes |",
    ]


def test_targets_that_are_missed() -> None:
    footprint = report()["models"][0]["footprint"] | {"load_s": 1.51, "peak_mb": 1112.0}
    ratio = {phase: {"median": 0.9699, "low": 0.9, "high": 0.98, "confidence": 0.75} for phase in ("total", "score")}
    text = table(report(footprint=footprint, ratio=ratio))
    assert "| resnet50: engine ÷ bare at least 0.97 | 0.970 (0.900 … 0.980) | no |" in text
    assert "| resnet50: loads in at most 1.5 s | 1.51 s | no |" in text
    assert "+ 600 MB = 1100 MB | 1102 MB | no |" in text


def test_the_tables_figures() -> None:
    text = table(report())
    assert (
        "| resnet50 | 100 | 25.0 | 24.9 | 0.976 (0.970 … 0.980) | 0.990 (0.985 … 0.995) | 10.0 | 16.0 | – "
        "| 2.49 / 1.56 / – |" in text
    )
    assert "resnet50: torch.compile failed with RuntimeError: no compiler" in text
    assert "| resnet50 | 1.0 | 300.0 | 1.0 | 3700.0 | 3.0 | 5.0 | 4010.0 | 100 |" in text
    assert "| resnet50 | 100.0 | 1100 | 440 | 0.60 | 0.20 |" in text
    assert "| resnet50 | 0 | 1.0e-05 | 2.0e-07 | 5.0% | 0.25 |" in text
    assert "with 3\npairs a 75% interval of the median" in text


def test_a_model_that_failed_is_named() -> None:
    failed = report()
    failed["models"].append({"name": "vgg16", "failure": "ValueError: the engine and torch disagree"})
    assert table(failed).endswith("## Failed\n\n* vgg16: ValueError: the engine and torch disagree\n")
    assert "## Targets" not in table(failed | {"models": failed["models"][1:]})

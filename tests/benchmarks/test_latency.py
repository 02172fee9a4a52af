"""The benchmark's judgements: when engine and torch disagree, and which targets are met."""

import dataclasses
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import engine
from benchmarks.latency import compare, in_lanes, one_session, ratios, rivals
from benchmarks.latency_table import table
from benchmarks.torch_eager import InterpretedModel, TorchExplanation
from engine.image import prepare
from tests.reference.network import TorchNetwork
from tests.tiny_cnn import photo_pixels, write_tiny_cnn


@pytest.fixture(scope="module")
def result(tiny_bundle: Path) -> engine.Explanation:
    return engine.load(tiny_bundle, threads=1).explain(photo_pixels(), rule="positive")


@pytest.fixture
def twin(result: engine.Explanation) -> TorchExplanation:
    return twin_of(result)


def twin_of(result: engine.Explanation) -> TorchExplanation:
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
    assert twin.masks == result.scored > 9


def test_with_a_budget_heatmaps_are_not_compared(tiny_bundle: Path) -> None:
    result = engine.load(tiny_bundle, threads=1).explain(photo_pixels(), rule="positive", max_masks=9)
    twin = dataclasses.replace(twin_of(result), heatmap=torch.zeros(1))
    assert compare(result, twin) == {"other_masks": 0, "scores": 0.0}
    assert twin.masks == 9


@pytest.mark.parametrize("fault", ["mask", "score", "NaN", "heatmap"])
def test_results_that_disagree(result: engine.Explanation, twin: TorchExplanation, fault: str) -> None:
    others, score, mean = 0, "0.0e+00", "0.0e+00"
    selected = sum(layer.selected for layer in result.layers)
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
        twin = dataclasses.replace(twin, heatmap=twin.heatmap.double() + 0.00025)
        mean = "2.5e-04"
    text = (
        f"the engine and torch disagree: {others} of {selected} masks selected by one and not the other "
        f"(allowed 1%), scores by {score} (allowed 1e-03), the heatmap by {mean} in the mean (allowed 1e-04)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        compare(result, twin)


def test_flat_maps_that_differ(result: engine.Explanation, twin: TorchExplanation) -> None:
    twin = dataclasses.replace(twin, channels=[twin.channels[0][1:], *twin.channels[1:]])
    text = "layer 'relu1': the engine and torch disagree on which maps are flat"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        compare(result, twin)


class FakeSession:
    """Takes the place of ONNX Runtime's session; notes the sizes of its batches."""

    opened: list["FakeSession"]

    def __init__(self, graph: Path, options: ort.SessionOptions, providers: list[str]) -> None:
        self.threads, self.sizes, self.at_once = options.intra_op_num_threads, list[int](), threading.Barrier(2)
        assert (graph, providers) == (Path("forward.onnx"), ["CPUExecutionProvider"])
        self.opened.append(self)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="image")]

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert outputs is None
        batch = inputs["image"]
        assert (batch.shape[1:], batch.dtype) == ((3, 4, 5), np.float32)
        if self.threads == 1 and len(batch) == 4:
            self.at_once.wait(10)  # breaks, and the run fails, unless another lane runs at the same time
        self.sizes.append(len(batch))
        return [batch]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeSession]:
    monkeypatch.setattr(FakeSession, "opened", [], raising=False)
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    return FakeSession.opened


def test_one_session_has_all_threads_on_the_engines_batches(opened: list[FakeSession]) -> None:
    run = one_session(Path("forward.onnx"), (3, 4, 5), 19, 8, 2)
    for _ in range(2):
        opened[0].sizes.clear()
        assert run()["total"] > 0
        assert opened[0].sizes == [8, 8, 3]
    assert [session.threads for session in opened] == [2]


def test_lanes_run_at_the_same_time_on_their_part_of_the_batch(opened: list[FakeSession]) -> None:
    run = in_lanes(Path("forward.onnx"), (3, 4, 5), 19, 8, 2)
    for _ in range(2):
        opened[0].sizes.clear()
        assert run()["total"] > 0
        assert sorted(opened[0].sizes) == [3, 4, 4, 4, 4]
    assert [session.threads for session in opened] == [1]


def test_a_lane_has_at_least_one_image(opened: list[FakeSession]) -> None:
    in_lanes(Path("forward.onnx"), (3, 4, 5), 5, 2, 3)()
    assert opened[0].sizes == [1] * 5


def test_a_lane_that_fails_is_not_silent(opened: list[FakeSession]) -> None:
    run = in_lanes(Path("forward.onnx"), (3, 4, 5), 8, 8, 2)
    opened[0].at_once.abort()
    with pytest.raises(threading.BrokenBarrierError):
        run()


class TinySubject:
    """The tiny CNN, of which torch.compile makes what a test wants."""

    def __init__(self, model: Path, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._model, self._forward = model, forward

    def network(self) -> InterpretedModel:
        network = InterpretedModel(TorchNetwork(self._model), ("relu1", "relu2", "relu3"))
        network.compiled = lambda batch: self._forward  # noqa: ARG005
        return network


def broken(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no compiler\nfound")


@pytest.mark.parametrize("compiler", ["works", "is missing", "is wrong"])
def test_torch_scores_the_engines_masks(tiny_bundle: Path, tmp_path: Path, compiler: str) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    x = prepare(photo_pixels(), explainer.bundle.preprocess, explainer.bundle.image_shape).array
    result = explainer.explain(x)
    model, _, _ = write_tiny_cnn(tmp_path)
    network = TorchNetwork(model)
    rows = []

    def run(batch: torch.Tensor) -> torch.Tensor:
        rows.append(len(batch))
        return network.run(batch, ["logits"], dtype=torch.float32)["logits"]

    forward = {"works": run, "is missing": broken, "is wrong": lambda batch: run(batch).flip(1)}[compiler]
    ways, agreement, failures = rivals(TinySubject(model, forward), x, result)  # type: ignore[arg-type]
    assert agreement["other_masks"] == 0
    assert agreement["scores"] <= 1e-5
    if compiler == "works":
        assert (list(ways), failures) == (["torch", "torch.compile"], {})
        assert rows == [32]
    else:
        assert list(ways) == ["torch"]
        start = (
            "RuntimeError: no compiler" if compiler == "is missing" else "ValueError: the engine and torch disagree:"
        )
        assert failures["torch.compile"].startswith(start)
        assert "\n" not in failures["torch.compile"]
    for way in ways.values():
        found = way()
        assert 0 < found["score"] <= found["total"]


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        {
            "engine": {"total": 10.0, "score": 8.0},
            "one session": {"total": 8.0},
            "torch": {"total": 25.0, "score": 9.0},
        },
        {
            "engine": {"total": 20.0, "score": 16.0},
            "one session": {"total": 8.0},
            "torch": {"total": 30.0, "score": 9.0},
        },
        {
            "engine": {"total": 10.0, "score": 8.0},
            "one session": {"total": 9.0},
            "torch": {"total": 20.0, "score": 9.0},
        },
    ]
    confidence = {"confidence": 0.75}
    assert ratios(rounds) == {
        "ratio": {
            "one session": {"median": 0.8, "low": 0.4, "high": 0.9} | confidence,
            "torch": {"median": 2.0, "low": 1.5, "high": 2.5} | confidence,
        },
        "score_ratio": {"median": 1.0, "low": 0.5, "high": 1.125} | confidence,
        "bare_spread": 0.125,
    }


def report(**changes: Any) -> dict[str, Any]:
    """What is measured of a ResNet-50, in round figures."""
    phases = {"prepare": 1.0, "tap": 300.0, "select": 1.0, "score": 3700.0, "combine": 3.0, "fuse": 5.0}
    times = {  # of all ways, in three rounds
        "one session": (4000.0, 3900.0, 4100.0),
        "lanes": (3800.0, 3700.0, 3900.0),
        "torch": (10000.0, 8000.0, 12500.0),
    }
    rounds = [
        {"engine": phases | {"total": total}} | {way: {"total": values[number]} for way, values in times.items()}
        for number, total in enumerate((4010.0, 3910.0, 4110.0))
    ]
    row = {
        "name": "resnet50",
        "weights_mb": 100.0,
        "load_average": 0.25,
        "most_masks": 150,
        "masks": 100,
        "scorable": 700,
        "target": 3,
        "agreement": {"other_masks": 0, "scores": 1e-5, "heatmap_mean": 2e-7},
        "rounds": rounds,
        "bare_spread": 0.05,
        "ratio": {
            "one session": {"median": 0.9756, "low": 0.97, "high": 0.98, "confidence": 0.75},
            "lanes": {"median": 0.9456, "low": 0.94, "high": 0.95, "confidence": 0.75},
            "torch": {"median": 2.0, "low": 1.9, "high": 3.0, "confidence": 0.75},
        },
        "score_ratio": {"median": 0.99, "low": 0.985, "high": 0.995, "confidence": 0.75},
        "failures": {"torch.compile": "RuntimeError: no compiler"},
        "footprint": {
            "start_mb": 10.0,
            "import_s": 0.2,
            "loaded_mb": 450.0,
            "load_s": 0.6,
            "peak_mb": 1110.0,
            "runs": [0],
        },
    }
    options = {"threads": 2, "batch": 8, "pairs": 3, "masks": 150}
    return {"machine": {"commit": "abc", "cores": 2}, "options": options, "models": [row | changes]}


def test_targets_that_are_met() -> None:
    text = table(report())
    lines = text[text.index("## Targets") : text.index("## Speed")].splitlines()[4:-1]
    assert lines == [
        "| resnet50: engine ÷ one session at least 0.97 | 0.976 (0.970 … 0.980) | yes |",
        "| resnet50: at least 2 times torch | 2.000 (1.900 … 3.000) | yes |",
        "| resnet50: loads in at most 1.5 s | 0.60 s | yes |",
        "| resnet50: peak at most 2.5 × the weights of two sessions + 600 MB = 1100 MB | 1100 MB | yes |",
        "",
        "* resnet50: beside the bare network in the engine's own lanes the engine reaches 0.946 (0.940 … 0.950).",
    ]


def test_targets_that_are_missed() -> None:
    row = report()["models"][0]
    footprint = row["footprint"] | {"load_s": 1.51, "peak_mb": 1112.0}
    ratio = row["ratio"] | {
        "one session": {"median": 0.9699, "low": 0.9, "high": 0.98},
        "torch": {"median": 1.9, "low": 1.8, "high": 2.1},
    }
    text = table(report(footprint=footprint, ratio=ratio))
    assert "| resnet50: engine ÷ one session at least 0.97 | 0.970 (0.900 … 0.980) | no |" in text
    assert "| resnet50: at least 2 times torch | 1.900 (1.800 … 2.100) | no |" in text
    assert "| resnet50: loads in at most 1.5 s | 1.51 s | no |" in text
    assert "+ 600 MB = 1100 MB | 1102 MB | no |" in text


def test_the_tables_figures() -> None:
    text = table(report())
    assert (
        "| resnet50 | 100 of 700 masks | 24.9 (24.3 … 25.6) | 25.0 (24.4 … 25.6) | 26.3 (25.6 … 27.0) "
        "| 10.0 (8.0 … 12.5) | – |\n" in text
    )
    assert (
        "| resnet50 | 0.976 (0.970 … 0.980) | 0.990 (0.985 … 0.995) | 0.946 (0.940 … 0.950) "
        "| 2.000 (1.900 … 3.000) | – |\n\n* resnet50: torch.compile failed with RuntimeError: no compiler\n" in text
    )
    assert "| resnet50 | 1.0 | 300.0 | 1.0 | 3700.0 | 3.0 | 5.0 | 4010.0 | 100 |" in text
    assert "| resnet50 | 100.0 | 1100 | 440 | 0.60 | 0.20 |" in text
    assert "| resnet50 | 0 | 1.0e-05 | 2.0e-07 | 5.0% | 0.25 |" in text
    assert "for ratios a 75% interval of the median. An explanation has at most 150 masks" in text
    assert "at most 150 masks, because" not in text


def test_a_smaller_budget_of_masks_is_named() -> None:
    text = table(report(most_masks=96))
    assert "\n* resnet50: at most 96 masks, because a round of more would take minutes.\n" in text


def test_a_model_that_failed_is_named() -> None:
    failed = report()
    failed["models"].append({"name": "vgg16", "failure": "ValueError: the engine and torch disagree"})
    assert table(failed).endswith("## Failed\n\n* vgg16: ValueError: the engine and torch disagree\n")
    assert "## Targets" not in table(failed | {"models": failed["models"][1:]})

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import engine
from engine.methods import Attribution
from engine.metrics import Adcc, Explained, SoftDrop, measure
from engine.metrics.adcc import coherency, complexity, harmonic_mean
from engine.probe import Probe
from tests.metrics.conftest import RIVAL, Scores, with_heatmap


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """The mean of the channels, scaled to 0 … 1: a method whose second heatmap is known."""

    name: ClassVar[str] = "brightness"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    def explain(self, probe: Probe) -> list[Attribution]:
        return [Attribution(heatmap=brightness(probe.image[0]))]


def brightness(image: NDArray[np.floating]) -> NDArray[np.float64]:
    mean = image.astype(np.float64).mean(axis=0)
    return (mean - mean.min()) / (mean.max() - mean.min())


def test_parts_by_hand() -> None:
    a, b = np.array([[0.0, 0.5], [1.0, 0.5]]), np.array([[0.0, 0.5], [0.5, 1.0]])
    # r = (½·½ + ½·0 + 0 + 0)/(½·…): centred a = −½ 0 ½ 0, b = −½ 0 0 ½
    assert coherency(a, b) == pytest.approx((1 + 0.25 / 0.5) / 2)
    assert coherency(a, a) == 1.0
    assert coherency(a, 1 - a) == pytest.approx(0.0, abs=1e-15)
    assert complexity(a) == 0.5
    assert harmonic_mean(0.5, 0.5, 0.5) == pytest.approx(0.5)
    assert harmonic_mean(1.0, 0.0, 0.0) == 1.0
    assert harmonic_mean(0.75, 0.5, 0.4) == pytest.approx(3 / (4 / 3 + 2 + 5 / 3))


def test_special_points() -> None:
    a, zero = np.array([[0.0, 1.0]]), np.zeros((1, 2))
    assert coherency(a, zero) == coherency(zero, a) == 0.0  # the authors' value for a correlation that is NaN
    assert coherency(zero, zero) == 1.0
    assert complexity(zero) == 0.0
    assert harmonic_mean(0.0, 0.5, 0.5) == 0.0
    assert harmonic_mean(0.5, 1.0, 0.5) == 0.0
    assert harmonic_mean(0.5, 0.5, 1.0) == 0.0


@pytest.mark.parametrize("target", [0, RIVAL])
def test_adcc_equals_the_formula(
    explainer: engine.Explainer, heatmap: NDArray[np.float32], scores: Scores, target: int
) -> None:
    explained = replace(with_heatmap(explainer, heatmap, target), method=Brightness())
    image = explained.image[0].astype(np.float64)
    second = brightness(image * heatmap)
    correlation = stats.pearsonr(heatmap.ravel().astype(np.float64), second.ravel()).statistic
    before, after = scores([image, image * heatmap], target)
    drop = max(0, before - after) / before
    assert (drop > 0.01) == (target == RIVAL)
    parts = [(1 + correlation) / 2, 1 - heatmap.mean(dtype=np.float64), 1 - drop]
    assert min(parts) > 0.1
    values = measure(explained, [Adcc(), SoftDrop()])
    assert values["adcc"] == pytest.approx(100 * stats.hmean(parts), rel=1e-4)
    assert values["soft-drop"] == pytest.approx(100 * drop, rel=1e-4, abs=1e-6)
    assert explained.probe.evaluations == {"forward": 2}


def test_a_heatmap_of_zeros_has_no_adcc_above_0(explainer: engine.Explainer) -> None:
    explained: Explained = with_heatmap(explainer, np.zeros((24, 32), np.float32))
    adcc = Adcc().compute(explained)
    assert adcc is not None
    assert 0.0 <= adcc < 100.0

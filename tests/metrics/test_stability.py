import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

import engine
from engine.errors import OptionError
from engine.methods import Attribution
from engine.metrics import Explained, Stability
from engine.metrics.stability import agreement
from engine.probe import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Draws its heatmap; notes the seeds that it was run with."""

    name: ClassVar[str] = "noise"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"
    seeds: ClassVar[list[int]] = []

    seed: int = 5

    def explain(self, probe: Probe) -> list[Attribution]:
        self.seeds.append(self.seed)
        return [Attribution(heatmap=draw(self.seed, probe.size))]


def draw(seed: int, size: tuple[int, int]) -> np.ndarray:
    column = np.arange(size[1]) / size[1]
    return (0.5 * np.random.default_rng(seed).random(size) + 0.5 * column).astype(np.float32)


def test_agreement_by_hand() -> None:
    a, b, c = np.array([[0.0, 1.0, 0.5]]), np.array([[0.0, 0.5, 1.0]]), np.array([[1.0, 0.0, 0.5]])
    found = agreement([a, b, c])
    assert found.spearman == pytest.approx((0.5 - 1.0 - 0.5) / 3)
    assert found.difference == pytest.approx((1 / 3 + 2 / 3 + 2 / 3) / 3)
    same = agreement([a, a.copy()])
    assert (same.spearman, same.difference) == (1.0, 0.0)


def test_a_method_that_draws_is_run_with_other_seeds(explainer: engine.Explainer, explained: Explained) -> None:
    Noise.seeds.clear()
    noise = replace(explained, method=Noise(), explanation=explainer.explain(explained.image, 0, method=Noise()))
    value = Stability(runs=3).compute(noise)
    assert Noise.seeds == [5, 6, 7]
    heatmaps = [draw(seed, (24, 32)).ravel() for seed in (5, 6, 7)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([stats.spearmanr(heatmaps[a], heatmaps[b]).statistic for a, b in pairs])
    assert 0.1 < expected < 0.9
    assert value == pytest.approx(expected, rel=1e-9)
    found = Stability(runs=3).agreement(noise)
    assert found.difference == pytest.approx(
        np.mean([np.abs(heatmaps[a] - heatmaps[b]).mean() for a, b in pairs]), rel=1e-6
    )


def test_a_method_that_does_not_draw_has_exactly_1(explainer: engine.Explainer, explained: Explained) -> None:
    own = replace(explained, explanation=explainer.explain(explained.image, 0))
    assert Stability(runs=5).compute(own) == 1.0


@pytest.mark.parametrize("runs", [1, 0, 2.0, True])
def test_runs_that_are_too_few(runs: object) -> None:
    text = f"runs is {runs!r}; expected a whole number of at least 2"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        Stability(runs=runs)

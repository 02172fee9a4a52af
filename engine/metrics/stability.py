"""Whether a method says the same when it is asked again."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels.similarity import spearman
from engine.methods import Method
from engine.metrics.base import Explained
from engine.options import expect_whole

Map = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far repeated heatmaps agree, as the mean over all pairs.

    Attributes:
        spearman: Spearman's ρ, from −1 to 1.
        difference: The mean absolute difference of the pixels, from 0 to 1.
    """

    spearman: float
    difference: float


def agreement(heatmaps: Sequence[Map]) -> Agreement:
    """Compare every two of several heatmaps: equal ones have ρ = 1 and difference 0, constant ones too.

    Args:
        heatmaps: At least two, each [H, W].
    """
    pairs = list(combinations([np.asarray(heatmap, np.float64) for heatmap in heatmaps], 2))
    return Agreement(
        spearman=float(np.mean([spearman(a, b) for a, b in pairs])),
        difference=float(np.mean([np.abs(a - b).mean() for a, b in pairs])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """Spearman's ρ between heatmaps of repeated runs: with other seeds for a method that draws, else exactly 1.

    Attributes:
        runs: Heatmaps that are compared, with the one that is there already; a method without a seed runs once more
            only.

    Raises:
        OptionError: There are fewer than two runs.

    Source: None: no paper's formula is followed. Ranks are compared as in the randomisation check, so that the two can
        be read side by side.
    """

    name: ClassVar[str] = "stability"
    title: ClassVar[str] = "Stability"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "2 explanations with a seed, 1 without"

    runs: int = 3

    def __post_init__(self) -> None:
        expect_whole("runs", self.runs, least=2)

    def compute(self, explained: Explained) -> float | None:
        """Return the mean of ρ over all pairs of runs."""
        return self.agreement(explained).spearman

    def agreement(self, explained: Explained) -> Agreement:
        """Run the method again, and compare the heatmaps; the errors are those of `Explainer.explain`."""
        again = [explained.explain(method=method) for method in _other_seeds(explained.method, self.runs - 1)]
        return agreement([explained.heatmap, *again])


def _other_seeds(method: Method, count: int) -> list[Method]:
    """Return the method with the next seeds, or itself, once, if it has none."""
    if "seed" not in [field.name for field in fields(method)]:
        return [method]
    seed = getattr(method, "seed")  # noqa: B009  # not every method has it
    return [replace(method, seed=seed + number) for number in range(1, count + 1)]

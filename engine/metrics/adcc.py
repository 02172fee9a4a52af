"""ADCC: average drop, coherency and complexity in one number."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels.similarity import pearson
from engine.metrics.base import Explained
from engine.metrics.perturbation import Scores, Weighed, drop_percent

Map = NDArray[np.floating]


def coherency(heatmap: Map, second: Map) -> float:
    """Return (1 + r)/2, r Pearson's correlation of the heatmaps of x and of x⊙H; 0 if just one is constant.

    Args:
        heatmap: H, [H, W].
        second: The heatmap of x⊙H, [H, W].

    Source: Poppi et al., "Revisiting the evaluation of class activation mapping" (arXiv 2104.10252), "Maximum
        coherency"; the correlation is scaled to 0 … 1 as the authors do, who take 0 where it is not defined.
    """
    correlation = pearson(heatmap, second)
    constant = np.ptp(heatmap) == 0 or np.ptp(second) == 0
    return 0.0 if constant and correlation == 0 else (1.0 + correlation) / 2.0


def complexity(heatmap: Map) -> float:
    """Return ‖H‖₁/(H·W), the mean saliency.

    Args:
        heatmap: [H, W] from 0 to 1.

    Source: Poppi et al. (arXiv 2104.10252), "Minimum complexity"; divided by the number of pixels in the
        authors' code.
    """
    return float(np.abs(np.asarray(heatmap, np.float64)).mean())


def harmonic_mean(coherency: float, complexity: float, drop: float) -> float:
    """Return ADCC = 3/(1/coherency + 1/(1 − complexity) + 1/(1 − drop)); 0 if one of the three is 0.

    Args:
        coherency: From 0 to 1.
        complexity: From 0 to 1.
        drop: From 0 to 1.

    Source: Poppi et al. (arXiv 2104.10252), "Average DCC".
    """
    parts = (coherency, 1.0 - complexity, 1.0 - drop)
    return 0.0 if min(parts) <= 0 else 3.0 / sum(1.0 / part for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adcc(Weighed):
    """The harmonic mean of coherency, 1 − complexity and 1 − drop: what is kept, how compactly, and how consistently.

    Source: Poppi et al. (arXiv 2104.10252), "Average DCC".

    Departs: The class is the explained one; the authors' code correlates with the explanation of the top-1 class.
    """

    name: ClassVar[str] = "adcc"
    title: ClassVar[str] = "ADCC"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward, shared with soft-drop, soft-increase and gain; 1 explanation"

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return ADCC in percent, or None if the class scores nothing for the unchanged image."""
        drop = drop_percent(explained.class_score, float(scores[0]))
        if drop is None:
            return None
        second = explained.explain(image=explained.image * explained.heatmap)
        heatmap = explained.heatmap
        return 100.0 * harmonic_mean(coherency(heatmap, second), complexity(heatmap), drop / 100.0)

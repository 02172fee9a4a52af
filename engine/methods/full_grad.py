"""FullGrad: what the image and every bias add to a class's logit."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels import scale_to_unit
from engine.kernels.resample import upsample
from engine.methods.base import Attribution, Map
from engine.methods.gradients import completeness
from engine.probe import Probe
from engine.scoring import finite

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullGrad:
    """The logit taken apart: the image times its gradient, and each bias times the gradient where it is added.

    The heatmap is the sum of both over channels and operators, each operator's magnitudes scaled to 0 … 1. `figures`
    has the completeness of the parts, whose sum is the logit when the network is linear but for ReLUs and maxima;
    what sigmoids and their kin add of their own is the gap. A budget and a deadline leave nothing out.

    Source: Srinivas and Fleuret, arXiv 1905.00780, proposition 1, eq. 3 and 4; scaling as in the authors' code.
    Departs: Half-pixel centres, and nothing is added to the denominator of the scaling. Biased operators are those of
        the compiled graphs, where batch-norms are folded into convolutions.
    """

    name: ClassVar[str] = "full-grad"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, one after the other: the parts take much memory."""
        return [self._explain(probe, index) for index in probe.classes]

    def _explain(self, probe: Probe, index: int) -> Attribution:
        with probe.clock("gradient"):
            logits, gradient, *biases = map(finite, probe.run("full_gradient", [probe.image, np.array([index])]))
        with probe.clock("combine"):
            parts = [probe.image[0] * gradient[0], *(bias[0] for bias in biases)]
            total = sum(float(part.sum(dtype=np.float64)) for part in parts)
            views = [magnitudes(part, probe.size) for part in parts if part.ndim == 3]
        return Attribution(
            heatmap=scale_to_unit(np.sum(views, axis=0)),
            figures=completeness(total, float(logits[0, index])),
        )


def magnitudes(part: Floats, size: tuple[int, int]) -> Map:
    """Sum the magnitudes of one operator's part over the channels: ψ, float64 [H, W].

    They are scaled to 0 … 1 over all of the part first; a part whose magnitudes are all equal gives zeros.

    Args:
        part: float32 [C, h, w], or [h, w, C].
        size: H and W of the image.
    """
    scaled = scale_to_unit(np.abs(channels_first(part, size)).astype(np.float64))
    return np.zeros(size) if scaled is None else upsample(scaled.sum(axis=0), size)


def channels_first(part: Floats, size: tuple[int, int]) -> Floats:
    """Return an operator's part as [C, h, w], also where the network computes as [h, w, C].

    Rows and columns are the axes that fit the proportions of the image better; of equal ones the last two.
    """

    def misfit(rows: int, columns: int) -> float:
        return abs(math.log(rows / size[0]) - math.log(columns / size[1]))

    last = misfit(*part.shape[:2]) < misfit(*part.shape[1:])
    return np.moveaxis(part, 2, 0) if last else part

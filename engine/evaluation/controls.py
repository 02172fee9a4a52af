"""Controls: heatmaps that explain little or nothing, to show what a measure gives for that alone."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels.combine import scale_to_unit
from engine.kernels.fuse import otsu_threshold
from engine.methods import METHODS, Attribution, Method, create_method
from engine.options import expect_number
from engine.probe import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """A Gaussian at the centre, the same for every image and class: what photographers' habit alone gives.

    Attributes:
        sigma: Its standard deviation along each axis, as a share of the image's height and width.

    Raises:
        OptionError: It is not positive.
    """

    name: ClassVar[str] = "centre"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    sigma: float = 0.25

    def __post_init__(self) -> None:
        expect_number("sigma", self.sigma, lambda sigma: 0 < sigma < np.inf, "above 0")

    def explain(self, probe: Probe) -> list[Attribution]:
        """Return the same heatmap for every class of the probe."""
        rows, columns = (_gaussian(size, self.sigma * size) for size in probe.size)
        return [Attribution(heatmap=scale_to_unit(np.outer(rows, columns))) for _ in probe.classes]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCamOtsu:
    """Grad-CAM times its own Otsu mask: what setting weak pixels to zero gives, without any mask being scored.

    Its heatmap is G·[G > t], with t Otsu's threshold of Grad-CAM's heatmap G. SISE's fusion cuts in the same way, and
    measures of energy rise by that alone.
    """

    name: ClassVar[str] = "grad-cam-otsu"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        return [_cut(attribution) for attribution in create_method("grad-cam", {}).explain(probe)]


CONTROLS: dict[str, type[Method]] = {
    "centre": Centre,
    "grad-cam-otsu": GradCamOtsu,
}
EVALUATED: dict[str, type[Method]] = METHODS | CONTROLS
"""What an evaluation compares, by name."""


def _gaussian(size: int, sigma: float) -> NDArray[np.float64]:
    """Return exp(−d²/2σ²) along one axis, d from its middle: float64 [size]."""
    distance = np.arange(size) - (size - 1) / 2
    return np.asarray(np.exp(-0.5 * (distance / sigma) ** 2))


def _cut(found: Attribution) -> Attribution:
    heatmap = found.heatmap
    cut = None if heatmap is None else scale_to_unit(np.where(heatmap > otsu_threshold(heatmap), heatmap, 0.0))
    return Attribution(heatmap=cut, scored=found.scored, scorable=found.scorable, warnings=found.warnings)

"""Measures of explanations: functions on arrays, and a registry of them by the names that users type.

`measure` scores the changed images of all measures in one go.
"""

from collections.abc import Sequence

from engine.errors import OptionError
from engine.metrics.adcc import Adcc
from engine.metrics.base import Explained, Metric
from engine.metrics.boxes import BoxMetric, bbox_share, box_mask, energy_in_boxes, pointing_game
from engine.metrics.perturbation import Perturbation, score_together
from engine.metrics.randomisation import Cascade, Randomisation
from engine.metrics.stability import Stability

__all__ = [
    "METRICS",
    "Cascade",
    "Explained",
    "Metric",
    "bbox_share",
    "box_mask",
    "create_metrics",
    "energy_in_boxes",
    "measure",
    "pointing_game",
]

METRICS: dict[str, Metric] = {}


def create_metrics(names: Sequence[str]) -> list[Metric]:
    """Return measures by name.

    Raises:
        OptionError: There is no such measure.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise OptionError(f"metric is {unknown[0]!r}; expected one of {', '.join(METRICS)}")
    return [METRICS[name] for name in names]


def measure(explained: Explained, metrics: Sequence[str | Metric]) -> dict[str, float | None]:
    """Measure one explanation.

    Args:
        explained: The explanation.
        metrics: Names of `METRICS`, or measures with options of their own.

    Returns:
        The value of each measure by its name, in this order; None where it is not defined.

    Raises:
        OptionError: There is no such measure.
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
        BundleError: The bundle lacks a graph that the method needs.
        BackendError: The runtime failed, or the system has no more threads.
    """
    raise NotImplementedError

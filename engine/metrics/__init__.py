"""Measures of explanations: functions on arrays, and a registry of them by the names that users type.

`measure` scores the changed images of all measures in one go.
"""

from collections.abc import Sequence

from engine.errors import OptionError
from engine.metrics.adcc import Adcc
from engine.metrics.base import Explained, Metric
from engine.metrics.boxes import BboxShare, EnergyInBoxes, PointingGame, box_mask
from engine.metrics.perturbation import (
    Deletion,
    Drop,
    Gain,
    Increase,
    Insertion,
    Perturbation,
    SoftDrop,
    SoftIncrease,
    score_together,
)
from engine.metrics.randomisation import Cascade, Randomisation
from engine.metrics.stability import Stability

__all__ = [
    "METRICS",
    "Adcc",
    "BboxShare",
    "Cascade",
    "Deletion",
    "Drop",
    "EnergyInBoxes",
    "Explained",
    "Gain",
    "Increase",
    "Insertion",
    "Metric",
    "PointingGame",
    "Randomisation",
    "SoftDrop",
    "SoftIncrease",
    "Stability",
    "box_mask",
    "create_metrics",
    "measure",
]

METRICS: dict[str, Metric] = {
    "ebpg": EnergyInBoxes(),
    "bbox": BboxShare(),
    "pointing": PointingGame(),
    "drop": Drop(),
    "increase": Increase(),
    "soft-drop": SoftDrop(),
    "soft-increase": SoftIncrease(),
    "gain": Gain(),
    "deletion": Deletion(),
    "insertion": Insertion(),
    "adcc": Adcc(),
    "stability": Stability(),
    "randomisation": Randomisation(),
}
"""With their default options; make one yourself for others."""


def create_metrics(names: Sequence[str]) -> list[Metric]:
    """Return measures by name.

    Raises:
        OptionError: There is no such measure.
    """
    for name in names:
        if name not in METRICS:
            raise OptionError(f"metric is {name!r}; expected one of {', '.join(METRICS)}")
    return [METRICS[name] for name in names]


def measure(explained: Explained, metrics: Sequence[Metric]) -> dict[str, float | None]:
    """Measure one explanation; all changed images are scored together, each once.

    Args:
        explained: The explanation.
        metrics: No two of the same name.

    Returns:
        The value of each measure by its name, in this order; None where it is not defined: means leave it out.

    Raises:
        OptionError: Two measures have the same name.
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
        BundleError: The bundle lacks a graph that the method needs.
        BackendError: The runtime failed, or the system has no more threads.
    """
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"metric {name!r} is asked for {names.count(name)} times; expected each once")
    values = score_together(explained, [metric for metric in metrics if isinstance(metric, Perturbation)])
    for metric in metrics:
        if metric.name not in values:
            values[metric.name] = metric.compute(explained)
    return {name: values[name] for name in names}

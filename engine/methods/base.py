"""What a method is, and what it finds."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.bundle import Bundle
from engine.errors import OptionError
from engine.explanation import LayerReport
from engine.probe import Probe

Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """What a method found for one class of one image.

    Attributes:
        heatmap: float64 [H, W] from 0 to 1; None when it is constant.
        scored: How many changed images of this class were scored, or differentiated.
        scorable: How many there were to score; 0 for a method that changes no image.
        warnings: What the reader of the heatmap should know, beyond that less than everything was scored.
        figures: What the method measures of itself, by name.
        attribution: float32 [C, H, W], the signed contribution of every input value, for methods that have it.
        layers: One report per feature layer, for methods that work on all of them.
        visualization_maps: float64 [H, W] per layer, None for a skipped layer; empty as `layers` is.
    """

    heatmap: Map | None
    scored: int = 0
    scorable: int = 0
    warnings: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    attribution: NDArray[np.float32] | None = None
    layers: tuple[LayerReport, ...] = ()
    visualization_maps: tuple[Map | None, ...] = ()


class Method(Protocol):
    """A way to explain: a frozen dataclass whose fields are its options, checked when it is made.

    Attributes:
        name: What users call it.
        layered: Whether it makes a visualization map of every feature layer.
        unit: What it changes the image, or the feature maps, by: `masks`, `samples`, …; what budgets count.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]
    name: ClassVar[str]
    layered: ClassVar[bool]
    unit: ClassVar[str]

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe.

        Raises:
            OptionError: An option does not fit the model.
            ImageError: The network computes NaN or infinity.
            CancelledError: The caller wants no result any more.
            BundleError: The bundle lacks a graph that the method needs.
            BackendError: The runtime failed, or the system has no more threads.
        """
        ...


def layer_number(bundle: Bundle, name: str | None) -> int:
    """Return the number of a feature layer from 0, by its name; None is the last layer.

    Raises:
        OptionError: The bundle has no such layer.
    """
    names = [layer.name for layer in bundle.layers]
    if name is None:
        return len(names) - 1
    if name not in names:
        raise OptionError(f"layer is {name!r}; expected one of {', '.join(names)}, or None for the last")
    return names.index(name)

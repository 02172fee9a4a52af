"""Class activation maps that weigh one layer's feature maps by their gradients."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels import scale_to_unit, upsample
from engine.methods.base import Attribution, Map, layer_number
from engine.probe import Probe
from engine.scoring import finite


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCam:
    """Grad-CAM: ReLU(Σ_k α_k·A_k), α_k the mean of ∂y/∂A_k.

    Attributes:
        layer: Name of the feature layer; None for the last.

    Source: arXiv 1610.02391, section 3, equations 1 and 2.
    """

    name: ClassVar[str] = "grad-cam"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    layer: str | None = None

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        layer = layer_number(probe.bundle, self.layer)
        maps, averages = probe.layer(layer)
        maps64 = maps.astype(np.float64)
        return [activation_map(np.einsum("k,khw->hw", alpha, maps64), probe) for alpha in averages]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ByGradients(ABC):
    """A map of one layer, made of its feature maps and their gradients cell by cell."""

    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    layer: str | None = None

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        layer = layer_number(probe.bundle, self.layer)
        maps = probe.layer(layer)[0].astype(np.float64)
        return [activation_map(self.make(maps, g.astype(np.float64)), probe) for g in _gradients(probe, layer)]

    @staticmethod
    @abstractmethod
    def make(maps: Map, gradients: Map) -> Map:
        """Return the map, before its negative part is cut off.

        Args:
            maps: A, float64 [K, h, w].
            gradients: g = ∂y/∂A, float64 [K, h, w].

        Returns:
            float64 [h, w].
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCamPlusPlus(_ByGradients):
    """Grad-CAM++: ReLU(Σ_k w_k·A_k), w_k = Σ a_k·ReLU(g_k), a_k = g_k²/(2·g_k² + ΣA_k·g_k³), g = ∂y/∂A.

    a is 0 where its denominator is.

    Attributes:
        layer: Name of the feature layer; None for the last.

    Source: arXiv 1710.11063, section 3, equations 5, 7 and 19.
    Departs: the factor exp(y) of every gradient is left out, which scaling to 0 … 1 would remove, and which overflows.
    """

    name: ClassVar[str] = "grad-cam++"

    @staticmethod
    def make(maps: Map, gradients: Map) -> Map:
        """Return the map, before its negative part is cut off."""
        largest = np.abs(gradients).max(initial=0.0) or 1.0
        g = gradients / largest  # the cube of a gradient of 1e-120 would be 0
        total = maps.sum(axis=(1, 2), keepdims=True) * largest
        share = _quotient(g**2, 2 * g**2 + total * g**3)
        weights = (share * np.maximum(gradients, 0.0)).sum(axis=(1, 2))
        return np.asarray(np.einsum("k,khw->hw", weights, maps))


@dataclass(frozen=True, slots=True, kw_only=True)
class XGradCam(_ByGradients):
    """XGrad-CAM: ReLU(Σ_k α_k·A_k), α_k = Σ (A_k/ΣA_k)·∂y/∂A_k; 0 for a map whose sum is 0.

    Attributes:
        layer: Name of the feature layer; None for the last.

    Source: arXiv 2008.02312, section 3.3, equation 8.
    """

    name: ClassVar[str] = "xgrad-cam"

    @staticmethod
    def make(maps: Map, gradients: Map) -> Map:
        """Return the map, before its negative part is cut off."""
        weights = _quotient((maps * gradients).sum(axis=(1, 2)), maps.sum(axis=(1, 2)))
        return np.asarray(np.einsum("k,khw->hw", weights, maps))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCam(_ByGradients):
    """LayerCAM: ReLU(Σ_k ReLU(∂y/∂A_k)⊙A_k).

    Attributes:
        layer: Name of the feature layer; None for the last.

    Source: P. Jiang and others, "LayerCAM", IEEE Transactions on Image Processing 30, 2021, section III-B, equations 6
    to 8.
    """

    name: ClassVar[str] = "layer-cam"

    @staticmethod
    def make(maps: Map, gradients: Map) -> Map:
        """Return the map, before its negative part is cut off."""
        return np.asarray((np.maximum(gradients, 0.0) * maps).sum(axis=0))


def activation_map(values: Map, probe: Probe, *, scored: int = 0, scorable: int = 0) -> Attribution:
    """Make the heatmap of a class activation map: its positive part, upsampled.

    Args:
        values: float64 [h, w], at the resolution of the feature layer.
        probe: The image.
        scored: How many changed images were scored.
        scorable: How many there were to score.
    """
    heatmap = scale_to_unit(upsample(np.maximum(values, 0.0), probe.size))
    return Attribution(heatmap=heatmap, scored=scored, scorable=scorable)


def _quotient(above: Map, below: Map) -> NDArray[np.float64]:
    """Divide, and return 0 where the divisor is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _gradients(probe: Probe, layer: int) -> NDArray[np.float32]:
    """Return ∂logit/∂F_l for the K classes, float32 [K, C_l, h_l, w_l], by the gradient companions."""
    count = len(probe.bundle.layers)
    probe.layer(layer)
    with probe.clock("gradient"):
        gradient = np.zeros((len(probe.classes), probe.bundle.classes), np.float32)
        gradient[np.arange(len(probe.classes)), probe.classes] = 1.0
        for number in range(count, layer, -1):
            name = "head" if number == count else f"block{number + 1}"
            gradient = finite(probe.run(f"{name}.grad", [probe.layer(number - 1)[0][None], gradient])[0])
    return gradient

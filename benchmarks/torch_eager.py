"""The rival: Ada-SISE as one writes it in PyTorch, with forward hooks and autograd.

Written to be fast as far as eager torch goes: one backward pass for the gradients of all layers, inference mode for the
scoring, full batches across the layers, no mask kept, and everything on the device where the image lies. What it
computes is engine/methods/ada_sise.py's method with the rules `otsu` and `otsu-count`, the fusion `hard` and the zero
baseline.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from tests.reference.network import TorchNetwork

_BINS = 256
_FLAT = 1e-6
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


class Network(Protocol):
    """A classifier in torch whose feature maps can be had, with its weights channels last, the faster layout.

    Attributes:
        dtype: The type of the images that it scores; the tapped pass is float32.
    """

    dtype: torch.dtype

    def tap(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [1, classes] and F_l [1, C_l, h_l, w_l], with autograd's graph between them."""
        ...

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        ...

    def compiled(self, batch: Tensor) -> Callable[[Tensor], Tensor]:
        """The same by torch.compile, for batches of this size; it compiles when it is first called."""
        ...


class HookedModule:
    """A torch module whose feature layers are submodules; it is brought to channels last, in place.

    Args:
        module: The classifier, in evaluation mode.
        layers: Names of the submodules whose outputs are the feature layers, shallow to deep.
        dtype: The type in which images are scored; for another than float32 by a copy of the module.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], dtype: torch.dtype = torch.float32) -> None:
        self._module = module.requires_grad_(False).to(memory_format=torch.channels_last)
        self._scorer = self._module if dtype == torch.float32 else copy.deepcopy(self._module).to(dtype)
        self._layers = layers
        self.dtype = dtype

    def tap(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Network.tap`."""
        maps: list[Tensor] = []
        hooks = [
            self._module.get_submodule(name).register_forward_hook(lambda *passed: maps.append(passed[-1]))
            for name in self._layers
        ]
        logits = self._module(x.requires_grad_())
        for hook in hooks:
            hook.remove()
        return logits, maps

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Network`."""
        logits: Tensor = self._scorer(batch)
        return logits

    def compiled(self, batch: Tensor) -> Callable[[Tensor], Tensor]:  # noqa: ARG002 - any size
        """See `Network.compiled`."""
        return torch.compile(self._scorer)


class InterpretedModel:
    """An ONNX file, executed in torch node by node: for models that exist only as ONNX.

    The operators are those that a module would call, with the batch normalisation folded as in the file, the weights of
    the convolutions channels last, and a Relu or Clip in place where nobody else reads its input. The loop over the
    nodes is some microseconds a node, for a batch.

    Args:
        network: The model.
        layers: Tensor names of the feature layers, shallow to deep.
    """

    dtype = torch.float32

    def __init__(self, network: TorchNetwork, layers: Sequence[str]) -> None:
        self._network = network
        self._layers = list(layers)
        self._logits = network.outputs[0]

    def tap(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Network.tap`."""
        tensors = self._network.run(x.requires_grad_(), [self._logits, *self._layers], dtype=torch.float32)
        return tensors[self._logits], [tensors[name] for name in self._layers]

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Network`."""
        return self._network.run(batch, [self._logits], dtype=torch.float32)[self._logits]

    def compiled(self, batch: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Network.compiled`; the loop over the nodes is traced away first, else it would break the graph."""
        with torch.inference_mode():
            return torch.compile(make_fx(self)(batch.contiguous(memory_format=torch.channels_last)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TorchExplanation:
    """What the rival found, in the host's memory, and how long it took.

    Attributes:
        heatmap: float64 [H, W] from 0 to 1.
        target: The explained class.
        selected: For each layer the channels that the rule keeps, int64, the strongest average gradient first.
        channels: For each layer the scored channels, int64.
        scores: For each layer their scores, float32.
        total_s: Seconds of the whole call.
        score_s: Seconds of the masks and their scoring.
    """

    heatmap: Tensor
    target: int
    selected: list[Tensor]
    channels: list[Tensor]
    scores: list[Tensor]
    total_s: float
    score_s: float

    @property
    def masks(self) -> int:
        """Number of masks scored."""
        return sum(map(len, self.channels))


def explain(
    network: Network,
    x: Tensor,
    target: int | None = None,
    *,
    activation: str,
    rule: str = "otsu",
    batch: int = 32,
    forward: Callable[[Tensor], Tensor] | None = None,
    channels: Sequence[Tensor] | None = None,
) -> TorchExplanation:
    """Explain one class of one image.

    Args:
        network: The classifier.
        x: Network input float32 [1, C, H, W], on the network's device.
        target: Class index, or None for the top-1 class.
        activation: `softmax`, `sigmoid` or `none`.
        rule: `otsu` or `otsu-count`.
        batch: Masked images scored in one run of the network.
        forward: What scores the batches instead of `network`, and is given full ones only: a compiled network, which
            would be compiled again for another size.
        channels: Channels of each layer to score instead of the selected ones, so that two programs score the same
            masks; the selection is made all the same.
    """
    began = time.perf_counter()
    logits, tapped = network.tap(x.detach().clone())
    index = int(logits.argmax()) if target is None else target
    gradients = torch.autograd.grad(logits[0, index], tapped)
    maps = [layer.detach()[0] for layer in tapped]
    selected = [select(gradient[0].sum((1, 2)), rule) for gradient in gradients]
    chosen = selected if channels is None else channels
    channels = [kept[~is_flat(layer[kept])] for layer, kept in zip(maps, chosen, strict=True)]

    tapped_at = time.perf_counter()
    scores = [torch.empty(len(kept), device=x.device) for kept in channels]
    sums = [torch.zeros(x.shape[2:], dtype=torch.float64, device=x.device) for _ in channels]
    with torch.inference_mode():
        for places, masks in batches(maps, channels, x.shape[2:], batch):
            images = (x * masks[:, None]).to(network.dtype, memory_format=torch.channels_last)
            if forward is None:
                logits = network(images)
            else:
                missing = batch - len(images)
                logits = forward(functional.pad(images, (0, 0) * 3 + (0, missing)) if missing else images)[: len(masks)]
            found = _ACTIVATIONS[activation](logits.float())[:, index]
            weights = found / masks.sum((1, 2))
            row = 0
            for layer, start, count in places:
                rows = slice(row, row + count)
                scores[layer][start : start + count] = found[rows]
                sums[layer] += torch.einsum("k,khw->hw", weights[rows], masks[rows])
                row += count
    scores = [found.cpu() for found in scores]  # waits for the device
    scored_at = time.perf_counter()
    heatmap = fuse([scale_to_unit(total) for total, kept in zip(sums, channels, strict=True) if len(kept)])
    return TorchExplanation(
        heatmap=torch.zeros(x.shape[2:]) if heatmap is None else heatmap.cpu(),
        target=index,
        selected=[kept.cpu() for kept in selected],
        channels=[kept.cpu() for kept in channels],
        scores=scores,
        total_s=time.perf_counter() - began,
        score_s=scored_at - tapped_at,
    )


def select(alpha: Tensor, rule: str = "otsu") -> Tensor:
    """The strongest channels by the exact Otsu split of the positive average gradients, the strongest first.

    Those of the upper class by the rule `otsu`; as many as the lower class has by `otsu-count`.
    """
    values, order = alpha.double().sort(descending=True, stable=True)
    n = int((values > 0).sum())
    ascending = values[:n].flip(0)
    if n <= 1 or ascending[0] == ascending[-1]:
        return order[:n]
    sizes = torch.arange(1, n, device=alpha.device)
    sums = ascending.cumsum(0)
    lower, upper = sums[:-1] / sizes, (sums[-1] - sums[:-1]) / (n - sizes)
    tau = (sizes / n) * ((n - sizes) / n) * (upper - lower).square()
    lower_size = 1 + int(tau.argmax())
    return order[: lower_size if rule == "otsu-count" else n - lower_size]


def is_flat(maps: Tensor) -> Tensor:
    """Which feature maps [K, h, w] are constant."""
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    return high - low <= _FLAT * torch.maximum(low.abs(), high.abs())


def batches(
    maps: Sequence[Tensor], channels: Sequence[Tensor], size: Sequence[int], batch: int
) -> Iterator[tuple[list[tuple[int, int, int]], Tensor]]:
    """Yield all layers' masks [N, H, W], N = `batch` but for the last, with the (layer, first, count) of each part."""
    places: list[tuple[int, int, int]] = []
    parts: list[Tensor] = []
    room = batch
    for layer, kept in enumerate(channels):
        start = 0
        while start < len(kept):
            count = min(room, len(kept) - start)
            places.append((layer, start, count))
            parts.append(masks_of(maps[layer][kept[start : start + count]], size))
            start, room = start + count, room - count
            if room == 0:
                yield places, torch.cat(parts)
                places, parts, room = [], [], batch
    if parts:
        yield places, torch.cat(parts)


def masks_of(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample feature maps [K, h, w] to [K, H, W] and scale each to 0 … 1."""
    upsampled = functional.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = upsampled.amin((1, 2), keepdim=True), upsampled.amax((1, 2), keepdim=True)
    return upsampled.sub_(low).div_(high - low)


def scale_to_unit(values: Tensor) -> Tensor | None:
    """Scale to 0 … 1; None when constant."""
    low, high = values.aminmax()
    if high - low <= _FLAT * torch.maximum(low.abs(), high.abs()):
        return None
    return (values - low) / (high - low)


def fuse(maps: Sequence[Tensor | None]) -> Tensor | None:
    """Fuse visualization maps, shallow to deep; None when nothing is left."""
    fused: Tensor | None = None
    for current in maps:
        if current is not None:
            fused = current if fused is None else (fused + current) * (current > otsu_threshold(current))
    return None if fused is None else scale_to_unit(fused)


def otsu_threshold(values: Tensor) -> Tensor:
    """Centre of the first of 256 bins that maximises the between-class variance."""
    low, high = values.aminmax()
    edges = torch.linspace(0, 1, _BINS + 1, dtype=values.dtype, device=values.device) * (high - low) + low
    counts = torch.histc(values, _BINS, float(low), float(high))
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = counts.cumsum(0)[:-1], (counts * centres).cumsum(0)
    above = counts.sum() - below
    variance = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above).square()
    return centres[int(variance.argmax())]

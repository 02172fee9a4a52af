"""Gradients to the input, and what is made of them, in float64 from the formulas of docs/methods.md.

The functions take the classifier as `Logits`, any differentiable function from images [N, C, H, W] to logits
[N, classes]; `logits_of` makes one of a network read from ONNX. Attributions are signed, [C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .method import Decisions, Float, is_constant, min_max, upsample
from .network import TorchNetwork
from .operators import Node

Logits = Callable[[Tensor], Tensor]


def logits_of(network: TorchNetwork, name: str = "logits", decisions: Decisions | None = None) -> Logits:
    """The network as a function of float64 images.

    Args:
        network: The classifier.
        name: Name of the tensor of logits [N, classes].
        decisions: Values of a float32 run, see `TorchNetwork.run`; for one image only.
    """
    return lambda x: network.run(x, [name], decisions=decisions)[name]


def heatmap(values: ArrayLike, size: tuple[int, int] | None = None) -> Float:
    """A map as heatmap in [0, 1]: upsampled to `size` if given, then min-max; zeros when it is constant."""
    v = np.asarray(values, dtype=np.float64)
    if size is not None:
        v = upsample(v[None], *size)[0]
    return np.zeros_like(v) if is_constant(v) else min_max(v)


def input_gradient(logits: Logits, image: ArrayLike, target: int) -> Float:
    """d logit_target / d x, float64 [C, H, W], at one image [C, H, W]."""
    x = torch.tensor(np.asarray(image, dtype=np.float64)[None], requires_grad=True)
    (gradient,) = torch.autograd.grad(logits(x)[0, target], x)
    return gradient[0].numpy()


def gradient_map(attribution: Float) -> Float:
    """Map [H, W] of a gradient [C, H, W]: the largest magnitude over the channels.

    Source: Simonyan et al., arXiv 1312.6034, section 3.1.
    """
    return np.abs(attribution).max(axis=0)


def smooth_grad(logits: Logits, image: ArrayLike, target: int, noise: ArrayLike) -> Float:
    """Mean of the gradients at noisy images, float64 [C, H, W]; its map is `gradient_map`.

    Args:
        logits: The classifier.
        image: x [C, H, W].
        target: Class whose logit is differentiated.
        noise: What is added to x in each sample, [n, C, H, W].

    Source: Smilkov et al., arXiv 1706.03825, section 3.
    """
    x = np.asarray(image, dtype=np.float64)
    samples = np.asarray(noise, dtype=np.float64)
    return np.mean([input_gradient(logits, x + e, target) for e in samples], axis=0)


def integrated_gradients(
    logits: Logits, image: ArrayLike, target: int, steps: int, baseline: ArrayLike = 0.0
) -> tuple[Float, float]:
    """(x - b) times the mean gradient on the way from b to x, by the midpoint rule.

    Returns:
        Attribution float64 [C, H, W], and the completeness error: its sum minus logit(x) - logit(b).

    Source: Sundararajan et al., arXiv 1703.01365, eq. 1, eq. 3 and proposition 1.
    Departs: Midpoints of the steps, where eq. 3 has their ends.
    """
    x = np.asarray(image, dtype=np.float64)
    b = np.broadcast_to(np.asarray(baseline, dtype=np.float64), x.shape)
    total = np.zeros_like(x)
    for j in range(1, steps + 1):
        total += input_gradient(logits, b + (j - 0.5) / steps * (x - b), target)
    attribution = (x - b) * total / steps
    with torch.no_grad():
        ends = logits(torch.tensor(np.stack([x, b])))[:, target]
    return attribution, float(attribution.sum() - (ends[0] - ends[1]))


def integrated_gradients_map(attribution: Float) -> Float:
    """Map [H, W] of an attribution [C, H, W]: the sum of the magnitudes over the channels."""
    return np.abs(attribution).sum(axis=0)


def full_gradient(
    network: TorchNetwork,
    image: NDArray[np.floating],
    target: int,
    logits: str = "logits",
    decisions: Decisions | None = None,
) -> tuple[Float, list[tuple[str, Float]], float]:
    """The parts whose sum is the logit: x times its gradient, and each bias times its gradient.

    Args:
        network: The classifier.
        image: x [1, C, H, W].
        target: Class whose logit is taken apart.
        logits: Name of the tensor of logits [1, classes].
        decisions: Values of a float32 run, see `TorchNetwork.run`.

    Returns:
        Input part float64 [C, H, W]; for every biased operator, in graph order, its output's name and its part,
        of the output's shape without the batch; and the completeness error: the sum of all parts minus the logit.

    Source: Srinivas and Fleuret, arXiv 1905.00780, proposition 1, eq. 3.
    """
    biased = [(node.outputs[0], bias) for node in network.nodes if (bias := _bias(network, node)) is not None]
    x = torch.tensor(image, dtype=torch.float64, requires_grad=True)
    tensors = network.run(x, [*(name for name, _ in biased), logits], decisions=decisions)
    logit = tensors[logits][0, target]
    outputs = [tensors[name] for name, _ in biased]
    # The slice is another tensor than the logits, so a bias of the last operator is differentiated too.
    gradients = torch.autograd.grad(logit, [x, *outputs])
    input_part = (gradients[0] * x)[0].detach().numpy()
    parts = [
        (name, np.asarray((gradient.numpy() * bias)[0]))
        for (name, bias), gradient in zip(biased, gradients[1:], strict=True)
    ]
    return input_part, parts, float(input_part.sum() + sum(part.sum() for _, part in parts) - logit.item())


def full_grad_map(input_part: Float, parts: list[tuple[str, Float]]) -> Float:
    """Map [H, W]: the sum over operators and channels of the upsampled, rescaled magnitudes of the parts.

    Magnitudes are rescaled to [0, 1] over all channels of one operator; parts without rows and columns are left out.

    Source: arXiv 1905.00780, eq. 4; rescaling as in the authors' code.
    Departs: Half-pixel centres; no 1e-6 in the denominator.
    """
    size = input_part.shape[1:]
    total = np.zeros(size)
    for part in [input_part, *(part for _, part in parts)]:
        if part.ndim == 3:
            total += upsample(heatmap(np.abs(part)), *size).sum(axis=0)
    return total


def _bias(network: TorchNetwork, node: Node) -> Float | None:
    """What an operator adds to a linear function of its input, broadcastable to its output; None for nothing."""
    constants = [network.constant(name) if name else None for name in node.inputs]
    if node.op == "Conv" and len(constants) > 2 and constants[2] is not None:
        return constants[2].reshape(1, -1, 1, 1)
    if node.op == "Gemm" and len(constants) > 2 and constants[2] is not None:
        return np.atleast_2d(node.get("beta", 1.0) * constants[2])
    if node.op == "BatchNormalization":
        scale, shift, mean, variance = (np.asarray(constant) for constant in constants[1:])
        return (shift - mean * scale / np.sqrt(variance + node.get("epsilon", 1e-5))).reshape(1, -1, 1, 1)
    if node.op == "Add" and (constants[0] is None) != (constants[1] is None):
        return constants[1] if constants[0] is None else constants[0]
    return None

"""Oracles of normalisation layers, slow and in torch, and one-node networks."""

from collections import defaultdict
from collections.abc import Callable, Hashable

import numpy as np
import onnx
import torch
from torch.nn import functional

from tests.export.networks import BATCH, image_input, network, node
from tests.export.rules.gradients import Array, Oracle, autograd

PARAMETERS = "bn_scale bn_bias bn_mean bn_var"
IMAGE = (6, 3, 5)
FLAT = node("Flatten", "x", "flat")

Place = tuple[int, ...]
Key = Callable[[Place], Hashable]
"""Of an element's place → which elements are normalised together: those of equal key."""


def exact(value: float) -> float:
    """The value as a float attribute holds it."""
    return float(np.float32(value))


def together(x: Array, key: Key) -> list[list[Place]]:
    """List the places of the elements that are normalised together."""
    sets = defaultdict(list)
    for place in np.ndindex(*x.shape):
        sets[key(place)].append(place)
    return list(sets.values())


def slow_normalise(
    key: Key,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 0.0,
    centred: bool = True,
    added: float = 0.0,
) -> Oracle:
    """Y = scale·d/(σ + added) + bias with σ² = mean(d²) + epsilon, and the product of dy with the whole Jacobian.

    Scale and bias have the shape of an image.
    """

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for places in together(x, key):
            n = len(places)
            mean = sum(x[place] for place in places) / n if centred else 0.0
            sigma = np.sqrt(sum((x[place] - mean) ** 2 for place in places) / n + epsilon)
            unit = [(x[place] - mean) / (sigma + added) for place in places]
            factor = [1.0 if scale is None else scale[place[1:]] for place in places]
            for i, place in enumerate(places):
                y[place] = factor[i] * unit[i] + (0.0 if bias is None else bias[place[1:]])
                dx[place] = sum(
                    dy[other]
                    * factor[j]
                    * (((i == j) - (1 / n if centred else 0.0)) / (sigma + added) - unit[i] * unit[j] / n / sigma)
                    for j, other in enumerate(places)
                )
        return y, dx

    return oracle


def slow_lp(p: int, axis: int) -> Oracle:
    """Y = x/‖x‖ and dx_i = Σ_j dy_j·(δ_ij − y_j·∂‖x‖/∂x_i)/‖x‖; all zero for a zero vector."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for places in together(x, lambda place: place[:axis] + place[axis + 1 :]):
            norm = sum(abs(x[place]) ** p for place in places) ** (1 / p)
            for place in places if norm else []:
                y[place] = x[place] / norm
                slope = np.sign(x[place]) if p == 1 else x[place] / norm
                dx[place] = sum(dy[o] * ((o == place) - x[o] / norm * slope) / norm for o in places)
        return y, dx

    return oracle


def slow_lrn(size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Oracle:
    """Y_c = x_c·s_c^−β with s_c = bias + α/size·Σ x_k² over the window of c; dx by the quotient rule, pair by pair."""
    alpha, beta, bias = exact(alpha), exact(beta), exact(bias)

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        channels = x.shape[1]
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for n, c, i, j in np.ndindex(*x.shape):
            window = [k for k in range(c - (size - 1) // 2, c + int(np.ceil((size - 1) / 2)) + 1) if 0 <= k < channels]
            s = bias + alpha / size * sum(x[n, k, i, j] ** 2 for k in window)
            y[n, c, i, j] = x[n, c, i, j] / s**beta
            dx[n, c, i, j] += dy[n, c, i, j] / s**beta
            for k in window:
                slope = -beta * s ** (-beta - 1) * 2 * alpha / size * x[n, k, i, j]
                dx[n, k, i, j] += dy[n, c, i, j] * x[n, c, i, j] * slope
        return y, dx

    return oracle


def torch_lrn(size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Oracle:
    """Torch's has the larger half of an even window before the channel, ONNX's after it."""
    values = (exact(alpha), exact(beta), exact(bias))
    return autograd(lambda x: functional.local_response_norm(x.flip(1), size, *values).flip(1))


def torch_mean_variance(axes: tuple[int, ...]) -> Oracle:
    return autograd(
        lambda x: (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9),
    )


def drawn(random: np.random.Generator, *shape: int) -> dict[str, Array]:
    """Draw a scale around 1 and a bias."""
    scale, bias = random.standard_normal((2, *shape)).astype(np.float32)
    return {"scale": 1 + np.float32(0.4) * scale, "bias": bias}


def double(array: Array) -> torch.Tensor:
    return torch.tensor(array).double()


def norm_network(
    op_type: str,
    constants: dict[str, Array],
    opset: int = 17,
    image: tuple[int, int, int] = IMAGE,
    **attributes: object,
) -> onnx.ModelProto:
    model = network(
        [node(op_type, " ".join(["x", *constants]), "y", **attributes)], constants, image=image, opset=opset
    )
    model.graph.output[0].CopyFrom(image_input([BATCH, *image], "y"))  # onnx infers none for GroupNormalization
    return model


def torch_batch_norm(constants: dict[str, Array], epsilon: float, flatten: bool = False) -> Oracle:
    scale, bias, mean, variance = (double(constants[name]) for name in PARAMETERS.split())
    return autograd(
        lambda x: functional.batch_norm(
            x.flatten(1) if flatten else x, mean, variance, scale, bias, False, 0.0, exact(epsilon)
        )
    )


def batch_norm_network(constants: dict[str, Array], opset: int = 17, **attributes: object) -> onnx.ModelProto:
    return network([node("BatchNormalization", f"x {PARAMETERS}", "y", **attributes)], constants, opset=opset)


def torch_parameters(constants: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {"weight": double(constants["scale"]), "bias": double(constants["bias"])}


def torch_layer_norm(constants: dict[str, Array], epsilon: float = 1e-5) -> Oracle:
    shape = constants["scale"].shape
    bias = double(constants["bias"]) if "bias" in constants else None
    return autograd(lambda x: functional.layer_norm(x, shape, double(constants["scale"]), bias, exact(epsilon)))

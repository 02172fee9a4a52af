"""ONNX operators in torch, one function each, written from the operator specification.

Each function receives the node and its input tensors in the node's order (None for an absent optional one).
The operators that decide something per element (`network.DECIDED_BY`) also take `decision`: the values of a
float32 run that decides in their place (design.md, Agreement (b)). Relu and Clip also take `overwrite`, which
lets them reuse their input's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]
SIXTH = torch.tensor(1 / 6, dtype=torch.float32).item()


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the graph, its attributes decoded."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, attribute: str, default: Any) -> Any:
        """Value of an attribute, or its default."""
        return self.attributes.get(attribute, default)

    def refuse(self, what: str) -> ValueError:
        """Error that names this node."""
        return ValueError(f"{self.op} '{self.name}': {what}")


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows of a Conv or a pooling lie, per axis (H, W)."""

    kernel: Pair
    strides: Pair
    dilations: Pair
    begin: Pair
    end: Pair
    out: Pair

    @property
    def pads(self) -> list[int]:
        """Padding in torch's order: W begin, W end, H begin, H end."""
        return [self.begin[1], self.end[1], self.begin[0], self.end[0]]

    @property
    def covered(self) -> Pair:
        """Cells from the first window's first to the last window's last, padding included."""
        return cast(
            Pair,
            tuple((self.out[a] - 1) * self.strides[a] + (self.kernel[a] - 1) * self.dilations[a] + 1 for a in (0, 1)),
        )


def place_windows(node: Node, size: Pair, kernel: Pair) -> Windows:
    """Padding, explicit or automatic, and number of windows, as Conv and the poolings specify them."""
    if len(kernel) != 2:
        raise node.refuse(f"received a kernel of {len(kernel)} axes, expected 2")
    strides = cast(Pair, tuple(node.get("strides", (1, 1))))
    dilations = cast(Pair, tuple(node.get("dilations", (1, 1))))
    pads = node.get("pads", (0, 0, 0, 0))
    auto_pad = node.get("auto_pad", b"NOTSET").decode()
    placed = []
    for axis in range(2):
        stride = strides[axis]
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            out = -(-size[axis] // stride)
            total = max((out - 1) * stride + extent - size[axis], 0)
            less, more = total // 2, total - total // 2
            begin, end = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        elif auto_pad in ("NOTSET", "VALID"):
            begin, end = (pads[axis], pads[axis + 2]) if auto_pad == "NOTSET" else (0, 0)
            room = size[axis] + begin + end - extent
            if room < 0:
                raise node.refuse(f"window of {extent} does not fit into {size[axis]} + padding {begin}, {end}")
            out = room // stride + 1
            # ceil_mode: one more window when cells are left over, unless it would start in the right padding.
            # With VALID the specification's two formulas (floor and ceil) give the same number.
            left_over = room % stride > 0 and auto_pad == "NOTSET"
            if node.get("ceil_mode", 0) and left_over and out * stride < size[axis] + begin:
                out += 1
        else:
            raise node.refuse(f"auto_pad '{auto_pad}' is unknown")
        placed.append((begin, end, out))
    begins, ends, outs = (cast(Pair, column) for column in zip(*placed, strict=True))
    return Windows(kernel, strides, dilations, begins, ends, outs)


def cover(padded: Tensor, windows: Windows, fill: float) -> Tensor:
    """Extends (or crops) at the end to what the windows cover; ceil_mode may reach beyond the padding."""
    height, width = windows.covered
    return functional.pad(padded, [0, width - padded.shape[3], 0, height - padded.shape[2]], value=fill)


def window_cells(padded: Tensor, windows: Windows, fill: float) -> Iterator[Tensor]:
    """For each window position in row-major order: the cell of every window there, [N, C, out H, out W]."""
    padded = cover(padded, windows, fill)
    spans = [(windows.out[a] - 1) * windows.strides[a] + 1 for a in (0, 1)]
    for i in range(0, windows.kernel[0] * windows.dilations[0], windows.dilations[0]):
        for j in range(0, windows.kernel[1] * windows.dilations[1], windows.dilations[1]):
            yield padded[:, :, i : i + spans[0] : windows.strides[0], j : j + spans[1] : windows.strides[1]]


def sizes(x: Tensor) -> Pair:
    """Height and width of an NCHW tensor."""
    return cast(Pair, tuple(x.shape[2:]))


def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """2-D convolution with groups, strides, dilations and any padding."""
    if weight.ndim != 4:
        raise node.refuse(f"received a weight of {weight.ndim} axes, expected 4 (2-D convolution)")
    w = place_windows(node, sizes(x), sizes(weight))
    padding: Pair = w.begin if w.begin == w.end else (0, 0)
    if w.begin != w.end:
        x = functional.pad(x, w.pads)
    return functional.conv2d(x, weight, bias, w.strides, padding, w.dilations, node.get("group", 1))


def max_pool(node: Node, x: Tensor, *, decision: Tensor | None = None) -> Tensor:
    """Value at the first maximum of each window, in row-major order; padding never wins."""
    if len(node.outputs) > 1:
        raise node.refuse("second output (Indices) is not supported")
    w = place_windows(node, sizes(x), tuple(node.attributes["kernel_shape"]))
    if decision is None and not x.requires_grad:
        padded = cover(functional.pad(x, w.pads, value=-torch.inf), w, -torch.inf)
        return functional.max_pool2d(padded, w.kernel, w.strides, dilation=w.dilations)
    judged = (x if decision is None else decision).detach()
    height, width = sizes(x)
    cells = torch.arange(height * width).reshape(1, 1, height, width)
    best = torch.full((*x.shape[:2], *w.out), -torch.inf, dtype=judged.dtype)
    first = torch.full(best.shape, -1)
    values = window_cells(functional.pad(judged, w.pads, value=-torch.inf), w, -torch.inf)
    for value, cell in zip(values, window_cells(functional.pad(cells, w.pads, value=-1), w, -1), strict=True):
        better = (cell >= 0) & ((value > best) | (first < 0))
        best = torch.where(better, value, best)
        first = torch.where(better, cell, first)
    return x.flatten(2).gather(2, first.flatten(2)).reshape(best.shape)


def average_pool(node: Node, x: Tensor) -> Tensor:
    """Mean of each window; padding counts with count_include_pad, what ceil_mode adds beyond it never."""
    w = place_windows(node, sizes(x), tuple(node.attributes["kernel_shape"]))
    counted = functional.pad(x.new_ones(1, 1, *sizes(x)), w.pads, value=float(node.get("count_include_pad", 0)))
    total = torch.stack(list(window_cells(functional.pad(x, w.pads), w, 0.0))).sum(0)
    count = torch.stack(list(window_cells(counted, w, 0.0))).sum(0)
    return total / count


def relu(_: Node, x: Tensor, *, decision: Tensor | None = None, overwrite: bool = False) -> Tensor:
    """max(x, 0); gradient 0 at 0."""
    if decision is None:
        return torch.relu_(x) if overwrite else torch.relu(x)
    return torch.where(decision > 0, x, torch.zeros_like(x))


def clip_bounds(node: Node, low: Tensor | None, high: Tensor | None) -> tuple[float, float]:
    """Bounds from the inputs or, before opset 11, from the attributes; infinite where absent."""
    bounds = []
    for tensor, attribute, absent in ((low, "min", -torch.inf), (high, "max", torch.inf)):
        bounds.append(float(node.get(attribute, absent)) if tensor is None else tensor.item())
    return bounds[0], bounds[1]


def clip(
    node: Node,
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    decision: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """min(max(x, low), high); gradient 0 outside and at both bounds (torch.clamp has 1 there)."""
    lo, hi = clip_bounds(node, low, high)
    if decision is None and not x.requires_grad:
        return torch.clamp_(x, lo, hi) if overwrite else torch.clamp(x, lo, hi)
    judged = (x if decision is None else decision).detach()
    return torch.where((judged > lo) & (judged < hi), x, judged.clamp(lo, hi).to(x.dtype))


def hard_sigmoid(node: Node, x: Tensor, *, decision: Tensor | None = None) -> Tensor:
    """max(0, min(1, alpha x + beta)); gradient 0 outside and at both bounds."""
    line = node.get("alpha", 0.2) * x + node.get("beta", 0.5)
    judged = (line if decision is None else decision).detach()
    return torch.where((judged > 0) & (judged < 1), line, judged.clamp(0, 1).to(x.dtype))


def hard_swish(_: Node, x: Tensor, *, decision: Tensor | None = None) -> Tensor:
    """x max(0, min(1, x/6 + 1/2)); gradient 0 for x <= -3, 1 for x >= 3. The function body has 1/6 as a float32."""
    judged = (x if decision is None else decision).detach()
    inner = torch.where(judged >= 3, x, x * (x * SIXTH + 0.5))
    return torch.where(judged <= -3, torch.zeros_like(x), inner)


def gelu(node: Node, x: Tensor) -> Tensor:
    """x Phi(x) with the normal distribution Phi, or its approximation by tanh."""
    approximate = node.get("approximate", b"none").decode()
    if approximate == "none":
        return x * (1 + torch.erf(x * 2**-0.5)) / 2
    if approximate == "tanh":
        return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    raise node.refuse(f"approximate '{approximate}' is unknown")


def mul(_: Node, a: Tensor, b: Tensor) -> Tensor:
    """Product with broadcasting."""
    return a * b


def add(_: Node, a: Tensor, b: Tensor) -> Tensor:
    """Sum with broadcasting."""
    return a + b


def sigmoid(_: Node, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax along an axis; before opset 13 over all axes from `axis` on."""
    return normalise_exponentials(node, x, torch.softmax)


def log_softmax(node: Node, x: Tensor) -> Tensor:
    """Logarithm of Softmax."""
    return normalise_exponentials(node, x, torch.log_softmax)


def normalise_exponentials(node: Node, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """Softmax or LogSoftmax, with the axis as the opset means it."""
    if node.opset >= 13:
        return function(x, dim=node.get("axis", -1))
    axis = node.get("axis", 1) % x.ndim
    return function(x.flatten(axis), dim=axis).reshape(x.shape)


def batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, with the stored statistics."""
    if node.get("training_mode", 0):
        raise node.refuse("training_mode=1 is not supported")
    return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias; the statistics over the axes from `axis` on."""
    if len(node.outputs) > 1:
        raise node.refuse("second output (Mean) is not supported")
    over = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True)
    result = centred / torch.sqrt(variance + node.get("epsilon", 1e-5)) * scale
    return result if bias is None else result + bias


def global_average_pool(_: Node, x: Tensor) -> Tensor:
    """Mean over all axes after N, C."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def reduce_mean(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Mean over the axes given as attribute (before opset 18) or as input; over all when there are none."""
    over = node.get("axes", ()) if axes is None else axes.tolist()
    if not over and node.get("noop_with_empty_axes", 0):
        return x
    return x.mean(dim=tuple(over) or tuple(range(x.ndim)), keepdim=bool(node.get("keepdims", 1)))


def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * A' B' + beta * C."""
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    return alpha * (a @ b) if c is None else alpha * (a @ b) + beta * c


def matmul(_: Node, a: Tensor, b: Tensor) -> Tensor:
    """Matrix product as numpy.matmul."""
    return a @ b


def concat(node: Node, *xs: Tensor) -> Tensor:
    """Concatenation along an axis."""
    return torch.cat(xs, dim=node.attributes["axis"])


def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis: of the given sizes, else equal ones, the last smaller where they do not divide the axis."""
    axis = node.get("axis", 0)
    if sizes is not None:
        return x.split(sizes.tolist(), dim=axis)
    count = node.get("num_outputs", len(node.outputs))
    return x.split(-(-x.shape[axis] // count), dim=axis)


def transpose(node: Node, x: Tensor) -> Tensor:
    """Axes in the order `perm`, by default reversed."""
    return x.permute(tuple(node.get("perm", range(x.ndim)[::-1])))


def pad(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Constant padding; pads and value as inputs or, before opset 11, as attributes. Negative pads crop."""
    mode = node.get("mode", b"constant").decode()
    if mode != "constant":
        raise node.refuse(f"mode '{mode}' is not supported, only 'constant'")
    amounts = node.attributes["pads"] if pads is None else pads.tolist()
    over = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for k, axis in enumerate(over):
        begin[axis], end[axis] = amounts[k], amounts[k + len(over)]
    torch_order = [amount for axis in reversed(range(x.ndim)) for amount in (begin[axis], end[axis])]
    return functional.pad(x, torch_order, value=float(node.get("value", 0.0)) if value is None else value.item())


def flatten(node: Node, x: Tensor) -> Tensor:
    """To 2-D: the axes before `axis` and those from it on."""
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """New shape; 0 copies the input's size (unless allowzero), -1 is inferred."""
    wanted = shape.tolist()
    if not node.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drops the axes given as attribute (before opset 13) or as input; by default all of size 1."""
    over = node.get("axes", None) if axes is None else axes.tolist()
    return x.squeeze() if over is None else x.squeeze(tuple(over))


def identity(_: Node, x: Tensor) -> Tensor:
    """The input."""
    return x


def dropout(node: Node, x: Tensor, _ratio: Tensor | None = None, training_mode: Tensor | None = None) -> Tensor:
    """The input: inference only."""
    if training_mode is not None and bool(training_mode):
        raise node.refuse("training_mode=1 is not supported")
    return x


OPERATORS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "Dropout": dropout,
    "Flatten": flatten,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": identity,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": log_softmax,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": mul,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
}
"""Every operator but Constant, which has no input and is read when the network is made."""

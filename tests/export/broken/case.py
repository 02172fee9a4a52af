"""Networks that need one gradient rule each, and mistakes that many rules may have."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike

from engine.export.graph import AttributeValue, GraphBuilder, input_at, static_shape
from engine.export.rules import RULES, Rule
from tests.export.networks import BATCH, image_input, network, node, weight

RIGHT: Mapping[str, Rule] = {op: entry.rule for op, entry in RULES.items()}
CHANNELS, SIZE, CLASSES = 4, 8, 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network that needs the rule of an operator.

    Attributes:
        op: The operator.
        nodes: From `maps` [N, 4, 8, 8], the first feature layer, to `out`; with `tail` None, to `logits`.
        constants: Their constants; float64 becomes float32.
        wrong: The operator's own mistakes, by name.
        form: Tells the networks of one operator from each other.
        block: The block that holds the operator.
        positive: Whether `maps` is positive.
        tail: What follows: a `conv` in the same block, or a `gemm` to the logits; or nothing.
        moved: Axes along which the gradient may be moved: it is not constant along them.
        opset: The model's opset.
    """

    op: str
    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, ArrayLike] = field(default_factory=dict)
    wrong: Mapping[str, Rule] = field(default_factory=dict)
    form: str = ""
    block: str = "block2"
    positive: bool = False
    tail: str | None = "conv"
    moved: tuple[int, ...] = (1, 2, 3)
    opset: int = 17

    @property
    def name(self) -> str:
        return f"{self.op} {self.form}".strip()

    @property
    def layers(self) -> list[str]:
        return ["maps", "last"] if self.tail == "conv" else ["maps"]

    def model(self) -> onnx.ModelProto:
        """Conv (1×1), the op, then Conv, GlobalAveragePool, Flatten and Gemm or a Gemm alone, and Softmax."""
        random = np.random.default_rng(20102)
        first = [node("Conv", "x w w_bias", "conv" if self.positive else "maps")]
        if self.positive:
            first.append(node("Softplus", "conv", "maps"))
        ends = {
            "conv": [
                node("Conv", "out v", "last"),
                node("GlobalAveragePool", "last", "mean"),
                node("Flatten", "mean", "flat"),
                node("Gemm", "flat u", "logits"),
            ],
            "gemm": [node("Gemm", "out u", "logits")],
        }
        nodes = [*first, *self.nodes, *ends.get(self.tail or "", []), node("Softmax", "logits", "y")]
        constants = {"w": weight(random, CHANNELS, 3, 1, 1), "w_bias": 0.2 * random.standard_normal(CHANNELS)}
        constants |= {name: np.asarray(array) for name, array in self.constants.items()}
        inner = network([*first, *self.nodes], constants, outputs="out" if self.tail else "logits", opset=self.opset)
        sizes = [size.dim_value for size in inner.graph.output[0].type.tensor_type.shape.dim]
        classes = CLASSES if self.tail else sizes[1]
        if self.tail == "conv":
            constants["v"] = weight(random, CLASSES, sizes[1] if sizes else CHANNELS, 1, 1)
            constants["u"] = np.eye(CLASSES) + 0.3 * random.standard_normal((CLASSES, CLASSES))
        elif self.tail == "gemm":
            constants["u"] = weight(random, CLASSES, sizes[1]).T
        model = network(nodes, constants, opset=self.opset)
        model.graph.output[0].CopyFrom(image_input([BATCH, classes], "y"))
        return model

    def mistakes(self) -> Iterator[tuple[str, Rule]]:
        """Yield the mistakes, by name: those of any rule, and the operator's own; made at this network's own nodes."""
        any_rule = {"sign": times(self.op, -1.0), "scale": times(self.op, 1.01), "zero": times(self.op, 0.0)}
        any_rule |= {f"moved along axis {axis}": moved(self.op, axis) for axis in self.moved}
        for name, wrong in (any_rule | dict(self.wrong)).items():
            yield name, self._within(wrong)

    def _within(self, wrong: Rule) -> Rule:
        own = {entry.name for entry in self.nodes}

        def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
            return (wrong if node.name in own else RIGHT[self.op])(g, node, dys, index)

        return rule


def times(op: str, factor: float) -> Rule:
    return after(op, lambda g, result: g.op("Mul", result, g.floats(factor, result)))


def moved(op: str, axis: int) -> Rule:
    """Every element one further along an axis, the last one first; the batch is axis 0."""
    return after(op, lambda g, result: rolled(g, result, axis))


def after(op: str, change: Callable[[GraphBuilder, ir.Value], ir.Value]) -> Rule:
    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        return change(g, RIGHT[op](g, node, dys, index))

    return rule


def rolled(g: GraphBuilder, value: ir.Value, axis: int) -> ir.Value:
    ends = g.ints([2**31 - 1]), g.ints([axis])
    last, others = g.op("Slice", value, g.ints([-1]), *ends), g.op("Slice", value, g.ints([0]), g.ints([-1]), ends[1])
    return g.op("Concat", last, others, axis=axis)


def by_x(slope: Callable[[GraphBuilder, ir.Value], ir.Value]) -> Rule:
    """dx = dy·slope(x)."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        return g.op("Mul", dys[0], slope(g, input_at(node, 0)))

    return rule


def by_y(slope: Callable[[GraphBuilder, ir.Value], ir.Value]) -> Rule:
    """dx = dy·slope(y)."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        return g.op("Mul", dys[0], slope(g, node.outputs[0]))

    return rule


def passes(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return dys[0]


def as_if(op: str, **attributes: AttributeValue) -> Rule:
    """The right rule of a node with other attributes."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        own = dict(node.attributes)
        node.attributes.update({entry.name: entry for entry in ir.convenience.convert_attributes(attributes)})
        try:
            return RIGHT[op](g, node, dys, index)
        finally:
            node.attributes.clear()
            node.attributes.update(own)

    return rule


def as_if_inputs(op: str, **constants: ArrayLike) -> Rule:
    """The right rule of a node with other constants as inputs: `at_1=[…]`."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        own = list(node.inputs)
        for name, values in constants.items():
            position = int(name.removeprefix("at_"))
            before = own[position]
            assert before is not None
            assert before.const_value is not None
            node.replace_input_with(position, g.constant(np.asarray(values, before.const_value.numpy().dtype)))
        try:
            return RIGHT[op](g, node, dys, index)
        finally:
            for position, value in enumerate(own):
                node.replace_input_with(position, value)

    return rule


def only(op: str, wanted: int) -> Rule:
    """No gradient at any input but one."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        right = RIGHT[op](g, node, dys, index)
        return right if index == wanted else g.op("Mul", right, g.floats(0.0, right))

    return rule


def at(op: str, wanted: int, wrong: Rule) -> Rule:
    """The wrong rule at one input, the right one at the others."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        return (wrong if index == wanted else RIGHT[op])(g, node, dys, index)

    return rule


def exchanged(op: str, first: int = 0, second: int = 1) -> Rule:
    """What belongs to one input goes to another."""
    other = {first: second, second: first}

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        return RIGHT[op](g, node, dys, other.get(index, index))

    return rule


def step(g: GraphBuilder, value: ir.Value, threshold: float = 0.0, comparison: str = "Greater") -> ir.Value:
    return g.cast(g.op(comparison, value, g.floats(threshold, value)), value.dtype)


def linear(g: GraphBuilder, value: ir.Value, factor: float, offset: float) -> ir.Value:
    return g.op("Add", g.op("Mul", value, g.floats(factor, value)), g.floats(offset, value))


def all_elements(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """The mean's gradient in place of the extremum's, over all pixels or channels."""
    sizes = [1, *static_shape(input_at(node, 0))]
    kept = [1, *static_shape(node.outputs[0])]
    share = g.op("Mul", dys[0], g.floats(math.prod(kept) / math.prod(sizes), dys[0]))
    return g.op("Expand", share, g.ints(sizes))


def all_ties(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """The whole gradient at every element that equals the extremum."""
    x, y = input_at(node, 0), node.outputs[0]
    return g.op("Mul", dys[0], g.cast(g.op("Equal", x, y), x.dtype))


def sum_in_place_of_mean(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Expand", dys[0], g.ints([1, *static_shape(input_at(node, 0))]))


def times_output(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Mul", dys[0], node.outputs[0])


def times_input(*, divided: bool = False, factor: float = 1.0) -> Rule:
    """dx = dy·factor·x, or divided by y²."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        y = node.outputs[0]
        dy = g.op("Div", dys[0], g.op("Mul", y, y)) if divided else dys[0]
        return g.op("Mul", g.op("Mul", dy, g.floats(factor, dy)), input_at(node, 0))

    return rule


def plain(op: str, wrong: Mapping[str, Rule] | None = None, *, opset: int = 17, positive: bool = False, **attributes):
    """An operator of one input."""
    nodes = [node(op, "maps", "out", **attributes)]
    return Case(op=op, nodes=nodes, wrong=wrong or {}, opset=opset, positive=positive)


def with_constants(op: str, wrong: Mapping[str, Rule], constants: Mapping[str, ArrayLike], **options: object) -> Case:
    """An operator of one input and constants, which are its next inputs in order; `-` is an absent one."""
    attributes = options.pop("attributes", {})
    nodes = [node(op, " ".join(["maps", *constants]), "out", **attributes)]
    kept = {name: array for name, array in constants.items() if name != "-"}
    return Case(op=op, nodes=nodes, constants=kept, wrong=wrong, **options)

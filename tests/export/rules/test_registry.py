import importlib
import re
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from engine.errors import UnsupportedOpError
from engine.export.rules import RULES, entry_for

FAMILIES = (
    "activation",
    "arithmetic",
    "convolution",
    "elementwise",
    "linear",
    "normalization",
    "padding",
    "pooling",
    "quantization",
    "reduction",
    "resize",
    "selection",
    "shaping",
    "softmax",
)


def covered_ops(family: str) -> tuple[str, ...]:
    """The ops that a family's tests compare with an oracle, each in all versions."""
    return importlib.import_module(f"tests.export.rules.test_{family}").OPS


def versions_since(op_type: str, oldest: int) -> list[int]:
    """The op's schema versions that opsets from the oldest to onnx's newest resolve to."""
    opsets = range(max(oldest, first_opset(op_type)), onnx.defs.onnx_opset_version() + 1)
    return sorted({onnx.defs.get_schema(op_type, opset).since_version for opset in opsets})


def first_opset(op_type: str) -> int:
    """The opset that brought the op."""
    schemas = onnx.defs.get_all_schemas_with_history()
    return min(schema.since_version for schema in schemas if (schema.domain, schema.name) == ("", op_type))


def node_of(op_type: str, domain: str = "") -> ir.Node:
    return ir.Node(domain, op_type, [ir.Value(name="x")], name="stem/act")


def test_every_op_has_a_test() -> None:
    assert sorted(op for family in FAMILIES for op in covered_ops(family)) == sorted(RULES)


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_live_in_the_module_of_their_family(family: str) -> None:
    modules = {RULES[op].rule.__module__ for op in covered_ops(family)}
    assert modules == {f"engine.export.rules.{family}"}


def test_rules_are_listed_by_name() -> None:
    assert list(RULES) == sorted(RULES)


@pytest.mark.parametrize("op", RULES)
def test_versions_are_those_of_the_supported_opsets(op: str) -> None:
    assert list(RULES[op].versions) == versions_since(op, 17)  # one more than the exporter works on


@pytest.mark.parametrize("opset", [17, 18, 22, onnx.defs.onnx_opset_version()])
@pytest.mark.parametrize("op", RULES)
def test_rule_is_found_in_every_opset(op: str, opset: int) -> None:
    opset = max(opset, first_opset(op))
    assert entry_for(node_of(op), opset) is RULES[op]
    assert entry_for(node_of(op, "ai.onnx"), opset) is RULES[op]


def test_unknown_op_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        entry_for(node_of("Einsum"), 17)
    message = str(caught.value)
    assert message.startswith("Einsum node 'stem/act': operator Einsum has no gradient rule; known are Abs, Add, ")
    assert ", ".join(sorted(RULES)) in message
    assert message.endswith(
        ". Add one (docs/add-an-op.md in the engine's repository tells how), or choose feature layers (--layer) that "
        "come after this node"
    )


def test_op_of_another_domain_is_refused() -> None:
    message = r"^Relu node 'stem/act': operator com\.acme::Relu has no gradient rule; known are Abs, Add, "
    with pytest.raises(UnsupportedOpError, match=message):
        entry_for(node_of("Relu", "com.acme"), 17)


def test_unknown_version_is_refused() -> None:
    message = (
        r"^Clip node 'stem/act': is version 12 of Clip, by the model's opset 12; the gradient rule covers versions 13: "
        r"convert the model with onnx\.version_converter$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        entry_for(node_of("Clip"), 12)


def test_documentation_lists_the_operators_and_their_versions() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "operators.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d, ]+) \| \S.* \|$", page, flags=re.MULTILINE)
    assert rows == [(op, ", ".join(map(str, entry.versions))) for op, entry in RULES.items()]

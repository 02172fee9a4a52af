"""Follows docs/add-an-op.md, whose code must work as it stands there."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.errors import UnsupportedOpError, VerificationError
from engine.export import export
from engine.export.graph import GraphBuilder
from engine.export.rules import RULES, Entry
from tests.export.networks import network, node, weight, written
from tests.export.rules.test_registry import versions_since

PAGE = Path(__file__).resolve().parents[3] / "docs" / "add-an-op.md"


def with_sin(random: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w", "maps"),
        node("Sin", "maps", "waves"),
        node("GlobalAveragePool", "waves", "mean"),
        node("Flatten", "mean", "features"),
        node("Gemm", "features head", "logits"),
    ]
    return network(nodes, {"w": weight(random, 4, 3, 3, 3), "head": weight(random, 4, 5)}, outputs="logits")


def names_of_the_page() -> dict[str, object]:
    """Run the page's code, block by block, and return what it defines."""
    names: dict[str, object] = {"__name__": "page"}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    return names


def test_the_example_has_no_rule_yet(random: np.random.Generator, tmp_path: Path) -> None:
    message = r"^.*: Sin node 'node_waves': operator Sin has no gradient rule; known are .*docs/add-an-op\.md"
    with pytest.raises(UnsupportedOpError, match=message):
        export(written(with_sin(random), tmp_path), tmp_path / "new.ada", activation="none", layers=["maps"])


def test_the_page_s_code_works(random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of_the_page()
    for op, entry in names["ENTRY"].items():
        assert list(entry.versions) == versions_since(op, 17)
        monkeypatch.setitem(RULES, op, entry)
    names["check_sin"](random)
    report = export(written(with_sin(random), tmp_path), tmp_path / "new.ada", activation="none", layers=["maps"])
    assert report.verification.gradient_errors["head"] <= 1e-6


def test_the_page_s_test_finds_a_mistake(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of_the_page()

    def wrong(g: GraphBuilder, node, dys, index):
        return g.op("Neg", names["sin"](g, node, dys, index))

    monkeypatch.setitem(RULES, "Sin", Entry(wrong, (7, 22)))
    with pytest.raises(AssertionError):
        names["check_sin"](random)


def test_the_export_finds_a_mistake(
    random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(g: GraphBuilder, node, dys, index):  # noqa: ARG001
        return g.op("Mul", dys[0], g.op("Sin", node.inputs[0]))

    monkeypatch.setitem(RULES, "Sin", Entry(wrong, (7, 22)))
    with pytest.raises(VerificationError, match=r"^gradient companion of head: differs from central differences"):
        export(written(with_sin(random), tmp_path), tmp_path / "new.ada", activation="none", layers=["maps"])

"""Every gradient rule is broken in turn, in a network that needs it: the export must refuse, and name the block."""

from pathlib import Path

import pytest
from onnx_ir.passes import common as passes

from engine.errors import VerificationError
from engine.export import export, simplify
from engine.export.rules import RULES, Entry, Rule
from tests.export.broken import CASES
from tests.export.broken.case import Case


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {case.name: case.model().SerializeToString() for case in CASES}


@pytest.fixture(autouse=True)
def nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity does not get as far as its rule otherwise."""
    monkeypatch.setattr(simplify.passes, "IdentityEliminationPass", passes.RemoveInitializersFromInputsPass)


def test_every_rule_has_a_network() -> None:
    assert sorted({case.op for case in CASES}) == sorted(RULES)


def test_networks_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_right_rule_is_accepted(case: Case, models: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models[case.name])
    report = export(path, tmp_path / "right.ada", layers=case.layers)
    assert report.ops[case.block][case.op] >= 1
    assert list(report.verification.gradient_errors) == ["block1", *["block2"] * (len(case.layers) - 1), "head"]
    assert max(report.verification.gradient_errors.values()) <= 1e-5


@pytest.mark.parametrize(
    ("case", "rule"),
    [pytest.param(case, rule, id=f"{case.name}-{name}") for case in CASES for name, rule in case.mistakes()],
)
def test_wrong_rule_is_refused(
    case: Case, rule: Rule, models: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models[case.name])
    right = RULES[case.op]
    monkeypatch.setitem(RULES, case.op, Entry(rule, right.versions, every_output=right.every_output))
    with pytest.raises(VerificationError) as caught:
        export(path, tmp_path / "wrong.ada", layers=case.layers)
    assert str(caught.value).startswith(f"gradient companion of {case.block}: ")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

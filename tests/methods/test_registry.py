"""The registry, the documentation and the types that callers see say the same."""

import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest

from engine.methods import METHODS
from engine.options import Choices, MethodOptions

DOCS = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def documented() -> dict[str, set[str]]:
    """The methods of the table at the head of the page, with the names of their options."""
    found = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("["):
            options = set(re.findall(r"`(\w+)`(?: \(|,|$)", cells[4]))
            for name in re.findall(r"`([\w+-]+)`", cells[0]):
                found[name] = options
    return found


def test_the_page_lists_every_method() -> None:
    assert documented().keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_page_lists_the_options_of(name: str) -> None:
    options = {field.name for field in fields(METHODS[name])}
    if name == "sise":  # shares a row with ada-sise
        assert documented()[name] - options == {"rule", "preset"}
    else:
        assert options == documented()[name]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_name_by_which_it_is_found(name: str) -> None:
    assert METHODS[name].name == name
    assert METHODS[name].layered == (name in ("ada-sise", "sise"))


def test_type_checkers_know_every_option() -> None:
    known = set(typing.get_type_hints(MethodOptions, localns={"Method": object}))
    assert known == {field.name for method in METHODS.values() for field in fields(method)}
    assert known < set(Choices.__annotations__)

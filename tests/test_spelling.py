from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from engine.errors import OptionError
from engine.evaluation import EVALUATED
from engine.image import Baseline
from engine.methods import METHODS, AdaSise, Sise
from engine.spelling import option_texts, parse_method, spell


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    name: ClassVar[str] = "example"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    whole: int = 5
    number: float = 0.5
    flag: bool = False
    word: str | None = None
    numbers: Sequence[float] = (0.1, 0.2)
    colour: Baseline = "zero"

    def explain(self, probe: object) -> list[object]:
        raise AssertionError(probe)


KNOWN = {"example": Example}


@pytest.mark.parametrize(
    ("text", "expected", "written"),
    [
        ("example", Example(), "example"),
        (" example : whole = 7 ", Example(whole=7), "example:whole=7"),
        ("example:whole=5:number=0.50", Example(), "example"),
        ("example:number=2", Example(number=2.0), "example:number=2"),
        ("example:number=1e-3:flag=true", Example(number=1e-3, flag=True), "example:number=0.001:flag=true"),
        ("example:word=relu:flag=false", Example(word="relu"), "example:word=relu"),
        ("example:word=none", Example(), "example"),
        ("example:word=None:flag=True", Example(flag=True), "example:flag=true"),
        ("example:numbers=1/0.5", Example(numbers=(1.0, 0.5)), "example:numbers=1/0.5"),
        ("example:colour=10/20/30", Example(colour=(10.0, 20.0, 30.0)), "example:colour=10/20/30"),
        ("example:colour=blur", Example(colour="blur"), "example:colour=blur"),
    ],
)
def test_a_method_as_text_and_back(text: str, expected: Example, written: str) -> None:
    assert parse_method(text, KNOWN) == expected
    assert spell(expected) == written
    assert parse_method(spell(expected), KNOWN) == expected


def test_options_beside_the_text() -> None:
    assert parse_method("sise:mu=0.5", METHODS, {"baseline": "1,2,3"}) == Sise(mu=0.5, baseline=(1.0, 2.0, 3.0))


@pytest.mark.parametrize("name", EVALUATED)
def test_every_method_has_options_that_can_be_written_and_read(name: str) -> None:
    method = EVALUATED[name]()
    assert spell(method) == name
    assert spell(parse_method(name, EVALUATED, option_texts(method))) == name


def test_all_options_as_text() -> None:
    assert option_texts(AdaSise(baseline=(1, 2.5, 3))) == {
        "rule": "otsu",
        "mu": "0",
        "fusion": "hard",
        "baseline": "1/2.5/3",
        "preset": "exact",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exmaple", "method is 'exmaple'; expected one of example"),
        ("example:whole", "method 'example:whole': has 'whole'; expected OPTION=VALUE after each colon"),
        (
            "example:whole=1:whole=2",
            "method 'example:whole=1:whole=2': option 'whole' is given twice; expected each once",
        ),
        ("example:masks=1", "masks: is no option of method 'example'; expected some of whole, number, flag, word, "),
        ("example:whole=1.5", "whole is '1.5'; expected a whole number"),
        ("example:number=x", "number is 'x'; expected a number"),
        ("example:flag=yes", "flag is 'yes'; expected true or false"),
        ("example:numbers=1/x", "numbers is '1/x'; expected numbers with / between them"),
    ],
)
def test_a_text_without_meaning(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_method(text, KNOWN)
    assert str(caught.value).startswith(message)


def test_a_method_without_options() -> None:
    with pytest.raises(
        OptionError, match=r"^sigma: is no option of method 'grad-cam-otsu'; expected none, since it has"
    ):
        parse_method("grad-cam-otsu:sigma=1", EVALUATED)


def test_a_value_that_the_method_refuses() -> None:
    with pytest.raises(OptionError, match=r"^rule is 'best'; expected one of otsu, "):
        parse_method("ada-sise:rule=best", METHODS)

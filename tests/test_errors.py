import pytest

from engine.errors import BundleError, EngineError, MissingRuntimeError, printable


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("cat.jpg: is no photo; expected 3×4 − 5 … α", "cat.jpg: is no photo; expected 3×4 − 5 … α"),
        ("tensor two\nlines\r\0", r"tensor two\nlines\r\x00"),
        ("label \x1b[31mred \u202etfel", r"label \x1b[31mred \u202etfel"),
        ("half \ud800 a pair", r"half \ud800 a pair"),
        ("x" * 2000, "x" * 2000),
        ("a" * 1500 + "b" * 1500 + "!", "a" * 1000 + " … " + "b" * 999 + "!"),
    ],
)
def test_a_message_is_one_line_that_can_be_printed(message: str, expected: str) -> None:
    for kind in (EngineError, BundleError, MissingRuntimeError):
        assert str(kind(message)) == expected


def test_a_missing_runtime_is_an_import_error_too() -> None:
    with pytest.raises(ImportError, match=r"^nothing is installed$"):
        raise MissingRuntimeError("nothing is installed")


def test_a_text_becomes_printable() -> None:
    assert (
        printable("tabby\ncat \x1b]0;owned\x07 [bold] :cat: crème 猫")
        == r"tabby\ncat \x1b]0;owned\x07 [bold] :cat: crème 猫"
    )

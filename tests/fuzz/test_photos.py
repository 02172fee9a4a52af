import pytest

from tests.fuzz.stage import Stage


def test_an_edited_photo_is_refused_or_explained(stage: Stage) -> None:
    counts = stage.search("photo", 800)
    assert counts["refused"] > 150
    assert counts["done"] > 20


@pytest.mark.parametrize("kind", ["picture", "array"])
def test_any_picture_and_array_is_refused_or_explained(kind: str, stage: Stage) -> None:
    counts = stage.search(kind, 300)
    assert counts["refused"] > 30
    assert counts["done"] > 30


def test_what_is_no_photo_is_refused(stage: Stage) -> None:
    counts = stage.search("path", 50)
    assert counts["refused"] > 30
    assert set(counts) == {"refused"}

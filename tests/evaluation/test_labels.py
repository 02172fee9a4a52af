from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.evaluation.labels import SAME_CLASS, match_labels
from engine.evaluation.sample import Sample

VOC = ("aeroplane", "diningtable", "motorbike", "pottedplant", "sofa", "tvmonitor", "person")


def photos(*labels: tuple[str, ...]) -> list[Sample]:
    return [Sample(name=str(n), photo=Path(str(n)), labels=names) for n, names in enumerate(labels)]


@pytest.mark.parametrize("names", SAME_CLASS)
def test_voc_and_coco_call_six_classes_by_two_names(names: tuple[str, str]) -> None:
    assert match_labels(photos((names[1],)), VOC, 7).classes == {names[1]: VOC.index(names[0])}
    assert match_labels(photos((names[0],)), ("x", names[1]), 2).classes == {names[0]: 1}


def test_case_and_underscores_do_not_matter_and_the_rest_is_left_out() -> None:
    matching = match_labels(photos(("Potted_Plant", "truck"), ("PERSON", "truck")), VOC, 7)
    assert matching.classes == {"Potted_Plant": 3, "PERSON": 6}
    assert matching.left_out == {"truck": 2}


def test_a_number_is_a_class_index_unless_it_is_a_name() -> None:
    assert match_labels(photos(("1", "9")), None, 5).classes == {"1": 1}
    assert match_labels(photos(("1", "0")), ("1", "a"), 2).classes == {"1": 0, "0": 0}


def test_a_name_of_two_classes_is_left_out() -> None:
    matching = match_labels(photos(("crane", "dog")), ("crane", "Crane", "dog"), 3)
    assert (matching.classes, matching.left_out) == ({"dog": 2}, {"crane": 1})


def test_no_class_in_common() -> None:
    with pytest.raises(DatasetError) as caught:
        match_labels(photos(("dog", "cat")), tuple("abcdef"), 6)
    assert str(caught.value) == (
        "the data set has the classes dog, cat, the bundle a, b, c, d, e, …; expected some in common"
    )
    with pytest.raises(DatasetError, match=r"the bundle no labels; expected some in common$"):
        match_labels(photos(("dog",)), None, 6)

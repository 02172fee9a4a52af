import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.backends import OnnxRuntimeCpu
from engine.bundle import load_bundle
from engine.errors import BundleError, EngineError, OptionError, TargetError
from tests.tiny_cnn import LABELS, photo_pixels


@pytest.fixture(scope="module")
def explainer(tiny_bundle: Path) -> engine.Explainer:
    return engine.load(tiny_bundle, threads=1)


def labelled(tiny_bundle: Path, labels: tuple[str, ...] | None) -> engine.Explainer:
    bundle = dataclasses.replace(load_bundle(tiny_bundle), labels=labels)
    return engine.Explainer(bundle, OnnxRuntimeCpu(threads=1))


def refuses(explainer: engine.Explainer, error: type[Exception], text: str, target: object = None, **options) -> None:
    """Expect the whole message, `text`, before the image is looked at."""
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        explainer.explain("no-such-photo.png", target, **options)


RULES = "otsu, otsu-count, positive, all"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rule": "otsus"}, f"rule is 'otsus'; expected one of {RULES}"),
        ({"rule": "Otsu"}, f"rule is 'Otsu'; expected one of {RULES}"),
        ({"rule": None}, f"rule is None; expected one of {RULES}"),
        ({"fusion": "medium"}, "fusion is 'medium'; expected one of hard, soft"),
        ({"fusion": ""}, "fusion is ''; expected one of hard, soft"),
        ({"activation": "relu"}, "activation is 'relu'; expected one of softmax, sigmoid, none"),
        ({"rule": "positive", "mu": -0.1}, "mu is -0.1; expected a number from 0 up to 1"),
        ({"rule": "positive", "mu": 1}, "mu is 1; expected a number from 0 up to 1"),
        ({"rule": "positive", "mu": 1.5}, "mu is 1.5; expected a number from 0 up to 1"),
        ({"rule": "positive", "mu": 10**400}, f"mu is 1{'0' * 400}; expected a number from 0 up to 1"),
        ({"rule": "positive", "mu": np.nan}, "mu is nan; expected a number from 0 up to 1"),
        ({"mu": 0.5}, "mu is 0.5 with rule 'otsu'; only rule 'positive' takes mu"),
        ({"rule": "all", "mu": 1e-9}, "mu is 1e-09 with rule 'all'; only rule 'positive' takes mu"),
        ({"rule": "otsu-count", "mu": 0.25}, "mu is 0.25 with rule 'otsu-count'; only rule 'positive' takes mu"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        ({"batch_size": -8}, "batch_size is -8; expected a whole number of at least 1"),
        ({"batch_size": True}, "batch_size is True; expected a whole number of at least 1"),
        ({"rule": "positive", "mu": False}, "mu is False; expected a number from 0 up to 1"),
        ({"max_masks": True}, "max_masks is True; expected a whole number of at least 1, or None for all"),
        ({"deadline_ms": 1j}, "deadline_ms is 1j; expected a positive number of milliseconds, or None for none"),
        ({"progress": 1}, "progress is 1; expected a function of the masks scored and the masks planned"),
        ({"cancel": True}, "cancel is True; expected a flag with is_set(), such as threading.Event"),
        ({"max_masks": 0}, "max_masks is 0; expected a whole number of at least 1, or None for all"),
        ({"max_masks": 2.5}, "max_masks is 2.5; expected a whole number of at least 1, or None for all"),
        ({"deadline_ms": 0}, "deadline_ms is 0; expected a positive number of milliseconds, or None for none"),
        ({"deadline_ms": np.nan}, "deadline_ms is nan; expected a positive number of milliseconds, or None for none"),
        ({"deadline_ms": np.inf}, "deadline_ms is inf; expected a positive number of milliseconds, or None for none"),
        ({"deadline_ms": "9"}, "deadline_ms is '9'; expected a positive number of milliseconds, or None for none"),
    ],
)
def test_options_without_meaning(explainer: engine.Explainer, options: dict[str, object], text: str) -> None:
    refuses(explainer, OptionError, text, **options)


def test_a_baseline_without_meaning(explainer: engine.Explainer) -> None:
    text = "baseline is 'grey'; expected 'zero', 'blur', or 3 colour values from 0 to 255"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        explainer.explain(photo_pixels(), baseline="grey")


def test_an_empty_activation(explainer: engine.Explainer) -> None:
    refuses(explainer, OptionError, "activation is ''; expected one of softmax, sigmoid, none", activation="")


@pytest.mark.parametrize("options", [{"batch_size": 2.5}, {"batch_size": "8"}, {"mu": None}, {"mu": "0.1"}], ids=str)
def test_numbers_of_another_type(explainer: engine.Explainer, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(options))} is .*; expected "):
        explainer.explain(photo_pixels(), **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_input_that_overflows_the_network(explainer: engine.Explainer) -> None:
    try:
        found = explainer.explain(np.full((1, 3, 24, 32), 3e38, np.float32))
    except EngineError:
        return
    assert np.isfinite(found.heatmap).all()
    assert found.warnings


def test_loading(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"^device 'tpu' is unknown; expected one of cpu, openvino, cuda, tensorrt$"):
        engine.load(tiny_bundle, device="tpu")
    with pytest.raises(
        OptionError, match=r"^threads is 0; expected a whole number from 1 to 1024, or None for one per CPU$"
    ):
        engine.load(str(tiny_bundle), threads=0)
    with pytest.raises(BundleError, match=r"^none\.ada: does not exist; expected a bundle made by"):
        engine.load("none.ada")


@pytest.mark.parametrize("index", range(5))
def test_a_label_is_its_index(explainer: engine.Explainer, index: int) -> None:
    by_index = explainer.explain(photo_pixels(), index)
    by_label = explainer.explain(photo_pixels(), LABELS[index])
    for found in (by_index, by_label):
        assert (found.target, found.label) == (index, LABELS[index])
        assert type(found.target) is int
    np.testing.assert_array_equal(by_label.heatmap, by_index.heatmap)


def test_none_is_the_top_class(explainer: engine.Explainer) -> None:
    scores = [explainer.explain(photo_pixels(), index).class_score for index in range(5)]
    assert sum(scores) == pytest.approx(1)
    top = explainer.explain(photo_pixels())
    assert (top.target, top.class_score) == (int(np.argmax(scores)), max(scores))


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_numpy_integers_are_indices(explainer: engine.Explainer, kind: type) -> None:
    found = explainer.explain(photo_pixels(), kind(2))
    assert found.target == 2
    assert type(found.target) is int


@pytest.mark.parametrize("several", [list, tuple])
def test_several_targets_of_every_kind(explainer: engine.Explainer, several: type) -> None:
    found = explainer.explain(photo_pixels(), several([4, "tiger cat", None, np.int64(1), "cup"]))
    assert isinstance(found, list)
    assert [one.target for one in found] == [4, 1, 0, 1, 4]
    for one in found:
        np.testing.assert_array_equal(one.heatmap, explainer.explain(photo_pixels(), one.target).heatmap)
    assert [one.target for one in explainer.explain(photo_pixels(), several([3]))] == [3]


@pytest.mark.parametrize("target", [-1, 5, -6, 10**30, np.int64(-1), np.uint8(255)])
def test_indices_out_of_range(explainer: engine.Explainer, target: int) -> None:
    text = f"target {target}: is out of range; expected a class index from 0 to 4"
    refuses(explainer, TargetError, text, target)
    refuses(explainer, TargetError, text, [0, target])


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (True, "bool"),
        (False, "bool"),
        (np.True_, "bool"),
        (1.0, "float"),
        (np.float32(1), "float32"),
        ([1], "list"),
        (b"cup", "bytes"),
        (np.array([1, 2]), "ndarray"),
    ],
)
def test_targets_of_another_type(explainer: engine.Explainer, target: object, kind: str) -> None:
    text = f"target {target!r}: is a {kind}; expected a class index, a label or None"
    refuses(explainer, TargetError, text, [target])
    if kind != "list":
        refuses(explainer, TargetError, text, target)


@pytest.mark.parametrize("target", [[], ()])
def test_no_target_at_all(explainer: engine.Explainer, target: object) -> None:
    text = "target is an empty list; expected at least one class index or label, or None for the top-1 class"
    refuses(explainer, TargetError, text, target)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("tigre cat", "; did you mean 'tiger cat'?"),
        ("Espresso", "; did you mean 'espresso'?"),
        ("tabbys cat", "; did you mean 'tabby cat'?"),
        ("tiger-tabby cat", "; did you mean 'tiger cat' or 'tabby cat'?"),
        ("zebra", ""),
        ("", ""),
        ("3", ""),
    ],
)
def test_unknown_labels(explainer: engine.Explainer, target: str, hint: str) -> None:
    refuses(explainer, TargetError, f"target {target!r}: is none of the bundle's 5 labels{hint}", target)


def test_a_label_that_several_classes_have(tiny_bundle: Path) -> None:
    explainer = labelled(tiny_bundle, ("crane", "cup", "crane", "dog", "crane"))
    text = "target 'crane': is the label of classes [0, 2, 4]; give one of these indices"
    refuses(explainer, TargetError, text, "crane")
    for index, label in ((2, "crane"), ("cup", "cup")):
        assert explainer.explain(photo_pixels(), index).label == label


def test_labels_of_a_bundle_without_labels(tiny_bundle: Path) -> None:
    explainer = labelled(tiny_bundle, None)
    text = "target 'cup': the bundle has no labels; give a class index from 0 to 4"
    refuses(explainer, TargetError, text, "cup")
    assert explainer.explain(photo_pixels(), 4).label is None

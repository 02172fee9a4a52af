import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import engine
from engine.errors import BackendError, CancelledError, DatasetError, OptionError
from engine.evaluation import Choice, Dataset, Outcome, Store, evaluate, read_dataset
from engine.evaluation.pairs import choose
from engine.evaluation.sample import Sample
from engine.metrics import METRICS, Explained, box_mask
from engine.metrics.randomisation import Randomisation
from tests.tiny_cnn import LABELS, photo_pixels

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS = ["centre", "grad-cam", "ada-sise:fusion=soft"]
MEASURES = ["ebpg", "bbox", "drop"]


@pytest.fixture(scope="session")
def explainer(tiny_bundle: Path) -> Iterator[engine.Explainer]:
    with engine.load(tiny_bundle, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos, each with two classes and their boxes."""
    folder = tmp_path_factory.mktemp("photos")
    entries = []
    for number in range(6):
        pixels = np.roll(photo_pixels(), 9 * number, axis=1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        boxes = [{"label": label, "xyxy": [10 * n, 5, 10 * n + 40, 50]} for n, label in enumerate(LABELS[:2])]
        entries.append({"file": f"{number}.png", "width": 90, "height": 60, "boxes": boxes})
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


@pytest.fixture
def dataset(listing: Path) -> Dataset:
    return read_dataset(listing)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "results.sqlite") as opened:
        yield opened


def rows(store: Store) -> list[Outcome]:
    """What was found, without how long it took."""
    return [replace(outcome, milliseconds=0.0) for outcome in store.outcomes()]


def test_pairs_are_the_present_classes_that_the_model_sees(
    explainer: engine.Explainer, dataset: Dataset, store: Store
) -> None:
    scores = {sample.name: explainer.classify(sample.photo, "sigmoid") for sample in dataset.samples}
    threshold = float(np.median([score[1] for score in scores.values()]))
    evaluate(explainer, dataset, [], [], store, Choice(threshold=threshold, activation="sigmoid"))
    expected = {(n, c) for n, s in scores.items() for c in (0, 1) if s[c] >= threshold}
    assert {(pair.photo, pair.target) for pair in store.pairs()} == expected
    assert 3 <= len(expected) < 12
    for pair in store.pairs():
        assert pair.score == scores[pair.photo][pair.target]
        assert pair.label == LABELS[pair.target]


def test_an_outcome_is_what_the_explainer_and_the_measures_say(
    explainer: engine.Explainer, dataset: Dataset, store: Store
) -> None:
    evaluate(explainer, dataset, METHODS, MEASURES, store, Choice(threshold=0.0, sample=1))
    outcomes = {(outcome.target, outcome.method): outcome for outcome in store.outcomes()}
    assert set(outcomes) == {(target, method) for target in (0, 1) for method in METHODS}
    found = outcomes[1, "ada-sise:fusion=soft"]
    sample = next(sample for sample in dataset.samples if sample.name == found.photo)
    expected = explainer.explain(sample.photo, 1, fusion="soft")
    mask = box_mask([(10, 5, 50, 50)], (90, 60), explainer.bundle.preprocess)
    explained = Explained(
        explainer=explainer,
        probe=explainer.probe(sample.photo, 1),
        explanation=expected,
        method=engine.methods.AdaSise(fusion="soft"),
        box_mask=mask,
    )
    assert found.measures == {name: METRICS[name].compute(explained) for name in MEASURES}
    assert (found.scored, found.scorable, found.warnings) == (expected.scored, expected.scorable, expected.warnings)
    assert found.evaluations == expected.evaluations
    assert (found.engine, found.error) == (engine.__version__, None)
    assert found.milliseconds > 0
    pair = next(pair for pair in store.pairs() if pair.target == 1)
    assert pair.box_share == mask.mean()


def test_boxes_are_drawn_where_the_network_sees_them(
    explainer: engine.Explainer, dataset: Dataset, store: Store
) -> None:
    """A photo of 90×60 becomes 54×36, of which columns 11 to 43 and rows 6 to 30 are seen."""
    evaluate(explainer, dataset, [], [], store, Choice(threshold=0.0, sample=1))
    scale = 54 / 90
    for pair, x in zip(store.pairs(), (0, 10), strict=True):
        corners = np.array([[x, 5], [x + 40, 50]]) * scale - (11, 6)
        expected = np.clip(corners / (32, 24), 0, 1).ravel()
        np.testing.assert_allclose(pair.boxes[0], expected, atol=1e-12)


def test_methods_measures_and_photos_are_added_later(
    explainer: engine.Explainer, dataset: Dataset, tmp_path: Path
) -> None:
    with Store(tmp_path / "at-once.sqlite") as at_once, Store(tmp_path / "in-parts.sqlite") as in_parts:
        evaluate(explainer, dataset, METHODS, MEASURES, at_once, Choice(threshold=0.0, gallery=2))
        evaluate(explainer, dataset, METHODS[:1], MEASURES[:1], in_parts, Choice(threshold=0.0, sample=2))
        assert len(in_parts.outcomes()) == 4
        evaluate(explainer, dataset, METHODS, MEASURES[:1], in_parts, Choice(threshold=0.0))
        evaluate(explainer, dataset, METHODS, MEASURES[1:], in_parts, Choice(threshold=0.0))
        assert in_parts.heatmaps() == {}
        evaluate(explainer, dataset, METHODS, MEASURES, in_parts, Choice(threshold=0.0, gallery=2))
        assert rows(in_parts) == rows(at_once)
        assert in_parts.pairs() == at_once.pairs()
        assert in_parts.heatmaps() == at_once.heatmaps()
        assert in_parts.thumbnails() == at_once.thumbnails()
        assert len(at_once.heatmaps()) == 2 * len(METHODS)


def test_what_is_done_is_not_done_again(
    explainer: engine.Explainer, dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    choice = Choice(threshold=0.0, gallery=1)
    evaluate(explainer, dataset, METHODS, MEASURES, store, choice, progress=lambda _, *far: told.append(far))
    steps = 12 * len(METHODS)
    assert told == [*((n, 6) for n in range(6)), *((n, steps) for n in range(steps))]
    before = store.outcomes()
    monkeypatch.setattr(engine.Explainer, "explain", None)
    monkeypatch.setattr(engine.Explainer, "classify", None)
    evaluate(explainer, dataset, METHODS, MEASURES, store, choice)
    assert store.outcomes() == before


def test_the_heatmap_of_the_gallery(explainer: engine.Explainer, dataset: Dataset, store: Store) -> None:
    evaluate(explainer, dataset, ["grad-cam"], [], store, Choice(threshold=0.0, gallery=1))
    (((name, target, _), heatmap),) = store.heatmaps().items()
    first = choose(dataset.samples, dict.fromkeys(LABELS, 0), Choice())[0]
    assert name == first.name
    expected = explainer.explain(first.photo, target, method="grad-cam")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(heatmap))), np.rint(255 * expected.heatmap))
    assert Image.open(io.BytesIO(store.thumbnails()[name])).size == expected.picture.size


CODE = """
import sys, engine
from engine.evaluation import Choice, Store, evaluate, read_dataset
bundle, listing, results, stop = sys.argv[1:]
def progress(what, done, planned):
    print(done, planned, flush=True)
    if planned > 6 and done == int(stop) + 3:
        sys.stdin.read()  # until it is killed
with engine.load(bundle, threads=1) as explainer, Store(results) as store:
    evaluate(explainer, read_dataset(listing), ['centre', 'ada-sise'], ['ebpg', 'drop'], store,
             Choice(threshold=0.0, gallery=3), progress=progress)
"""


def test_a_killed_run_continues(
    explainer: engine.Explainer, dataset: Dataset, listing: Path, store: Store, tmp_path: Path, tiny_bundle: Path
) -> None:
    """Killed twice in the middle of a step or of writing it; then the rows are those of a run that nobody disturbed."""
    results = tmp_path / "killed.sqlite"
    for stop in (5, 6):
        with subprocess.Popen(
            [sys.executable, "-c", CODE, str(tiny_bundle), str(listing), str(results), str(stop)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            for line in process.stdout:
                done, planned = map(int, line.split())
                if planned > 6 and done == stop:
                    break
            process.kill()
        assert process.returncode == -signal.SIGKILL
    choice = Choice(threshold=0.0, gallery=3)
    with Store(results) as killed:
        done = len(killed.outcomes())
        assert 0 < done < 24
        told: list[int] = []
        evaluate(
            *(explainer, dataset, ["centre", "ada-sise"], ["ebpg", "drop"], killed, choice),
            progress=lambda _, __, planned: told.append(planned),
        )
        assert told[-1] == 24 - done
        evaluate(explainer, dataset, ["centre", "ada-sise"], ["ebpg", "drop"], store, choice)
        assert rows(killed) == rows(store)
        assert killed.pairs() == store.pairs()
        assert killed.heatmaps() == store.heatmaps()
        assert killed.settings() == store.settings()


@pytest.mark.parametrize(
    ("changed", "name"),
    [("threshold", "threshold 0.0; expected 0.1"), ("activation", "activation softmax; expected sigmoid")],
)
def test_another_question_is_refused(
    explainer: engine.Explainer, dataset: Dataset, store: Store, changed: str, name: str
) -> None:
    evaluate(explainer, dataset, ["centre"], [], store, Choice(threshold=0.0))
    others = {"threshold": Choice(threshold=0.1), "activation": Choice(threshold=0.0, activation="sigmoid")}
    with pytest.raises(OptionError, match=f"holds results with {name}, as now asked for: choose another folder"):
        evaluate(explainer, dataset, ["centre"], [], store, others[changed])


@pytest.mark.parametrize(("name", "usual", "other"), [("device", "cpu", "openvino"), ("precision", "float32", "int8")])
def test_another_device_or_precision_is_refused(
    *,
    explainer: engine.Explainer,
    dataset: Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    usual: str,
    other: str,
) -> None:
    evaluate(explainer, dataset, ["centre"], [], store, Choice(threshold=0.0))
    monkeypatch.setattr(explainer, name, other)
    with pytest.raises(OptionError, match=f"holds results with {name} {usual}; expected {other}, as now asked for"):
        evaluate(explainer, dataset, ["centre"], [], store, Choice(threshold=0.0))


def test_another_data_set_or_bundle_is_refused(
    explainer: engine.Explainer, dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(explainer, dataset, ["centre"], [], store, Choice(threshold=0.0))
    smaller = replace(dataset, samples=dataset.samples[:5])
    with pytest.raises(
        OptionError, match=f"with data set {dataset.fingerprint}; expected {smaller.fingerprint}, as now"
    ):
        evaluate(explainer, smaller, ["centre"], [], store, Choice(threshold=0.0))
    other = replace(explainer.bundle, manifest={**explainer.bundle.manifest, "sha256": "0" * 64})
    monkeypatch.setattr(explainer, "bundle", other)
    with pytest.raises(OptionError, match=rf"holds results with bundle \w+; expected {'0' * 64}, as now asked for"):
        evaluate(explainer, dataset, ["centre"], [], store, Choice(threshold=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    name: ClassVar[str] = "failing"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    def explain(self, probe: object) -> list[object]:
        raise BackendError(f"the runtime failed for {type(probe).__name__}")


def test_what_fails_is_written_and_tried_again(
    explainer: engine.Explainer, dataset: Dataset, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no photo")
    small = tmp_path / "small.png"
    Image.fromarray(photo_pixels()[:9]).save(small)
    samples = list(dataset.samples)
    samples[0] = replace(samples[0], photo=damaged)
    samples[1] = replace(samples[1], photo=small)
    wrong, choice = replace(dataset, samples=tuple(samples)), Choice(threshold=0.0)
    evaluate(explainer, wrong, [Failing(), "centre"], ["ebpg"], store, choice)
    photos = store.photos()
    assert photos["0.png"] == (None, f"{damaged}: is in no format that is read; expected a photo in one of " + known())
    assert photos["1.png"] == (None, f"{small}: has 90×9 pixels; expected 90×60, to which its boxes refer")
    errors = {(outcome.method, outcome.error) for outcome in store.outcomes()}
    assert errors == {("failing", "the runtime failed for Probe"), ("centre", None)}
    assert all(not outcome.measures for outcome in store.outcomes() if outcome.error)
    monkeypatch.setattr(
        Failing, "explain", lambda _, probe: engine.methods.create_method("grad-cam", {}).explain(probe)
    )
    evaluate(explainer, dataset, [Failing(), "centre"], ["ebpg"], store, choice)
    assert {error for _, error in store.photos().values()} == {None}
    assert {outcome.error for outcome in store.outcomes()} == {None}
    assert len(store.outcomes()) == 24


def known() -> str:
    from engine.decode import FORMATS

    return ", ".join(kind for kind in FORMATS if kind in Image.OPEN)


def test_a_photo_that_was_changed_between_two_runs(
    explainer: engine.Explainer, dataset: Dataset, store: Store, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(dataset.samples[0].photo.read_bytes())
    one = Dataset(form="one", samples=(replace(dataset.samples[0], photo=copy),))
    evaluate(explainer, one, ["centre"], [], store, Choice(threshold=0.0))
    Image.fromarray(photo_pixels() // 2).save(copy)
    evaluate(explainer, one, ["centre", "grad-cam"], [], store, Choice(threshold=0.0))
    errors = {(outcome.method, outcome.error) for outcome in store.outcomes()}
    assert errors == {
        ("centre", None),
        ("grad-cam", f"{copy}: is not the photo of the earlier results; expected the same file"),
    }


def test_a_cancelled_run_keeps_what_it_has(explainer: engine.Explainer, dataset: Dataset, store: Store) -> None:
    flag = threading.Event()

    def progress(_: str, done: int, planned: int) -> None:
        if planned == 12 and done == 5:
            flag.set()

    with pytest.raises(CancelledError):
        evaluate(explainer, dataset, ["grad-cam"], [], store, Choice(threshold=0.0), progress=progress, cancel=flag)
    assert [outcome.error for outcome in store.outcomes()] == [None] * 5


def test_photos_without_boxes_have_no_box_measures(explainer: engine.Explainer, dataset: Dataset, store: Store) -> None:
    bare = replace(dataset, samples=tuple(replace(sample, boxes={}, size=None) for sample in dataset.samples))
    evaluate(explainer, bare, ["grad-cam"], ["ebpg", "drop"], store, Choice(threshold=0.0, limit=1))
    assert {pair.box_share for pair in store.pairs()} == {None}
    for outcome in store.outcomes():
        assert outcome.measures["ebpg"] is None
        assert outcome.measures["drop"] is not None


def test_two_names_of_one_class_share_their_boxes(explainer: engine.Explainer, store: Store, dataset: Dataset) -> None:
    boxes = {"CUP": ((20.0, 12.0, 40.0, 40.0),), "cup": ((50.0, 12.0, 60.0, 40.0),)}
    one = Dataset(form="one", samples=(replace(dataset.samples[0], labels=("CUP", "cup"), boxes=boxes),))
    evaluate(explainer, one, [], [], store, Choice(threshold=0.0))
    (pair,) = store.pairs()
    assert (pair.label, pair.target, len(pair.boxes)) == ("CUP", 4, 2)


def test_the_randomised_networks_are_shared(
    explainer: engine.Explainer, dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Randomisation, "compute", lambda _, explained: seen.append(explained.cascade) or 0.5)
    evaluate(explainer, dataset, ["grad-cam"], ["randomisation"], store, Choice(threshold=0.0, limit=2))
    assert len(seen) == 4
    assert seen[0] is not None
    assert len(set(map(id, seen))) == 1


def photos(count: int) -> list[Sample]:
    labels = [("dog",), ("bear",)]
    return [Sample(name=str(n), photo=Path(str(n)), labels=labels[n % 2]) for n in range(count)]


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    samples, classes = photos(40), {"dog": 0}
    everything = choose(samples, classes, Choice())
    assert sorted(int(sample.name) for sample in everything) == list(range(0, 40, 2))
    assert choose(samples, classes, Choice(sample=7)) == everything[:7]
    assert choose(samples, classes, Choice(sample=7, seed=1)) != everything[:7]
    assert sorted(sample.name for sample in choose(samples, classes, Choice(limit=3))) == ["0", "2", "4"]
    assert len(choose(samples, classes, Choice(limit=3, sample=2))) == 2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("threshold", float("nan"), "a number that is finite"),
        ("activation", "relu", "one of softmax, sigmoid, none"),
        ("limit", 0, "a whole number of at least 1"),
        ("sample", 1.5, "a whole number of at least 1"),
        ("seed", -1, "a whole number of at least 0"),
        ("gallery", -1, "a whole number of at least 0"),
    ],
)
def test_a_choice_without_meaning(name: str, value: object, expected: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} is {value!r}; expected {expected}$"):
        Choice(**{name: value})


def test_a_bundle_without_preprocessing(
    explainer: engine.Explainer, dataset: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explainer, "bundle", replace(explainer.bundle, preprocess=None))
    with pytest.raises(
        OptionError, match=r": holds no preprocessing, so it takes prepared arrays only; export it with"
    ):
        evaluate(explainer, dataset, ["centre"], [], store)


def test_a_data_set_without_a_class_of_the_model(explainer: engine.Explainer, store: Store) -> None:
    with pytest.raises(DatasetError, match=r"^the data set has the classes dog, bear, the bundle tabby cat, "):
        evaluate(explainer, Dataset(form="two", samples=tuple(photos(2))), ["centre"], [], store)
    assert store.settings() == {}


@pytest.mark.parametrize(
    ("methods", "measures", "message"),
    [(["grad-cma"], [], "method is 'grad-cma'"), (["centre"], ["epbg"], "metric is 'epbg'")],
)
def test_unknown_methods_and_measures(
    explainer: engine.Explainer, dataset: Dataset, store: Store, methods: list[str], measures: list[str], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        evaluate(explainer, dataset, methods, measures, store)


@pytest.mark.parametrize(("name", "count"), [("efficientnet-lite0-voc20", 87), ("resnet50-thin-voc20", 90)])
@pytest.mark.slow
def test_the_pairs_of_the_real_models(assets: Path, tmp_path: Path, store: Store, name: str, count: int) -> None:
    from engine.export import export

    source = assets / "models" / name
    bundle = tmp_path / "real.ada"
    export(
        source / "model.onnx",
        bundle,
        preprocess=source / "preprocess.json",
        labels=source / "labels.txt",
        activation="sigmoid",
    )
    dataset = read_dataset(assets / "images" / "coco" / "val2017.json")
    with engine.load(bundle) as explainer:
        evaluate(explainer, dataset, [], [], store)
    assert len(store.pairs()) == count

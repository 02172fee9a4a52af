"""Many images with the same explainer: as alone, and their masks in the same batches."""

import io
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import engine
from engine.backends import Brake
from tests.tiny_cnn import photo_pixels

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", params=[1, 3])
def explainer(tiny_bundle: Path, request: pytest.FixtureRequest) -> engine.Explainer:
    return engine.load(tiny_bundle, threads=request.param)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-")] == []


def photos() -> list[NDArray[np.uint8]]:
    pixels = photo_pixels()
    return [pixels, pixels[::-1].copy(), pixels[:, ::-1].copy(), 255 - pixels, pixels // 2]


def without_times(result: engine.Explanation) -> tuple[object, bytes, bytes]:
    attribution = b"" if result.attribution is None else result.attribution.tobytes()
    return {**result.report(), "timings_ms": {}}, result.heatmap.tobytes(), attribution


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"max_masks": 5, "visualization_maps": True},
        {"rule": "all", "batch_size": 3, "activation": "sigmoid"},
        {"batch_size": 10**9},
        {"method": "rise", "masks": 30},
        {"method": "score-cam", "weights": "score"},
        {"method": "ablation-cam"},
        {"method": "grad-cam"},
        {"method": "layer-cam", "layer": "relu2"},
        {"method": "smooth-grad", "samples": 7},
        {"method": "extremal-perturbation", "iterations": 3},
    ],
    ids=str,
)
def test_each_result_is_as_alone(explainer: engine.Explainer, choices: dict[str, object]) -> None:
    alone = [explainer.explain(photo, [3, None], **choices) for photo in photos()]
    together = list(explainer.explain_many(photos(), [3, None], **choices))
    assert [list(map(without_times, found)) for found in together] == [
        list(map(without_times, found)) for found in alone
    ]
    (single,) = explainer.explain_many(photos()[:1], 3, **choices)
    assert without_times(single) == without_times(explainer.explain(photos()[0], 3, **choices))


def test_masks_of_several_images_share_batches(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    forward, sizes, all_wait = explainer._network.session("forward"), [], threading.Event()
    all_wait.set()

    class Slow:
        runs_at_once = 1

        def run(self, inputs: list[np.ndarray], brake: Brake | None = None) -> list[np.ndarray]:
            sizes.append(len(inputs[0]))
            if len(sizes) == 1:
                assert all_wait.wait(60)
            return forward.run(inputs, brake)

    monkeypatch.setitem(explainer._network._sessions, "forward", Slow())
    alone = [without_times(explainer.explain(photo, max_masks=3)) for photo in photos()[:3]]
    assert sizes == [3, 3, 3]
    sizes.clear()
    all_wait.clear()

    def progress(_done: int, planned: int) -> None:
        if planned == 9:
            all_wait.set()

    many = explainer.explain_many(photos()[:3], max_masks=3, progress=progress)
    assert [without_times(result) for result in many] == alone
    assert sum(sizes) == 9
    assert max(sizes) >= 6


def test_as_completed(explainer: engine.Explainer) -> None:
    alone = [without_times(explainer.explain(photo)) for photo in photos()]
    found = dict(explainer.explain_many(photos(), ordered=False))
    assert {number: without_times(result) for number, result in found.items()} == dict(enumerate(alone))


def test_an_endless_iterable(explainer: engine.Explainer) -> None:
    taken = []

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in itertools.count():
            taken.append(number)
            yield photos()[number % 5]

    results = explainer.explain_many(camera(), max_masks=4)
    assert taken == []
    for _, result in zip(range(4), results, strict=False):
        assert result.scored == 4
    assert len(taken) <= 4 + 1 + 3
    del results


def test_images_that_cannot_be_read(explainer: engine.Explainer) -> None:
    images = [photos()[0], b"no photo", photos()[1]]
    first, second, third = explainer.explain_many(images, return_exceptions=True)
    assert isinstance(second, engine.ImageError)
    assert [first.target, third.target] == [explainer.explain(image).target for image in (images[0], images[2])]
    results = explainer.explain_many(images)
    assert next(results).heatmap.max() == 1.0
    with pytest.raises(engine.ImageError, match=r"^image 1: the photo of 8 bytes: is in no format that is read; "):
        next(results)


def test_what_is_wrong_with_the_call_is_said_at_once(explainer: engine.Explainer) -> None:
    def never() -> Iterator[NDArray[np.uint8]]:
        raise AssertionError("an image was taken")
        yield

    for choices, error, text in (
        ({"target": "dog"}, engine.TargetError, "^target 'dog': is none of"),
        ({"method": "magic"}, engine.OptionError, "^method is 'magic'; expected one of "),
        ({"method": "rise", "rule": "all"}, engine.OptionError, "^rule: is no option of method 'rise'"),
        ({"max_masks": 0}, engine.OptionError, "^max_masks is 0; expected "),
        ({"too_late": "never"}, engine.OptionError, "^too_late is 'never'; expected one of grad-cam, error$"),
        ({"method": "rise", "visualization_maps": True}, engine.OptionError, "^visualization_maps is True; expected"),
    ):
        with pytest.raises(error, match=text):
            explainer.explain_many(never(), **choices)


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        ("photo.jpg", "str"),
        (b"a file", "bytes"),
        (PurePosixPath("photo.jpg"), "PurePosixPath"),
        (Image.new("RGB", (8, 8)), "Image"),
        (io.BytesIO(b"a file"), "BytesIO"),
        (5, "int"),
        (None, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_photo_in_the_place_of_many(explainer: engine.Explainer, images: object, kind: str) -> None:
    text = rf"^images is of type {kind}; expected several photos, such as a list; put one photo into a list: \[photo\]$"
    with pytest.raises(engine.OptionError, match=text):
        explainer.explain_many(images)


def test_images_by_their_numbers(explainer: engine.Explainer) -> None:
    """What Python iterates over though it is no `Iterable`: data sets of torch are such."""

    class Photos:
        def __getitem__(self, number: int) -> NDArray[np.uint8]:
            return photos()[number]

    assert len(list(explainer.explain_many(Photos(), method="grad-cam"))) == 5


def test_a_closed_explainer(tiny_bundle: Path) -> None:
    with engine.load(tiny_bundle, threads=1) as explainer:
        pass
    with pytest.raises(engine.BackendError, match=r": the explainer was closed; load the bundle again$"):
        explainer.explain_many([])


def test_cancelling(explainer: engine.Explainer) -> None:
    flag = threading.Event()
    results = explainer.explain_many(photos() * 20, cancel=flag)
    next(results)
    flag.set()
    with pytest.raises(engine.CancelledError):
        list(results)


def test_progress_is_told_of_all_images(explainer: engine.Explainer) -> None:
    told: list[tuple[int, int]] = []
    many = explainer.explain_many(photos(), max_masks=6, progress=lambda done, planned: told.append((done, planned)))
    assert sum(result.scored for result in many) == 30
    assert told[-1] == (30, 30)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_deadlines_count_for_each_image(explainer: engine.Explainer) -> None:
    results = list(explainer.explain_many(photos(), deadline_ms=600_000))
    assert all(result.complete and result.deadline_ms == 600_000 for result in results)
    late = list(explainer.explain_many(photos(), deadline_ms=1e-6))
    assert [result.method for result in late] == ["grad-cam"] * 5
    refused = list(explainer.explain_many(photos(), deadline_ms=1e-6, too_late="error", return_exceptions=True))
    assert [type(result) for result in refused] == [engine.DeadlineError] * 5


@pytest.mark.parametrize(
    ("left_in", "status", "said"),
    [
        ("results = begin()\nprint(next(results).complete)\n", 0, []),
        (
            "def fail():\n    results = begin()\n    print(next(results).complete)\n    raise ValueError('uncaught')\n"
            "fail()\n",
            1,
            ["ValueError: uncaught"],
        ),
    ],
    ids=["a global name", "the traceback of an error"],
)
def test_a_program_that_ends_and_leaves_an_iterator(
    tiny_bundle: Path, left_in: str, status: int, said: list[str]
) -> None:
    code = (
        "import sys, engine\n"
        "import numpy as np\n"
        "explainer = engine.load(sys.argv[1], threads=2, tune=False)\n"
        "def begin():\n"
        "    return explainer.explain_many([np.full((40, 50, 3), 90, np.uint8)] * 9, rule='all')\n"
    )
    command = [sys.executable, "-c", code + left_in, str(tiny_bundle)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode, done.stderr.splitlines()[-1:]) == ("True\n", status, said)

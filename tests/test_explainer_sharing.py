"""One Explainer in several threads, several in one process, and explainers in forked and spawned processes."""

import logging
import multiprocessing
import pickle
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.export import export
from tests.tiny_cnn import photo_pixels, write_tiny_cnn

REPOSITORY = Path(__file__).resolve().parents[1]
_in_this_process: list[engine.Explainer] = []


def photos() -> list[np.ndarray]:
    pixels = photo_pixels()
    return [pixels, pixels[::-1].copy(), pixels[:, ::-1].copy(), 255 - pixels]


def as_bytes(result: engine.Explanation) -> tuple[bytes, list[bytes], int]:
    return result.heatmap.tobytes(), [layer.scores.tobytes() for layer in result.layers], result.target


def load_here(bundle: Path) -> None:
    """What a worker process does first."""
    _in_this_process[:] = [engine.load(bundle, threads=1)]


def explain_here(photo: np.ndarray) -> tuple[bytes, list[bytes], int]:
    return as_bytes(_in_this_process[0].explain(photo))


def explain_with_what_was_inherited(photo: np.ndarray) -> str:
    try:
        return as_bytes(_in_this_process[0].explain(photo))[0].hex()
    except engine.BackendError as err:
        return str(err)


def printed_by(code: str, bundle: Path) -> tuple[str, str]:
    """What a program that gets the bundle as its argument prints on stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_get_the_same_bytes_as_alone(tiny_bundle: Path, threads: int) -> None:
    explainer = engine.load(tiny_bundle, threads=threads)
    jobs = [(photo, options) for photo in photos() for options in ({}, {"rule": "all"}, {"target": 3, "batch_size": 3})]
    alone = [as_bytes(explainer.explain(photo, **options)) for photo, options in jobs]
    assert len({heatmap for heatmap, _, _ in alone}) > 6
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = [pool.submit(explainer.explain, photo, **options) for photo, options in jobs]
            assert [as_bytes(future.result()) for future in together] == alone


def test_two_explainers_in_one_process(tiny_bundle: Path, tmp_path: Path) -> None:
    model, preprocess, _ = write_tiny_cnn(tmp_path)
    export(model, tmp_path / "other.ada", preprocess=preprocess, activation="sigmoid", layers=["relu2", "relu3"])
    one, other = engine.load(tiny_bundle, threads=1), engine.load(tmp_path / "other.ada", threads=1)
    photo = photo_pixels()
    before = as_bytes(one.explain(photo)), as_bytes(other.explain(photo))
    assert before[0] != before[1]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(explainer.explain, photo) for explainer in (one, other) * 4]
        assert [as_bytes(future.result()) for future in futures] == [*before] * 4
    one.close()
    assert as_bytes(other.explain(photo)) == before[1]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, of any program with threads
@pytest.mark.parametrize("start", ["spawn", "fork", "forkserver"])
def test_worker_processes_that_load_their_own(tiny_bundle: Path, start: str) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    expected = [as_bytes(explainer.explain(photo)) for photo in photos()]
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, context, initializer=load_here, initargs=(tiny_bundle,)) as pool:
        assert list(pool.map(explain_here, photos())) == expected


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, of any program with threads
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_and_its_parents_explainer(tiny_bundle: Path, threads: int) -> None:
    """Without threads of its own a session works on after a fork, with its weights shared; with them it must not."""
    explainer = engine.load(tiny_bundle, threads=threads)
    _in_this_process[:] = [explainer]
    expected = as_bytes(explainer.explain(photos()[1]))[0].hex()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(explain_with_what_was_inherited, photos()[1]).result(timeout=60)
    if threads == 1:
        assert found == expected
    else:
        assert re.fullmatch(
            rf"{re.escape(str(tiny_bundle))}/tapped\.onnx: was opened by process \d+, and its threads did not survive "
            r"the fork into process \d+; load the bundle in each process, or before the fork with threads=1",
            found,
        )
    assert as_bytes(explainer.explain(photos()[1]))[0].hex() == expected


def test_an_explainer_is_not_pickled(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    text = f"an Explainer cannot be pickled; load {tiny_bundle} in each process"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        pickle.dumps(explainer)


def test_an_explanation_is_pickled(tiny_bundle: Path) -> None:
    result = engine.load(tiny_bundle, threads=1).explain(photo_pixels(), visualization_maps=True)
    copy = pickle.loads(pickle.dumps(result))
    assert copy.report() == result.report()
    assert copy.heatmap.tobytes() == result.heatmap.tobytes()
    assert copy.picture.tobytes() == result.picture.tobytes()


def test_after_the_with_block_the_explainer_is_closed(tiny_bundle: Path) -> None:
    with engine.load(tiny_bundle, threads=1) as explainer:
        assert explainer.explain(photo_pixels()).complete
    text = f"{tiny_bundle}: the explainer was closed; load the bundle again"
    with pytest.raises(engine.BackendError, match=f"^{re.escape(text)}$"):
        explainer.explain(photo_pixels())
    explainer.close()


def test_closing_lets_go_of_the_sessions_but_not_under_a_running_explanation(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1)

    def progress(done: int, _planned: int) -> None:
        if done:
            explainer.close()

    assert explainer.explain(photo_pixels(), batch_size=2, progress=progress).complete
    with pytest.raises(engine.BackendError):
        explainer.explain(photo_pixels())


def test_a_thread_that_outlives_the_main_thread(tiny_bundle: Path) -> None:
    code = (
        "import sys, threading, engine\n"
        "import numpy as np\n"
        "explainer = engine.load(sys.argv[1], threads=2)\n"
        "main = threading.main_thread()\n"
        "def work():\n"
        "    main.join()\n"
        "    print(explainer.explain(np.full((40, 50, 3), 90, np.uint8), rule='all').complete)\n"
        "threading.Thread(target=work).start()\n"
    )
    assert printed_by(code, tiny_bundle) == ("True\n", "")


def test_a_program_without_logging_sees_nothing(tiny_bundle: Path) -> None:
    code = (
        "import sys, engine\n"
        "import numpy as np\n"
        "result = engine.load(sys.argv[1], threads=1).explain(np.zeros((40, 50, 3), np.uint8), max_masks=1)\n"
        "assert result.warnings\n"
    )
    assert printed_by(code, tiny_bundle) == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("engine").handlers)

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import tuning
from engine.backends.threads import Threads
from engine.errors import BackendError, OptionError
from engine.tuning import Setup, Stopwatch, read_setup, sweep, tune, write_setup
from tests.tiny_cnn import photo_pixels

TWO = Setup(threads=2, lanes=2, spinning=False, batch_size=8)
EIGHT = Setup(threads=8, lanes=8, spinning=False, batch_size=8)
SWEEP_S = tuning.SWEEP_S  # as it is outside of tests
FIELDS = ("threads", "lanes", "spinning", "batch_size")
IDENTITY = {"bundle": "0" * 64}


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SWEEP_S", SWEEP_S)


def swept(
    default: Setup, speed: Callable[[Setup], float], fixed: Sequence[str] = (), can_spin: bool = True
) -> tuple[Setup, list[Setup]]:
    """What is chosen where `speed` gives the images a second, and what was measured for it, each once."""
    asked: dict[Setup, None] = {}

    def rate(setup: Setup) -> float:
        asked[setup] = None
        return speed(setup)

    return sweep(default, fixed, can_spin, rate), list(asked)


def test_nothing_is_faster_than_the_default() -> None:
    found, asked = swept(TWO, lambda _: 100.0)
    assert found == TWO
    assert [(s.lanes, s.spinning, s.batch_size) for s in asked] == [
        (1, False, 8),
        (1, True, 8),
        (2, False, 8),
        (2, False, 2),
        (2, False, 4),
        (2, False, 16),
    ]


@pytest.mark.parametrize(("faster", "lanes"), [(1.04, 2), (1.06, 1)])
def test_only_a_clear_gain_counts(faster: float, lanes: int) -> None:
    found, _ = swept(TWO, lambda setup: 100 * faster if setup.lanes == 1 else 100.0, fixed=["batch_size"])
    assert found == replace(TWO, lanes=lanes)


def test_what_wins_only_once_is_not_chosen() -> None:
    """Another program may have held up the default."""
    rates = iter([100.0, 200.0, 100.0, 104.0])
    assert sweep(TWO, ["spinning", "batch_size"], True, lambda _: next(rates)) == TWO
    rates = iter([100.0, 200.0, 210.0, 100.0])
    assert sweep(TWO, ["spinning", "batch_size"], True, lambda _: next(rates)) == replace(TWO, lanes=1)
    rates = iter([100.0, 200.0, 210.0, 0.0])  # the time was up
    assert sweep(TWO, ["spinning", "batch_size"], True, lambda _: next(rates)) == TWO


def test_spinning_is_chosen_for_runs_of_all_threads() -> None:
    """The tapped pass is one, whether or not the scorer has a thread for each lane."""
    speed = {(1, False): 50.0, (1, True): 60.0, (2, True): 100.0}
    found, asked = swept(TWO, lambda setup: speed[setup.lanes, setup.spinning])
    assert found == replace(TWO, spinning=True)
    assert replace(TWO, lanes=1, spinning=True) in asked


def test_the_batch_size_is_chosen_for_the_chosen_lanes() -> None:
    speed = {(2, 8): 100.0, (1, 8): 200.0, (1, 1): 150.0, (1, 2): 215.0, (1, 4): 300.0}
    found, _ = swept(TWO, lambda setup: speed[setup.lanes, setup.batch_size], can_spin=False)
    assert found == replace(TWO, lanes=1, batch_size=4)


def test_half_the_threads_where_a_core_counts_as_two_cpus() -> None:
    found, asked = swept(EIGHT, lambda setup: 300.0 if setup.threads == 4 else 200.0)
    assert found == replace(EIGHT, threads=4, lanes=4)
    assert {(setup.threads, setup.lanes) for setup in asked} == {(8, 8), (8, 4), (8, 1), (4, 4)}
    assert {setup.batch_size for setup in asked if setup.threads == 4} == {4, 8, 16, 32}


@pytest.mark.parametrize("fixed", [set(names) for count in range(5) for names in itertools.combinations(FIELDS, count)])
@pytest.mark.parametrize("default", [TWO, EIGHT, replace(TWO, lanes=1, spinning=True), replace(EIGHT, lanes=3)])
def test_what_the_caller_gave_is_never_changed(default: Setup, fixed: set[str]) -> None:
    """Whatever is measured, and here everything that differs from the default is faster."""
    found, asked = swept(
        default,
        lambda setup: 1.0 + sum(2.0**i for i, f in enumerate(FIELDS) if getattr(setup, f) != getattr(default, f)),
        fixed,
    )
    for setup in (found, *asked):
        assert all(getattr(setup, name) == getattr(default, name) for name in fixed)
    assert asked or fixed >= {"lanes", "batch_size"}
    if len(fixed) == len(FIELDS):
        assert (found, asked) == (default, [])


def test_one_thread() -> None:
    one = Setup(threads=1, lanes=1, spinning=False, batch_size=8)
    assert swept(one, lambda _: 1.0) == (one, [one, *(replace(one, batch_size=size) for size in (1, 2, 4))])


def test_without_spinning_it_is_not_asked_for() -> None:
    _, asked = swept(EIGHT, lambda _: 1.0, can_spin=False)
    assert not any(setup.spinning for setup in asked)


class Clock:
    """A clock that goes on when a graph is run or opened."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Graph:
    """Takes the same time for every image."""

    inputs = outputs = ()
    runs_at_once = 1

    def __init__(self, clock: Clock, image_s: float) -> None:
        self.clock, self.image_s = clock, image_s
        self.sizes: list[tuple[int, ...]] = []

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        (images,) = inputs
        assert images.dtype == np.float32
        assert images.std() == pytest.approx(1, abs=0.1)
        self.sizes.append(images.shape)
        self.clock.now += self.image_s * len(images)
        return []


ONE = Setup(threads=1, lanes=1, spinning=False, batch_size=4)


@pytest.mark.parametrize(("image_s", "runs"), [(0.024, 3), (0.03, 2), (0.5, 1), (1e-4, 20)])
def test_a_rate_is_images_by_seconds(image_s: float, runs: int) -> None:
    """Runs begin within a fifth of a second, and are 20 at most; one more goes before, which does not count."""
    clock = Clock()
    graph = Graph(clock, image_s)
    assert Stopwatch(lambda _: graph, (3, 10, 12), clock)(ONE) == pytest.approx(1 / image_s)
    assert graph.sizes == [(4, 3, 10, 12)] * (1 + runs)


def test_a_run_that_is_held_up_does_not_count() -> None:
    """By another process, say."""

    class HeldUp(Graph):
        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            if len(self.sizes) == 2:
                self.clock.now += 0.1
            return super().run(inputs)

    clock = Clock()
    assert Stopwatch(lambda _: HeldUp(clock, 0.01), (1, 9, 9), clock)(ONE) == pytest.approx(100)


def test_a_setup_that_stays_is_measured_once() -> None:
    asked: list[Setup] = []

    def rate(setup: Setup) -> float:
        asked.append(setup)
        return 1.0

    sweep(EIGHT, [], True, rate)
    assert len(asked) == len(set(asked)) == 8


def test_one_session_is_open_at_a_time() -> None:
    clock, opened = Clock(), []

    def open_scorer(setup: Setup) -> Graph:
        opened.append(setup.threads)
        return Graph(clock, 1e-4 * setup.threads)

    stopwatch = Stopwatch(open_scorer, (1, 9, 9), clock)
    setups = [ONE, replace(ONE, batch_size=2), replace(ONE, threads=2), ONE]
    assert [round(stopwatch(setup)) for setup in setups] == [10_000, 10_000, 5_000, 10_000]
    assert opened == [1, 2, 1]


def test_what_is_clearly_slower_is_not_run_again() -> None:
    clock = Clock()
    graphs = {1: Graph(clock, 0.01), 2: Graph(clock, 0.0141), 3: Graph(clock, 0.0139)}
    stopwatch = Stopwatch(lambda setup: graphs[setup.threads], (1, 9, 9), clock)
    for threads in graphs:
        stopwatch(replace(ONE, threads=threads))
    assert [len(graph.sizes) for graph in graphs.values()] == [1 + 5, 1 + 1, 1 + 4]


def test_nothing_is_measured_when_the_time_is_up() -> None:
    clock = Clock()
    stopwatch = Stopwatch(lambda setup: Graph(clock, 0.3 / setup.threads), (1, 9, 9), clock)
    assert stopwatch(ONE) == pytest.approx(1 / 0.3)  # two runs, 2.4 s
    assert stopwatch(replace(ONE, threads=2)) == pytest.approx(2 / 0.3)
    assert stopwatch(replace(ONE, threads=2)) == 0.0


def test_lanes_run_at_a_time() -> None:
    barrier = threading.Barrier(3, timeout=30)

    class Meeting(Graph):
        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            barrier.wait()
            return super().run(inputs)

    clock = Clock()
    graph = Meeting(clock, 1.0)
    stopwatch = Stopwatch(lambda _: graph, (1, 9, 9), clock)
    assert stopwatch(Setup(threads=3, lanes=3, spinning=False, batch_size=7)) > 0
    assert graph.sizes == [(2, 1, 9, 9)] * 6


def test_the_runtimes_own_error_is_passed_on() -> None:
    class Broken(Graph):
        def run(self, _: Sequence[np.ndarray]) -> list[np.ndarray]:
            raise BackendError("forward.onnx: ONNX Runtime failed: it is broken")

    with pytest.raises(BackendError, match=r"^forward\.onnx: ONNX Runtime failed: it is broken$"):
        Stopwatch(lambda _: Broken(Clock(), 1.0), (1, 9, 9))(TWO)


def test_the_system_has_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    text = "2 threads could not be started (can't start new thread); expected all: load the bundle with fewer threads"
    with pytest.raises(BackendError, match=f"^{re.escape(text)}$"):
        Stopwatch(lambda _: Graph(Clock(), 1.0), (1, 9, 9))(TWO)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"threads": 0}, "threads is 0; expected a whole number from 1 to 1024, or None for one per CPU"),
        (
            {"lanes": 3},
            "lanes is 3; expected a whole number from 1 to the number of threads, 2, or None for one per thread",
        ),
        ({"spinning": 1}, "spinning is 1; expected True, False, or None for the best choice"),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected a whole number of at least 1"),
    ],
)
def test_a_setup_has_a_meaning(changed: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        replace(TWO, **changed)


def test_how_a_setup_is_told() -> None:
    assert str(TWO) == "lanes: 2, threads in each: 1, batch size: 8"
    whole = Setup.of(Threads(total=4, lanes=1, spinning=True), 16)
    assert str(whole) == "lanes: 1, threads in each: 4, spinning, batch size: 16"
    assert Setup.of(Threads.of(2, None, None), None) == TWO


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where setups are remembered, for one test; in which measuring takes no time, and one lane is faster than two."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ada-sise-engine" / "setups"


def tuned(default: Setup = TWO, fixed: Sequence[str] = (), **identity: object) -> tuple[Setup, bool]:
    """What `tune` finds, and whether it was measured."""
    real, measured = tuning.sweep, []

    def spy(*arguments: object) -> Setup:
        measured.append(True)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "sweep", spy)
        found = tune(
            lambda: lambda setup: 1.0 / setup.lanes,
            default,
            fixed=fixed,
            can_spin=True,
            identity={**IDENTITY, **identity},
        )
    return found, bool(measured)


ALONE = replace(TWO, lanes=1)


def test_it_is_measured_once(cache: Path) -> None:
    assert tuned() == (ALONE, True)
    assert tuned() == (ALONE, False)
    (file,) = cache.iterdir()
    assert json.loads(file.read_text(encoding="utf-8"))["setup"] == asdict(ALONE)


def test_what_it_depends_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned()
    assert tuned(bundle="1" * 64)[1]
    assert tuned(precision="int8")[1]
    assert tuned(default=replace(TWO, batch_size=4), fixed=["batch_size"])[1]
    assert tuned(default=ALONE, fixed=["lanes"])[1]
    monkeypatch.setattr(tuning, "__version__", "99")
    assert tuned()[1]
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 77)
    assert tuned()[1]
    monkeypatch.setattr(tuning, "cpu_model", lambda: "another")
    assert tuned()[1]
    assert len(list(cache.iterdir())) == 8
    assert {file.stat().st_mode & 0o777 for file in cache.iterdir()} == {0o644}
    assert not tuned()[1]


DAMAGE: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda _: "",
    "cut off": lambda text: text[: len(text) // 2],
    "not text": lambda _: b"\xff\xfe\x00",
    "a list": lambda _: "[]",
    "a number": lambda _: "3",
    "deep": lambda _: "[" * 100_000,
    "of another bundle": lambda text: text.replace("0" * 64, "1" * 64),
    "without a setup": lambda text: text.replace('"setup"', '"set-up"'),
    "with another field": lambda text: text.replace('"lanes"', '"lane"'),
    "no lanes": lambda text: text.replace('"lanes": 1', '"lanes": 0'),
    "lanes in words": lambda text: text.replace('"lanes": 1', '"lanes": "1"'),
    "more threads than there are": lambda text: re.sub(r'("setup".*"threads"): 2', r"\1: 99", text, flags=re.DOTALL),
    "a batch that fills the memory": lambda text: re.sub(
        r'("setup".*"batch_size"): 8', r"\1: 1000000000", text, flags=re.DOTALL
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_cannot_be_trusted_is_replaced(cache: Path, damage: str) -> None:
    tuned()
    (file,) = cache.iterdir()
    right = file.read_text(encoding="utf-8")
    wrong = DAMAGE[damage](right)
    assert wrong != right
    file.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    assert tuned() == (ALONE, True)
    assert file.read_text(encoding="utf-8") == right


def test_a_remembered_setup_keeps_what_the_caller_gave(cache: Path) -> None:
    tuned(fixed=["lanes"])
    (file,) = cache.iterdir()
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "setup": asdict(ALONE)}), encoding="utf-8")
    assert tuned(fixed=["lanes"]) == (TWO, True)


def test_a_folder_that_cannot_be_made(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert tuned() == (ALONE, True)
    assert tuned() == (ALONE, True)
    (warning, _) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.fullmatch(
        rf"{re.escape(str(cache))}/[0-9a-f]{{64}}\.json: cannot be written \(Not a directory\); the next load measures "
        "again",
        warning.getMessage(),
    )


def test_writing_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "setup.json"
    write_setup(file, IDENTITY, TWO)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    write_setup(file, IDENTITY, ALONE)
    assert read_setup(file, IDENTITY) == TWO
    assert list(tmp_path.iterdir()) == [file]
    assert "cannot be written (No space left on device)" in caplog.text


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    file = tmp_path / "setup.json"
    setups = [replace(TWO, batch_size=size) for size in range(1, 17)]
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(write_setup, file, IDENTITY, setup) for setup in setups * 4]:
            future.result()
            assert read_setup(file, IDENTITY) in setups
    assert list(tmp_path.iterdir()) == [file]


def test_loading_measures_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO, "engine")
    heatmaps = []
    for count in (1, 1, 2):
        explainer = engine.load(tiny_bundle, threads=2 if count == 2 else None)
        heatmaps.append(explainer.explain(photo_pixels()).heatmap.tobytes())
        assert caplog.text.count("first load here: measuring how to score fastest …") == count
    assert len(set(heatmaps)) == 1
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_numbers_of_numpy_and_a_tuple_of_providers_are_remembered(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO, "engine")
    for _ in range(2):
        engine.load(tiny_bundle, threads=np.int64(2), providers=("CPUExecutionProvider",))  # type: ignore[arg-type]
        engine.load(tiny_bundle, threads=1, batch_size=np.int32(4))  # type: ignore[arg-type]
    assert caplog.text.count("first load here") == 2


def test_loading_when_the_main_thread_has_ended(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, threading, engine\n"
        "main = threading.main_thread()\n"
        "def work():\n"
        "    main.join()\n"
        "    print(engine.load(sys.argv[1], threads=2).bundle.path)\n"
        "threading.Thread(target=work).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_bundle],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (f"{tiny_bundle}\n", "")


def test_nothing_is_measured_where_nothing_is_open(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Stopwatch, "__call__", lambda *_: pytest.fail("it is measured"))
    caplog.set_level(logging.INFO, "engine")
    engine.load(tiny_bundle, tune=False)
    engine.load(tiny_bundle, threads=3, lanes=2, spinning=True, batch_size=5)
    assert "measur" not in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        {"threads": 1, "batch_size": 1},
        {"threads": 2, "lanes": 1, "spinning": True, "batch_size": 3},
        {"threads": 2, "lanes": 1, "spinning": False, "batch_size": 16},
        {"threads": 4, "lanes": 2, "spinning": True, "batch_size": 64},
        {"threads": 5, "lanes": 5, "batch_size": 7},
    ],
)
def test_every_setup_gives_the_same_bytes(tiny_bundle: Path, given: dict[str, int | bool]) -> None:
    def explained(explainer: engine.Explainer) -> tuple[bytes, list[bytes]]:
        result = explainer.explain(photo_pixels(), rule="all")
        return result.heatmap.tobytes(), [layer.scores.tobytes() for layer in result.layers]

    assert explained(engine.load(tiny_bundle, tune=False, **given)) == explained(engine.load(tiny_bundle, tune=False))


def test_the_batch_size_of_a_call_comes_first(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1, batch_size=5)
    assert explainer.probe(photo_pixels()).options.batch_size == 5
    assert explainer.probe(photo_pixels(), batch_size=3).options.batch_size == 3
    assert engine.load(tiny_bundle, tune=False).probe(photo_pixels()).options.batch_size == 8


def test_load_refuses_what_has_no_meaning(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"^batch_size is 0; expected a whole number of at least 1$"):
        engine.load(tiny_bundle, batch_size=0)
    with pytest.raises(OptionError, match=r"^lanes is 3; expected a whole number from 1 to the number of threads, 2, "):
        engine.load(tiny_bundle, threads=2, lanes=3)

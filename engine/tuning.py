"""How to score fastest on this machine: measured when a bundle is first loaded, then remembered in the user's cache.

Whatever is found, the results are the same bytes; only the time that they take is not.
"""

import hashlib
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Self, TypeAlias

import numpy as np

from engine._version import __version__
from engine.backends import Session
from engine.backends.threads import Threads, usable_cpus
from engine.cache import SETUPS, cache_folder
from engine.errors import BackendError, EngineError
from engine.options import expect_whole

SWEEP_S = 3.0
_SLOT_S = 0.2
_MOST_RUNS = 20
_GAIN = 1.05  # what two measurements of the same differ by
_HOPELESS = 1.4
EACH = (1, 2, 4, 8)
"""Batch sizes that are tried for each lane on a CPU."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How the scoring of masks is spread over the machine; checked when made.

    Attributes:
        threads: Threads that work on one explanation.
        lanes: Runs of the scorer at a time, which share the threads out.
        spinning: Whether a thread that waits for the others of its run keeps its CPU busy.
        batch_size: Changed images that are scored at a time, by all lanes together.

    Raises:
        OptionError: One of them has no meaning.
    """

    threads: int
    lanes: int
    spinning: bool
    batch_size: int

    @classmethod
    def of(cls, threads: Threads, batch_size: int | None) -> Self:
        """Return what is taken without measuring; a batch size of None is 8."""
        size = 8 if batch_size is None else batch_size
        expect_whole("batch_size", size)  # before int, which takes more
        return cls(
            threads=int(threads.total), lanes=int(threads.lanes), spinning=threads.spinning, batch_size=int(size)
        )

    def __post_init__(self) -> None:
        Threads(total=self.threads, lanes=self.lanes, spinning=self.spinning)
        expect_whole("batch_size", self.batch_size)

    def __str__(self) -> str:
        each = self.threads // self.lanes
        spinning = ", spinning" if self.spinning else ""
        return f"lanes: {self.lanes}, threads in each: {each}{spinning}, batch size: {self.batch_size}"


Rate: TypeAlias = Callable[[Setup], float]
"""Images a second with a setup; 0 if there was no time to measure it."""


def tune(
    stopwatch: Callable[[], Rate],
    default: Setup,
    *,
    fixed: Collection[str],
    can_spin: bool,
    identity: Mapping[str, object],
    sizes: Sequence[int] = EACH,
) -> Setup:
    """Return the setup that was measured to be the fastest, now or when the same bundle was loaded before.

    Args:
        stopwatch: Makes what to measure with.
        default: What is taken where nothing else is clearly faster.
        fixed: The fields that keep the default's value, because the caller gave it.
        can_spin: Whether the runtime's threads can spin.
        identity: What the answer depends on beside this machine's CPUs and the engine's version; of JSON's types.
        sizes: Batch sizes to try, for each lane.

    Raises:
        BackendError: The runtime refused the graph or failed.
        BundleError: The graph is not what the manifest says.
    """
    if {"lanes", "batch_size"} <= {*fixed} and ("spinning" in fixed or not can_spin):
        return default
    full = {**identity, "fixed": {name: getattr(default, name) for name in sorted(fixed)}}
    full |= {"default": asdict(default), "cpu": cpu_model(), "cpus": usable_cpus(), "engine": __version__}
    digest = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / SETUPS / f"{digest}.json"
    remembered = read_setup(file, full)
    if remembered is not None and is_possible(remembered, default, fixed, can_spin, sizes):
        return remembered
    _LOG.info("first load here: measuring how to score fastest …")
    found = sweep(default, fixed, can_spin, stopwatch(), sizes)
    _LOG.info("measured: %s", found)
    write_setup(file, full, found)
    return found


def cpu_model() -> str:
    """Return what the CPU is called: one home folder may serve several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def sweep(default: Setup, fixed: Collection[str], can_spin: bool, rate: Rate, sizes: Sequence[int] = EACH) -> Setup:
    """Choose one thing after the other; the default stays unless it is clearly beaten, twice.

    Args:
        default: Where to begin.
        fixed: The fields that stay.
        can_spin: Whether the runtime's threads can spin.
        rate: What to choose by.
        sizes: Batch sizes to try, for each lane.
    """
    best, choice = default, _Choice(rate)
    if can_spin and "spinning" not in fixed:
        # Also for lanes of one thread: the tapped pass is one run with all of them.
        whole = replace(best, lanes=best.lanes if "lanes" in fixed else 1)
        if whole.threads // whole.lanes > 1:
            best = replace(best, spinning=choice.fastest(whole, [replace(whole, spinning=True)]).spinning)
    if "lanes" not in fixed:
        fewer = dict.fromkeys(lanes for lanes in (best.threads // 2, 1) if 0 < lanes < best.threads)
        best = choice.fastest(best, [replace(best, lanes=lanes) for lanes in fewer])
    if not {"threads", "lanes"} & set(fixed) and best.lanes == best.threads >= 4:
        half = best.threads // 2  # one for each core, where every core counts as two CPUs
        best = choice.fastest(best, [replace(best, threads=half, lanes=half)])
    if "batch_size" not in fixed:
        best = choice.fastest(best, [replace(best, batch_size=best.lanes * each) for each in sizes])
    return best


class _Choice:
    """Chooses between setups, and remembers what was measured.

    Args:
        rate: What to choose by.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._known: dict[Setup, float] = {}

    def fastest(self, first: Setup, others: Sequence[Setup]) -> Setup:
        """Return the first setup, or one of the others that was clearly faster, and is so when both run once more.

        Other programs come and go, and what is chosen is kept for long.
        """
        if not others:
            return first
        for setup in (first, *others):
            if setup not in self._known:
                self._known[setup] = self._rate(setup)
        best = max((first, *others), key=lambda setup: self._known[setup])  # of equal ones the first
        if self._known[best] <= _GAIN * self._known[first]:
            return first
        again, against = self._rate(best), self._rate(first)
        return best if against > 0 and again > _GAIN * against else first  # 0: the time was up


class Stopwatch:
    """Measures setups with random images, for a bounded time altogether: a `Rate`.

    Only the session that was measured last stays open, since each holds a copy of the weights.

    Args:
        open_scorer: Opens the graph that scores masks, images [N, C, H, W] → logits, with a setup.
        image_shape: Sizes C, H and W of the network's input.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        open_scorer: Callable[[Setup], Session],
        image_shape: Sequence[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._open_scorer = open_scorer
        self._image_shape = tuple(image_shape)
        self._clock = clock
        self._ends = clock() + SWEEP_S
        self._most = 0.0
        self._opened: tuple[Setup, Session] | None = None

    def __call__(self, setup: Setup) -> float:
        """Return images a second; 0 when the time is up.

        Raises:
            BackendError: The runtime refused the graph or failed, or the system has no more threads.
        """
        if self._clock() >= self._ends:
            return 0.0
        found = self._measure(setup)
        self._most = max(self._most, found)
        _LOG.debug("%s: %.4g images a second", setup, found)
        return found

    def _measure(self, setup: Setup) -> float:
        session, lanes = self._session(setup), setup.lanes
        count = max(1, setup.batch_size // lanes)
        images = np.random.default_rng(0).standard_normal((count, *self._image_shape), np.float32)
        hopeless_s = _HOPELESS * lanes * count / max(self._most, 1e-9)

        def lane() -> list[float]:
            session.run([images])  # the first is slower
            began = self._clock()
            ends, took = began + _SLOT_S, list[float]()
            while not took or (len(took) < _MOST_RUNS and min(took) < hopeless_s and began < ends):
                session.run([images])
                took.append(self._clock() - began)
                began = self._clock()
            return took

        took = [seconds for part in _at_once(lane, lanes) for seconds in part]
        return lanes * count / max(statistics.median(took), 1e-9)

    def _session(self, setup: Setup) -> Session:
        form = replace(setup, batch_size=1)
        if self._opened is None or self._opened[0] != form:
            self._opened = None
            self._opened = form, self._open_scorer(setup)
        return self._opened[1]


def _at_once(work: Callable[[], list[float]], count: int) -> list[list[float]]:
    """Return what so many threads give that do the same; they may outlive the main one, as those of a pool may not."""
    found: list[list[float]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as err:
            failed.append(err)

    started: list[Thread] = []
    try:
        for _ in range(count):
            thread = Thread(target=run, name="engine-tuning")
            thread.start()
            started.append(thread)
    except RuntimeError as err:
        raise BackendError(
            f"{count} threads could not be started ({err}); expected all: load the bundle with fewer threads"
        ) from err
    finally:
        for thread in started:
            thread.join()
    if failed:
        raise failed[0]
    return found


def is_possible(
    setup: Setup, default: Setup, fixed: Collection[str], can_spin: bool, sizes: Sequence[int] = EACH
) -> bool:
    """Tell whether a sweep can have chosen a setup: a file may hold anything."""
    return (
        all(getattr(setup, name) == getattr(default, name) for name in fixed)
        and setup.threads <= default.threads
        and setup.batch_size <= max(default.batch_size, sizes[-1] * setup.lanes)
        and (can_spin or not setup.spinning)
    )


def read_setup(file: Path, identity: Mapping[str, object]) -> Setup | None:
    """Read what was measured before; None if there is nothing that can be used.

    Args:
        file: Where it is.
        identity: What it must have been measured with.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["identity"] == identity:
            return Setup(**found["setup"])
        reason = "it was measured with something else"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, EngineError) as err:
        reason = f"{type(err).__name__}: {err}"
    _LOG.info("%s: is not used (%s)", file, reason)
    return None


def write_setup(file: Path, identity: Mapping[str, object], setup: Setup) -> None:
    """Remember what was measured; of several processes that do so at a time the last one wins.

    Where it cannot be written, a warning is logged, and the next load measures again.
    """
    text = json.dumps({"identity": identity, "setup": asdict(setup)}, indent=2) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8", delete=False) as beside:
            try:
                beside.write(text)
                beside.close()
                os.chmod(beside.name, 0o644)  # an image that is baked by one user may run as another
                os.replace(beside.name, file)
            except BaseException:
                os.unlink(beside.name)
                raise
    except OSError as err:
        _LOG.warning("%s: cannot be written (%s); the next load measures again", file, err.strerror)

import os
import time
from collections.abc import Iterator

import pytest

from engine.errors import ModelError
from tests.fuzz.worker import Worker

MIB = 1 << 20


def answers() -> str:
    return "here"


def refuses() -> None:
    raise ModelError("the model: is none")


def fails() -> None:
    raise IndexError("list index out of range")


def leaves() -> None:
    raise SystemExit(3)


def allocates(size: int) -> None:
    bytearray(size)


def says_no_memory() -> None:
    raise ModelError("ONNX Runtime failed: std::bad_alloc")


def ends(log: str) -> None:
    os.write(2, log.encode())
    os.abort()


def sleeps() -> None:
    time.sleep(1000)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(seconds=5, memory_bytes=1024 * MIB, resident_bytes=600 * MIB) as worker:
        yield worker


def test_what_ends_well(worker: Worker) -> None:
    for function, expected in ((answers, "done : here"), (refuses, "refused ModelError: the model: is none")):
        outcome = worker.run(function)
        assert (str(outcome), outcome.is_finding) == (expected, False)
        assert MIB < outcome.peak_bytes < 600 * MIB


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (fails, "foreign IndexError: list index out of range [at ?]"),
        (leaves, "foreign SystemExit: 3 [at ?]"),
        (says_no_memory, "memory ModelError: ONNX Runtime failed: std::bad_alloc"),
    ],
)
def test_what_is_a_finding(function, expected: str, worker: Worker) -> None:
    outcome = worker.run(function)
    assert (str(outcome), outcome.is_finding) == (expected, True)


def test_memory_is_bounded(worker: Worker) -> None:
    assert str(worker.run(allocates, 2000 * MIB)) == "memory MemoryError:  [at ?]"
    outcome = worker.run(allocates, 700 * MIB)
    assert (outcome.kind, outcome.error) == ("memory", "")
    assert 700 * MIB < outcome.peak_bytes < 1024 * MIB
    assert str(worker.run(answers)) == "done : here"


def test_an_example_that_ends_the_process_is_named_and_the_next_one_runs(worker: Worker) -> None:
    outcome = worker.run(ends, "last words")
    assert str(outcome) == "crashed : exit code -6; last words"
    assert worker.run(answers).kind == "done"


def test_an_example_that_never_ends_is_stopped() -> None:
    with Worker(seconds=1) as worker:
        assert worker.run(answers).kind == "done"
        assert str(worker.run(sleeps)) == "hung : did not end within 1 s"
        assert worker.run(answers).kind == "done"

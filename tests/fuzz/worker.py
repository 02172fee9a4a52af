"""A process of its own in which examples run one after the other, bounded in time and memory from outside.

onnx and ONNX Runtime are C++: an example may end the process, never end, or allocate without bound. All three are
findings, and so is every exception that is no `EngineError`.
"""

import multiprocessing
import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec

from engine.errors import EngineError

Arguments = ParamSpec("Arguments")

SECONDS = 30.0
MEMORY_BYTES = 3 << 30
RESIDENT_BYTES = 1 << 30
LONGEST_MESSAGE = 4000
FINE = frozenset({"done", "refused"})
_NO_MEMORY = ("bad_alloc", "Failed to allocate", "Unable to allocate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one example.

    Attributes:
        kind: `done`, or `refused` with an `EngineError`; else a finding: `foreign` exception, a `message` that is no
            single line of bearable length, `memory` that could not be had, `crashed`, or `hung`.
        error: Name of the exception's class, if there was one.
        message: Its message, or what else was seen.
        peak_bytes: The largest resident memory of the process while the example ran; 0 when it did not survive.
    """

    kind: str
    error: str = ""
    message: str = ""
    peak_bytes: int = 0

    @property
    def is_finding(self) -> bool:
        """Whether this must not happen."""
        return self.kind not in FINE

    def __str__(self) -> str:
        return f"{self.kind} {self.error}: {self.message}"


class Worker:
    """Runs functions in a process that is started when it is needed, and again when an example has ended it.

    Args:
        seconds: Bound on the time of one example.
        memory_bytes: Bound on the address space of the process beyond what it has after its imports, which holds.
        resident_bytes: Bound on its resident memory, beyond which an example is a finding.
    """

    def __init__(
        self, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES, resident_bytes: int = RESIDENT_BYTES
    ) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._resident_bytes = resident_bytes
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[Arguments, object], *args: Arguments.args, **named: Arguments.kwargs) -> Outcome:
        """Run a function of a module, with arguments that can be pickled, and say what became of it."""
        if self._process is None:
            self._start()
        self._pipe.send((function, args, named))
        if not self._pipe.poll(self._seconds):
            self.close()
            return Outcome(kind="hung", message=f"did not end within {self._seconds:g} s")
        try:
            outcome: Outcome = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._crashed()
        if outcome.peak_bytes > self._resident_bytes and not outcome.is_finding:
            found = f"{outcome.peak_bytes >> 20} MiB; then {outcome}"
            return Outcome(kind="memory", message=found, peak_bytes=outcome.peak_bytes)
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()
            self._log.close()
            self._process = None

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve,
            args=(theirs, self._memory_bytes, f"/proc/{os.getpid()}/fd/{self._log.fileno()}"),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        if not self._pipe.poll(300) or self._pipe.recv() != "ready":
            raise RuntimeError("the worker did not start")

    def _crashed(self) -> Outcome:
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self.close()
        return Outcome(kind="crashed", message=f"exit code {code}; {' | '.join(lines[-3:])}")


def _serve(pipe: Connection, memory_bytes: int, log: str) -> None:
    """Run what comes through the pipe, for ever."""
    import engine.export  # noqa: F401  # before memory is bounded

    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    limit = _status_bytes("VmSize") + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        function, args, named = pipe.recv()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        kind, error, message = _outcome(function, args, named)
        pipe.send(Outcome(kind=kind, error=error, message=message, peak_bytes=_status_bytes("VmHWM")))


def _outcome(
    function: Callable[..., object], args: tuple[object, ...], named: dict[str, object]
) -> tuple[str, str, str]:
    try:
        return "done", "", str(function(*args, **named))
    except EngineError as err:
        message = str(err)
        kind = "refused"
        if any(sign in message for sign in _NO_MEMORY):
            kind = "memory"
        elif len(message.splitlines()) != 1 or not message.isprintable() or len(message) > LONGEST_MESSAGE:
            kind = "message"
        return kind, type(err).__name__, message
    except MemoryError as err:
        return "memory", "MemoryError", _where(err)
    except BaseException as err:  # whatever it is, it is a finding
        return "foreign", type(err).__name__, _where(err)


def _where(err: BaseException) -> str:
    """Return the message and the engine's innermost line."""
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if "/engine/" in frame.filename]
    place = f"{frames[-1].filename.split('/engine/')[-1]}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"
    return f"{str(err)[:500]} [at {place}]"


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)

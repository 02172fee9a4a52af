import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from engine.cli import console
from engine.cli.console import loading, run
from engine.errors import EngineError
from tests.export.networks import written
from tests.tiny_cnn import tiny_cnn

REPOSITORY = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[signal.Signals, object]]:
    """What the signals did before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(command: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and stderr of a command that ends in an error or by a signal."""
    with pytest.raises(SystemExit) as caught:
        run(command)
    captured = capfd.readouterr()
    assert captured.out == ""
    return caught.value.code, captured.err


def interrupted(number: signal.Signals) -> str:
    return f"error: interrupted by {number.name}; nothing was left half-written\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_undoes_what_is_under_way_and_prints_one_line(
    number: signal.Signals, handlers: dict[signal.Signals, object], capfd: pytest.CaptureFixture[str]
) -> None:
    undone = []

    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            undone.append(number)

    assert ended(command, capfd) == (128 + number, interrupted(number))
    assert undone == [number]
    assert {each: signal.getsignal(each) for each in SIGNALS} == handlers


def test_a_second_signal_does_not_stop_the_undoing_but_a_third_does(capfd: pytest.CaptureFixture[str]) -> None:
    undone = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            undone.append("first")
            signal.raise_signal(signal.SIGINT)
            undone.append("second")

    assert ended(command, capfd) == (130, interrupted(signal.SIGINT))
    assert undone == ["first"]


@pytest.mark.parametrize(
    "outcome", [RuntimeError("what the library makes of it"), EngineError("refused"), SystemExit(0)]
)
def test_a_signal_that_a_library_turns_into_something_else(
    outcome: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise outcome from None

    assert ended(command, capfd) == (143, interrupted(signal.SIGTERM))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    signal.signal(number, signal.SIG_IGN)
    run(lambda: signal.raise_signal(number))
    assert signal.getsignal(number) is signal.SIG_IGN
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reason", ["Unable to allocate 2.00 TiB", ""])
def test_too_little_memory_is_one_line(reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise MemoryError(reason)

    shown = reason or "no more is free"
    line = f"error: out of memory: {shown}; choose smaller images, or a larger machine\n"
    assert ended(command, capfd) == (2, line)


@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_of_a_command_is_kept(code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: sys.exit(code), capfd) == (code, "")


def test_whatever_a_name_holds_an_error_is_one_line_of_plain_text(capfd: pytest.CaptureFixture[str]) -> None:
    name = "a:cat:\n\r\t\x1b[31m[red]é日\u2028" + os.fsdecode(b"\xff")

    def command() -> None:
        raise EngineError(f"{name}: is odd")

    assert ended(command, capfd) == (2, "error: a:cat:\\n\\r\\t\\x1b[31m[red]é日\\u2028\\udcff: is odd\n")


# The real command line, which waits where it would verify: the bundle's files and torch's are written by then.
WAITING = """
import signal
import engine.export.compile as compile
from engine.cli.console import run
from engine.export.__main__ import app

def wait(*_, **__):
    print("waiting", flush=True)
    while True:
        signal.pause()

compile.verify = wait
run(app)
"""
MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.mark.parametrize(
    ("number", "model"), [*((number, "tiny.onnx") for number in SIGNALS), (signal.SIGTERM, "module_of_console:make")]
)
def test_a_signal_leaves_nothing_of_an_export(number: signal.Signals, model: str, tmp_path: Path) -> None:
    written(tiny_cnn(), tmp_path, "tiny.onnx")
    (tmp_path / "module_of_console.py").write_text(MODULE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    size = ["--size", "16x16"] if ":" in model else []
    with subprocess.Popen(
        [sys.executable, "-B", "-c", WAITING, model, "-o", "new.ada", "--activation", "softmax", *size],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        waiting = command.stdout.readline()
        works = [entry for entry in tmp_path.iterdir() if entry.name.startswith(".new.ada.")]
        written_so_far = [sorted(entry.name for entry in work.iterdir()) for work in works]
        models = [file.name for file in temporary.glob("*/model.onnx")]
        command.send_signal(number)
        out, err = command.communicate(timeout=60)
    assert (command.returncode, waiting, out, err) == (128 + number, "waiting\n", "", interrupted(number))
    ((*_, weights),) = written_so_far
    assert weights == "weights.bin"
    assert models == (["model.onnx"] if size else [])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["module_of_console.py", "temporary", "tiny.onnx"]
    assert list(temporary.glob("tmp*")) == []  # libraries keep files of other names there


@pytest.mark.parametrize("name", ["engine.tuning", "engine.cache", "engine.backends.onnxruntime_tensorrt"])
def test_loading_shows_what_takes_long_and_prints_warnings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "STATUS", Console(file=screen, force_terminal=True, width=200))
    logger = logging.getLogger(name)
    before = list(logger.handlers), logger.level
    with loading():
        logger.debug("a rate")
        logger.info("first load here: measuring …")
        ends = time.monotonic() + 20
        while "first load here: measuring …" not in screen.getvalue():  # it is drawn a few times a second
            assert time.monotonic() < ends
            time.sleep(0.01)
        logger.warning("the cache cannot be written")
    assert "warning: the cache cannot be written" in screen.getvalue()
    assert "a rate" not in screen.getvalue()
    assert (list(logger.handlers), logger.level) == before

"""What both command lines share: where they print, and how an error or a signal ends them."""

import errno
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from engine.errors import EngineError, printable

RESULT = Console(highlight=False, emoji=False)
STATUS = Console(stderr=True, highlight=False, emoji=False)
USER_ERROR = 2
_BY_SIGNAL = 128
_SHOWN = ("engine.tuning", "engine.cache", "engine.backends")
_NO_ROOM = (errno.ENOSPC, errno.EIO)
_SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__)


def run(command: Callable[[], object]) -> None:
    """Run a command line.

    An `EngineError`, too little memory, or no room for the output prints one line on stderr and exits 2; a bug keeps
    its stack and exits 1. Ctrl-C, SIGTERM and SIGHUP undo what is under way, print one line, and exit 128 and the
    signal's number, as shells do.
    """
    with _signals_exit() as received:
        try:
            command()
        except BaseException as err:
            if received:
                print_error(f"interrupted by {received[0].name}; nothing was left half-written")
                sys.exit(_BY_SIGNAL + received[0])
            if isinstance(err, MemoryError):
                print_error(
                    f"out of memory: {str(err) or 'no more is free'}; choose smaller images, or a larger machine"
                )
            elif isinstance(err, EngineError):
                print_error(str(err))
            elif isinstance(err, OSError) and err.errno in _NO_ROOM:
                print_error(f"the output cannot be written: {err.strerror}; choose another place for it")
            else:
                raise
            sys.exit(USER_ERROR)


@contextmanager
def _signals_exit() -> Iterator[list[signal.Signals]]:
    """Let signals raise SystemExit, which undoes what is under way; give the list of those received.

    Not KeyboardInterrupt, which typer answers in its own way. The second of an impatient user does nothing, so that it
    does not stop the undoing; every later one raises again.
    """
    received: list[signal.Signals] = []

    def exit_by(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if len(received) != 2:
            sys.exit(_BY_SIGNAL + number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # One that is ignored stays so: nohup, and shells for what runs in the background, ask for it.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, exit_by)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def loading() -> Iterator[None]:
    """Show that a bundle is loaded, and what takes seconds at the first time."""
    with STATUS.status("load …") as status:

        class Show(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.levelno >= logging.WARNING:
                    print_status(f"warning: {record.getMessage()}", style="yellow")
                else:
                    status.update(printable(record.getMessage()))

        show, levels = Show(logging.INFO), {logger: logger.level for logger in map(logging.getLogger, _SHOWN)}
        for logger in levels:
            logger.addHandler(show)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.removeHandler(show)
                logger.setLevel(level)


def print_error(message: str) -> None:
    """Print what went wrong as one line on stderr."""
    print_status(f"error: {message}", style="red")


def print_status(message: str, style: str | None = None) -> None:
    """Print one line on stderr."""
    STATUS.print(printable(message), style=style, soft_wrap=True, markup=False)

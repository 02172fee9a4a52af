"""What both command lines share: where they print, and how an error ends them."""

import sys
from collections.abc import Callable

from rich.console import Console

from engine.errors import EngineError

STATUS = Console(stderr=True, highlight=False)
USER_ERROR = 2


def run(command: Callable[[], object]) -> None:
    """Run a command line; an `EngineError` prints one line on stderr and exits 2, a bug keeps its stack and exits 1."""
    try:
        command()
    except EngineError as err:
        print_error(str(err))
        sys.exit(USER_ERROR)


def print_error(message: str) -> None:
    """Print one line."""
    STATUS.print(f"error: {message}", style="red", soft_wrap=True, markup=False)

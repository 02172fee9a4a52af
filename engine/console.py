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
        STATUS.print(f"error: {err}", style="red", soft_wrap=True, markup=False)
        sys.exit(USER_ERROR)

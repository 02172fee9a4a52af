"""The command line as a user at a terminal sees it."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
_CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def run_in_terminal(*arguments: str | Path) -> tuple[str, str]:
    """Run `python -m engine` with a pseudo-terminal for stderr alone; return stdout, and what was drawn as plain text.

    Raises:
        AssertionError: The command failed.
    """
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        cwd=REPOSITORY,
        env={"COLUMNS": "120", "PATH": "", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    ) as process:
        os.close(terminal)
        out, _ = process.communicate()
    drawn = b""
    while True:
        try:
            drawn += os.read(controller, 65536)
        except OSError:  # the terminal's other end is closed
            break
    os.close(controller)
    assert process.returncode == 0, drawn
    return out, _CODES.sub("", drawn.decode())

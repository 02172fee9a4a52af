"""Where a benchmark runs, how it starts processes of its own, and how it writes what it found."""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "torchvision")


def in_own_process(step: Any, *arguments: Any) -> Any:
    """Call a function in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(step, *arguments).result()


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Where it was measured, and with what.

    Args:
        packages: The distributions whose versions matter.
    """
    return {
        "commit": _commit(),
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def listed(facts: Mapping[str, object]) -> str:
    """Facts in one line: what `machine` returns, or what was chosen."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _commit() -> str:
    """The commit that is checked out; empty where there is no git."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    """The model of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except FileNotFoundError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return platform.processor() if found is None else found[1]


def write_report(report: dict[str, Any], text: str, output: Path) -> None:
    """Write the markdown, and the figures beside it as JSON."""
    figures = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    output.with_suffix(".json").write_text(figures, encoding="utf-8")
    output.write_text(text, encoding="utf-8")


def write_between(page: Path, marks: tuple[str, str], lines: list[str]) -> None:
    """Write lines into a page, between two lines that mark their place."""
    begin, end = marks
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    text = "\n".join(lines)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def heading(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]

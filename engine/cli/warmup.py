"""`python -m engine warmup`: what the first load of a bundle builds and measures, beforehand."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from engine.cache import ENGINES, SETUPS, TIMINGS, cache_folder, identity_of
from engine.cli.choices import Batch, Device, Precision
from engine.cli.console import RESULT, loading
from engine.errors import OptionError, printable
from engine.loader import load
from engine.tuning import Setup


def warm_up(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by python -m engine.export.", metavar="NAME.ada")],
    device: Device = "cpu",
    precision: Precision = "float32",
    batch: Batch = None,
) -> None:
    """Build and measure what the first load with the same options would, and keep it in the user's cache folder.

    Example: python -m engine warmup resnet50.ada --device tensorrt --precision float16
    """
    folder = cache_folder()
    _expect_writable(folder)
    before = _entries(folder)
    with loading():
        load(bundle, device=device, precision=precision, batch_size=batch).close()
    made = sorted(path for path, _ in _entries(folder) - before)
    for path in made:
        _print(f"{_describe(path)}: {path}")
    _print(f"done: the next load finds it in {folder}" if made else f"nothing to do: what it takes is in {folder}")


def _expect_writable(folder: Path) -> None:
    """Check that what is made can be kept.

    Raises:
        OptionError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise OptionError(
            f"{folder}: cannot be written: {err.strerror}; expected a folder that can: set XDG_CACHE_HOME"
        ) from err


def _entries(folder: Path) -> set[tuple[Path, int]]:
    """Return what is kept, and when it was made."""
    found = (path for name in (SETUPS, ENGINES, TIMINGS) for path in (folder / name).glob("[!.]*"))
    return {(path, path.stat().st_mtime_ns) for path in found}


def _describe(path: Path) -> str:
    if path.parent.name == SETUPS:
        setup = Setup(**json.loads(path.read_text(encoding="utf-8"))["setup"])
        return f"measured how to score fastest ({setup})"
    if path.parent.name == TIMINGS:
        return "kept what TensorRT measured of each layer"
    size_mib = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    return f"built the TensorRT engine for batches of {identity_of(path)['batch_size']}, {size_mib:.1f} MiB"


def _print(text: str) -> None:
    RESULT.print(printable(text), soft_wrap=True, markup=False)

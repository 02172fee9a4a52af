"""`python -m engine agreement`: how far explanations in another precision, or on another device, are from float32."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.agreement import measure_agreement, within
from engine.cli.choices import Device, Precision, Threads
from engine.cli.console import RESULT, STATUS, loading
from engine.cli.tables import print_agreement
from engine.errors import OptionError
from engine.loader import load
from engine.options import expect_whole
from engine.photos import find_photos


def print_measured_agreement(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by python -m engine.export.", metavar="NAME.ada")],
    photos: Annotated[list[str], typer.Argument(help="Photos, folders, or patterns in quotes.", metavar="PHOTO…")],
    device: Device = "cpu",
    precision: Precision = "int8",
    top: Annotated[
        int, typer.Option(help="Compare the heatmaps of the N classes of the highest scores.", metavar="N")
    ] = 1,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and no table.")] = False,
) -> None:
    """Compare heatmaps with those of float32 on the device cpu, over the same masks.

    Example: python -m engine agreement resnet50.ada photos/ --precision int8
    """
    expect_whole("top", top)
    if (device, precision) == ("cpu", "float32"):
        raise OptionError("device cpu and precision float32 are what others are compared with; choose another of them")
    chosen = find_photos(photos)
    with loading():
        reference = load(bundle, threads=threads)
        other = load(bundle, device=device, precision=precision, threads=threads)
    with STATUS.status("compare …") as status:

        def show(done: int, count: int) -> None:
            status.update(f"{done} of {count} photos …")

        agreement = measure_agreement(reference, other, chosen, classes=top, progress=show)
    figures, manifest = agreement.report(), other.bundle.manifest
    record: Any = manifest["int8"] if precision == "int8" else None  # its shape is what the schema says
    bounds = None if record is None else record["bounds"]
    if as_json:
        judged = {} if bounds is None else {"bounds": bounds, "within_bounds": within(figures, bounds)}
        typer.echo(json.dumps({"device": device, "precision": precision, **figures, **judged}))
    else:
        print_agreement(figures, bounds, f"{precision} on {device} against float32 on cpu", RESULT)

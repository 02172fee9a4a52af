"""Command line of the exporter: `python -m engine.export MODEL.onnx -o NAME.ada`."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from engine.cli.console import STATUS, run
from engine.cli.tables import print_contents
from engine.errors import OptionError, printable
from engine.export import ExportReport, export

_SIZE = re.compile("[0-9]{1,9}(x[0-9]{1,9}){1,2}")  # int() refuses thousands of digits

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def parse_size(text: str) -> tuple[int, ...]:
    """Read `224x320` or `1x28x28`.

    Raises:
        OptionError: The text is no size.
    """
    sizes = tuple(map(int, text.split("x"))) if _SIZE.fullmatch(text) else ()
    if not sizes or 0 in sizes:
        raise OptionError(f"size {text!r} is none; expected HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, such as 224x224")
    return sizes


@app.command(name="export")
def main(
    model: Annotated[
        str,
        typer.Argument(
            help="ONNX classifier; or package.module:function, which returns a torch module.", metavar="MODEL"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The bundle to write.", metavar="NAME.ada")
    ] = None,
    preprocess: Annotated[
        Path | None,
        typer.Option(
            help='JSON: {"resize": 256, "interp": "bicubic", "mean": […], "std": […], …}.',
            metavar="FILE.json",
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file, one class name a line.", metavar="FILE.txt")] = None,
    activation: Annotated[
        str | None, typer.Option(help="softmax, sigmoid or none; found by itself when the model ends in one.")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Feature layer, by tensor name; repeat for several.", metavar="TENSOR"),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option("--output-name", help="The class scores, when the model has several outputs."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Image size, when the model leaves it open: HEIGHTxWIDTH, or CHANNELSxHEIGHTxWIDTH.",
            metavar="SIZE",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="State dict to load into the torch module.", metavar="FILE.pt")
    ] = None,
    photo: Annotated[
        Path | None, typer.Option(help="A photo at which the gradients are verified too.", metavar="PHOTO")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Add a graph that scores masks in int8: 1.8 to 2.0 times as fast with VNNI.")
    ] = False,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Photo or folder to calibrate int8 on, repeat for several; 8 different photos at least.",
            metavar="PHOTOS",
        ),
    ] = None,
    single_file: Annotated[
        Path | None,
        typer.Option(
            "--single-file",
            help="Write the whole method as one graph, with its weights, for hosts without Python.",
            metavar="OUT.onnx",
        ),
    ] = None,
    embed_preprocess: Annotated[
        bool, typer.Option("--embed-preprocess", help="Let that graph take photos, uint8 [h, w, 3] of any size.")
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(help="Write two models into a model repository of a Triton server.", metavar="REPOSITORY"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle, a file or a model that exists.")] = False,
) -> None:
    """Compile a CNN classifier into a bundle from which engine.load explains its answers.

    Example: python -m engine.export resnet50.onnx -o resnet50.ada --preprocess preprocess.json --labels labels.txt
    --activation softmax

    One ONNX file that explains itself: python -m engine.export resnet50.onnx --single-file explain.onnx --activation
    softmax

    A torch module: python -m engine.export torchvision.models:resnet50 --weights resnet50.pt --size 224x224
    -o resnet50.ada --activation softmax
    """
    began = time.perf_counter()
    with STATUS.status("export") as status:
        report = export(
            model,
            output,
            preprocess=preprocess,
            labels=labels,
            activation=activation,
            layers=layer or (),
            output_name=output_name,
            size=None if size is None else parse_size(size),
            weights=weights,
            photo=photo,
            int8=int8,
            calibrate=calibrate or (),
            single_file=single_file,
            embed_preprocess=embed_preprocess,
            triton=triton,
            force=force,
            step=lambda name: status.update(f"{name} …"),
        )
    print_report(report, Console(highlight=False, emoji=False), time.perf_counter() - began)


def print_report(report: ExportReport, console: Console, seconds: float) -> None:
    """Print what an export made."""
    print_contents(report.bundle, console, files=report.bundle.path not in report.written)
    for path in report.written:
        console.print(f"wrote {printable(str(path))}", soft_wrap=True, markup=False)
    console.print(f"exported and verified in {seconds:.1f} s")
    for note in report.notes:
        console.print(f"note: {printable(note)}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(app)

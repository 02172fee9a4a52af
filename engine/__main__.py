"""Command line of the runtime: `python -m engine explain NAME.ada PHOTO… -o OUT` and the other commands."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from engine._version import __version__
from engine.backends.onnxruntime_cpu import ONNXRUNTIME_VERSION
from engine.bundle import load_bundle
from engine.cli.agreement import print_measured_agreement
from engine.cli.choices import Activation, Batch, Device, Precision, Providers, Threads, Tune
from engine.cli.console import RESULT, STATUS, loading, print_error, print_status, run
from engine.cli.evaluate import evaluate_methods
from engine.cli.outputs import Outputs
from engine.cli.tables import print_contents, print_explanation, print_origin
from engine.cli.warmup import warm_up
from engine.errors import DeadlineError, EngineError, ImageError, OptionError, printable
from engine.explainer import Explainer, top_classes
from engine.explanation import Explanation, save_panel
from engine.loader import load
from engine.methods import METHODS
from engine.options import Choices, Target, class_indices
from engine.photos import find_photos, naming
from engine.spelling import parse_method

_EXIT_CODES = (
    "Exit codes: 0 done; 2 a mistake that you can mend, told in one line; 1 a bug, with its stack, or a reader of the "
    "output that has gone; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."
)
_MOST_DIGITS = 19  # of a class index
_COLUMNS = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)
app.command("evaluate", epilog=_EXIT_CODES)(evaluate_methods)
app.command("agreement", epilog=_EXIT_CODES)(print_measured_agreement)
app.command("warmup", epilog=_EXIT_CODES)(warm_up)


def print_version(asked: bool) -> None:
    """Print the versions of the engine and of its runtime, and end."""
    if asked:
        RESULT.print(f"ada-sise-engine {__version__}, onnxruntime {ONNXRUNTIME_VERSION}")
        raise typer.Exit


@app.callback(epilog=_EXIT_CODES)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Answer "why did the model say that?" from a bundle made by python -m engine.export.

    Example: python -m engine explain resnet50.ada cat.jpg -o heatmap.png
    """


@app.command(epilog=_EXIT_CODES)
def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by python -m engine.export.", metavar="NAME.ada")],
    photos: Annotated[list[str], typer.Argument(help="Photos, folders, or patterns in quotes.", metavar="PHOTO…")],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="For one heatmap a picture, or arrays and report; else a folder for pictures.",
            metavar="OUT.png|OUT.npz|FOLDER",
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Class label or index, repeat for several; the top-1 class if left out.", metavar="CLASS"),
    ] = None,
    top: Annotated[int | None, typer.Option(help="Explain the N classes of the highest scores.", metavar="N")] = None,
    method: Annotated[
        str, typer.Option(help=f"How to explain: {', '.join(METHODS)}.", metavar="NAME[:OPTION=VALUE…]")
    ] = "ada-sise",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, repeat for several.", metavar="NAME=VALUE")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Of ada-sise: otsu (its default), otsu-count, positive (SISE) or all.")
    ] = None,
    mu: Annotated[
        str | None,
        typer.Option(help="Of rule positive and sise: the least share of the largest gradient.", metavar="SHARE"),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of ada-sise: exact (its default), balanced (100 masks) or fast (25).")
    ] = None,
    fusion: Annotated[str | None, typer.Option(help="Of ada-sise and sise: hard (their default) or soft.")] = None,
    activation: Activation = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What masked-out pixels become: zero, blur, or a colour R,G,B.", metavar="BASELINE"),
    ] = None,
    batch: Batch = None,
    max_masks: Annotated[int | None, typer.Option(help="Score this many masks at most.", metavar="N")] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Score the masks that fit into this time, per photo.", metavar="MS")
    ] = None,
    too_late: Annotated[
        str, typer.Option(help="What a deadline that is too short gives: grad-cam (a map of the last layer) or error.")
    ] = "grad-cam",
    device: Device = "cpu",
    precision: Precision = "float32",
    threads: Threads = None,
    tune: Tune = True,
    provider: Providers = None,
    maps: Annotated[bool, typer.Option("--maps", help="Draw a panel of every layer's map too: OUT.maps.png.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each report as one line of JSON, and no table.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Draw heatmaps of what in photos made the model answer as it did.

    Example: python -m engine explain resnet50.ada cat.jpg -o heatmap.png --target "tiger cat"

    Example: python -m engine explain resnet50.ada photos/ "more/*.jpg" -o heatmaps --top 3 --maps

    Example: python -m engine explain resnet50.ada cat.jpg -o heatmap.png --method rise --option masks=1000
    """
    if target and top is not None:
        raise OptionError("--target and --top both choose the classes; expected one of them")
    if top is not None and top < 1:
        raise OptionError(f"top is {top}; expected a whole number of at least 1")
    given = {"rule": rule, "mu": mu, "preset": preset, "fusion": fusion, "baseline": baseline}
    chosen_method = parse_method(method, METHODS, parse_options(option or (), given))
    if maps and not chosen_method.layered:
        layered = " and ".join(name for name, kind in METHODS.items() if kind.layered)
        raise OptionError(f"--maps: method {chosen_method.name!r} makes no maps of layers; {layered} do")
    chosen = find_photos(photos)
    several = (top or 1) > 1 or len(target or ()) > 1
    outputs = Outputs(output, chosen, several=several, maps=maps, replace=force)
    if bundle.resolve() in (output.resolve(), *output.resolve().parents):
        raise OptionError(f"{output}: lies in the bundle, which holds its own files only; choose another place")
    with loading():
        explainer = load(
            bundle,
            device=device,
            precision=precision,
            threads=threads,
            batch_size=batch,
            tune=tune,
            providers=provider,
        )
    if explainer.bundle.preprocess is None:
        raise OptionError(
            f"{bundle}: holds no preprocessing, so it explains prepared arrays, from Python; export it with "
            "--preprocess to explain photos"
        )
    labels, classes = explainer.bundle.labels, explainer.bundle.classes
    asked = [parse_target(name, labels or ()) for name in target or ()]
    fixed = list(dict.fromkeys(class_indices(asked, classes, labels))) if asked else []
    choices: Choices = {
        "method": chosen_method,
        "activation": activation,
        "max_masks": max_masks,
        "deadline_ms": deadline_ms,
        "too_late": too_late,
        "visualization_maps": maps,
    }

    failed = 0
    quiet, beside_text = not STATUS.is_terminal, sys.stdout.isatty()
    with Progress(*_COLUMNS, console=STATUS, transient=True, disable=quiet, redirect_stdout=beside_text) as bar:
        task = bar.add_task("", total=len(chosen))
        for number, photo in enumerate(chosen):

            def show(done: int, planned: int, number: int = number, photo: Path = photo) -> None:
                description = f"{printable(photo.name)}: {done} of {planned} {chosen_method.unit}"
                bar.update(task, completed=number + done / max(planned, 1), description=description)

            choices["progress"] = show
            try:
                with naming(photo):
                    results = explain_photo(explainer, photo, fixed, top, outputs, choices)
            except (ImageError, DeadlineError) as err:
                if len(chosen) == 1:
                    raise
                print_error(str(err))
                failed += 1
                continue
            outputs.make_folder()
            for result, file in results:
                result.save(file)
                print_result(result, photo, file, as_json=as_json, table=len(chosen) == len(results) == 1)
            if maps:
                save_panel([result for result, _ in results], outputs.panel(photo))
                print_status(f"wrote {outputs.panel(photo)}")
    if failed:
        raise EngineError(f"{failed} of {len(chosen)} photos could not be explained, for the reasons above")


@app.command(epilog=_EXIT_CODES)
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by python -m engine.export.", metavar="NAME.ada")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON, and no tables.")] = False,
) -> None:
    """Check every file of a bundle, and say what is in it.

    Example: python -m engine inspect resnet50.ada
    """
    found = load_bundle(bundle)
    if as_json:
        typer.echo(json.dumps(found.manifest, indent=2))
        return
    print_contents(found, RESULT)
    print_origin(found, RESULT)
    RESULT.print("every file has the size and the SHA-256 that the manifest lists")


def explain_photo(
    explainer: Explainer, photo: Path, fixed: Sequence[int], top: int | None, outputs: Outputs, choices: Choices
) -> list[tuple[Explanation, Path]]:
    """Explain a photo for fixed classes, for its best ones, or for the best one; return where each result shall go."""
    began = time.perf_counter()
    indices = fixed if top is None else top_classes(explainer, photo, top)
    deadline_ms = choices["deadline_ms"]
    if top is not None and deadline_ms is not None:  # what ranking the classes took counts too
        left_ms = deadline_ms - (time.perf_counter() - began) * 1e3
        choices = {**choices, "deadline_ms": max(left_ms, min(deadline_ms, 1.0))}
    files = outputs.heatmaps(photo, indices, explainer.bundle.labels)
    targets: list[Target] = [*indices] if indices else [None]
    return list(zip(explainer.explain(photo, targets, **choices), files, strict=True))


def parse_target(target: str, labels: Sequence[str]) -> Target:
    """Take a target for a label if the bundle has that label, else for an index if it is a number."""
    if target not in labels and target.removeprefix("-").isdecimal() and len(target) < _MOST_DIGITS:
        return int(target)
    return target


def parse_options(texts: Sequence[str], given: Mapping[str, str | None]) -> dict[str, str]:
    """Gather a method's options from `NAME=VALUE` and from the options of their own that were given.

    Raises:
        OptionError: A text has no `=`, or an option is given twice.
    """
    options = {name: value for name, value in given.items() if value is not None}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"option {text!r}: has no value; expected NAME=VALUE")
        if name in options:
            raise OptionError(f"option {name!r}: is given twice; expected each once")
        options[name] = value
    return options


def print_result(result: Explanation, photo: Path, file: Path, *, as_json: bool, table: bool) -> None:
    """Print what an explanation found, as a line of JSON, a table or a line, and where its picture is."""
    if as_json:
        typer.echo(json.dumps({"photo": str(photo), "heatmap": str(file), **result.report()}))
    elif table:
        print_explanation(result, RESULT)
    else:
        RESULT.print(printable(f"{photo}: {result}"), soft_wrap=True, markup=False)
    for warning in result.warnings:
        print_status(f"warning: {photo}, {result.name}: {warning}", style="yellow")
    print_status(f"wrote {file}")


if __name__ == "__main__":
    run(app)

"""Command line of the runtime: `python -m engine explain NAME.ada PHOTO -o OUT.png`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.console import STATUS, run
from engine.explainer import Explainer, load
from engine.explanation import Explanation, file_kind

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Answer "why did the model say that?" from a bundle made by python -m engine.export."""


@app.command()
def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by python -m engine.export.", metavar="NAME.ada")],
    photo: Annotated[Path, typer.Argument(help="The photo to explain.", metavar="PHOTO")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Overlay picture, or arrays and report.", metavar="OUT.png|OUT.npz"),
    ],
    target: Annotated[str | None, typer.Option(help="Class label or index; the top-1 class if left out.")] = None,
    rule: Annotated[str, typer.Option(help="otsu (Ada-SISE), otsu-count, positive (SISE) or all.")] = "otsu",
    mu: Annotated[float, typer.Option(help="For rule positive: the least share of the largest gradient.")] = 0.0,
    fusion: Annotated[str, typer.Option(help="hard or soft.")] = "hard",
    threads: Annotated[int | None, typer.Option(help="CPU threads; one per physical core if left out.")] = None,
) -> None:
    """Draw a heatmap of what in a photo made the model answer as it did.

    Example: python -m engine explain resnet50.ada cat.jpg -o heatmap.png --target "tiger cat"
    """
    file_kind(output)
    with STATUS.status("explain …"):
        explainer = load(bundle, threads=threads)
        result = explainer.explain(photo, parse_target(target, explainer), rule=rule, mu=mu, fusion=fusion)
        result.save(output)
    print_report(result, Console(highlight=False))
    STATUS.print(f"wrote {output}", soft_wrap=True, markup=False)


def parse_target(target: str | None, explainer: Explainer) -> int | str | None:
    """Take a target for a label if the bundle has that label, else for an index if it is a number."""
    labels = explainer.bundle.labels or ()
    if target is not None and target not in labels and target.removeprefix("-").isdecimal():
        return int(target)
    return target


def print_report(result: Explanation, console: Console) -> None:
    """Print what an explanation found as a table."""
    table = Table("layer", box=SIMPLE_HEAD, title=escape(str(result)), title_style="bold")
    for heading in ("maps", "positive", "selected", "flat", "scored"):
        table.add_column(heading, justify="right")
    for layer in result.layers:
        counts = (layer.channels, layer.positive, layer.selected, layer.flat, layer.scored)
        table.add_row(escape(layer.name), *map(str, counts))
    console.print(table)
    phases = ", ".join(f"{phase} {ms:.0f}" for phase, ms in result.timings_ms.items())
    console.print(
        f"rule {result.rule}, fusion {result.fusion}, activation {result.activation}; ms: {phases}", soft_wrap=True
    )
    for warning in result.warnings:
        STATUS.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(app)

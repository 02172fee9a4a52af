"""`python -m engine evaluate`: explanation methods compared on a data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.cli.choices import Activation, Batch, Device, Precision, Providers, Threads, Tune
from engine.cli.console import RESULT, STATUS, loading, print_status
from engine.cli.summary import print_summary
from engine.errors import EngineError, OptionError, printable
from engine.evaluation import EVALUATED, Choice, Store, evaluate, read_dataset, summarise, write_report
from engine.evaluation.summary import expect_reference
from engine.loader import load
from engine.metrics import METRICS
from engine.spelling import parse_method, spell

_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)
_ETA_WINDOW_S = 600  # methods differ in cost by a thousand, so a few steps say little
_METHODS = "ada-sise"
_METRICS = "ebpg,bbox,drop,increase"
_FAILURES_SHOWN = 10


def evaluate_methods(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by python -m engine.export.", metavar="NAME.ada")],
    dataset: Annotated[
        Path,
        typer.Argument(
            help="Pascal VOC folder, COCO JSON, JSON list, folder of folders by class, or CSV of file,label.",
            metavar="DATASET",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="For results and report; with results, it goes on.", metavar="FOLDER")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Methods with commas between them, options after colons; repeatable; {_METHODS} if left out. "
            + ", ".join(EVALUATED),
            metavar="NAME[:OPTION=VALUE…],…",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Measures, with commas between them; repeatable; {_METRICS} if left out. " + ", ".join(METRICS),
            metavar="NAME,…",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The method that the others are compared with.", metavar="NAME[:OPTION=VALUE…]")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="List in ImageSets/Main, or COCO's instances_SPLIT.json.", metavar="SPLIT")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Explain classes of at least this score.", metavar="SCORE")] = 0.5,
    activation: Activation = None,
    limit: Annotated[int | None, typer.Option(help="Take the first N photos only.", metavar="N")] = None,
    sample: Annotated[int | None, typer.Option(help="Take N photos, drawn at random.", metavar="N")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the gallery.", metavar="N")] = 0,
    gallery: Annotated[int, typer.Option(help="Show the heatmaps of N pairs in the report.", metavar="N")] = 0,
    device: Device = "cpu",
    precision: Precision = "float32",
    batch: Batch = None,
    threads: Threads = None,
    tune: Tune = True,
    provider: Providers = None,
) -> None:
    """Compare explanation methods on photos with boxes or labels, and write a report.

    Each result is kept in FOLDER/results.sqlite as soon as it is there.

    The same command continues a run that was stopped; other methods, measures or photos are added to it.

    Example: python -m engine evaluate resnet50.ada VOC2007 --split test --method ada-sise,sise,grad-cam -o results

    Example: python -m engine evaluate resnet50.ada VOC2007 --split test --method rise:masks=1000 --sample 50 -o results
    """
    methods = [parse_method(name, EVALUATED) for name in _names("method", method, _METHODS)]
    measures = _names("metric", metric, _METRICS)
    compared = None if reference is None else spell(parse_method(reference, EVALUATED))
    choice = Choice(
        threshold=threshold,
        activation=activation,
        limit=limit,
        sample=sample,
        seed=seed,
        gallery=gallery,
    )
    with STATUS.status("read the data set …"):
        photos = read_dataset(dataset, split)
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
    try:
        output.mkdir(exist_ok=True)
    except OSError as err:
        raise OptionError(f"{output}: cannot be made: {err.strerror}; expected a folder") from err
    if not photos.has_boxes:
        print_status(f"{dataset}: has no boxes, so measures that need them have no value")
    with explainer, Store(output / "results.sqlite") as store:
        expect_reference(compared, [*map(spell, methods), *store.methods()])
        bar = Progress(
            *_COLUMNS,
            console=STATUS,
            transient=True,
            disable=not STATUS.is_terminal,
            speed_estimate_period=_ETA_WINDOW_S,
        )
        with bar:
            task = bar.add_task("", total=None)

            def show(what: str, done: int, planned: int) -> None:
                bar.update(task, description=printable(what), completed=done, total=planned)

            try:
                evaluate(explainer, photos, methods, measures, store, choice, progress=show)
            except SystemExit:
                print_status(f"{store.path}: keeps all that was finished; the same command continues")
                raise
        summary = summarise(store, compared)
        files = write_report(store, summary, output)
    print_summary(summary, RESULT)
    for file in files:
        print_status(f"wrote {file}")
    if not summary.pairs["all"]:
        print_status(f"no class that is on a photo has a score of at least {threshold:g}: there is nothing to compare")
    if summary.failures:
        for failure in summary.failures[:_FAILURES_SHOWN]:
            print_status(f"not explained: {failure}", style="yellow")
        raise EngineError(
            f"{len(summary.failures)} photos or pairs could not be explained; {output / 'report.html'} lists them all"
        )


def _names(option: str, given: list[str] | None, default: str) -> list[str]:
    """Return what is named between commas, each once."""
    words = ",".join(given or [default]).split(",")
    names = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not names:
        raise OptionError(f"--{option}: names nothing; expected names with commas between them, or leave it out")
    return names

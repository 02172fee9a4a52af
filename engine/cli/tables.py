"""The tables that the command lines print: what a bundle holds, and what an explanation found."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.agreement import within
from engine.bundle import Bundle
from engine.errors import BundleError, printable
from engine.explanation import Explanation


def print_explanation(result: Explanation, console: Console) -> None:
    """Print what an explanation found: a table of its layers, its options and its phases."""
    table = _table(("layer",), ("maps", "positive", "selected", "flat", "scored"), title=str(result))
    for layer in result.layers:
        counts = (layer.channels, layer.positive, layer.selected, layer.flat, layer.scored)
        table.add_row(_plain(layer.name), *map(str, counts))
    console.print(table if result.layers else _plain(str(result), style="bold"))
    phases = ", ".join(f"{phase} {ms:.0f}" for phase, ms in result.timings_ms.items())
    console.print(_plain(f"{result.how} · activation {result.activation}; ms: {phases}"), soft_wrap=True)


def print_origin(bundle: Bundle, console: Console) -> None:
    """Print what a bundle was made from, and what it takes and gives."""
    manifest: Any = bundle.manifest  # its shape is what the schema says
    channels, height, width = bundle.image_shape
    settings = bundle.preprocess
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items()))
    labels = "none" if bundle.labels is None else f"{', '.join(bundle.labels[:3])}, …"
    input_gradients = f"at the image and at {len(bundle.biases)} biased ops"
    if bundle.no_gradient is not None:
        input_gradients = f"none: {bundle.no_gradient}"
    preprocessing = "none: takes prepared arrays only"
    if settings is not None:
        preprocessing = ", ".join(f"{key} {value}" for key, value in settings.as_json().items())
    table = Table.grid(padding=(0, 2))
    for subject, fact in (
        ("source", f"SHA-256 {manifest['source']['sha256']}, output {manifest['source']['output']!r}"),
        ("made by", versions),
        ("graphs", f"opset {manifest['opset']}, ONNX IR version {manifest['ir_version']}"),
        ("image", f"{manifest['input']['name']!r}, float32 [N, {channels}, {height}, {width}]"),
        ("preprocessing", preprocessing),
        ("classes", f"{bundle.classes}, {bundle.activation}"),
        ("labels", labels),
        ("input gradients", input_gradients),
    ):
        table.add_row(subject, _plain(fact))
    console.print(table)


def print_contents(bundle: Bundle, console: Console, *, files: bool = True) -> None:
    """Print a bundle's blocks, its files if it has some, and the figures of its verification.

    Raises:
        BundleError: The bundle is there no more.
    """
    manifest: Any = bundle.manifest  # its shape is what the schema says
    figures = manifest["verification"]
    table = _table(("block", "ends in", "maps", "ops"), ("gradient error",), title=str(bundle.path))
    ends = [(layer.name, f"{layer.channels}×{layer.height}×{layer.width}") for layer in bundle.layers]
    ends.append(("logits", f"{bundle.classes}, {bundle.activation}"))
    errors = figures["gradient_errors"]
    for block, (tensor, shape) in zip(manifest["graphs"]["blocks"], ends, strict=True):
        name = block["forward"].removesuffix(".onnx")
        ops = sorted(block["ops"].items(), key=lambda entry: -entry[1])
        counts = ", ".join(f"{count} {op}" for op, count in ops)
        table.add_row(*map(_plain, (name, tensor, shape, counts, _figure(errors.get(name)))))
    console.print(table)

    if files:
        _print_sizes(_file_sizes(bundle), console)
    of_logits = " of the largest logit"
    for text, figure, unit in (
        ("forward against the source", figures["forward_error"], of_logits),
        ("chain of blocks against the source", figures["blocks_error"], of_logits),
        ("chain in float64, in which gradients are verified", figures["float64_error"], of_logits),
        ("average gradients, tapped against the companions", max(figures["average_gradient_errors"].values()), ""),
        ("image gradients, gradient against the companions", figures["image_gradient_error"], ""),
        ("image gradients, full_gradient against gradient", figures["full_gradient_error"], ""),
        ("what image and biases miss of the logit", figures["completeness_gap"], of_logits),
        ("heatmap of explain.onnx against the engine's", figures["explain_error"], ""),
    ):
        console.print(f"{text}: {_figure(figure)}{'' if figure is None else unit}")
    int8 = manifest["int8"]
    if int8 is not None:
        agreement = int8["agreement"]
        title = f"int8 against float32, on {agreement['photos']} of {int8['photos']} calibration photos"
        print_agreement(agreement, int8["bounds"], title if int8["usable"] else f"{title}: NOT USABLE", console)


def _print_sizes(size_bytes: Mapping[str, int], console: Console) -> None:
    table = _table(("file",), ("KiB",))
    for file, size in size_bytes.items():
        table.add_row(_plain(file), f"{size / 1024:,.0f}")
    table.add_section()
    table.add_row("total", f"{sum(size_bytes.values()) / 1024:,.0f}")
    console.print(table)


def print_agreement(
    figures: Mapping[str, int | float], bounds: Mapping[str, float] | None, title: str, console: Console
) -> None:
    """Print how far heatmaps and scores are apart.

    Args:
        figures: As `engine.agreement.Agreement.report` returns them, and manifests hold them.
        bounds: The least with which a scorer is usable, as manifests hold them; None if there are none.
        title: What was compared.
        console: Where to print.
    """
    counts = f"{figures['heatmaps']} heatmaps of {figures['photos']} photos, {figures['masks']} masks"
    table = _table((counts,), ("typical", "worst"), title=title)
    for text, name in (
        ("difference of a mask's scores (mean)", "score_error"),
        ("Spearman's ρ of two heatmaps (median)", "spearman"),
        ("their structural similarity (median)", "ssim"),
    ):
        table.add_row(text, f"{figures[name]:.4f}", f"{figures[f'{name}_worst']:.4f}")
    console.print(table)
    if bounds is not None:
        least = f"{bounds['spearman']:g} typical, {bounds['spearman_worst']:g} worst"
        found = "met" if within(figures, bounds) else "NOT MET"
        console.print(f"bounds of Spearman's ρ: {least}; {found} here")


def _file_sizes(bundle: Bundle) -> dict[str, int]:
    try:
        return {file.name: file.stat().st_size for file in sorted(bundle.path.iterdir())}
    except OSError as err:
        raise BundleError(f"{bundle.path}: cannot be read: {err.strerror}; export or copy the bundle again") from err


def _table(left: Iterable[str], right: Iterable[str], title: str | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, title=None if title is None else _plain(title, style="bold"))
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _plain(text: str, style: str = "") -> Text:
    """Return a text that is printed as it is: names in bundles may look like markup, or steer the terminal."""
    return Text(printable(text), style=style)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.1e}"

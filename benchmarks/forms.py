"""Exports one network in every form in which people hold models, and compares the results; writes a table.

`python -m benchmarks.forms MODEL.onnx PREPROCESS.json PHOTO… -o docs/forms.md` takes a SqueezeNet 1.1, such as the
tests' own, explains the first photo, and calibrates the int8 form on all of them. `docs/forms.json` is written beside
the table.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import engine
from benchmarks.architectures import export, verification
from benchmarks.machine import heading, in_own_process, listed, machine, write_report
from engine.bundle import load_bundle
from engine.image import prepare
from engine.preprocess import Preprocess
from tests import forms
from tests.comparison import Case
from tests.models import Exported
from tests.reference.network import TorchNetwork, quantization_left_out

PLAIN, ROUNDED, INT8 = "float32, dynamic batch", "float32, weights rounded to float16", "int8 (QDQ, per channel)"
INTRODUCTION = """# Forms of a model file

One SqueezeNet 1.1 in every form in which people hold models, exported and explained. Written by
`python -m benchmarks.forms MODEL.onnx PREPROCESS.json PHOTO… -o docs/forms.md`.
"""


def main() -> None:
    """Measure the forms and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=main.__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("preprocess", type=Path, metavar="PREPROCESS.json")
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_forms(arguments.model, arguments.preprocess, arguments.photos, Path(folder))
        rows: list[dict[str, Any]] = []
        for form, file in files.items():
            row = measure(form, file, arguments.preprocess)
            row |= in_own_process(compare, form, files, arguments.preprocess, arguments.photos[0])
            rows.append(row)
            print(f"{form}: {row['export_s']:.1f} s", flush=True)
    report = {"machine": machine(), "forms": rows}
    write_report(report, table(report), arguments.output)


def write_forms(model: Path, preprocess: Path, photos: list[Path], folder: Path) -> dict[str, Path]:
    """Write the network in all forms; each file by the form's name."""
    plain, rounded = folder / "plain.onnx", folder / "rounded.onnx"
    proto = onnx.load(model)
    onnx.save(proto, plain)
    forms.rounded(proto)
    onnx.save(proto, rounded)
    files = {PLAIN: plain, ROUNDED: rounded}
    files |= {form: forms.write(model, form, folder) for form in forms.FORMS}
    images = [image(photo, preprocess) for photo in photos]
    return files | {INT8: forms.write_quantized(model, images, folder)}


def image(photo: Path, preprocess: Path) -> Any:
    """The network's input float32 [1, 3, H, W]."""
    shape = (3, forms.SIZE, forms.SIZE)
    settings = json.loads(preprocess.read_text(encoding="utf-8"))
    return prepare(photo, Preprocess.from_json(settings, image_shape=shape, origin=str(preprocess)), shape).array


def measure(form: str, file: Path, preprocess: Path) -> dict[str, Any]:
    """Export one form by the command line."""
    options = ["--preprocess", str(preprocess)]
    if form == "open H and W":
        options += ["--size", f"{forms.SIZE}x{forms.SIZE}"]
    figures = export(file, file.with_suffix(".ada"), *options)
    bundle = load_bundle(file.with_suffix(".ada"))
    layers = [(layer.channels, layer.height) for layer in bundle.layers]
    return {"form": form, "layers": layers, "file_mb": file.stat().st_size / 1e6, **figures, **verification(bundle)}


def compare(form: str, files: dict[str, Path], preprocess: Path, photo: Path) -> dict[str, Any]:
    """Compare the heatmap with that of the float32 form, and the average gradients with float64 autograd."""
    x = image(photo, preprocess)
    network = TorchNetwork(quantization_left_out(onnx.load(files[form])) if form == INT8 else files[PLAIN])
    if form in ("float16", ROUNDED):
        network = TorchNetwork(files[ROUNDED])
    explainer = engine.load(files[form].with_suffix(".ada"))
    plain = engine.load(files[PLAIN].with_suffix(".ada")).explain(x)
    result = explainer.explain(x, plain.target)
    case = Case(Exported(source=files[form], explainer=explainer, activation="softmax"), x, x, network)
    return {
        "masks": result.scored,
        "agreement_b": case.check_average_gradients(),
        "heatmap_mean": float(np.abs(result.heatmap - plain.heatmap).mean()),
        "heatmap_largest": float(np.abs(result.heatmap - plain.heatmap).max()),
        "class_score": result.class_score,
    }


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    layers = ", ".join(f"{channels}×{height}" for channels, height in report["forms"][0]["layers"])
    same = all(row["layers"] == report["forms"][0]["layers"] for row in report["forms"])
    lines = [INTRODUCTION, f"Measured with {listed(report['machine'])}.", ""]
    lines += [
        f"Feature layers, channels×H: {layers}{'; the same in every form' if same else ''}. Forward, gradient and link "
        "are the figures of the verification at export, as in [architectures.md](architectures.md); (b) compares the "
        "average gradients with float64 autograd; the last columns compare the heatmap with that of the first row.",
        "",
    ]
    lines += heading(
        "form", "file MB", "export s", "forward", "gradient", "link", "masks", "(b)", "heatmap: mean", "largest"
    )
    for row in report["forms"]:
        figures = " | ".join(f"{row[key]:.1e}" for key in ("forward_error", "gradient_error", "average_gradient_error"))
        agreement = f"{row['agreement_b']:.1e} | {row['heatmap_mean']:.1e} | {row['heatmap_largest']:.1e}"
        sizes = f"{row['file_mb']:.1f} | {row['export_s']:.1f}"
        lines.append(f"| {row['form']} | {sizes} | {figures} | {row['masks']} | {agreement} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

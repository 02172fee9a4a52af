"""The whole export: source → cut → split → differentiate → link → verify → bundle."""

import contextlib
import importlib.metadata
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine._version import __version__
from engine.backends.onnxruntime_cpu import ONNXRUNTIME_VERSION
from engine.bundle import INT8, SCHEMA_VERSION, Bundle, load_bundle
from engine.errors import ModelError, OptionError, UnsupportedOpError
from engine.export.biases import biased_ops
from engine.export.calibration import MOST_PHOTOS, different, spread
from engine.export.cut import CutPoint, feature_layers
from engine.export.differentiate import companion
from engine.export.explain import explain
from engine.export.explain.single_file import expect_writable, write_single_file
from engine.export.explain.verify import verify_explain, verify_preparation
from engine.export.int8 import add_int8
from engine.export.link import forward, full_gradient, gradient, last_layer, tapped
from engine.export.pack import new_bundle, write_graphs, write_manifest
from engine.export.source import Source, load_source
from engine.export.split import Block, split
from engine.export.torch_module import write_onnx
from engine.export.triton import expect_writable_repository, write_repository
from engine.export.verify import Verification, expect_runnable, photo_like, verify
from engine.image import prepare
from engine.photos import find_photos
from engine.preprocess import Preprocess

_QUANTIZED = (
    "the file is quantized, and gradients pass the rounding straight through, also where it cuts values off in the "
    "place of a ReLU: at the image they would not be the network's"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export made.

    Attributes:
        bundle: The bundle, as it was loaded again from disk; its path is the first of `written` if none was asked for.
        written: The single file, and the models for Triton.
        ops: For each block and the head, how many nodes of each operator it has.
        verification: The figures of the checks.
        notes: What the user should know: how the model was brought into the bundle's form, or that there is no gradient
            at the image.
    """

    bundle: Bundle
    written: tuple[Path, ...]
    ops: Mapping[str, Mapping[str, int]]
    verification: Verification
    notes: tuple[str, ...]


def export(
    model: Path | str,
    output: Path | str | None = None,
    *,
    size: tuple[int, ...] | None = None,
    weights: Path | str | None = None,
    preprocess: Path | str | None = None,
    labels: Path | str | None = None,
    activation: str | None = None,
    layers: Sequence[str] = (),
    output_name: str | None = None,
    photo: Path | str | None = None,
    int8: bool = False,
    calibrate: Sequence[Path | str] = (),
    single_file: Path | str | None = None,
    embed_preprocess: bool = False,
    triton: Path | str | None = None,
    force: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Compile a CNN classifier into an explanation bundle, or into one file.

    Args:
        model: An ONNX file with one image input and class scores [N, classes]; or `package.module:function`, a function
            without arguments that returns a torch module, which needs `size`.
        size: Height and width of the images, when the ONNX file leaves them open; channels, height and width, or height
            and width of images with 3 channels, of a torch module.
        weights: State dict to load into the torch module, as `torch.save` writes it.
        output: The bundle's folder, `NAME.ada`; None for `single_file` alone.
        preprocess: JSON file with the settings of `Preprocess`; without one only prepared arrays can be explained.
        labels: Text file with one class name a line.
        activation: `softmax`, `sigmoid` or `none`; needed when the model does not end in its activation.
        layers: Tensor names of the feature layers, instead of the ones that the exporter finds.
        output_name: The model's output with the class scores; needed when there are several.
        photo: A photo at which the gradients are verified too; needs `preprocess`.
        int8: Add `forward.int8.onnx`, which scores masks in int8; needs `calibrate` and `preprocess`.
        calibrate: Photos, or folders of them, of the kind that the model will see: under masks they show which values
            its activations take. At least 8, copies and photos of one colour not counted.
        single_file: Write `explain.onnx`, with the weights inside, here too.
        embed_preprocess: Let `explain.onnx` take photos, uint8 [h, w, 3] of any size; needs `preprocess`.
        triton: Write two models into this model repository of a Triton server, see `engine.export.triton`.
        force: Replace a bundle, a file or a model that exists.
        step: Called with the name of each step before it starts.

    Returns:
        What was made.

    Raises:
        ModelError: The model cannot be compiled, or the result is not what the model computes.
        OptionError: An option or a file it names makes no sense for this model.
        ImageError: A photo cannot be read.
        BundleError: The bundle cannot be written.
    """
    output, weights, preprocess, labels, photo, single_file, triton = (
        None if path is None else Path(path)
        for path in (output, weights, preprocess, labels, photo, single_file, triton)
    )
    if output is None and single_file is None and triton is None:
        raise OptionError("nothing is to be written; expected an output NAME.ada, a single_file or a triton repository")
    if embed_preprocess and preprocess is None:
        raise OptionError("embed_preprocess is asked for without settings to embed; expected --preprocess")
    if int8 and output is None:
        raise OptionError("int8 is part of a bundle; expected an output NAME.ada with --int8")
    photos = _photos(int8, [Path(path) for path in calibrate], preprocess, step)
    if single_file is not None:
        expect_writable(single_file, force=force)
        read = [path for path in (weights, preprocess, labels, photo, model) if path is not None]
        if single_file.resolve() in [Path(path).resolve() for path in read]:
            raise OptionError(f"{single_file}: is read by the export; choose another name for the single file")
        if output is not None and output.resolve() in (single_file.resolve(), *single_file.resolve().parents):
            raise OptionError(
                f"{single_file}: lies in the bundle, which holds its own files only; choose another place"
            )
    name = Path(str(model).rpartition(":")[2] if output is None else output).stem
    if triton is not None:
        expect_writable_repository(triton, name, force=force)
    with _folder(output, force=force) as folder, _as_onnx(model, weights, size, step) as file:
        step("import")
        source = load_source(
            file,
            name=str(model),
            output=output_name,
            activation=activation,
            size=size,
        )
        settings = _read_preprocess(preprocess, source)
        image = _read_photo(photo, settings, source)
        names = _read_labels(labels, source)
        if int8 and source.original.quantized:
            raise OptionError(
                f"{source.name}: is quantized already, so that its forward.onnx scores in int8; leave out --int8"
            )
        expect_runnable(source)
        step("cut, split, differentiate, link")
        try:
            points = feature_layers(source.model.graph, layers)
            blocks = split(source.model, [point.name for point in points])
            companions, no_gradient = _companions(blocks)
            no_gradient = _QUANTIZED if source.original.quantized else no_gradient
            biased = biased_ops(source.model.graph) if no_gradient is None else []
        except ModelError as err:
            raise type(err)(f"{source.name}: {err}") from err
        graphs = {block.name: block.model.clone() for block in blocks}
        graphs |= {f"{name}.grad": model.clone() for name, model in companions.items()}
        graphs |= {"forward": forward(source), "tapped": tapped(source, points)}
        graphs |= {"last_layer": last_layer(source, points)}
        graphs |= {"explain": explain(source, points, _facts(source, points, settings, names))}
        if no_gradient is None:
            graphs |= {"gradient": gradient(source), "full_gradient": full_gradient(source, biased)}
        placed = write_graphs(folder, graphs)
        verification = verify(
            source, points, blocks, companions, folder, step, image, input_gradients=no_gradient is None
        )
        step("bundle")
        ops = {block.name: dict(Counter(node.op_type for node in block.model.graph).most_common()) for block in blocks}
        channels, height, width = source.image_shape
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "versions": _versions(),
            "source": {"sha256": source.sha256, "output": source.output},
            "opset": source.opset,
            "ir_version": source.model.ir_version,
            "input": {
                "name": source.input.name,
                "dtype": "float32",
                "layout": "NCHW",
                "channels": channels,
                "height": height,
                "width": width,
            },
            "output": {"name": source.logits.name, "classes": source.classes},
            "activation": source.activation,
            "layers": [{"name": p.name, "channels": p.channels, "height": p.height, "width": p.width} for p in points],
            "biases": [{"name": op.name, "op": op.op, "shape": op.shape} for op in biased],
            "graphs": {
                "forward": "forward.onnx",
                "int8": None,
                "tapped": "tapped.onnx",
                "last_layer": "last_layer.onnx",
                "explain": "explain.onnx",
                "gradient": "gradient.onnx" if no_gradient is None else None,
                "full_gradient": "full_gradient.onnx" if no_gradient is None else None,
                "no_gradient": no_gradient,
                "blocks": [
                    {
                        "forward": f"{name}.onnx",
                        "gradient": f"{name}.grad.onnx" if name in companions else None,
                        "ops": count,
                    }
                    for name, count in ops.items()
                ],
            },
            "preprocess": None if settings is None else settings.as_json(),
            "labels": names,
            "int8": None,
            "verification": verification.rounded(),
        }
        write_manifest(folder, manifest)
        step("explain")
        shown = photo_like(source.image_shape, rows=1) if image is None else image
        verification = replace(verification, explain_error=verify_explain(load_bundle(folder), shown))
        manifest["verification"] = verification.rounded()
        if settings is not None and embed_preprocess:
            verify_preparation(settings, source.opset)
            whole = explain(source, points, _facts(source, points, settings, names), settings)
            placed = write_graphs(folder, {"explain": whole}, placed)
        write_manifest(folder, manifest)
        if int8:
            try:
                manifest["int8"] = add_int8(folder, forward(source), photos, placed, step)
            except ModelError as err:
                raise type(err)(f"{source.name}: {err}") from err
            manifest["graphs"]["int8"] = INT8
            write_manifest(folder, manifest)
        bundle = load_bundle(folder)  # before it is given its name
        if single_file is not None:
            step("single file")
            write_single_file(bundle, single_file)
        written = [] if single_file is None else [single_file]
        if triton is not None:
            step("triton")
            written += write_repository(bundle, triton, name, takes_photos=embed_preprocess)
        bundle = replace(bundle, path=output or written[0])
    notes = source.notes
    if no_gradient is not None:
        notes += (
            "the bundle has no gradient.onnx and full_gradient.onnx, which Ada-SISE does not need: " + no_gradient,
        )
    if bundle.int8_disagreement is not None:
        notes += (
            f"{INT8} is not usable, and precision int8 is refused: {bundle.int8_disagreement}; calibrate on more or "
            "other photos",
        )
    return ExportReport(bundle=bundle, written=tuple(written), ops=ops, verification=verification, notes=notes)


@contextlib.contextmanager
def _folder(output: Path | None, *, force: bool) -> Iterator[Path]:
    """Give a folder to make the bundle in: it becomes the output, or is removed."""
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        with new_bundle(output, force=force) as work:
            yield work


@contextlib.contextmanager
def _as_onnx(
    model: Path | str, weights: Path | None, size: tuple[int, ...] | None, step: Callable[[str], None]
) -> Iterator[Path]:
    """Give the model as an ONNX file, which a torch module becomes in a temporary folder."""
    if isinstance(model, Path) or _is_file(model):
        if weights is not None:
            raise OptionError(f"{weights}: weights can be loaded into a torch module only; {model} is an ONNX file")
        yield Path(model)
        return
    if size is None:
        raise OptionError(f"{model}: has no known image size; choose it with --size HEIGHTxWIDTH")
    channels, height, width = size if len(size) == 3 else (3, *size)
    step("export by torch")
    with contextlib.ExitStack() as stack:
        try:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.onnx"
            write_onnx(model, file, weights=weights, image_shape=(channels, height, width))
        except OSError as err:
            raise ModelError(
                f"{model}: its ONNX file cannot be written for the time of the export: {err.strerror}; make room in "
                "the folder for temporary files, or choose another by the environment variable TMPDIR"
            ) from err
        yield file


def _photos(int8: bool, calibrate: Sequence[Path], preprocess: Path | None, step: Callable[[str], None]) -> list[Path]:
    """Return the photos to calibrate on, of many some; none without int8.

    Raises:
        OptionError: The options do not go together, or there are too few photos.
        ImageError: A folder holds no photo, or a photo cannot be read.
    """
    if calibrate and not int8:
        raise OptionError(f"{calibrate[0]}: photos to calibrate on serve int8 only; expected --int8 with --calibrate")
    if not int8:
        return []
    if not calibrate:
        raise OptionError("int8 is asked for without photos to calibrate on; name some, or a folder, with --calibrate")
    if preprocess is None:
        raise OptionError(
            "int8 is calibrated on photos, and nothing says how they become the input; expected --preprocess"
        )
    step("int8: read the photos")
    return different(spread(find_photos([str(path) for path in calibrate]), MOST_PHOTOS))


def _is_file(model: str) -> bool:
    """Tell an ONNX file from `package.module:function`, also a file whose name has a colon."""
    if ":" not in model:
        return True
    try:
        return Path(model).exists()
    except OSError as err:
        raise ModelError(
            f"{model}: cannot be read: {err.strerror}; expected an ONNX file, or package.module:function"
        ) from err


def _read_photo(photo: Path | None, settings: Preprocess | None, source: Source) -> NDArray[np.float32] | None:
    if photo is None:
        return None
    return prepare(photo, settings, source.image_shape).array


def _companions(blocks: Sequence[Block]) -> tuple[dict[str, ir.Model], str | None]:
    """Differentiate every block; the first may do without, since Ada-SISE needs no gradient at the image.

    Returns:
        The companions by block, and why the first has none.
    """
    first, *others = blocks
    companions = {}
    reason = None
    try:
        companions[first.name] = companion(first)
    except UnsupportedOpError as err:
        reason = f"{first.name} has no gradient companion: {err}"
    return companions | {block.name: companion(block) for block in others}, reason


def _read_preprocess(path: Path | None, source: Source) -> Preprocess | None:
    if path is None:
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise OptionError(f"{path}: cannot be read as JSON ({err}); expected preprocessing settings") from err
    return Preprocess.from_json(settings, image_shape=source.image_shape, origin=str(path))


def _read_labels(path: Path | None, source: Source) -> list[str] | None:
    if path is None:
        return None
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as err:
        raise OptionError(f"{path}: cannot be read as text ({err}); expected one class name a line") from err
    names = [name.strip() for name in names if name.strip()]
    if len(names) != source.classes:
        raise OptionError(f"{path}: holds {len(names)} class names; the model has {source.classes} classes")
    return names


def _facts(
    source: Source, layers: Sequence[CutPoint], settings: Preprocess | None, labels: list[str] | None
) -> dict[str, str]:
    """Return what a host that has `explain.onnx` alone should know of it; lists have one entry a line."""
    facts = {"activation": source.activation, "layers": "\n".join(layer.name for layer in layers)}
    if labels is not None:
        facts["labels"] = "\n".join(labels)
    if settings is not None:
        facts["preprocess"] = json.dumps(settings.as_json())
    return facts


def _versions() -> dict[str, str]:
    packages = {"numpy": "numpy", "onnx": "onnx", "onnx_ir": "onnx-ir"}
    versions = {key: importlib.metadata.version(package) for key, package in packages.items()}
    return {"engine": __version__, **versions, "onnxruntime": ONNXRUNTIME_VERSION}

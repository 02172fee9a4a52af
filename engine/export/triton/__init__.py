"""A model repository for NVIDIA's Triton Inference Server, with two models that explain.

`NAME-explain` is `explain.onnx` in Triton's ONNX Runtime backend; `NAME-explain-engine` drives the engine in its Python
backend.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.bundle import Bundle
from engine.errors import OptionError
from engine.export.exchange import exchange
from engine.export.explain.single_file import write_single_file

__all__ = ["expect_writable_repository", "write_repository"]

_BACKEND = Path(__file__).with_name("model.py")
_ACCELERATOR = "# No execution accelerator: TensorRT takes no loops, and the method is one."


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output, as Triton's configuration names it."""

    name: str
    kind: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        return f'  {{ name: "{self.name}" data_type: TYPE_{self.kind} dims: [ {sizes} ] }}'


def expect_writable_repository(folder: Path, name: str, *, force: bool) -> None:
    """Check before the export that the models may be written after it.

    Raises:
        OptionError: A model is there, and may not be replaced, or is none that the exporter wrote.
    """
    for model in _models(folder, name):
        if (model.exists() or model.is_symlink()) and not force:
            raise OptionError(f"{model}: exists already; choose another repository, or replace it with --force")
        _expect_ours(model)


def write_repository(bundle: Bundle, folder: Path, name: str, *, takes_photos: bool) -> list[Path]:
    """Write both models into a model repository, which is made if it is not there; what is there is replaced.

    Args:
        bundle: The bundle.
        folder: The repository.
        name: What the models are called, before `-explain`.
        takes_photos: Whether the bundle's `explain.onnx` takes photos.

    Returns:
        The models' folders.

    Raises:
        OptionError: A model is none that the exporter wrote, or cannot be written.
        ModelError: The graph is too large for one file.
    """
    models = _models(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as work:
            made = [Path(work, model.name) for model in models]
            _write_graph(bundle, made[0], takes_photos=takes_photos)
            _write_engine(bundle, made[1])
            for new, model in zip(made, models, strict=True):
                _expect_ours(model)
                if not model.exists():
                    new.rename(model)
                elif not exchange(new, model):
                    old = Path(work, f"{model.name}.old")
                    model.rename(old)
                    new.rename(model)
    except OSError as err:
        raise OptionError(f"{folder}: cannot be written: {err.strerror or err}; expected a folder") from err
    return models


def _models(folder: Path, name: str) -> list[Path]:
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "model"
    return [folder / f"{stem}-explain", folder / f"{stem}-explain-engine"]


def _expect_ours(model: Path) -> None:
    """Check that nothing would be lost that the exporter did not write: another version, or another's model."""
    if not model.exists() and not model.is_symlink():
        return
    names = {entry.name for entry in model.iterdir()} if model.is_dir() and not model.is_symlink() else {"?"}
    if names != {"config.pbtxt", "configs", "1"}:
        raise OptionError(
            f"{model}: is no model that --triton wrote, so --force does not replace it; choose another place"
        )


def _write_graph(bundle: Bundle, model: Path, *, takes_photos: bool) -> None:
    (model / "1").mkdir(parents=True)
    (model / "configs").mkdir()
    write_single_file(bundle, model / "1" / "model.onnx")
    image = Tensor("image", "UINT8", (-1, -1, 3)) if takes_photos else _prepared(bundle)
    for file, kind in ((model / "config.pbtxt", "CPU"), (model / "configs" / "gpu.pbtxt", "GPU")):
        text = _config(bundle, model.name, "onnxruntime", image, kind)
        file.write_text(f"{_ACCELERATOR}\n{text}", encoding="utf-8")


def _write_engine(bundle: Bundle, model: Path) -> None:
    (model / "1").mkdir(parents=True)
    (model / "configs").mkdir()
    shutil.copy(_BACKEND, model / "1" / "model.py")
    shutil.copytree(bundle.path, model / "1" / "model.ada")
    image = _prepared(bundle) if bundle.preprocess is None else Tensor("image", "UINT8", (-1, -1, 3))
    for file, kind, device in (
        (model / "config.pbtxt", "CPU", "cpu"),
        (model / "configs" / "gpu.pbtxt", "GPU", "cuda"),
    ):
        text = _config(bundle, model.name, "python", image, kind)
        parameter = f'parameters: {{ key: "device" value: {{ string_value: "{device}" }} }}  # as for engine.load\n'
        file.write_text(text + parameter, encoding="utf-8")


def _prepared(bundle: Bundle) -> Tensor:
    return Tensor("image", "FP32", (1, *bundle.image_shape))


def _config(bundle: Bundle, name: str, backend: str, image: Tensor, kind: str) -> str:
    """Return the text of a config.pbtxt."""
    _, height, width = bundle.image_shape
    inputs = [image, Tensor("target", "INT64", (1,)), Tensor("max_masks", "INT64", (1,))]
    layers = (len(bundle.layers),)
    outputs = [
        Tensor("heatmap", "FP32", (height, width)),
        Tensor("target_index", "INT64", (1,)),
        Tensor("class_score", "FP32", (1,)),
        *([Tensor("logits", "FP32", (1, bundle.classes))] if backend == "onnxruntime" else []),
        Tensor("selected", "INT64", layers),
        Tensor("scored", "INT64", layers),
    ]
    sizes = [height, width, 3] if image.kind == "UINT8" else image.sizes
    return "\n".join(
        [
            f'name: "{name}"',
            f'backend: "{backend}"',
            "max_batch_size: 0",
            *_listed("input", inputs),
            *_listed("output", outputs),
            f"instance_group [ {{ count: 1 kind: KIND_{kind} }} ]",
            *_warmup(image, sizes),
            "",
        ]
    )


def _listed(key: str, tensors: Sequence[Tensor]) -> list[str]:
    return [f"{key} [", ",\n".join(map(str, tensors)), "]"]


def _warmup(image: Tensor, sizes: Sequence[int]) -> list[str]:
    """Return a request that Triton sends itself before it says that the model is ready."""
    lines = ["model_warmup [ {", '  name: "any image"', "  batch_size: 1"]
    for name, kind, dims, content in (
        # of floats Triton makes random bytes, NaN among them
        ("image", image.kind, sizes, "random_data: true" if image.kind == "UINT8" else "zero_data: true"),
        ("target", "INT64", [1], "zero_data: true"),
        ("max_masks", "INT64", [1], "zero_data: true"),
    ):
        shape = ", ".join(map(str, dims))
        lines.append(f'  inputs {{ key: "{name}" value: {{ data_type: TYPE_{kind} dims: [ {shape} ] {content} }} }}')
    return [*lines, "} ]"]

"""The explanation bundle on disk: a flat folder of graphs, their one weight file, and a manifest with all hashes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jsonschema

from engine.errors import BundleError, OptionError
from engine.preprocess import Preprocess

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A feature layer: the tensor whose maps become masks.

    Attributes:
        name: The tensor's name in the source model.
        channels: Number of feature maps.
        height: Height of one map.
        width: Width of one map.
    """

    name: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose files have been checked against its manifest.

    Attributes:
        path: The folder.
        image_shape: Sizes C, H and W of the network's input.
        classes: Number of logits.
        activation: `softmax`, `sigmoid` or `none`.
        layers: Feature layers, shallow to deep.
        labels: One name per class, or None.
        preprocess: How a photo becomes the input, or None: then only prepared arrays can be explained.
        manifest: Everything that the manifest says.
    """

    path: Path
    image_shape: tuple[int, int, int]
    classes: int
    activation: str
    layers: tuple[Layer, ...]
    labels: tuple[str, ...] | None
    preprocess: Preprocess | None
    manifest: Mapping[str, object]

    @property
    def forward(self) -> Path:
        """The graph that scores masked batches: image [N, C, H, W] → logits [N, classes]."""
        return self.path / "forward.onnx"

    @property
    def tapped(self) -> Path:
        """The graph that runs once per image: image, classes → logits, classes, feature maps, average gradients."""
        return self.path / "tapped.onnx"


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and check every file.

    Args:
        path: The folder `NAME.ada`.

    Raises:
        BundleError: The folder or a file in it is missing, changed, foreign, a link, or of another schema.
    """
    manifest = _read_manifest(path)
    _check_files(path, manifest["files"])
    image = manifest["input"]
    shape = (int(image["channels"]), int(image["height"]), int(image["width"]))
    labels = manifest["labels"]
    if labels is not None and len(labels) != manifest["output"]["classes"]:
        raise BundleError(f"{path / MANIFEST}: has {len(labels)} labels for {manifest['output']['classes']} classes")
    try:
        preprocess = (
            None
            if manifest["preprocess"] is None
            else Preprocess.from_json(manifest["preprocess"], image_shape=shape, origin=str(path / MANIFEST))
        )
    except OptionError as err:
        raise BundleError(str(err)) from err
    return Bundle(
        path=path,
        image_shape=shape,
        classes=int(manifest["output"]["classes"]),
        activation=manifest["activation"],
        layers=tuple(
            Layer(
                name=layer["name"],
                channels=int(layer["channels"]),
                height=int(layer["height"]),
                width=int(layer["width"]),
            )
            for layer in manifest["layers"]
        ),
        labels=None if labels is None else tuple(labels),
        preprocess=preprocess,
        manifest=manifest,
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path):  # type: ignore[no-untyped-def]  # JSON, whose shape the schema has checked
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise BundleError(f"{path}: {found}; expected a bundle made by python -m engine.export")
    if (path / MANIFEST).is_symlink():
        raise BundleError(f"{path / MANIFEST}: is a link; expected the bundle's own file: copy the bundle again")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as err:
        raise BundleError(f"{path}: holds no readable {MANIFEST} ({err.strerror}); expected a bundle") from err
    except (ValueError, RecursionError) as err:
        raise BundleError(f"{path / MANIFEST}: is not JSON ({err}); export the model again") from err
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path / MANIFEST}: has schema version {version!r}; this engine reads version {SCHEMA_VERSION}: export "
            "the model again, or install the engine that wrote it"
        )
    schema = json.loads(files("engine").joinpath("manifest.schema.json").read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(manifest))
    if error is not None:
        raise BundleError(f"{path / MANIFEST}: {error.json_path} does not fit the schema: {error.message}")
    return manifest


def _check_files(path: Path, listed: Mapping[str, Mapping[str, object]]) -> None:
    for entry in sorted(path.iterdir()):
        if entry.name != MANIFEST and entry.name not in listed:
            raise BundleError(f"{entry}: is not listed in {MANIFEST}; expected only the bundle's own files: remove it")
    for name, facts in listed.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            found = "is a link" if file.is_symlink() else "is missing"
            raise BundleError(
                f"{file}: {found}; expected the file that {MANIFEST} lists: export or copy the bundle again"
            )
        size = file.stat().st_size
        if size != facts["size_bytes"]:
            raise BundleError(
                f"{file}: holds {size} bytes; expected {facts['size_bytes']}: it is truncated or changed, export or "
                "copy the bundle again"
            )
        if sha256_of(file) != facts["sha256"]:
            raise BundleError(
                f"{file}: does not have the SHA-256 that {MANIFEST} lists: it was changed, export it again"
            )

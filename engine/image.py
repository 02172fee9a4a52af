"""Photos in: decoding, preprocessing and baselines."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.decode import PhotoSource, decode, is_photo_source
from engine.errors import ImageError, OptionError
from engine.preprocess import Preprocess

Photo: TypeAlias = "PhotoSource | NDArray[np.uint8] | NDArray[np.float32]"
Baseline: TypeAlias = "str | tuple[float, ...]"

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_BLUR = 1 / 20
_LARGEST_RESIZE = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A photo as the network takes it, and as a person sees it.

    Attributes:
        array: float32 [1, C, H, W], the network's input.
        picture: The part of the photo that the network sees, at the photo's own resolution.
    """

    array: NDArray[np.float32]
    picture: Image.Image


def prepare(photo: Photo, preprocess: Preprocess | None, image_shape: tuple[int, int, int]) -> Prepared:
    """Turn a photo into the network's input.

    Args:
        photo: A path, the bytes of a file, a binary file or a PIL image, as `decode` takes them; uint8 [h, w, 3], red
            first, of any size (for one channel [h, w] too); or the prepared input, float32 [1, C, H, W].
        preprocess: The bundle's settings, or None when it has none.
        image_shape: Sizes C, H and W of the network's input.

    Raises:
        ImageError: The photo cannot be read, or the array has another type or shape, or values that are not finite.
    """
    if not isinstance(photo, np.ndarray) and not is_photo_source(photo):
        raise ImageError(
            f"image is of type {type(photo).__name__}; expected a path, bytes, a binary file, a PIL image, uint8 "
            "[height, width, 3] or a prepared float32 array"
        )
    if isinstance(photo, np.ndarray) and photo.dtype != np.uint8:
        return _prepared_array(photo, preprocess, image_shape)
    if preprocess is None:
        raise ImageError(
            f"the bundle holds no preprocessing, so it takes only prepared float32 arrays {[1, *image_shape]}; export "
            "it with --preprocess to explain photos"
        )
    network_view, picture = _resize(_decode(photo, "L" if image_shape[0] == 1 else "RGB"), preprocess)
    pixels = np.asarray(network_view, np.float32).reshape(*image_shape[1:], image_shape[0])
    array = _normalise(pixels, preprocess).transpose(2, 0, 1)[None]
    return Prepared(array=np.ascontiguousarray(array), picture=picture)


def make_baseline(
    baseline: Baseline, array: NDArray[np.float32], preprocess: Preprocess | None
) -> NDArray[np.float32] | None:
    """Make what masked-out pixels become.

    Args:
        baseline: `zero` (0 in the network's input space), `blur` (the image under a Gaussian whose σ is 1/20 of its
            shorter side), or a colour: red, green, blue (or one grey value) from 0 to 255.
        array: The network's input, float32 [1, C, H, W].
        preprocess: The bundle's settings, which a colour needs.

    Returns:
        float32 [C, H, W], or None for zeros.

    Raises:
        OptionError: The baseline is unknown, or a colour that this network cannot take.
    """
    if isinstance(baseline, str) and baseline == "zero":
        return None
    if isinstance(baseline, str) and baseline == "blur":
        return blur(array[0], _BLUR * min(array.shape[2:]))
    channels = array.shape[1]
    colour = baseline if isinstance(baseline, tuple | list) else ()
    if len(colour) != channels or not all(isinstance(v, int | float | np.number) and 0 <= v <= 255 for v in colour):
        raise OptionError(
            f"baseline is {baseline!r}; expected 'zero', 'blur', or {channels} colour "
            f"value{'s' if channels > 1 else ''} from 0 to 255"
        )
    if preprocess is None:
        raise OptionError(f"baseline is the colour {baseline!r}, but the bundle holds no preprocessing to translate it")
    values = _normalise(np.array(colour, np.float32), preprocess)
    return np.ascontiguousarray(np.broadcast_to(values[:, None, None], array.shape[1:]))


def _decode(photo: Photo, mode: str) -> Image.Image:
    """Decode a photo, turned upright, in Pillow's mode `RGB` or `L`."""
    if not isinstance(photo, np.ndarray):
        return decode(photo, mode)
    grey = mode == "L" and photo.ndim == 2
    if not (grey or (photo.ndim == 3 and photo.shape[2] == 3)) or 0 in photo.shape:
        raise ImageError(
            f"array uint8 {list(photo.shape)}: is no photo; expected [height, width, 3], red first{_remedy(photo)}"
        )
    return Image.fromarray(photo).convert(mode)


def _remedy(array: NDArray[np.generic]) -> str:
    """Say what makes a photo of an array of another shape, if that can be told from the shape."""
    shape = array.shape
    if 0 in shape:
        return ""
    if len(shape) == 4:
        return "; pass one photo at a time: array[0]"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 2, 4)):
        squeezed = "array[:, :, 0]" if shape[2:] == (1,) else "array"
        return f"; Pillow knows grey and transparency: pass Image.fromarray({squeezed})"
    if len(shape) == 3 and shape[0] == 3:
        return "; put the channels last: array.transpose(1, 2, 0)"
    return ""


def _normalise(pixels: NDArray[np.float32], preprocess: Preprocess) -> NDArray[np.float32]:
    """Turn colours [..., C] from 0 to 255, red first, into network values: (pixel/scale − mean)/std."""
    ordered = pixels[..., ::-1] if preprocess.bgr else pixels
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    return np.asarray((ordered / np.float32(preprocess.scale) - mean) / std, np.float32)


def visible_part(photo_size: tuple[int, int], preprocess: Preprocess) -> tuple[float, float, float, float]:
    """Return which part of a photo the network sees: left, top, right and bottom, in pixels of the photo.

    Column j of the network's input, of width W, shows the photo around left + (j + 1/2)·(right − left)/W.

    Args:
        photo_size: Width and height of the photo, turned upright.
        preprocess: The bundle's settings.
    """
    if isinstance(preprocess.resize, str):
        return 0.0, 0.0, float(photo_size[0]), float(photo_size[1])
    (height, width), ((wide, high), (left, top)) = preprocess.size, _crop(photo_size, preprocess.resize, preprocess)
    across, down = photo_size[0] / wide, photo_size[1] / high
    return left * across, top * down, (left + width) * across, (top + height) * down


def _crop(size: tuple[int, int], shorter: int, preprocess: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the width and height that a photo is resized to, and where the centre crop begins in it: left, top."""
    height, width = preprocess.size
    scaled = (shorter * size[0] // min(size), shorter * size[1] // min(size))
    return scaled, (round((scaled[0] - width) / 2), round((scaled[1] - height) / 2))


def _resize(photo: Image.Image, preprocess: Preprocess) -> tuple[Image.Image, Image.Image]:
    """Return the network's view of a photo, and the same part of it at its own resolution."""
    height, width = preprocess.size
    filter_ = _RESAMPLING[preprocess.interp]
    if isinstance(preprocess.resize, str):
        return photo.resize((width, height), filter_), photo
    box = visible_part(photo.size, preprocess)
    x, y = int(box[0]), int(box[1])
    seen = (x, y, max(x + 1, round(box[2])), max(y + 1, round(box[3])))
    scaled, (left, top) = _crop(photo.size, preprocess.resize, preprocess)
    if scaled[0] * scaled[1] > _LARGEST_RESIZE:  # a photo so elongated that nearly all of it would be cropped away
        return photo.resize((width, height), filter_, box=box), photo.crop(seen)
    view = photo.resize(scaled, filter_).crop((left, top, left + width, top + height))
    return view, photo.crop(seen)


def _prepared_array(
    array: NDArray[np.generic], preprocess: Preprocess | None, image_shape: tuple[int, int, int]
) -> Prepared:
    if array.dtype != np.float32 or array.shape != (1, *image_shape):
        raise ImageError(
            f"array {array.dtype} {list(array.shape)}: does not fit; expected a photo uint8 [height, width, 3], or the "
            f"prepared input float32 {[1, *image_shape]}{_fitting(array, image_shape)}"
        )
    prepared = np.ascontiguousarray(array, np.float32)
    wrong = np.argwhere(~np.isfinite(prepared))
    if len(wrong):
        raise ImageError(
            f"array float32 {list(array.shape)}: holds {len(wrong)} value{'s' if len(wrong) > 1 else ''} NaN or "
            f"infinite, the first at {wrong[0].tolist()}; expected finite numbers; check what prepared it"
        )
    values = prepared[0].astype(np.float64)
    if preprocess is None:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-30) * 255.0
    else:
        values = values * np.array(preprocess.std)[:, None, None] + np.array(preprocess.mean)[:, None, None]
        values = values * preprocess.scale
        values = values[::-1] if preprocess.bgr else values
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Prepared(array=prepared, picture=Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _fitting(array: NDArray[np.generic], image_shape: tuple[int, int, int]) -> str:
    """Say what makes an array fit, if that can be told from its type and shape."""
    channels, height, width = image_shape
    if array.shape == (1, *image_shape) and array.dtype.kind in "fiu":
        return "; pass array.astype(np.float32)"
    if array.dtype != np.float32:
        return ""
    remedies = {
        image_shape: "add the batch axis: array[None]",
        (1, height, width, channels): "put the channels first: array.transpose(0, 3, 1, 2)",
        (height, width, channels): "put the channels first and add the batch axis: array.transpose(2, 0, 1)[None]",
    }
    if array.shape[1:] == image_shape and len(array) > 1:
        return "; pass one image at a time: array[:1]"
    return f"; {remedies[array.shape]}" if array.shape in remedies else ""


def blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur an image with a Gaussian; at the border, weights beyond it fall to those within.

    Args:
        image: float32 [C, H, W].
        sigma: Standard deviation in pixels, above 0.

    Returns:
        float32 [C, H, W].
    """
    rows, columns = (_gaussian(size, sigma) for size in image.shape[1:])
    return np.asarray(rows @ image @ columns.T, np.float32)


def _gaussian(size: int, sigma: float) -> NDArray[np.float64]:
    """Return the matrix [size, size] that blurs along one axis; weights beyond the border fall to those within."""
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))

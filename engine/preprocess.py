"""How a photo becomes the network's input: the settings, as people write them and as the bundle keeps them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeGuard

from engine.errors import OptionError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_LARGEST_RESIZE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Settings of decoding: resize, crop the centre, then x = (pixel/scale − mean)/std per channel.

    Attributes:
        size: Height and width of the network's input, in pixels.
        resize: Length in pixels that the photo's shorter side is resized to before the centre crop; `"stretch"` resizes
            the whole photo to `size` and crops nothing.
        interp: One of `INTERPOLATIONS`, antialiased.
        scale: Pixel values 0 … 255 are divided by this first.
        bgr: Channels are in the order blue, green, red; else red, green, blue.
        mean: One value per channel, in the network's channel order.
        std: One value per channel, in the network's channel order.
    """

    size: tuple[int, int]
    resize: int | str
    interp: str
    scale: float
    bgr: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_json(self) -> dict[str, object]:
        """Return the settings as `from_json` takes them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, settings: object, *, image_shape: tuple[int, int, int], origin: str) -> "Preprocess":
        """Read and check settings.

        Args:
            settings: The JSON object. `mean` and `std` are required; defaults: `size` from the network, `resize`
                "stretch", `interp` "bilinear", `scale` 255, `bgr` false. Numbers stand for all axes or channels.
            image_shape: Sizes C, H and W of the network's input.
            origin: The file or bundle, for messages.

        Raises:
            OptionError: A key is unknown, missing or has a value that makes no sense for this network.
        """
        if not isinstance(settings, Mapping):
            raise OptionError(f"{origin}: preprocessing is {type(settings).__name__}; expected a JSON object")
        known = tuple(cls.__dataclass_fields__)
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise OptionError(f"{origin}: unknown preprocessing keys {', '.join(unknown)}; expected {', '.join(known)}")
        channels, height, width = image_shape
        size = _numbers(settings.get("size", [height, width]), 2, "size", origin)
        if size != (height, width):
            raise OptionError(f"{origin}: size is {settings['size']}; the network takes {height}×{width}")
        resize = settings.get("resize", "stretch")
        if resize != "stretch" and (not _is_whole(resize) or resize < max(height, width)):
            raise OptionError(
                f"{origin}: resize is {resize!r}; expected 'stretch', or a whole number of pixels of at least "
                f"{max(height, width)}, from which the centre is cropped"
            )
        if resize != "stretch" and resize > _LARGEST_RESIZE:
            raise OptionError(f"{origin}: resize is {resize}; expected at most {_LARGEST_RESIZE} pixels")
        interp = settings.get("interp", "bilinear")
        if interp not in INTERPOLATIONS:
            raise OptionError(f"{origin}: interp is {interp!r}; expected one of {', '.join(INTERPOLATIONS)}")
        bgr = settings.get("bgr", False)
        if not isinstance(bgr, bool) or (bgr and channels != 3):
            raise OptionError(f"{origin}: bgr is {bgr!r}; expected true or false, and false for {channels} channels")
        missing = [name for name in ("mean", "std") if name not in settings]
        if missing:
            raise OptionError(f"{origin}: preprocessing lacks {' and '.join(missing)}; expected one number per channel")
        (scale,) = _numbers(settings.get("scale", 255.0), 1, "scale", origin)
        std = _numbers(settings["std"], channels, "std", origin)
        if min(scale, *std) <= 0:
            raise OptionError(f"{origin}: scale is {scale:g} and std {list(std)}; expected positive numbers")
        return cls(
            size=(height, width),
            resize=resize if resize == "stretch" else int(resize),
            interp=interp,
            scale=scale,
            bgr=bgr,
            mean=_numbers(settings["mean"], channels, "mean", origin),
            std=std,
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: object, count: int, key: str, origin: str) -> tuple[float, ...]:
    items: list[object] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    numbers = tuple(float(item) for item in items if _is_finite(item))
    if not len(numbers) == len(items) == count:
        raise OptionError(f"{origin}: {key} is {value!r}; expected {count} finite number{'s' if count > 1 else ''}")
    return numbers


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

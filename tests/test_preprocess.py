import dataclasses
import json
import re

import pytest

from engine.errors import OptionError
from engine.preprocess import INTERPOLATIONS, Preprocess

SHAPE = (3, 24, 32)
FULL: dict[str, object] = {
    "size": [24, 32],
    "resize": 36,
    "interp": "bicubic",
    "scale": 128.0,
    "bgr": True,
    "mean": [0.25, 0.5, 0.75],
    "std": [1.0, 2.0, 4.0],
}
KEYS = "size, resize, interp, scale, bgr, mean, std"


def read(settings: object, shape: tuple[int, int, int] = SHAPE) -> Preprocess:
    return Preprocess.from_json(settings, image_shape=shape, origin="here.json")


def refuses(text: str, settings: object, shape: tuple[int, int, int] = SHAPE) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(f'here.json: {text}')}$"):
        read(settings, shape)


def test_defaults() -> None:
    assert read({"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}) == Preprocess(
        size=(24, 32),
        resize="stretch",
        interp="bilinear",
        scale=255.0,
        bgr=False,
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
    )


def test_every_key_is_read() -> None:
    settings = read(FULL)
    assert settings == Preprocess(
        size=(24, 32),
        resize=36,
        interp="bicubic",
        scale=128.0,
        bgr=True,
        mean=(0.25, 0.5, 0.75),
        std=(1.0, 2.0, 4.0),
    )
    assert set(FULL) == {field.name for field in dataclasses.fields(Preprocess)}
    assert type(settings.resize) is int
    assert all(type(size) is int for size in settings.size)
    assert all(type(value) is float for value in (settings.scale, *settings.mean, *settings.std))


def test_a_number_stands_for_all_axes_or_channels() -> None:
    settings = read({"size": 24, "mean": 0, "std": 0.5}, (3, 24, 24))
    assert settings.size == (24, 24)
    assert settings.mean == (0.0, 0.0, 0.0)
    assert settings.std == (0.5, 0.5, 0.5)
    assert read({"mean": 0.5, "std": 0.25, "scale": [1]}, (1, 24, 24)).mean == (0.5,)


@pytest.mark.parametrize("changes", [{}, {"resize": "stretch"}, {"resize": 32, "bgr": False}])
def test_as_json_round_trip(changes: dict[str, object]) -> None:
    settings = read({**FULL, **changes})
    written = settings.as_json()
    assert written == {**FULL, **changes}
    assert read(json.loads(json.dumps(written))) == settings


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(FULL).scale = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("settings", "kind"), [([1], "list"), (None, "NoneType"), ("mean", "str"), (3, "int")])
def test_settings_must_be_an_object(settings: object, kind: str) -> None:
    refuses(f"preprocessing is {kind}; expected a JSON object", settings)


def test_unknown_keys() -> None:
    refuses(f"unknown preprocessing keys crop, zoom; expected {KEYS}", {**FULL, "zoom": 2, "crop": 1})
    refuses(f"unknown preprocessing keys Mean; expected {KEYS}", {"Mean": 0, "std": 1})


@pytest.mark.parametrize(
    ("settings", "lacking"), [({}, "mean and std"), ({"mean": 0}, "std"), ({"std": 1, "bgr": True}, "mean")]
)
def test_mean_and_std_are_required(settings: dict[str, object], lacking: str) -> None:
    refuses(f"preprocessing lacks {lacking}; expected one number per channel", settings)


@pytest.mark.parametrize("size", [24, 32, [32, 24], [24.5, 32], [24, 32.5], [0, 0]])
def test_size_must_be_the_networks(size: object) -> None:
    refuses(f"size is {size}; the network takes 24×32", {**FULL, "size": size})


@pytest.mark.parametrize("size", ["24", [24], [24, 32, 3], [24, "32"], None, {}, [24, None], [float("inf"), 32]])
def test_size_must_be_two_numbers(size: object) -> None:
    refuses(f"size is {size!r}; expected 2 finite numbers", {**FULL, "size": size})


@pytest.mark.parametrize("resize", [31, 0, -36, 36.0, "squash", None, True, [36], "36"])
def test_resize(resize: object) -> None:
    refuses(
        f"resize is {resize!r}; expected 'stretch', or a whole number of pixels of at least 32, from which the centre "
        "is cropped",
        {**FULL, "resize": resize},
    )


@pytest.mark.parametrize("shape", [(3, 24, 32), (3, 32, 24)])
def test_resize_may_be_the_longer_side_of_the_network(shape: tuple[int, int, int]) -> None:
    assert read({"mean": 0, "std": 1, "resize": 32}, shape).resize == 32


@pytest.mark.parametrize("interp", INTERPOLATIONS)
def test_known_interpolations(interp: str) -> None:
    assert read({**FULL, "interp": interp}).interp == interp


@pytest.mark.parametrize("interp", ["linear", "BICUBIC", "", None, 2, ["bilinear"]])
def test_unknown_interpolations(interp: object) -> None:
    refuses(f"interp is {interp!r}; expected one of nearest, bilinear, bicubic, lanczos", {**FULL, "interp": interp})


@pytest.mark.parametrize("bgr", ["true", 1, 0, None])
def test_bgr_must_be_a_boolean(bgr: object) -> None:
    refuses(f"bgr is {bgr!r}; expected true or false, and false for 3 channels", {**FULL, "bgr": bgr})


def test_bgr_needs_three_channels() -> None:
    refuses(
        "bgr is True; expected true or false, and false for 1 channels",
        {"bgr": True, "mean": 0, "std": 1},
        (1, 24, 32),
    )
    assert read({"bgr": False, "mean": 0, "std": 1}, (1, 24, 32)).bgr is False


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize(
    "value", [[0.5, 0.5], [0.5] * 4, [], "0.5", None, ["0.5"] * 3, [0.5, None, 0.5], float("nan"), [1, 1, float("inf")]]
)
def test_one_finite_number_per_channel(key: str, value: object) -> None:
    refuses(f"{key} is {value!r}; expected 3 finite numbers", {**FULL, key: value})


def test_one_finite_number_for_one_channel() -> None:
    refuses("mean is [1, 2]; expected 1 finite number", {"mean": [1, 2], "std": 1}, (1, 24, 32))


@pytest.mark.parametrize("scale", ["255", [1, 2], None, float("nan")])
def test_scale_must_be_a_number(scale: object) -> None:
    refuses(f"scale is {scale!r}; expected 1 finite number", {**FULL, "scale": scale})


@pytest.mark.parametrize(("scale", "std"), [(0, 1), (-1, 1), (255, 0), (255, -0.5)])
def test_scale_and_std_must_be_positive(scale: float, std: float) -> None:
    refuses(
        f"scale is {scale} and std {[1.0, float(std), 1.0]}; expected positive numbers",
        {**FULL, "scale": scale, "std": [1, std, 1]},
    )


@pytest.mark.parametrize("key", ["mean", "std", "scale"])
def test_booleans_are_no_numbers(key: str) -> None:
    with pytest.raises(OptionError, match=f"{key} is True; expected"):
        read({**FULL, key: True})


def test_a_whole_number_that_no_float_holds() -> None:
    with pytest.raises(OptionError, match="mean is 1000"):
        read({**FULL, "mean": 10**400})


@pytest.mark.parametrize("resize", [65537, 10**77])
def test_a_resize_beyond_all_photos_is_refused(resize: int) -> None:
    settings = {"resize": resize, "mean": 0.5, "std": 0.5}
    with pytest.raises(OptionError, match=rf"^p\.json: resize is {resize}; expected at most 65536 pixels$"):
        Preprocess.from_json(settings, image_shape=(3, 24, 32), origin="p.json")

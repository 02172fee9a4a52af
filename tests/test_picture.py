import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from engine import picture as module
from engine.errors import OptionError
from engine.picture import Row, Tile, drawable, figure, overlay, panel
from tests.tiny_cnn import photo_pixels

HEATMAP = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


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


def test_overlay_on_a_large_photo_is_drawn_in_parts_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(photo_pixels(61, 47))
    whole = overlay(HEATMAP, picture)
    for pixels in (1, 47, 48, 47 * 7, 47 * 61 + 1):
        monkeypatch.setattr(module, "_PIXELS_AT_ONCE", pixels)
        assert overlay(HEATMAP, picture).tobytes() == whole.tobytes()


# Figures and panels: what is written where


Box: TypeAlias = tuple[float, float, float, float]


@dataclass
class Writing:
    """The texts of a drawing, and the boxes left, top, right, bottom of their ink; and those of pictures and frames."""

    texts: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    pictures: list[Box] = field(default_factory=list)
    frames: list[Box] = field(default_factory=list)

    def clear(self) -> None:
        for entries in (self.texts, self.boxes, self.pictures, self.frames):
            entries.clear()


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Writing:
    """Records what is written while it is drawn."""
    record = Writing()
    original: Callable[..., None] = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, place: tuple[float, float], words: str, **options: object) -> None:
        record.texts.append(words)
        record.boxes.append(self.textbbox(place, words, font=options["font"]))  # type: ignore[arg-type]
        original(self, place, words, **options)

    original_paste, original_rectangle = Image.Image.paste, ImageDraw.ImageDraw.rectangle

    def paste(self: Image.Image, image: Image.Image, place: tuple[int, int] | None = None) -> None:
        if place is not None:  # else the page grows
            record.pictures.append((*place, place[0] + image.width, place[1] + image.height))
        original_paste(self, image, place)

    def rectangle(self: ImageDraw.ImageDraw, box: Box, **options: object) -> None:
        record.frames.append((box[0], box[1], box[2] + 1, box[3] + 1))
        original_rectangle(self, box, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", rectangle)
    monkeypatch.setattr(Image.Image, "paste", paste)
    return record


def apart(a: Box, b: Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def inside(a: Box, b: Box) -> bool:
    return b[0] < a[0] and b[1] < a[1] and a[2] < b[2] and a[3] < b[3]


def assert_tidy(drawn: Image.Image, writing: Writing) -> None:
    """Every text lies within the margins, off every other and off the pictures, and the margins are white."""
    assert drawn.mode == "RGB"
    boxes = [box for box in writing.boxes if box[0] < box[2]]
    for left, top, right, bottom in boxes:
        assert left >= 26
        assert top >= 26
        assert right <= drawn.width - 26
        assert bottom <= drawn.height - 26
    for number, box in enumerate(boxes):
        assert all(apart(box, other) for other in (*boxes[:number], *writing.pictures))
        assert all(apart(box, frame) or inside(box, frame) for frame in writing.frames)
    border = np.array(drawn)
    border[24:-24, 24:-24] = 255
    assert (border == 255).all()


def found_at(drawn: Image.Image, part: Image.Image) -> list[tuple[int, int]]:
    """Where a picture lies in a drawing, by its first row of pixels and then by all of them."""
    whole, small = np.asarray(drawn), np.asarray(part)
    height, width = small.shape[:2]
    places = []
    for top, left in np.argwhere((whole == small[0, 0]).all(axis=2)):
        if np.array_equal(whole[top : top + height, left : left + width], small):
            places.append((int(left), int(top)))
    return places


def draw_figure(picture: Image.Image, title: str = "espresso", warnings: tuple[str, ...] = ()) -> Image.Image:
    return figure(HEATMAP, picture, title=title, lines=("class 3 · score 87.7%", "rule otsu"), warnings=warnings)


SCALE = ["importance", "1 most", "0.5", "0 least"]
NOTE = "Importance is relative: 1 is the most important place of this very image, 0 the least."
PHOTOS = {
    "tiny": (24, 32),
    "small": (112, 112),
    "wide": (30, 90),
    "high": (90, 30),
    "large": (700, 1000),
    "strip": (3, 400),
    "pole": (400, 3),
    "dot": (1, 1),
}


def test_a_figure_says_what_it_shows(writing: Writing) -> None:
    drawn = draw_figure(Image.fromarray(photo_pixels(56, 80)))
    texts = ["espresso", "class 3 · score 87.7%", "rule otsu", "what the network saw", "what counted for the class"]
    assert writing.texts == [*texts, *SCALE, NOTE]
    assert_tidy(drawn, writing)
    bar = writing.pictures[-1]
    most, half, least = (writing.boxes[writing.texts.index(text)] for text in SCALE[1:])
    assert bar[1] <= most[1] < bar[1] + 20
    assert half[1] < (bar[1] + bar[3]) / 2 < half[3]
    assert bar[3] - 20 < least[3] <= bar[3]


def test_a_figure_shows_the_photo_beside_the_heatmap() -> None:
    picture = Image.fromarray(photo_pixels(56, 80))
    drawn = draw_figure(picture)
    enlarged = picture.resize((480, 336), Image.Resampling.BICUBIC)
    ((left, top),) = found_at(drawn, enlarged)
    ((beside, level),) = found_at(drawn, overlay(HEATMAP, enlarged))
    assert level == top
    assert beside >= left + 480


def test_a_figures_scale_has_the_heatmaps_colours_from_0_upwards() -> None:
    drawn = np.asarray(draw_figure(Image.fromarray(photo_pixels(80, 80))), int)
    bar = drawn[:, np.nonzero((drawn == HOT).all(axis=2))[1].max()]
    top, bottom = int(np.nonzero((bar == HOT).all(axis=1))[0][0]), int(np.nonzero((bar == COLD).all(axis=1))[0][-1])
    assert bottom - top > 400
    np.testing.assert_allclose(bar[(top + bottom) // 2], MIDDLE, atol=4)
    heat = np.linspace(1, 0, bottom - top + 1, dtype=np.float32)[:, None]
    expected = overlay(np.repeat(heat, 4, axis=1), Image.new("RGB", (4, len(heat)), "white"), 1.0)
    weight = 0.35 + 0.65 * heat
    opaque = (np.asarray(expected)[:, 1].astype(np.float64) - (1 - weight) * 255) / weight
    np.testing.assert_allclose(bar[top : bottom + 1], opaque, atol=2)


@pytest.mark.parametrize("size", PHOTOS.values(), ids=PHOTOS)
def test_a_figure_of_a_photo_of_any_size(writing: Writing, size: tuple[int, int]) -> None:
    drawn = draw_figure(Image.fromarray(photo_pixels(*size)), warnings=("the heatmap is all zeros",))
    assert "Warning: the heatmap is all zeros" in writing.texts
    assert set(SCALE) < set(writing.texts)
    assert_tidy(drawn, writing)
    assert 500 <= drawn.width <= 1200
    assert 250 <= drawn.height <= 850


def test_a_figure_of_a_grey_photo() -> None:
    grey = Image.fromarray(photo_pixels(48, 48)).convert("L")
    enlarged = grey.resize((480, 480), Image.Resampling.BICUBIC).convert("RGB")
    assert len(found_at(draw_figure(grey), enlarged)) == 1


LABELS = {
    "": "",
    "crème brûlée": "creme brulee",
    "Straße": "Strasse",
    "two\nlines\tand a nul\0": "two lines and a nul",
    "3×3 – 4": "3x3 - 4",
    "ﬁne": "fine",
    "虎斑猫": "虎斑猫",
    "lone \ud800 surrogate": "lone surrogate",
    "🐱 cat": "🐱 cat",
}


@pytest.mark.parametrize("label", LABELS, ids=ascii)
def test_labels_of_any_characters(writing: Writing, label: str) -> None:
    assert drawable(label) == LABELS[label]
    drawn = draw_figure(Image.fromarray(photo_pixels()), title=label)
    assert writing.texts[0] == LABELS[label]
    assert_tidy(drawn, writing)


@pytest.mark.parametrize("size", PHOTOS.values(), ids=PHOTOS)
@pytest.mark.parametrize("title", ["a word and another " * 20, "Kapitansmutze" * 40, "x" * 100_000])
def test_long_labels_are_shortened(writing: Writing, title: str, size: tuple[int, int]) -> None:
    drawn = draw_figure(Image.fromarray(photo_pixels(*size)), title=title)
    lines = writing.texts[: writing.texts.index("class 3 · score 87.7%")]
    assert 1 <= len(lines) <= 2
    assert "…" in lines[-1]
    font = ImageFont.load_default(26)
    assert max(map(font.getlength, lines)) > 0.8 * (drawn.width - 56)
    assert_tidy(drawn, writing)


def test_a_long_warning_is_wrapped(writing: Writing) -> None:
    warning = "the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away"
    draw_figure(Image.fromarray(photo_pixels(90, 30)), warnings=(warning,))
    assert " ".join(writing.texts[-2:]) == f"Warning: {warning}"


def make_row(size: tuple[int, int] = (56, 80), **changes: object) -> Row:
    values: dict[str, object] = {
        "picture": Image.fromarray(photo_pixels(*size)),
        "title": "espresso",
        "lines": ("class 3",),
        "warnings": ("layer 'relu2' gave no mask: all of the many maps that the rule selected there are constant",),
        "tiles": (
            Tile(caption=("photo",)),
            Tile(heatmap=HEATMAP, caption=("layer 1", "/features/features.16/block/block.3/Mul_output_0", "4 maps")),
            Tile(empty="all 12 selected maps are constant", caption=("layer 2",)),
            Tile(heatmap=HEATMAP[::-1].copy(), caption=("heatmap", "")),
        ),
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def test_a_panel_says_what_it_shows(writing: Writing) -> None:
    drawn = panel([make_row()])
    (name,) = (text for text in writing.texts if "…" in text)
    beginning, end = name.split("…")
    assert "/features/features.16/block/block.3/Mul_output_0".startswith(beginning)
    assert "/features/features.16/block/block.3/Mul_output_0".endswith(end)
    assert min(len(beginning), len(end)) >= 10
    texts = [text for text in writing.texts if "…" not in text]
    assert texts == [
        *("espresso", "class 3", "photo", "layer 1", "4 maps", "all 12 selected maps are", "constant", "layer 2"),
        *("heatmap", ""),
        ("Warning: layer 'relu2' gave no mask: all of the many maps that the rule selected there are constant"),
        *("importance within this image: 0 least", "1 most"),
    ]
    assert_tidy(drawn, writing)


def test_a_panel_shows_its_tiles_from_left_to_right() -> None:
    row = make_row()
    drawn = panel([row])
    photo = row.picture.resize((220, 154), Image.Resampling.BICUBIC)
    parts = (photo, overlay(HEATMAP, photo), overlay(HEATMAP[::-1].copy(), photo))
    places = [found_at(drawn, part) for part in parts]
    (first,), (second,), (fourth,) = places
    assert first[1] == second[1] == fourth[1]
    step = second[0] - first[0]
    assert step > 220
    assert fourth[0] - first[0] == 3 * step
    empty = np.asarray(drawn)[first[1] + 2, first[0] + 2 * step + 2 : first[0] + 2 * step + 218]
    assert len(np.unique(empty, axis=0)) == 1
    assert 230 < empty.min() < 255


def test_a_panel_has_a_row_for_each_explanation(writing: Writing) -> None:
    one = panel([make_row()])
    writing.clear()
    rows = [make_row(title="cup"), make_row((90, 30), title="espresso", tiles=make_row().tiles[:2]), make_row((30, 90))]
    drawn = panel(rows)
    assert [text for text in writing.texts if text in ("cup", "espresso")] == ["cup", "espresso", "espresso"]
    assert writing.texts.count("1 most") == 1
    assert drawn.height > 2.5 * one.height
    assert drawn.width == one.width
    assert_tidy(drawn, writing)


@pytest.mark.parametrize("size", PHOTOS.values(), ids=PHOTOS)
def test_a_panel_of_a_photo_of_any_size(writing: Writing, size: tuple[int, int]) -> None:
    tiles = (*make_row().tiles, Tile(empty="a reason of many words " * 40, caption=("layer 3",)))
    drawn = panel([make_row(size, title="Kapitänsmütze" * 40, tiles=tiles)])
    assert_tidy(drawn, writing)


def test_a_white_line_shows_where_a_layer_is_cut(writing: Writing) -> None:
    step = np.zeros((22, 22), np.float32)
    step[:, 11:] = 1.0
    row = make_row((22, 22), tiles=(Tile(heatmap=step, cut=0.5), Tile(heatmap=step)))
    row = Row(picture=Image.new("RGB", (22, 22)), title="", lines=(), warnings=(), tiles=row.tiles)
    drawn = panel([row])
    assert writing.texts[-1] == "White line: where fusion cuts the layer."
    plain = overlay(step, Image.new("RGB", (220, 220)))
    ((left, top),) = found_at(drawn, plain)
    lined = np.asarray(drawn)[top : top + 220, left - 242 : left - 22]
    white = (lined == 255).all(axis=2)
    # Stretched by 10, the step passes 0.5 between columns 109 and 110.
    assert np.flatnonzero(white.any(axis=0)).tolist() == [110]
    assert white[:, 110].all()
    np.testing.assert_array_equal(lined[~white], np.asarray(plain)[~white])


def test_without_a_cut_no_line_is_explained(writing: Writing) -> None:
    panel([make_row()])
    assert "White line: where fusion cuts the layer." not in writing.texts

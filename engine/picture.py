"""Pictures out: the heatmap over the photo, the figure that says what it shows, and the panel of the layers' maps."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine.errors import OptionError

_COLOURS = np.array(
    [[48, 18, 59], [70, 107, 227], [40, 188, 235], [50, 242, 152], [164, 252, 60], [238, 207, 58], [251, 126, 33],
     [209, 47, 5], [122, 4, 3]], np.float64,
)  # fmt: skip
_PIXELS_AT_ONCE = 1 << 20  # bounds the memory of an overlay on a large photo

_INK, _GREY, _AMBER, _PALE, _LINE = (33, 37, 41), (99, 107, 116), (148, 82, 0), (241, 243, 245), (206, 212, 218)
_TITLE, _BODY, _SMALL = 26, 16, 14
_LEADING = 1.4
_MARGIN, _GAP = 28, 22
_FIGURE_SIDE, _PANEL_SIDE = 480, 220
_LEAST_WIDTH = 200  # of a column, so that its words find room under a narrow photo
_BAR, _SCALE_WIDTH = 18, 130
_LONGEST_TEXT = 400


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """One picture of a panel.

    Attributes:
        heatmap: float32 [H, W] from 0 to 1, drawn over the photo, or None.
        cut: Where a line is drawn: around what lies above it in the heatmap, or None.
        empty: Why there is nothing to see, or None: what the tile then says in the place of a picture.
        caption: Lines beneath; the first stands out.
    """

    heatmap: NDArray[np.float32] | None = None
    cut: float | None = None
    empty: str | None = None
    caption: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One row of a panel: tiles over the same photo.

    Attributes:
        picture: The photo.
        title: What the row shows.
        lines: What else to say of it.
        warnings: What the reader should know.
        tiles: Its pictures, from left to right.
    """

    picture: Image.Image
    title: str
    lines: Sequence[str]
    warnings: Sequence[str]
    tiles: Sequence[Tile]


def overlay(heatmap: NDArray[np.float32], picture: Image.Image, opacity: float = 0.7) -> Image.Image:
    """Draw a heatmap over a picture: dark blue for 0, through green, to red for 1; the hotter, the more opaque.

    Args:
        heatmap: float32 [H, W] from 0 to 1.
        picture: What to draw on, of any size; the heatmap is stretched to it.
        opacity: Opacity of the hottest pixel, from 0 to 1.

    Returns:
        A picture in mode RGB, of the size of `picture`.

    Raises:
        OptionError: The opacity is not between 0 and 1.
    """
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity is {opacity:g}; expected a number from 0 to 1")
    heat = np.asarray(Image.fromarray(heatmap).resize(picture.size, Image.Resampling.BILINEAR))
    below = np.asarray(picture.convert("RGB"))
    blended = np.empty_like(below)
    rows = max(1, _PIXELS_AT_ONCE // picture.width)
    for top in range(0, picture.height, rows):
        part = slice(top, top + rows)
        weight = (opacity * (0.35 + 0.65 * heat[part].astype(np.float64)))[:, :, None]
        blended[part] = np.rint(weight * _colours(heat[part]) + (1 - weight) * below[part])
    return Image.fromarray(blended)


def figure(
    heatmap: NDArray[np.float32],
    picture: Image.Image,
    *,
    title: str,
    lines: Sequence[str],
    warnings: Sequence[str],
) -> Image.Image:
    """Draw the photo beside its heatmap, with a title, a colour scale, and what else the reader should know.

    Args:
        heatmap: float32 [H, W] from 0 to 1.
        picture: The photo, of any size; it is scaled to a longer side of 480 pixels.
        title: What is explained.
        lines: Lines under the title.
        warnings: Lines under the pictures.

    Returns:
        A picture in mode RGB, about 1150 pixels wide for a square photo.
    """
    photo = _scaled(picture, _FIGURE_SIDE)
    column = max(photo.width, _LEAST_WIDTH)
    width = 2 * column + 2 * _GAP + _SCALE_WIDTH
    sheet = _Sheet(width)
    sheet.head(title, lines)
    top = sheet.y
    for left, drawn, caption in (
        (0, photo, "what the network saw"),
        (column + _GAP, overlay(heatmap, photo), "what counted for the class"),
    ):
        sheet.y = top
        sheet.place(drawn, left + (column - photo.width) // 2)
        sheet.write(caption, _BODY, _INK, left=left, width=column, middle=True)
    bottom = sheet.y
    _upright_scale(sheet, left=2 * (column + _GAP), top=top, height=max(photo.height, 120))
    sheet.y = max(bottom, sheet.y)
    sheet.skip(_GAP // 3)
    sheet.write(
        "Importance is relative: 1 is the most important place of this very image, 0 the least.", _SMALL, _GREY, most=2
    )
    sheet.warn(warnings)
    return sheet.finish()


def panel(rows: Sequence[Row]) -> Image.Image:
    """Draw rows of small pictures over their photos, and one colour scale beneath them.

    Args:
        rows: At least one row; rows may differ in photo and number of tiles.

    Returns:
        A picture in mode RGB, about 1700 pixels wide for a network of five layers.
    """
    photos = [_scaled(row.picture, _PANEL_SIDE) for row in rows]
    columns = [max(photo.width, _LEAST_WIDTH) for photo in photos]
    sheet = _Sheet(max((width + _GAP) * len(row.tiles) for width, row in zip(columns, rows, strict=True)) - _GAP)
    for row, photo, column in zip(rows, photos, columns, strict=True):
        sheet.head(row.title, row.lines)
        top = bottom = sheet.y
        for number, tile in enumerate(row.tiles):
            left = number * (column + _GAP)
            sheet.y = top
            if tile.empty is None:
                sheet.place(_tile(tile, photo), left + (column - photo.width) // 2)
            else:
                sheet.blank(tile.empty, left, column, max(photo.height, 4 * _BODY))
            for index, line in enumerate(tile.caption):
                sheet.write(line, _SMALL, _GREY if index else _INK, left=left, width=column, middle=True)
            bottom = max(bottom, sheet.y)
        sheet.y = bottom
        sheet.skip(_GAP // 3)
        sheet.warn(row.warnings)
        sheet.skip(_GAP)
    _level_scale(sheet)
    if any(tile.cut is not None for row in rows for tile in row.tiles):
        sheet.write("White line: where fusion cuts the layer.", _SMALL, _GREY)
    return sheet.finish()


class _Sheet:
    """A white page that grows downwards; positions are pixels within its margins.

    Args:
        width: Width within the margins.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.y = 0
        self._image = Image.new("RGB", (width + 2 * _MARGIN, 1024), "white")

    def skip(self, height: int) -> None:
        """Move down, over a page that is high enough."""
        self.y += height
        needed = self.y + 2 * _MARGIN
        if needed > self._image.height:
            higher = Image.new("RGB", (self._image.width, 2 * needed), "white")
            higher.paste(self._image)
            self._image = higher

    def place(self, image: Image.Image, left: int) -> None:
        """Put a picture and move below it."""
        top = self.y
        self.skip(image.height + _GAP // 3)
        self._image.paste(image, (_MARGIN + left, _MARGIN + top))

    def write(
        self,
        text: str,
        size: int,
        colour: tuple[int, int, int],
        *,
        left: int = 0,
        width: int | None = None,
        middle: bool = False,
        most: int = 1,
    ) -> None:
        """Write a text in at most so many lines, shortened to fit, and move below it."""
        width = self.width - left if width is None else width
        font = ImageFont.load_default(size)
        for line in _wrapped(drawable(text), font, width, most):
            top = self.y
            self.skip(round(_LEADING * size))
            x = left + (width - font.getlength(line)) / 2 if middle else left
            ImageDraw.Draw(self._image).text((_MARGIN + x, _MARGIN + top), line, fill=colour, font=font)

    def head(self, title: str, lines: Sequence[str]) -> None:
        """Write a title and the lines under it."""
        self.write(title, _TITLE, _INK, most=2)
        for line in lines:
            self.write(line, _BODY, _GREY, most=2)
        self.skip(_GAP // 2)

    def warn(self, warnings: Sequence[str]) -> None:
        """Write each warning in up to three lines."""
        for warning in warnings:
            self.write(f"Warning: {warning}", _SMALL, _AMBER, most=3)

    def blank(self, reason: str, left: int, width: int, height: int) -> None:
        """Draw an empty frame that says why it is empty."""
        top = self.y
        self.box((left, top, left + width - 1, top + height - 1), fill=_PALE, outline=_LINE)
        most = max(1, height // round(_LEADING * _SMALL) - 1)
        lines = len(_wrapped(drawable(reason), ImageFont.load_default(_SMALL), width - _GAP, most))
        self.y = top + (height - lines * round(_LEADING * _SMALL)) // 2
        self.write(reason, _SMALL, _GREY, left=left + _GAP // 2, width=width - _GAP, middle=True, most=most)
        self.y = top
        self.skip(height + _GAP // 3)

    def box(
        self, corners: tuple[int, int, int, int], fill: tuple[int, int, int] | None, outline: tuple[int, int, int]
    ) -> None:
        """Draw a rectangle; left, top, right and bottom belong to it."""
        shifted = tuple(_MARGIN + corner for corner in corners)
        ImageDraw.Draw(self._image).rectangle(shifted, fill=fill, outline=outline)

    def finish(self) -> Image.Image:
        """Return what is drawn, cut below the last line."""
        return self._image.crop((0, 0, self._image.width, self.y + 2 * _MARGIN))


def drawable(text: str) -> str:
    """Return a text in one line of characters that the font has or can be taken for: "crème" as "creme".

    Pillow's own font has ASCII and little more; a letter without such a form is drawn as an empty box.
    """
    shown = "".join(c if c.isprintable() else " " for c in text[:_LONGEST_TEXT])
    decomposed = unicodedata.normalize("NFKD", " ".join(shown.split()))
    plain = decomposed.translate({0xDF: "ss", 0xD7: "x", 0x2013: "-", 0x2014: "-", 0x2212: "-"})
    return "".join(c for c in plain if not unicodedata.combining(c))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, most: int) -> list[str]:
    """Break a text between words into at most so many lines of a width; what is left over becomes "…"."""
    lines = [""]
    words = text.split(" ")
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < most and lines[-1]:
            lines.append(_shortened(word, font, width))
        else:
            lines[-1] = _shortened(" ".join([lines[-1], *words[number:]]).strip(), font, width)
            break
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept and font.getlength(_without_middle(text, kept)) > width:
        kept -= 1
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    """Return so many characters of a text: of a tensor's name, the beginning and the end say the most."""
    return f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"


def _scaled(picture: Image.Image, side: int) -> Image.Image:
    """Scale a picture, up or down, to a longer side."""
    scale = side / max(picture.size)
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    return picture.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def _colours(heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the colours of heat [h, w] as float64 [h, w, 3]."""
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(heat, stops, _COLOURS[:, channel]) for channel in range(3)], axis=2)


def _tile(tile: Tile, photo: Image.Image) -> Image.Image:
    if tile.heatmap is None:
        return photo
    drawn = overlay(tile.heatmap, photo)
    if tile.cut is None:
        return drawn
    heat = np.asarray(Image.fromarray(tile.heatmap).resize(photo.size, Image.Resampling.BILINEAR))
    above = np.pad(heat > tile.cut, 1, mode="edge")
    inside = above[1:-1, :-2] & above[1:-1, 2:] & above[:-2, 1:-1] & above[2:, 1:-1]
    pixels = np.array(drawn)
    pixels[above[1:-1, 1:-1] & ~inside] = 255
    return Image.fromarray(pixels)


def _ramp(length: int) -> Image.Image:
    """Return the colours from 0 to 1, left to right."""
    heat = np.linspace(0, 1, length, dtype=np.float32)[None].repeat(_BAR, axis=0)
    return Image.fromarray(np.rint(_colours(heat)).astype(np.uint8))


def _upright_scale(sheet: _Sheet, *, left: int, top: int, height: int) -> None:
    line = round(_LEADING * _SMALL)
    sheet.y = top
    sheet.write("importance", _SMALL, _INK, left=left)
    sheet.skip(_GAP // 3)
    start, length = sheet.y, height - (sheet.y - top)
    sheet.place(_ramp(length).transpose(Image.Transpose.ROTATE_90), left)
    end = sheet.y
    for share, words in ((1.0, "1 most"), (0.5, "0.5"), (0.0, "0 least")):
        sheet.y = start + round((1 - share) * (length - line))
        sheet.write(words, _SMALL, _INK, left=left + _BAR + 10)
    sheet.y = end


def _level_scale(sheet: _Sheet) -> None:
    font = ImageFont.load_default(_SMALL)
    words = "importance within this image: 0 least"
    top, left = sheet.y, round(font.getlength(words)) + 12
    sheet.write(words, _SMALL, _INK)
    sheet.y = top
    sheet.write("1 most", _SMALL, _INK, left=left + _PANEL_SIDE + 12)
    sheet.y = top
    sheet.place(_ramp(_PANEL_SIDE), left)

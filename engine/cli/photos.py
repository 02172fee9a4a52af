"""Finding the photos that a command line names: files, folders and patterns."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from engine.decode import FORMATS
from engine.errors import ImageError


def find_photos(named: Sequence[str]) -> list[Path]:
    """Return the photos that are meant, each once, in the order in which they are named.

    Args:
        named: Files, taken as they are; folders, which stand for the photos in them, by name, without those in folders
            within; patterns with `*`, `?`, `[…]` or `**`.

    Raises:
        ImageError: A folder or a pattern holds no photo.
    """
    found: dict[Path, None] = {}
    for name in named:
        path = Path(name)
        if path.is_dir():
            photos = _photos_among(path.iterdir())
        elif glob.has_magic(name) and not path.exists():
            photos = _photos_among(map(Path, glob.glob(name, recursive=True)))
        else:
            photos = [path]
        if not photos:
            kind = "the folder holds" if path.is_dir() else "the pattern matches"
            raise ImageError(f"{name}: {kind} no photo; expected files such as .jpg or .png")
        found |= dict.fromkeys(photos)
    return list(found)


def _photos_among(paths: Iterable[Path]) -> list[Path]:
    formats = Image.registered_extensions()
    return sorted(
        path
        for path in paths
        if formats.get(path.suffix.lower()) in FORMATS and not path.name.startswith(".") and path.is_file()
    )

"""Photos by name: finding those that a command line names, and naming the one that an error is about."""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.decode import photos_among
from engine.errors import DeadlineError, ImageError
from engine.image import Photo


def find_photos(named: Sequence[str]) -> list[Path]:
    """Return the photos that are meant, each once, in the order in which they are named.

    Args:
        named: Files, taken as they are; folders, which stand for the photos in them, by name, without those in folders
            within; patterns with `*`, `?`, `[…]` or `**`.

    Raises:
        ImageError: A folder or a pattern holds no photo, or cannot be read.
    """
    found: dict[Path, None] = {}
    for name in named:
        found |= dict.fromkeys(_photos_of(name))
    return list(found)


def _photos_of(name: str) -> list[Path]:
    # A name of which the system tells nothing, such as one that is too long, is taken for a file: the decoder says why.
    if not os.path.isdir(name) and (os.path.exists(name) or not glob.has_magic(name)):
        return [Path(name)]
    try:
        if os.path.isdir(name):
            kind, photos = "the folder holds", photos_among(Path(name).iterdir())
        else:
            kind, photos = "the pattern matches", photos_among(map(Path, glob.glob(name, recursive=True)))
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) else err
        raise ImageError(f"{name}: cannot be read: {reason}; expected a folder or a pattern of photos") from err
    if not photos:
        raise ImageError(f"{name}: {kind} no photo; expected files such as .jpg or .png")
    return photos


@contextmanager
def naming(photo: Photo) -> Iterator[None]:
    """Let an error about one photo say which file it is about; a photo that is no file has no name."""
    try:
        yield
    except (ImageError, DeadlineError) as err:
        if not isinstance(photo, str | os.PathLike) or str(photo) in str(err):
            raise
        raise type(err)(f"{photo}: {err}") from err

"""Where a command line's heatmaps go: one file, or a folder with one file for every photo and class."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from engine.errors import OptionError
from engine.explanation import file_kind

_LONGEST_LABEL = 40


class Outputs:
    """Names the files of a run, none of which is written over by mistake.

    Args:
        output: The file, or the folder.
        photos: The photos that will be explained.
        several: Whether each may be explained for more than one class: then the class is in the name.
        maps: Whether a panel of the layers' maps is drawn for each photo.
        replace: Whether files that exist may be replaced.

    Raises:
        OptionError: One file was given for several heatmaps, or its ending is of no kind that is known; two photos
            would give files of the same name; a file is one of the photos, which `replace` does not allow either; or
            it exists, or its place cannot be reached.
    """

    def __init__(self, output: Path, photos: Sequence[Path], *, several: bool, maps: bool, replace: bool) -> None:
        self.maps = maps
        self._output = output
        found = _status(output)
        self._one_file = output.suffix != "" and not (found is not None and stat.S_ISDIR(found.st_mode))
        self._several = several
        self._replace = replace
        self._photos = {identity for photo in photos for identity in _identities(photo)}
        if self._one_file:
            try:
                file_kind(output)
            except OptionError as err:
                raise OptionError(f"{err}, or a folder that exists") from err
            if several or len(photos) > 1:
                many = f"{len(photos)} photos" if len(photos) > 1 else "several classes"
                raise OptionError(f"{output}: is one file for the heatmaps of {many}; give a folder")
        self._expect_two_names(photos)
        for photo in photos:
            self._expect_free(([] if several else [self._heatmap(photo)]) + ([self.panel(photo)] if maps else []))

    def make_folder(self) -> None:
        """Make the folder, if there shall be one.

        Raises:
            OptionError: It cannot be made.
        """
        if not self._one_file:
            try:
                self._output.mkdir(exist_ok=True)
            except OSError as err:
                raise OptionError(f"{self._output}: cannot be made: {err.strerror}; expected a folder") from err

    def heatmaps(self, photo: Path, classes: Sequence[int], labels: Sequence[str] | None) -> list[Path]:
        """Return where the heatmaps of a photo go, one for each class.

        Raises:
            OptionError: One is one of the photos, or there already, or a class is asked for twice.
        """
        if not self._several:
            return [self._heatmap(photo)]
        for position, index in enumerate(classes):
            if index in classes[:position]:
                raise OptionError(f"class {index}: is asked for twice; expected each class once")
        files = [self._heatmap(photo, f".{index}{_words(labels[index]) if labels else ''}") for index in classes]
        self._expect_free(files)
        return files

    def panel(self, photo: Path) -> Path:
        """Return where the panel of a photo goes, which shows all its classes."""
        return self._output.with_suffix(".maps.png") if self._one_file else self._heatmap(photo, ".maps")

    def _heatmap(self, photo: Path, ending: str = "") -> Path:
        return self._output if self._one_file else self._output / f"{photo.stem}{ending}.png"

    def _expect_two_names(self, photos: Sequence[Path]) -> None:
        """Check that no two photos give a file of the same name, upper and lower case being one as on many disks."""
        by_stem: dict[str, Path] = {}
        for photo in photos:
            other = by_stem.setdefault(photo.stem.casefold(), photo)
            if other != photo:
                raise OptionError(
                    f"{photo}: its heatmap would have the same name as that of {other}; explain them into two folders"
                )
        if not self.maps or self._several:  # a class in a heatmap's name sets it apart from all panels
            return
        for photo in photos:
            same = by_stem.get(self.panel(photo).stem.casefold())
            if same is not None and not self._one_file:
                raise OptionError(
                    f"{same}: its heatmap would have the same name as the panel of {photo}; explain them into two "
                    "folders"
                )

    def _expect_free(self, files: Sequence[Path]) -> None:
        for file in files:
            if not self._photos.isdisjoint(_identities(file)):
                raise OptionError(f"{file}: is one of the photos; choose another folder")
            if _status(file) is not None and not self._replace:
                raise OptionError(f"{file}: exists already; choose another name, or replace it with --force")


def _status(file: Path) -> os.stat_result | None:
    """Return what is at a place, or None if nothing is.

    Raises:
        OptionError: It cannot be told.
    """
    try:
        return file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) else err
        raise OptionError(f"{file}: cannot be written: {reason}; choose another name") from err


def _identities(file: Path) -> list[object]:
    """Return what a file shares with all its other names: its resolved path and, if it is there, its place on disk."""
    try:
        resolved = os.path.realpath(file)
        status = os.stat(resolved)
    except FileNotFoundError:
        return [resolved]
    except (OSError, ValueError):  # of a photo the decoder says so, of an output `_status`
        return []
    return [resolved, (status.st_dev, status.st_ino)]


def _words(label: str) -> str:
    """Return a label as the end of a file's name."""
    words = re.sub(r"\W+", "-", label)[:_LONGEST_LABEL].strip("-")
    return f"-{words}" if words else ""

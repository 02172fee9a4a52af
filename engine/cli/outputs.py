"""Where a command line's heatmaps go: one file, or a folder with one file for every photo and class."""

import re
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
            would give files of the same name; or a file exists.
    """

    def __init__(self, output: Path, photos: Sequence[Path], *, several: bool, maps: bool, replace: bool) -> None:
        self.maps = maps
        self._output = output
        self._one_file = output.suffix != "" and not output.is_dir()
        self._several = several
        self._replace = replace
        if self._one_file:
            file_kind(output)
            if several or len(photos) > 1:
                many = f"{len(photos)} photos" if len(photos) > 1 else "several classes"
                raise OptionError(f"{output}: is one file for the heatmaps of {many}; give a folder")
        by_stem: dict[str, Path] = {}
        for photo in photos:
            other = by_stem.setdefault(photo.stem, photo)
            if other != photo:
                raise OptionError(
                    f"{photo}: its heatmap would have the same name as that of {other}; explain them into two folders"
                )
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
            OptionError: One is there already.
        """
        if not self._several:
            return [self._heatmap(photo)]
        files = [self._heatmap(photo, f".{index}{_words(labels[index]) if labels else ''}") for index in classes]
        self._expect_free(files)
        return files

    def panel(self, photo: Path) -> Path:
        """Return where the panel of a photo goes, which shows all its classes."""
        return self._output.with_suffix(".maps.png") if self._one_file else self._heatmap(photo, ".maps")

    def _heatmap(self, photo: Path, ending: str = "") -> Path:
        return self._output if self._one_file else self._output / f"{photo.stem}{ending}.png"

    def _expect_free(self, files: Sequence[Path]) -> None:
        for file in files:
            if file.exists() and not self._replace:
                raise OptionError(f"{file}: exists already; choose another name, or replace it with --force")


def _words(label: str) -> str:
    """Return a label as the end of a file's name."""
    words = re.sub(r"\W+", "-", label)[:_LONGEST_LABEL].strip("-")
    return f"-{words}" if words else ""

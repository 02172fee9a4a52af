"""The names of the files that a run writes."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.cli.outputs import Outputs
from engine.errors import OptionError


def refuses(text: str, make: Callable[[], object]) -> None:
    """Expect the whole message, `text`."""
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        make()


def outputs(output: Path, *photos: Path, several: bool = False, maps: bool = False, replace: bool = True) -> Outputs:
    return Outputs(output, photos, several=several, maps=maps, replace=replace)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("tiger cat", "photo.1-tiger-cat.png"),
        ("jack-o'-lantern", "photo.1-jack-o-lantern.png"),
        ("../../etc/passwd", "photo.1-etc-passwd.png"),
        ("chat crème 猫", "photo.1-chat-crème-猫.png"),
        ("?!", "photo.1.png"),
        ("x" * 300, f"photo.1-{'x' * 40}.png"),
    ],
)
def test_labels_become_words_of_a_file_name(tmp_path: Path, label: str, name: str) -> None:
    photo = tmp_path / "photo.jpg"
    names = Outputs(tmp_path / "heatmaps", [photo], several=True, maps=False, replace=False)
    assert names.heatmaps(photo, [1], ["other", label]) == [tmp_path / "heatmaps" / name]


def test_without_labels_the_index_stands_alone(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    names = Outputs(tmp_path, [photo], several=True, maps=True, replace=False)
    assert names.heatmaps(photo, [7, 0], None) == [tmp_path / "photo.7.png", tmp_path / "photo.0.png"]
    assert names.panel(photo) == tmp_path / "photo.maps.png"


def test_a_folder_whose_name_has_an_ending(tmp_path: Path) -> None:
    (tmp_path / "run.v2").mkdir()
    photo = tmp_path / "photo.jpg"
    names = Outputs(tmp_path / "run.v2", [photo], several=False, maps=False, replace=False)
    assert names.heatmaps(photo, [7], None) == [tmp_path / "run.v2" / "photo.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos."""
    (tmp_path / "photos").mkdir()
    for name in ("cat.png", "dog.jpg"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


def test_a_photo_is_not_replaced_even_by_force(photos: Path) -> None:
    cat, dog = photos / "cat.png", photos / "dog.jpg"
    refuses(f"{cat}: is one of the photos; choose another folder", lambda: outputs(cat, cat))
    refuses(f"{cat}: is one of the photos; choose another folder", lambda: outputs(photos, cat, dog))
    outputs(photos, dog)  # dog.png
    same = photos / ".." / "photos" / "cat.png"
    refuses(f"{same}: is one of the photos; choose another folder", lambda: outputs(same, cat))
    missing = photos / "none.png"
    refuses(
        f"{missing}: is one of the photos; choose another folder", lambda: outputs(missing, same.parent / "none.png")
    )


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_photo_by_another_name_is_not_replaced(
    link: Callable[[Path, Path], None], photos: Path, tmp_path: Path
) -> None:
    link(photos / "cat.png", tmp_path / "out.png")
    text = f"{tmp_path / 'out.png'}: is one of the photos; choose another folder"
    refuses(text, lambda: outputs(tmp_path / "out.png", photos / "cat.png"))
    (tmp_path / "out.png").unlink()
    shutil.copy(photos / "cat.png", tmp_path / "out.png")
    outputs(tmp_path / "out.png", photos / "cat.png")


def test_a_panel_does_not_replace_a_photo(photos: Path) -> None:
    panel = photos / "dog.maps.png"
    panel.touch()
    text = f"{panel}: is one of the photos; choose another folder"
    refuses(text, lambda: outputs(photos, photos / "dog.jpg", panel, several=True, maps=True))


def test_a_heatmap_of_a_class_does_not_replace_a_photo(photos: Path) -> None:
    other = photos / "dog.1-tiger-cat.png"
    other.touch()
    names = outputs(photos, photos / "dog.jpg", other, several=True)
    assert names.heatmaps(photos / "dog.jpg", [0], ["tabby", "tiger cat"]) == [photos / "dog.0-tabby.png"]
    text = f"{other}: is one of the photos; choose another folder"
    refuses(text, lambda: names.heatmaps(photos / "dog.jpg", [0, 1], ["tabby", "tiger cat"]))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("one", "other"), [("A.jpg", "a.jpg"), ("cat.jpg", "cat.png"), ("x/straße.jpg", "STRASSE.jpg")]
)
def test_two_photos_whose_heatmaps_would_have_one_name(one: str, other: str, several: bool, tmp_path: Path) -> None:
    first, second = tmp_path / one, tmp_path / other
    text = f"{second}: its heatmap would have the same name as that of {first}; explain them into two folders"
    refuses(text, lambda: outputs(tmp_path / "out", first, second, several=several))


def test_a_heatmap_and_a_panel_that_would_have_one_name(tmp_path: Path) -> None:
    cat, other = tmp_path / "cat.jpg", tmp_path / "Cat.maps.jpg"
    text = f"{other}: its heatmap would have the same name as the panel of {cat}; explain them into two folders"
    refuses(text, lambda: outputs(tmp_path / "out", cat, other, maps=True))
    refuses(text, lambda: outputs(tmp_path / "out", other, cat, maps=True))
    outputs(tmp_path / "out", cat, other)
    names = outputs(tmp_path / "out", cat, other, several=True, maps=True)
    assert names.panel(cat) == tmp_path / "out" / "cat.maps.png"
    assert names.heatmaps(other, [0], None) == [tmp_path / "out" / "Cat.maps.0.png"]


def test_a_class_that_is_asked_for_twice(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    names = outputs(tmp_path, photo, several=True)
    text = "class 3: is asked for twice; expected each class once"
    refuses(text, lambda: names.heatmaps(photo, [3, 1, 3], None))


def test_an_ending_of_no_known_kind_may_be_a_folder_that_is_missing(tmp_path: Path) -> None:
    output = tmp_path / "run-1.2"
    text = f"{output}: cannot save as .2; expected a name in .png or .npz, or a folder that exists"
    refuses(text, lambda: outputs(output, tmp_path / "photo.jpg"))


def test_names_that_no_system_takes(tmp_path: Path) -> None:
    photo, long, null = tmp_path / "photo.jpg", tmp_path / ("n" * 300), tmp_path / "a\0.png"
    refuses(f"{long}: cannot be written: File name too long; choose another name", lambda: outputs(long, photo))
    shown = str(null).replace("\0", r"\x00")
    refuses(f"{shown}: cannot be written: embedded null byte; choose another name", lambda: outputs(null, photo))
    file = tmp_path / f"{'p' * 250}.maps.png"
    text = f"{file}: cannot be written: File name too long; choose another name"
    refuses(text, lambda: outputs(tmp_path, tmp_path / f"{'p' * 250}.jpg", maps=True))


def test_photos_of_such_names_are_left_to_the_decoder(tmp_path: Path) -> None:
    outputs(tmp_path / "out.png", tmp_path / ("n" * 300))
    outputs(tmp_path / "out.png", tmp_path / "a\0.jpg")


def test_a_place_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refused)
    text = f"{tmp_path}: cannot be written: Permission denied; choose another name"
    refuses(text, lambda: outputs(tmp_path, tmp_path / "photo.jpg"))

"""The names of the files that a run writes."""

from pathlib import Path

import pytest

from engine.cli.outputs import Outputs


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
    outputs = Outputs(tmp_path / "heatmaps", [photo], several=True, maps=False, replace=False)
    assert outputs.heatmaps(photo, [1], ["other", label]) == [tmp_path / "heatmaps" / name]


def test_without_labels_the_index_stands_alone(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    outputs = Outputs(tmp_path, [photo], several=True, maps=True, replace=False)
    assert outputs.heatmaps(photo, [7, 0], None) == [tmp_path / "photo.7.png", tmp_path / "photo.0.png"]
    assert outputs.panel(photo) == tmp_path / "photo.maps.png"


def test_a_folder_whose_name_has_an_ending(tmp_path: Path) -> None:
    (tmp_path / "run.v2").mkdir()
    photo = tmp_path / "photo.jpg"
    outputs = Outputs(tmp_path / "run.v2", [photo], several=False, maps=False, replace=False)
    assert outputs.heatmaps(photo, [7], None) == [tmp_path / "run.v2" / "photo.png"]

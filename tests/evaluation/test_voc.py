from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.evaluation.dataset import read_dataset

Save = Callable[..., Path]


def voc_object(name: str, *corners: object, difficult: object = 0) -> str:
    xmin, ymin, xmax, ymax = corners
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmax>{xmax}</xmax><xmin>{xmin}</xmin>"
        f"<ymin>{ymin}</ymin><ymax>{ymax}</ymax></bndbox></object>"
    )


def annotation(*objects: str, size: str = "<width>8</width><height>6</height><depth>3</depth>") -> str:
    return f"<annotation><size>{size}</size>{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path, save_photo: Save) -> Path:
    """Two photos: a dog that is certain and one that is difficult beside a difficult cat, and a train."""
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    first = annotation(
        voc_object("dog", 1, 1, 3, 2),
        voc_object("cat", 1, 1, 8, 6, difficult=1),
        voc_object("dog", 4, 2, 8, 6, difficult=1),
    )
    (tmp_path / "Annotations" / "000001.xml").write_text(first)
    (tmp_path / "Annotations" / "000002.xml").write_text(annotation(voc_object("train", 2.5, 1, 4, 3.5, difficult="")))
    for number in (1, 2, 3):
        save_photo(tmp_path / "JPEGImages" / f"00000{number}.jpg")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("000002\n\n")
    (tmp_path / "ImageSets" / "Main" / "dog_trainval.txt").write_text("000001  1\n000002 -1\n")
    return tmp_path


def test_pixels_are_counted_from_one_and_the_last_is_included(voc: Path) -> None:
    first, second = read_dataset(voc).samples
    assert (first.name, first.photo, first.size) == ("000001.jpg", voc / "JPEGImages" / "000001.jpg", (8, 6))
    assert second.labels == ("train",)
    assert second.boxes == {"train": ((1.5, 0.0, 4.0, 3.5),)}
    assert read_dataset(voc).form == "Pascal VOC folder"


def test_a_difficult_object_does_not_make_its_class_present_but_its_box_counts(voc: Path) -> None:
    first = read_dataset(voc).samples[0]
    assert first.labels == ("dog",)
    assert first.boxes == {"dog": ((0.0, 0.0, 3.0, 2.0), (3.0, 1.0, 8.0, 6.0))}


def test_a_split_and_a_class_list(voc: Path) -> None:
    assert [sample.name for sample in read_dataset(voc, "val").samples] == ["000002.jpg"]
    assert [sample.name for sample in read_dataset(voc, "dog_trainval").samples] == ["000001.jpg"]


def test_an_unknown_split(voc: Path) -> None:
    with pytest.raises(DatasetError, match=r"Main: has no list 'test'; expected one of dog_trainval, val$"):
        read_dataset(voc, "test")
    for file in (voc / "ImageSets" / "Main").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match=r"Main: has no list 'test'; it has no lists: leave the split out$"):
        read_dataset(voc, "test")


def test_a_photo_that_is_missing_is_told_when_it_is_read(voc: Path) -> None:
    (voc / "JPEGImages" / "000001.jpg").unlink()
    assert read_dataset(voc).samples[0].photo == voc / "JPEGImages" / "000001.jpg"


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>"])
def test_sizes_that_are_not_known(voc: Path, size: str) -> None:
    text = annotation(voc_object("dog", 1, 1, 3, 2), size=size)
    text = text if size else text.replace("<size></size>", "")
    (voc / "Annotations" / "000001.xml").write_text(text)
    assert read_dataset(voc).samples[0].size is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("../000001\n", "has the line '../000001'; expected a photo's name without .jpg"),
        ("000001 1 1\n", "has the line '000001 1 1'; expected a photo's name without .jpg"),
        (b"\xff\n", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_list_of_another_form(voc: Path, lines: str | bytes, message: str) -> None:
    file = voc / "ImageSets" / "Main" / "val.txt"
    file.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(DatasetError) as caught:
        read_dataset(voc, "val")
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", ": is not XML (no element found: line 1, column 12); expected a Pascal VOC annotation"),
        ("<html/>", ": begins with <html>; expected <annotation>, as of Pascal VOC"),
        (annotation(voc_object(" ", 1, 1, 2, 2)), ": object 1: has no name; expected the name of its class"),
        (
            annotation(voc_object("dog", 1, "x", 2, 2)),
            ": object 1: has 'x' in the place of a number; expected pixels",
        ),
        (
            annotation(voc_object("dog", 1, "nan", 2, 2)),
            ": object 1: box is [0.0, nan, 2.0, 2.0]; expected four finite",
        ),
        (
            annotation(voc_object("dog", 9, 1, 2, 2)),
            ": object 1: box is from (8, 0) to (2, 2); expected the upper left corner first",
        ),
        (
            annotation(size="<width>2.5</width><height>6</height>"),
            ": is 2.5×6 pixels; expected two positive whole numbers",
        ),
        (f"<annotation>{' ' * (1 << 20)}</annotation>", ": holds more than 1048576 bytes; expected one photo's"),
    ],
)
def test_an_annotation_of_another_form(voc: Path, text: str, message: str) -> None:
    file = voc / "Annotations" / "000001.xml"
    file.write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_dataset(voc)
    assert str(caught.value).startswith(f"{file}{message}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "document_type",
    [
        '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]>',
        '<!DOCTYPE annotation SYSTEM "file:///etc/passwd">',
        "<!DOCTYPE annotation>",
    ],
)
def test_entities_cannot_be_declared(voc: Path, document_type: str, encoding: str) -> None:
    file = voc / "Annotations" / "000001.xml"
    file.write_bytes(f"<?xml version='1.0'?>{document_type}{annotation()}".encode(encoding))
    with pytest.raises(DatasetError, match=r"declares a document type; expected a plain Pascal VOC annotation$"):
        read_dataset(voc)


def test_an_annotation_in_an_unknown_encoding(voc: Path) -> None:
    (voc / "Annotations" / "000001.xml").write_text("<?xml version='1.0' encoding='none'?><annotation/>")
    with pytest.raises(DatasetError, match=r"000001.xml: is not XML \(.*none.*\); expected a Pascal VOC annotation$"):
        read_dataset(voc)


def test_an_annotation_that_is_missing(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "val.txt").write_text("000003\n")
    with pytest.raises(DatasetError, match=r"000003.xml: cannot be read: No such file or directory; expected the"):
        read_dataset(voc, "val")


def test_the_real_annotations(assets: Path) -> None:
    dataset = read_dataset(assets / "images" / "voc")
    assert len(dataset.samples) == 16
    bus = next(sample for sample in dataset.samples if sample.name == "2011_000025.jpg")
    assert bus.labels == ("bus", "car")
    assert bus.boxes["bus"][1] == (0.0, 98.0, 107.0, 282.0)

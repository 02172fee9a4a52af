"""Reading a data set in whichever form it is."""

from pathlib import Path

from engine.errors import DatasetError
from engine.evaluation.jsons import read_json
from engine.evaluation.labelled import read_class_folders, read_table
from engine.evaluation.sample import Dataset
from engine.evaluation.voc import read_voc

FORMS = (
    "a Pascal VOC folder (JPEGImages, Annotations), COCO's instances_*.json or the folder with annotations/ in it, a "
    "JSON list of files with boxes, a folder of folders named by class, or a .csv or .txt of lines file,label"
)


def read_dataset(path: str | Path, split: str | None = None) -> Dataset:
    """Read a data set; what is at the path tells its form.

    Args:
        path: A file or a folder in one of `FORMS`.
        split: For Pascal VOC the name of a list in `ImageSets/Main`; for COCO's folder what follows `instances_`.

    Raises:
        DatasetError: It has none of these forms, or is damaged; or it has no such split.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path, split)
        is_file = path.is_file()
    except OSError as err:
        raise DatasetError(f"{path}: cannot be read: {err.strerror}; expected {FORMS}") from err
    if not is_file:
        raise DatasetError(f"{path}: is no file and no folder; expected {FORMS}")
    if split is not None:
        raise DatasetError(
            f"{path}: is one file, which has no split {split!r}; leave the split out, or give the folder"
        )
    if path.suffix.lower() == ".json":
        return read_json(path)
    if path.suffix.lower() in (".csv", ".txt"):
        return read_table(path)
    raise DatasetError(f"{path}: is a file of another kind; expected {FORMS}")


def _read_folder(folder: Path, split: str | None) -> Dataset:
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return read_voc(folder, split)
    instances = sorted((folder / "annotations").glob("instances_*.json"))
    if instances:
        return read_json(_chosen(folder, instances, split))
    classes = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    if not classes:
        raise DatasetError(f"{folder}: holds none of the forms that are known; expected {FORMS}")
    if split is not None:
        raise DatasetError(f"{folder}: is a folder of folders by class, without split {split!r}; leave the split out")
    return read_class_folders(folder, classes)


def _chosen(folder: Path, instances: list[Path], split: str | None) -> Path:
    names = [file.stem.removeprefix("instances_") for file in instances]
    if split is None and len(names) == 1:
        return instances[0]
    if split not in names:
        found = "no split is given" if split is None else f"there is no split {split!r}"
        raise DatasetError(f"{folder}: {found}; expected one of {', '.join(names)}")
    return instances[names.index(split)]

"""Explain real photos with a real ImageNet CNN: `make demo`, or `python -m examples.demo`.

It shows the commands a user would type, then uses the Python API, and leaves its pictures in `demo-output/`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import engine

OUTPUT = Path("demo-output")
MODEL = OUTPUT / "efficientnet-lite0"
BUNDLE = OUTPUT / "efficientnet-lite0.ada"
SINGLE_PHOTOS = ("chelsea", "coffee")  # photos in scikit-image's wheel: a cat, a cup of espresso
TWO_ANIMALS = ("bull mastiff", "tiger cat")

# The dog and the cat of the Grad-CAM literature, from a source archive of `grad-cam` (MIT licence). pip runs
# an archive's setup.py, so the hash pins the one that was read: it needs no torch, and nothing is installed.
PHOTO_REQUIREMENT = "grad-cam==1.5.4 --hash=sha256:920bba6ccdd758533fd1de4fd596cdceab8f0bb138b675271e95b614a1f01147\n"
PHOTO_ARCHIVE = "grad-cam-1.5.4.tar.gz"
PHOTO_MEMBER = "grad-cam-1.5.4/examples/both.png"
PHOTO_SHA256 = "8d30785a513e22a2f574c839c7e1751db943d0b5399347e7bb37736f6c5a95c2"

console = Console(highlight=False)


def main() -> None:
    """Build the model, compile it into a bundle, explain three photos."""
    OUTPUT.mkdir(exist_ok=True)

    console.rule("1. Write a real model: EfficientNet-Lite0, without PyTorch")
    show_and_run("examples.efficientnet_lite0", "-o", str(MODEL))

    console.rule("2. Compile it into an explanation bundle, once")
    show_and_run(
        *("engine.export", str(MODEL / "model.onnx"), "-o", str(BUNDLE)),
        *("--preprocess", str(MODEL / "preprocess.json"), "--labels", str(MODEL / "labels.txt")),
        *("--activation", "softmax", "--force"),
    )

    console.rule("3. Explain photos: why did it answer that?")
    explainer = engine.load(BUNDLE)
    explained: dict[Path, engine.Explanation] = {}
    for name in SINGLE_PHOTOS:
        with as_file(files("skimage") / "data" / f"{name}.png") as photo:
            explained[OUTPUT / f"{name}.png"] = explainer.explain(photo)
    two_animals = fetch_two_animals()
    if two_animals:
        for result in explainer.explain(two_animals, target=list(TWO_ANIMALS)):
            explained[OUTPUT / f"dog-and-cat-{result.label}.png".replace(" ", "-")] = result
    for picture, result in explained.items():
        result.save(picture)

    show_layers(explained[OUTPUT / "chelsea.png"])
    show_pictures(explained)


def show_and_run(*arguments: str) -> None:
    """Print a `python -m` command, run it, and stop with its exit status if it fails."""
    console.print(f"$ python -m {' '.join(arguments)}", style="bold", markup=False, soft_wrap=True)
    status = subprocess.run([sys.executable, "-m", *arguments], check=False).returncode
    if status:
        sys.exit(status)


def fetch_two_animals() -> Path | None:
    """Fetch the photo of a dog and a cat; None, with a word of explanation, where pip can't.

    Returns:
        The photo's file in the output folder.
    """
    photo = OUTPUT / "dog-and-cat.original.png"
    if photo.exists() and sha256(photo) == PHOTO_SHA256:
        return photo
    console.print("Fetching a photo of a dog and a cat (grad-cam's source archive, 8 MB)")
    with TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(PHOTO_REQUIREMENT, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
        done = subprocess.run([*pip, "--dest", folder, "--requirement", str(requirements)], check=False)
        if done.returncode:
            console.print("It could not be fetched; going on without it.", style="yellow")
            return None
        with tarfile.open(Path(folder, PHOTO_ARCHIVE)) as archive:
            member = archive.extractfile(PHOTO_MEMBER)
            if member is None:
                raise FileNotFoundError(f"{PHOTO_ARCHIVE}: {PHOTO_MEMBER} is no file in it")
            photo.write_bytes(member.read())
    return photo


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def show_layers(result: engine.Explanation) -> None:
    """Print what the method did in each feature layer, and how long each phase took."""
    table = Table("layer", title=f"How '{result.label}' was explained")
    for heading in ("feature maps", "positive", "selected", "flat", "scored"):
        table.add_column(heading, justify="right")
    for layer in result.layers:
        counts = (layer.channels, layer.positive, layer.selected, layer.flat, layer.scored)
        table.add_row(layer.name, *map(str, counts))
    console.print(table)
    console.print("  ".join(f"{phase} {milliseconds:.0f} ms" for phase, milliseconds in result.timings_ms.items()))


def show_pictures(explained: dict[Path, engine.Explanation]) -> None:
    """Print where each picture is, with its label and score."""
    table = Table("picture", "explains", title=f"Pictures in {OUTPUT.resolve()}")
    table.add_column("score", justify="right")
    for picture, result in explained.items():
        table.add_row(str(picture), result.label, f"{result.class_score:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()

"""The agreement of two explainers, against figures taken from their explanations by other packages."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy import stats

import engine
from engine.agreement import measure_agreement
from engine.errors import ImageError, OptionError
from engine.export import export
from engine.kernels.similarity import structural_similarity
from engine.scoring import score_rows
from tests.forms import open_sizes
from tests.tiny_cnn import LABELS, photo_pixels, tiny_cnn


@pytest.fixture
def photos(int8_bundle: Path) -> list[Path]:
    return sorted((int8_bundle.parent / "photos").iterdir())[:3]


def test_figures_are_those_of_the_explanations(int8_bundle: Path, photos: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    with engine.load(int8_bundle) as reference, engine.load(int8_bundle, precision="int8") as other:
        found = measure_agreement(
            reference, other, photos, classes=2, batch_size=3, progress=lambda *both: told.append(both)
        )
        ranks, structures, errors = [], [], []
        for photo in photos:
            best = np.argsort(-reference.classify(photo))[:2].tolist()
            for right, result in zip(reference.explain(photo, best), other.explain(photo, best), strict=True):
                ranks.append(stats.spearmanr(right.heatmap.ravel(), result.heatmap.ravel()).statistic)
                structures.append(structural_similarity(right.heatmap, result.heatmap))
                for a, b in zip(right.layers, result.layers, strict=True):
                    errors += np.abs(a.scores - b.scores)[~np.isnan(a.scores)].tolist()
    assert (found.photos, found.heatmaps, found.masks) == (3, 6, len(errors))
    assert found.spearman == pytest.approx(np.median(ranks), abs=1e-4)
    assert found.spearman_worst == pytest.approx(min(ranks), abs=1e-4)
    assert found.score_error == pytest.approx(np.mean(errors), rel=1e-9)
    assert found.score_error_worst == pytest.approx(max(errors), rel=1e-9)
    assert found.ssim == pytest.approx(np.median(structures), abs=1e-6)
    assert found.ssim_worst == pytest.approx(min(structures), abs=1e-6)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_masks_are_scored_in_the_batches_of_the_explainers(
    int8_bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noting(session: Any, rows: Any, classes: Any, activation: str, batch_size: int, *rest: Any) -> Any:
        sizes.append(batch_size)
        return score_rows(session, rows, classes, activation, batch_size, *rest)

    monkeypatch.setattr("engine.probe.score_rows", noting)
    with (
        engine.load(int8_bundle, batch_size=3) as reference,
        engine.load(int8_bundle, precision="int8", batch_size=5) as other,
    ):
        measure_agreement(reference, other, photos[:1])
        measure_agreement(reference, other, photos[:1], batch_size=2)
    assert sizes == [3, 5, 2, 2]


def test_an_explainer_agrees_with_itself(tiny_bundle: Path) -> None:
    with engine.load(tiny_bundle) as explainer:
        found = measure_agreement(explainer, explainer, [photo_pixels()], classes=len(LABELS))
    masks = found.report().pop("masks")
    assert masks > 0
    assert found.report() == {
        "photos": 1,
        "heatmaps": 5,
        "masks": masks,
        "score_error": 0.0,
        "score_error_worst": 0.0,
        "spearman": 1.0,
        "spearman_worst": 1.0,
        "ssim": 1.0,
        "ssim_worst": 1.0,
    }


def test_a_photo_without_masks_does_not_count(tiny_bundle: Path) -> None:
    """An image of zeros under masks is the image of zeros: all feature maps of the first layer are flat."""
    black = np.zeros((1, 3, 24, 32), np.float32)
    with engine.load(tiny_bundle) as explainer:
        alone = measure_agreement(explainer, explainer, [photo_pixels()])
        found = measure_agreement(explainer, explainer, [black, photo_pixels()])
        text = "none of 2 photos gives a mask to compare scores of; expected one at least"
        with pytest.raises(ImageError, match=f"^{re.escape(text)}$"):
            measure_agreement(explainer, explainer, [black, black])
    assert found.masks > 0
    assert found == replace(alone, photos=2)


def test_what_cannot_be_compared(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with engine.load(tiny_bundle) as explainer:
        with pytest.raises(OptionError, match=r"^no photo was given to compare explanations on; expected one at"):
            measure_agreement(explainer, explainer, [])
        with pytest.raises(OptionError, match=r"^classes is 0; expected a whole number of at least 1$"):
            measure_agreement(explainer, explainer, [photo_pixels()], classes=0)
        with pytest.raises(ImageError, match=rf"^{re.escape(str(tmp_path / 'broken.png'))}: "):
            measure_agreement(explainer, explainer, [tmp_path / "broken.png"])


@pytest.mark.parametrize("differs", ["model", "size", "activation"])
def test_explainers_that_answer_differently(tmp_path: Path, differs: str) -> None:
    def exported(name: str, changed: bool) -> Path:
        model = tiny_cnn(seed=1 if changed and differs == "model" else 20102)
        open_sizes(model)
        onnx.save(model, tmp_path / f"{name}.onnx")
        return export(
            tmp_path / f"{name}.onnx",
            tmp_path / f"{name}.ada",
            size=(32, 24) if changed and differs == "size" else (24, 32),
            activation="sigmoid" if changed and differs == "activation" else "softmax",
        ).bundle.path

    with engine.load(exported("one", False)) as explainer, engine.load(exported("two", True)) as other:
        text = (
            f"{tmp_path / 'two.ada'}: was made from another model, image size or activation than "
            f"{tmp_path / 'one.ada'}; expected two explainers of one model"
        )
        with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
            measure_agreement(explainer, other, [photo_pixels()])

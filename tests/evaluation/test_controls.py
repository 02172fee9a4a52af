import re
from pathlib import Path

import numpy as np
import pytest
from skimage.filters import threshold_otsu

import engine
from engine.errors import OptionError
from engine.evaluation.controls import CONTROLS, EVALUATED, Centre, GradCamOtsu
from engine.methods import METHODS
from tests.tiny_cnn import photo_pixels


def test_the_centre_is_a_gaussian_scaled_to_0_to_1(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    first, second = explainer.explain(photo_pixels(), [0, 1], method=Centre(sigma=0.5))
    y, x = np.mgrid[0:24, 0:32].astype(np.float64)
    expected = np.exp(-((y - 11.5) ** 2) / (2 * 12.0**2) - (x - 15.5) ** 2 / (2 * 16.0**2))
    expected = (expected - expected.min()) / np.ptp(expected)
    np.testing.assert_allclose(first.heatmap, expected, atol=1e-6)
    np.testing.assert_array_equal(first.heatmap, second.heatmap)
    assert first.evaluations == {"forward": 1}  # for the score alone


@pytest.mark.parametrize("sigma", [0, -1.0, float("inf"), float("nan"), "wide"])
def test_a_sigma_without_meaning(sigma: object) -> None:
    with pytest.raises(OptionError, match=re.escape(f"sigma is {sigma!r}; expected a number above 0")):
        Centre(sigma=sigma)


def test_grad_cam_is_cut_by_its_own_otsu_threshold(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    plain = explainer.explain(photo_pixels(), 0, method="grad-cam").heatmap.astype(np.float64)
    cut = explainer.explain(photo_pixels(), 0, method=GradCamOtsu()).heatmap
    np.testing.assert_allclose(cut, np.where(plain > threshold_otsu(plain), plain, 0), atol=1e-6)
    assert 0 < np.count_nonzero(cut) < np.count_nonzero(plain)


def test_a_constant_grad_cam_stays_one(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    black = np.zeros((24, 32, 3), np.uint8)
    for target in range(5):
        plain, cut = (explainer.explain(black, target, method=method) for method in ("grad-cam", GradCamOtsu()))
        assert np.isfinite(cut.heatmap).all()
        if not plain.heatmap.any():
            assert not cut.heatmap.any()
            assert cut.warnings == plain.warnings


def test_the_registry() -> None:
    assert {name: kind.name for name, kind in CONTROLS.items()} == {
        "centre": "centre",
        "grad-cam-otsu": "grad-cam-otsu",
    }
    assert not CONTROLS.keys() & METHODS.keys()
    assert EVALUATED == {**METHODS, **CONTROLS}

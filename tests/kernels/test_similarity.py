import numpy as np
import pytest
from scipy import ndimage, stats

from engine.kernels.similarity import pearson, spearman, structural_similarity


def test_correlations_equal_scipy(random: np.random.Generator) -> None:
    a = random.random((13, 9)).astype(np.float32)
    b = (np.rint((a + random.random((13, 9))) * 5) / 5).astype(np.float32)  # with ties
    assert len(np.unique(b)) < 15
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-12)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert spearman(a, 1 - b) == pytest.approx(-stats.spearmanr(x, y).statistic, rel=1e-12)


def test_by_hand() -> None:
    a, b = np.array([[1.0, 2.0, 2.0, 9.0]]), np.array([[0.0, 1.0, 3.0, 2.0]])
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 4, 3: (2.25 − 0 + 0 + 0.75)/√(4.5·5)
    assert spearman(a, b) == pytest.approx(3.0 / np.sqrt(22.5), rel=1e-14)
    assert pearson(np.array([0.0, 1.0]), np.array([3.0, 2.0])) == pytest.approx(-1.0, abs=1e-15)


@pytest.mark.parametrize("similarity", [pearson, spearman, structural_similarity])
def test_equal_heatmaps_have_exactly_1(random: np.random.Generator, similarity) -> None:
    for heatmap in (random.random((9, 11), np.float32), np.zeros((9, 11), "f"), np.full((9, 11), 0.3, "f")):
        assert similarity(heatmap, heatmap.copy()) == 1.0


@pytest.mark.parametrize("similarity", [pearson, spearman])
def test_a_constant_heatmap_and_another_have_0(random: np.random.Generator, similarity) -> None:
    heatmap = random.random((9, 11), np.float32)
    for constant in (0.0, 0.3):
        assert similarity(heatmap, np.full((9, 11), constant, "f")) == 0.0
        assert similarity(np.full((9, 11), constant, "f"), heatmap) == 0.0


def test_tiny_values_do_not_underflow() -> None:
    a = np.array([[0.0, 1.0, 2.0, 4.0]]) * 1e-200
    assert pearson(a, a * 2) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize(("height", "width", "size"), [(20, 15, 7), (7, 7, 7), (5, 9, 5), (1, 4, 1)])
def test_ssim_equals_a_loop(random: np.random.Generator, height: int, width: int, size: int) -> None:
    a = ndimage.gaussian_filter(random.random((height, width)), 1)
    b = 0.7 * a + 0.3 * random.random((height, width))
    values = []
    for i in range(height - size + 1):
        for j in range(width - size + 1):
            x, y = a[i : i + size, j : j + size].ravel(), b[i : i + size, j : j + size].ravel()
            (vx, cov), (_, vy) = np.cov(x, y, bias=True) if size > 1 else np.zeros((2, 2))
            mx, my = x.mean(), y.mean()
            values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert structural_similarity(a, b) == pytest.approx(np.mean(values), rel=1e-9)


def test_ssim_equals_scikit_image(random: np.random.Generator) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image")
    a, b = random.random((30, 40)), random.random((30, 40))
    b = 0.5 * a + 0.5 * b
    expected = metrics.structural_similarity(a, b, data_range=1.0, use_sample_covariance=False)
    assert structural_similarity(a, b) == pytest.approx(expected, rel=1e-9)

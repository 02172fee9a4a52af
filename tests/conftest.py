"""Fixtures that every test may use, and the check that nothing was skipped that could have run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
_NEEDS_ASSETS = "needs the pretrained models and photos in ../shared/assets"


@pytest.fixture(scope="session")
def assets() -> Path:
    if not ASSETS.is_dir():
        pytest.skip(_NEEDS_ASSETS)
    return ASSETS


@pytest.fixture(scope="session", autouse=True)
def _tuned_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may touch the user's cache folder; and in this process nothing is measured, so that nothing varies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("engine.tuning.SWEEP_S", 0.0)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tests.tiny_cnn`, made once; copy it before changing it."""
    from engine.export import export
    from tests.tiny_cnn import write_tiny_cnn

    folder = tmp_path_factory.mktemp("tiny")
    model, preprocess, labels = write_tiny_cnn(folder)
    export(model, folder / "tiny.ada", preprocess=preprocess, labels=labels, activation="softmax")
    return folder / "tiny.ada"


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tests.tiny_cnn` with an int8 scorer, calibrated on `photos` beside it; made once."""
    from engine.export import export
    from tests.calibrated import write_photos
    from tests.tiny_cnn import write_tiny_cnn

    folder = tmp_path_factory.mktemp("int8")
    model, preprocess, labels = write_tiny_cnn(folder)
    export(
        model,
        folder / "int8.ada",
        preprocess=preprocess,
        labels=labels,
        activation="softmax",
        int8=True,
        calibrate=[write_photos(folder / "photos")],
    )
    return folder / "int8.ada"


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20102)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when the assets are there and a test that needs them was skipped all the same."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if ASSETS.is_dir() and any(_NEEDS_ASSETS in str(report.longrepr) for report in skipped):
        reporter.write_line(f"\n{ASSETS} is there, but tests that need it were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

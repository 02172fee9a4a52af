from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save_photo() -> Callable[..., Path]:
    """Writes a small photo of noise, whose size and seed may be chosen."""

    def save(path: Path, size: tuple[int, int] = (8, 6), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return save

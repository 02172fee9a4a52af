"""Photos to calibrate on, and the tiny CNN with an int8 scorer."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny_cnn import photo_pixels


def write_photos(folder: Path, count: int = 8) -> Path:
    """Write photos that differ in place, colour and contrast; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(4)
    for number in range(count):
        pixels = np.roll(photo_pixels(), random.integers(0, 60, 2), axis=(0, 1))[:, :, random.permutation(3)]
        noisy = pixels * random.uniform(0.5, 1.0) + random.normal(0, 12, pixels.shape)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder

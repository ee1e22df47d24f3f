"""Loading of the scripts, which are no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medrl.data.phantoms import random_affine

FOLDER = Path(__file__).parents[2] / "data_scripts"


@pytest.fixture
def load_script():
    """Return a function that imports a script by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def draw_case():
    """Return a function that draws (image, labels, ras_from_voxel) with two labelled boxes, on an oblique grid."""

    def draw(seed: int, values: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        labels = np.zeros((12, 10, 9), np.uint8)
        labels[1:4, 2:5, 3:6], labels[7:10, 2:5, 3:6] = values
        image = (labels > 0) * 100 + generator.integers(0, 20, labels.shape)
        return image.astype(np.int16), labels, random_affine(generator, (1.0, 1.2, 1.5))

    return draw

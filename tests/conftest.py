"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(os.environ.get("MEDRL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real development data (MEDRL_DATA); tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip("real data is absent; set MEDRL_DATA")
    return DATA


@pytest.fixture
def generator() -> np.random.Generator:
    """A numpy Generator, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def torch_generator() -> torch.Generator:
    """A torch Generator on the CPU, the same in every run."""
    return torch.Generator().manual_seed(0)

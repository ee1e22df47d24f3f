"""Synthetic lesions: one object, of another grey, within the tissue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from medrl.data.implants import CONTRAST_HU, implant


@pytest.mark.parametrize("shape", [(60, 52), (30, 34, 28)])
@pytest.mark.parametrize("ct", [True, False])
def test_a_lesion_differs_from_the_tissue_and_keeps_to_it(shape, ct, generator):
    values = torch.full(shape, 40.0 if ct else 300.0)
    values[:6] = torch.nan
    tissue = values.isfinite().clone()
    tissue[:12] = False
    sizes = []
    for _ in range(20):
        changed, mask = implant(values, tissue, generator, ct=ct)
        sizes.append(float(mask.float().mean()))
        assert not (mask & ~tissue).any()
        assert torch.equal(changed.isnan(), values.isnan())
        parts = np.bincount(label(mask.numpy())[0].reshape(-1))[1:]
        assert parts.max() > 0.8 * parts.sum()
        contrast = float((changed[mask] - values[mask]).mean().abs())
        assert 0.3 * (CONTRAST_HU[0] if ct else 30.0) < contrast < (100.0 if ct else 500.0)
        far = ~mask & tissue
        assert float((changed - values)[far].abs().median()) < 0.3 * contrast
    assert max(sizes) > 3 * min(sizes)


def test_without_tissue_nothing_changes(generator):
    values = torch.zeros(20, 20)
    changed, mask = implant(values, torch.zeros(20, 20, dtype=torch.bool), generator, ct=True)
    assert torch.equal(changed, values)
    assert not mask.any()

"""The template of the MNI, found without importing nilearn."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import nibabel
import numpy as np
import pytest

from medrl.data import template
from medrl.data.template import mni152_template
from medrl.types import InputError


@pytest.mark.skipif(find_spec("nilearn") is None, reason="nilearn is not installed")
def test_template_is_a_brain_of_one_millimetre() -> None:
    before = "nilearn" in sys.modules
    path = mni152_template()
    assert ("nilearn" in sys.modules) == before  # importing it takes seconds
    image = nibabel.load(path)
    assert image.shape == (197, 233, 189)
    np.testing.assert_allclose(image.affine[:3, :3], np.eye(3))
    origin = np.linalg.inv(image.affine)[:3, 3].round().astype(int)
    assert np.asarray(image.dataobj)[tuple(origin)] > 0  # the anterior commissure lies in the brain


def test_without_nilearn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'medrl\[viz\]'"):
        mni152_template()


@pytest.mark.skipif(find_spec("nilearn") is None, reason="nilearn is not installed")
def test_a_nilearn_without_the_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "TEMPLATE", "datasets/data/none.nii.gz")
    with pytest.raises(InputError, match="carries no MNI152 template"):
        mni152_template()

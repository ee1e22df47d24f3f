"""The MNI152 template that the wheel of nilearn carries: a real brain for a first look, without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from medrl.types import InputError

TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def mni152_template() -> Path:
    """Return the path of the skull-stripped MNI152 T1 template (197x233x189 voxels of 1 mm, uint8, RAS).

    Raises InputError if nilearn is not installed or carries no template.

    Source: Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54 (2011).
    """
    found = find_spec("nilearn")  # importing nilearn takes seconds
    if found is None or not found.submodule_search_locations:
        raise InputError("the MNI152 template comes with nilearn, which is not installed: pip install 'medrl[viz]'")
    path = Path(found.submodule_search_locations[0]) / TEMPLATE
    if not path.is_file():
        raise InputError("this nilearn carries no MNI152 template, expected 0.8.1 or later: pip install -U nilearn")
    return path

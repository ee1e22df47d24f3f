"""Registration from nothing to the answer, with features that need no training: the grey values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from probes import smooth_volume, stored_image
from torch import nn
from torch.nn.functional import avg_pool3d, normalize

from medrl.data.misalignment import registration_error_mm
from medrl.data.pair_images import prepare
from medrl.geometry.poses import to_matrices
from medrl.geometry.quaternions import from_vector, to_matrix
from medrl.inference.pair_views import view
from medrl.inference.pose_candidates import Search, find_candidates, look_again
from medrl.inference.registration import RegistrationInferer
from medrl.networks.features import PairNetworks
from medrl.types import CONVERGED, NOT_CONVERGED, InputError

SMALL = {"channels": (4, 4), "features": 2}
SEARCH = {"orientations": 150, "degrees": 80.0, "starts": 8, "candidates": 2, "counts": (200, 600)}
LATTICE = torch.cartesian_prod(*[torch.tensor([-20.0, 0, 20], dtype=torch.float64)] * 3)


class Grey(nn.Module):
    """Unit vectors that turn with the grey value, in steps of the image grid."""

    def forward(self, image):
        value = avg_pool3d(image, 2) * 3
        return normalize(torch.cat([value.cos(), value.sin()], 1), dim=1)


def drawn_truth(scale: float) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * to_matrix(from_vector(torch.tensor([0.5, -0.4, 0.3], dtype=torch.float64)))
    matrix[:3, 3] = torch.tensor([8.0, -5.0, 12.0])
    return matrix


@pytest.fixture(scope="module")
def networks() -> PairNetworks:
    networks = PairNetworks(coarse=SMALL)
    for modality in ("ct", "mr"):
        networks.coarse.networks[modality] = Grey()
    return networks.eval()


def images(scale: float = 1.0) -> tuple[MetaTensor, MetaTensor]:
    """A body, and the same one where the truth moves it to, in another storage."""
    generator = np.random.default_rng(3)
    volume = smooth_volume((22, 22, 22), torch.Generator().manual_seed(5)).float() / 255
    back = torch.linalg.inv(drawn_truth(scale))

    def body(place):
        index = (place / 5 + 10.5).clamp(0, 20.999)
        grid = (2 * index + 1) / 22 - 1
        grid = grid.float().flip(1)[None, :, None, None]
        value = nn.functional.grid_sample(volume[None, None], grid, align_corners=False)
        inside = (place / torch.tensor([45.0, 32.0, 38.0])).norm(dim=1) < 1
        return torch.where(inside, 500 * value.flatten().double() - 250, -1000.0)

    moved = stored_image(lambda p: body(p @ back[:3, :3].T + back[:3, 3]), generator, (3.0, 4.0, 3.5), 130.0)
    return stored_image(body, generator, (3.0, 3.0, 4.5)), moved


@pytest.fixture(scope="module")
def pair() -> tuple[MetaTensor, MetaTensor]:
    return images()


def test_candidates_know_where_they_lie(networks, pair):
    fixed, moving = map(prepare, pair)
    found = find_candidates(
        fixed, moving, networks, search=Search(**SEARCH), scaled=False, generator=torch.Generator().manual_seed(0),
        truth=drawn_truth(1.0), lattice_ras=LATTICE, name="ball",
    )  # fmt: skip
    count = len(found.pairs)
    assert 1 <= count <= 2
    assert found.cases.names == ("ball",) * count
    ras = torch.stack([p.to_ras(m) for p, m in zip(found.pairs, to_matrices(found.pose), strict=True)])
    wanted = registration_error_mm(ras, drawn_truth(1.0), LATTICE)
    error = found.cases.error_mm(torch.arange(count), found.pose)
    torch.testing.assert_close(error.double(), wanted, atol=1e-3, rtol=0)
    assert wanted[0] < 12
    # the moving image was rendered anew, as it lies in the fixed one: no turn is left
    assert (found.pose.quaternion[:, 0] > 0.9999).all()
    again = look_again(fixed_view=view(fixed, networks), moving=moving, networks=networks, found=ras, counts=(50, 50))
    back = torch.stack([p.to_ras(m) for p, m in zip(again.pairs, to_matrices(again.pose), strict=True)])
    torch.testing.assert_close(back, ras, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1.15])
def test_the_answer_is_right(networks, scale):
    fixed, moving = images(scale)
    inferer = RegistrationInferer(mode="climb", scaled="auto", points=800, max_steps=15, **SEARCH)
    batch = MetaTensor(fixed.as_tensor()[None], affine=fixed.affine)
    answer = inferer(batch, networks, moving=[moving])[0]
    error = registration_error_mm(answer.moving_from_fixed, drawn_truth(scale), LATTICE)
    assert float(error) < 2.5
    assert answer.scale == pytest.approx(scale, abs=0.02)
    if scale == 1.0:
        assert answer.scale == pytest.approx(1.0, abs=1e-5)
    assert (answer.status, answer.confidence) == (CONVERGED, 1.0)
    torch.testing.assert_close(answer.path[-1], answer.moving_from_fixed)
    assert len(answer.path) >= 3  # the start, a step at least, and the polish


def test_an_unsure_answer_says_so(networks, pair):
    calibration = {"bias": -1.0, "score": 0.0, "polished_information": 0.01}
    inferer = RegistrationInferer(mode="climb", polish="none", scaled=False, calibration=calibration, **SEARCH)
    answer = inferer.register(*pair, networks)
    assert 0.268 < answer.confidence < 0.28  # a little above sigmoid(-1)
    assert answer.status == NOT_CONVERGED
    assert "do not fit" in answer.reason
    assert answer.polish_mm == pytest.approx(0.0, abs=1e-9)


def test_an_empty_image_is_refused(networks, pair):
    empty = MetaTensor(torch.full((1, 12, 12, 12), 7.0), affine=torch.eye(4, dtype=torch.float64) * 4)
    with pytest.raises(InputError, match="moving: holds no tissue"):
        RegistrationInferer(mode="climb").register(pair[0], empty, networks)


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match="mode is 'walk'"):
        RegistrationInferer(mode="walk")

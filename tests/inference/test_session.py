"""A session on one image: clicks, seeds, corrections, views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bright import BrightAgent, BrightClicks, bright_image, bright_networks, clicks_on, overlap, ras
from monai.data import MetaTensor

from medrl.data.seeds import make_seeds, seed_voxels
from medrl.geometry.segmenters import RandomWalker
from medrl.inference.segmentation import Rules
from medrl.inference.session import Session
from medrl.networks.seed_networks import SeedNetworks
from medrl.types import InputError

SMALL = {2: (30, 30), 3: (18, 18, 18)}  # lattices
PRIOR = Rules(lattice=SMALL, agent_share=0.0)
PLAIN = Rules(prior=False, agent_share=0.0, segmenter=RandomWalker(), lattice=SMALL)
FLIPPED = np.diag([-2.0, 2.0, 3.0, 1.0])


def session_on(image, seeds=None, rules=PLAIN, **options) -> Session:
    session = Session(image, bright_networks(**options), rules)
    session.start(seeds)
    return session


def mask_of(session) -> torch.Tensor:
    return session.result().mask[0].as_tensor().bool()


@pytest.mark.parametrize("affine", ["oblique", FLIPPED, np.diag([1.0, -1.0, 4.0, 1.0])[[0, 2, 1, 3]]])
def test_the_agents_seeds_make_the_mask(affine):
    image, truth = bright_image(affine=affine)
    clicks = clicks_on(image)
    session = session_on(image, clicks)
    before = overlap(mask_of(session), truth)
    session.run()
    result = session.result()
    assert before < 0.8
    assert overlap(result.mask[0], truth) > 0.9
    assert result.mask.dtype == torch.uint8
    assert result.mask.shape == image.shape
    assert torch.equal(result.mask.affine, image.affine)
    assert result.user_count == 2
    assert torch.equal(result.seeds.position_ras[:2], clicks.position_ras)
    assert 0 < len(result.seeds.foreground) - 2 <= 10
    # every seed of the agent lies on its side of the border, and in the image
    voxels = seed_voxels(result.seeds, image)
    assert torch.equal(truth[tuple(voxels.T)], result.seeds.foreground)
    assert result.quality == pytest.approx(overlap(result.mask[0], truth), abs=0.12)
    assert result.dice == pytest.approx(2 * result.quality / (1 + result.quality))


def test_a_prior_needs_no_seeds():
    image, truth = bright_image()
    session = session_on(image, clicks_on(image), PRIOR)
    assert overlap(mask_of(session), truth) > 0.95


def test_without_clicks_the_believed_object_is_seeded():
    image, truth = bright_image()
    for kinds in ([], [False]):
        clicks = make_seeds([ras(image, 2, 2, 2)] * len(kinds), kinds)
        session = session_on(image, clicks)
        session.run()
        result = session.result()
        assert overlap(result.mask[0], truth) > 0.9
        agent = result.seeds.foreground[len(kinds) :]
        assert agent[0]
        assert len(agent) <= 10
        assert bool((~result.seeds.foreground).any())
        # the innermost voxel of the larger ellipsoid is its middle
        first = seed_voxels(result.seeds, image)[len(kinds)]
        assert (first - torch.tensor(truth.shape) // 2).abs().max() <= 2


def test_belief_is_shared():
    image, truth = bright_image()
    for share, low, high in ((1.0, 0.8, 1.0), (0.5, 0.0, 0.5), (0.0, 0.0, 0.05)):
        session = session_on(image, clicks_on(image), replace(PLAIN, agent_share=share), believes=False)
        assert low <= float(session.belief[0][session.fine.grey[0] > 160].mean()) <= high
    only = Session(image, SeedNetworks([BrightAgent(3)], []), PRIOR)  # without a click network it is the agent's alone
    only.start(clicks_on(image))
    assert overlap(mask_of(only), truth) > 0.9


def test_where_nothing_is_believed_the_likeliest_place_is_taken():
    image, _ = bright_image()
    session = session_on(image, None, PRIOR, believes=False)
    result = session.result()
    assert len(result.seeds.foreground) == 2
    assert int(result.mask.sum()) >= 1


def test_a_click_is_obeyed_and_never_makes_worse():
    image, _ = bright_image()
    session = session_on(image, clicks_on(image), PRIOR)
    session.run()
    generator = np.random.default_rng(0)
    before = mask_of(session)
    for number in range(6):
        foreground = bool(number % 2)
        wrong = (~before if foreground else before).nonzero()
        voxel = wrong[int(generator.integers(len(wrong)))]
        session.click(ras(image, *voxel.tolist()), foreground)
        after = mask_of(session)
        assert bool(after[tuple(voxel)]) == foreground
        assert not bool((before & ~after).any() if foreground else (after & ~before).any())
        before = after
    result = session.result()
    voxels = seed_voxels(result.seeds, image)[: result.user_count]
    assert result.user_count == 8
    assert torch.equal(before[tuple(voxels.T)], result.seeds.foreground[:8])
    with pytest.raises(RuntimeError, match="the agent's turn is over"):
        session.step()


def test_a_correction_changes_its_neighbourhood():
    image, _ = bright_image(level=0.0)  # nothing but noise: clicks alone decide
    rules = replace(PLAIN, max_seeds=0)
    session = session_on(image, clicks_on(image), rules)
    before = int(mask_of(session).sum())
    session.click(ras(image, 19, 16, 14), True)
    more = int(mask_of(session).sum())
    session.click(ras(image, 18, 15, 13), False)
    assert more > before + 20
    assert int(mask_of(session).sum()) < more - 5


def test_all_clicks_at_the_start_are_used():
    image, _ = bright_image(level=0.0)
    points = [(12, 10, 9), (5, 5, 5), (17, 15, 13), (3, 17, 15)]
    clicks = make_seeds([ras(image, *p) for p in points], [True, True, False, False])
    session = session_on(image, clicks, replace(PLAIN, max_seeds=0))
    mask = mask_of(session)
    assert [bool(mask[p]) for p in points] == [True, True, False, False]


def test_seeds_keep_away_from_those_there_are():
    class Stubborn(BrightAgent):
        """Wants the cells in their order, and never stops."""

        def forward(self, image):
            output = super().forward(image)
            output[:, : self.actions] = -torch.arange(self.actions).float()
            return output

    image, _ = bright_image((12, 10, 9))  # fewer voxels than cells along an axis: some share a voxel
    network = SeedNetworks([Stubborn(3, cells=16)], [BrightClicks(3)])
    clicks = make_seeds([ras(image, 0, 0, 0), ras(image, 0, 0, 2)], [False, True])
    session = Session(image, network, replace(PLAIN, keep="last"))
    session.start(clicks)
    session.run()
    seeds = session.result().seeds
    assert len(seeds.foreground) == 12
    voxels = [tuple(v) for v in seed_voxels(seeds, image).tolist()]
    assert len(set(voxels)) == 12


def test_best_and_last():
    class Bad(BrightAgent):
        """Calls a background corner foreground."""

        def forward(self, image):
            output = super().forward(image)
            output[:, : self.actions] = -1.0
            output[:, 0] = 1.0
            return output

    image, _ = bright_image()
    network = SeedNetworks([Bad(3)], [BrightClicks(3)])
    masks = {}
    for keep in ("best", "last"):
        session = Session(image, network, replace(PRIOR, keep=keep, max_seeds=3))
        session.start(make_seeds([ras(image, 11, 9, 8), ras(image, 22, 2, 16)], [True, False]))
        session.run()
        masks[keep] = session.result()
    assert len(masks["best"].seeds.foreground) == 2
    assert len(masks["last"].seeds.foreground) == 5
    assert masks["best"].quality > masks["last"].quality
    with pytest.raises(InputError, match="keep is 'first'"):
        Rules(keep="first")


def test_a_slice_along_any_axis():
    for axis in range(3):
        shape = [30, 26, 28]
        shape[axis] = 1
        image, truth = bright_image(tuple(shape))
        session = session_on(image, clicks_on(image))
        session.run()
        assert overlap(session.result().mask[0], truth) > 0.9
        assert session.result().mask.shape == image.shape


def test_constant_surroundings():
    values = torch.full((1, 24, 24, 24), 7.0)
    image = MetaTensor(values, affine=torch.eye(4).double())
    for rules in (PRIOR, PLAIN):
        session = Session(image, bright_networks(), rules)
        session.start(make_seeds([(12, 12, 12), (3, 3, 3)], [True, False]))
        session.run()
        mask = session.result().mask[0]
        assert mask[12, 12, 12] == 1
        assert mask[3, 3, 3] == 0


def test_wrong_clicks_are_refused():
    image, _ = bright_image()
    inside = ras(image, 11, 9, 8)
    for points, kinds, words in (
        ([inside, ras(image, 99, 0, 0)], [True, False], "seed 2 lies .* mm outside the image"),
        ([inside, inside], [True, False], "seeds 1 and 2 are foreground and background in one voxel"),
    ):
        with pytest.raises(InputError, match=words):
            session_on(image, make_seeds(points, kinds))
    session = session_on(image, make_seeds([inside], [True]))
    with pytest.raises(InputError, match="outside the image"):
        session.click(ras(image, 0, 0, 60), True)
    with pytest.raises(InputError, match="in one voxel"):
        session.click(inside, False)
    with pytest.raises(InputError, match="no agent for a single slice"):
        Session(image[..., :1], SeedNetworks([BrightAgent(3)], [BrightClicks(3)]), PRIOR)


def test_a_small_object_is_seen_closely():
    values, small = 200 + 20 * torch.rand(80, 76, 70), torch.zeros(80, 76, 70, dtype=torch.bool)
    small[50:66, 20:36, 40:56] = True
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.2, 1.0]).double())
    image = MetaTensor((values + 1000 * small)[None], affine=matrix)
    clicks = make_seeds([ras(image, 58, 26, 47), ras(image, 72, 26, 47)], [True, False])
    near, far = (session_on(image, clicks, replace(PRIOR, zoom=zoom)) for zoom in (0.75, None))
    assert np.prod(far.fine.region.shape) <= 48**3
    assert max(far.fine.region.spacing_mm) > 1.5
    assert max(near.fine.region.spacing_mm) < 1.25  # about the voxels
    assert overlap(mask_of(near), small) > 0.95 > overlap(mask_of(far), small)
    # a correction outside of the view widens it
    before = mask_of(near)
    near.click(ras(image, 5, 70, 5), True)
    after = mask_of(near)
    assert after[5, 70, 5]
    assert not bool((before & ~after).any())


def test_an_image_without_a_free_cell_gets_no_seeds():
    grey = torch.tensor([[0.0, 200.0], [0.0, 180.0]])
    image = MetaTensor(torch.stack([grey, 190 - grey], 2)[None], affine=torch.eye(4).double())
    places = torch.cartesian_prod(*[torch.arange(2)] * 3)
    clicks = make_seeds(places.double(), (image[0].as_tensor()[tuple(places.T)] > 100).tolist())
    session = session_on(image, clicks)
    session.run()
    assert session.placed.foreground.tolist() == []
    assert torch.equal(mask_of(session)[tuple(places.T)], clicks.foreground)

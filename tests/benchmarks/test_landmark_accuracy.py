"""The accuracy benchmark: its scores by hand, its copies of a case, its baselines, and the whole on tiny phantoms."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import GenerateHeatmap

from medrl.data.anatomy import Anatomy
from medrl.data.cases import Source
from medrl.data.phantoms import LABELS, phantom, random_affine, write_phantoms
from medrl.data.pool import Pool
from medrl.geometry.similarity import apply, compose, rotation
from medrl.networks.fovea import FoveaNet
from medrl.types import FOUND, MISSING, Landmark

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SLOPE = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
SHAPE = (20, 24, 18)


@pytest.fixture(autouse=True)
def _benchmarks_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def room(name):
    return importlib.import_module(f"landmark_{name}")


@pytest.fixture
def oblique() -> Source:
    """A volume whose grey value is a linear function of RAS mm, on an oblique, flipped, anisotropic grid."""
    ras_from_voxel = torch.tensor(random_affine(np.random.default_rng(1), (1.0, 1.5, 2.5), oblique_degrees=25.0))
    voxels = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in SHAPE))
    grey = (apply(ras_from_voxel, voxels) @ SLOPE).reshape(SHAPE)
    points = apply(ras_from_voxel, torch.tensor([[6, 12, 4], [14, 6, 9], [10, 17, 13]], dtype=torch.float64))
    return Source("case", grey.float(), ras_from_voxel, points)


def case_of(points, shape=(30, 40, 50), spacing=(1.0, 1.0, 1.0)):
    matrix = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return Source("case", torch.zeros(shape), matrix, torch.tensor(points, dtype=torch.float64))


def says(*points):
    """Landmarks at places, or missing (None); the uncertainty is the rank."""
    return [
        Landmark(str(n), (0.0, 0.0, 0.0), MISSING) if p is None else Landmark(str(n), tuple(p), FOUND, float(n + 1))
        for n, p in enumerate(points)
    ]


def test_scores_by_hand():
    scores = room("scores")
    nan = [np.nan] * 3
    first = case_of([[5.0, 5, 5], [10, 10, 10], [20, 20, 20], nan])
    second = case_of([[5.0, 5, 5], [10, 10, 10], [99, 5, 5], [1, 1, 1]])  # the third lies outside
    answers = [
        scores.Answer(first, says([5, 5, 6], [10, 14, 13], None, [0, 0, 0]), 1.0),
        scores.Answer(second, says([5, 5, 5], [10, 10, 22], None, [1, 1, 3]), 3.0),
    ]
    diagonal = np.sqrt(30**2 + 40**2 + 50**2)
    result = scores.score(answers)
    assert result["mean_mm"] == pytest.approx((1 + 5 + diagonal + 0 + 12 + 2) / 6)
    assert (result["median_mm"], result["max_mm"]) == (2.0, 12.0)
    assert (result["points"], result["missing"]) == (6, 1)
    assert (result["over_10_mm"], result["over_10_voxels"]) == (2, 2)
    assert (result["absent"], result["sensitivity"]) == (1, 1.0)
    assert result["specificity"] == pytest.approx(5 / 6)
    assert result["seconds"] == 2.0
    # uncertainties 1 2 1 2 4 against errors 1 5 0 12 2
    assert result["spearman"] == pytest.approx(6 / np.sqrt(90))
    # two cases: the interval spans their own means
    assert result["interval"] == pytest.approx(sorted([(6 + diagonal) / 3, 14 / 3]))
    row = scores.write_table({"agent": result}).splitlines()[-1]
    assert "| 1 / 6 | 2 / 6 | 2 / 6 | 0.63 | 2.00 |" in row
    each = scores.score_landmarks(answers)
    assert each["1"] == {"mean_mm": 8.5, "max_mm": 12.0, "shift_ras_mm": [0.0, 2.0, 7.5]}
    assert each["2"] == {"mean_mm": None, "max_mm": None, "shift_ras_mm": None}


def test_a_failure_in_voxels_follows_the_spacing():
    scores = room("scores")
    fine = case_of([[1.0, 1, 1]], spacing=(0.1, 0.1, 0.1))
    result = scores.score([scores.Answer(fine, says([1, 1, 2.5]), 0.0)])
    assert (result["over_10_mm"], result["over_10_voxels"], result["spearman"]) == (0, 1, None)


def test_every_copy_shows_the_same_patient(oblique):
    variants = room("variants")
    for name, make in variants.make_variants(1.0).items():
        copy = make(oblique, torch.Generator().manual_seed(0))
        assert copy is not None, name
        voxels = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in copy.volume.shape))
        wanted = (apply(copy.ras_from_voxel, voxels) @ SLOPE).reshape(copy.volume.shape)
        error = (copy.volume - wanted).abs()
        # where nothing lies beyond, an average or a value between voxels cannot be right
        old = apply(torch.linalg.inv(oblique.ras_from_voxel), apply(copy.ras_from_voxel, voxels)).reshape(
            *error.shape, 3
        )
        reach = 1.0 if name == "slices x3" else 0.0
        inner = ((old >= reach - 1e-6) & (old <= torch.tensor(SHAPE) - 1 - reach + 1e-6)).all(-1)
        assert inner.double().mean() > (0.3 if name == "oblique 12-35°" else 0.7), name
        assert error[inner].max() < 0.01, name
        assert torch.equal(copy.points_ras, oblique.points_ras)
        if name != "background cropped":
            assert not torch.equal(copy.ras_from_voxel, oblique.ras_from_voxel) or "cut" in name


def test_storage_orders_are_what_they_say(oblique):
    variants = room("variants")
    generator = torch.Generator().manual_seed(0)
    turned = variants.turn(oblique, generator).ras_from_voxel[:3, :3] @ torch.linalg.inv(oblique.ras_from_voxel[:3, :3])
    degrees = torch.rad2deg(torch.acos((torch.trace(turned) - 1) / 2))
    assert 12 <= degrees <= 35
    assert torch.linalg.det(variants.flip(oblique, generator).ras_from_voxel) == pytest.approx(
        -float(torch.linalg.det(oblique.ras_from_voxel))
    )
    assert variants.permute(oblique, generator).volume.shape == (24, 18, 20)
    thick = variants.thicken(oblique, generator)
    ratio = thick.ras_from_voxel[:3, :3].norm(dim=0) / oblique.ras_from_voxel[:3, :3].norm(dim=0)
    assert sorted(ratio.tolist()) == pytest.approx([1, 1, 3])


def test_trimming_takes_background_only():
    variants = room("variants")
    volume = torch.zeros(30, 40, 50)
    volume[8:20, 10:30, 5:45] = 100
    source = Source("case", volume, torch.eye(4, dtype=torch.float64), torch.tensor([[5.0, 20, 20]]).double())
    copy = variants.trim(source, torch.Generator(), margin_mm=2.0)
    assert copy.volume.sum() == volume.sum()
    assert copy.volume.shape == (17, 20, 40)
    assert apply(torch.linalg.inv(copy.ras_from_voxel), source.points_ras).tolist() == [[2.0, 10.0, 15.0]]


def test_displacement_is_in_voxels_of_the_finer_spacing():
    scores, variants = room("scores"), room("variants")
    points = [[5.0, 5, 5], [10, 10, 10], [3, 3, 3]]
    before = scores.Answer(case_of(points), says([5, 5, 5], [10, 10, 10], [3, 3, 3]), 0.0)
    after = scores.Answer(case_of(points, spacing=(0.5, 2, 2)), says([5, 5, 6], None, [3, 3, 3]), 0.0)
    assert variants.displacement(before, after).tolist() == [2.0, 0.0]


def test_trivial_baselines():
    baselines = room("baselines")
    first, second = case_of([[16.0, 19.5, 24.5]]), case_of([[12.0, 19.5, 26.5]])
    found = baselines.MeanPosition([first, second], ["a"])(case_of([[0.0, 0, 0]], shape=(11, 11, 11)))
    assert found[0].position_mm == pytest.approx((4.5, 5.0, 6.0))
    shape = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 20
    pose = compose(rotation(torch.tensor([0.5, 1.0, -2.0])), 1.3, torch.tensor([5.0, -7.0, 9.0]))
    truth = apply(pose, shape.double())
    truth[2] = torch.nan
    found = baselines.OracleShape(Anatomy(list("abcde"), shape, torch.ones(5), 1.0))(case_of(truth.tolist()))
    places = torch.tensor([point.position_mm for point in found])
    assert torch.allclose(places, apply(pose, shape.double()).float(), atol=1e-4)


@pytest.mark.parametrize("demons", [False, True])
def test_registration_carries_landmarks_over(demons):
    baselines = room("baselines")
    affine = random_affine(np.random.default_rng(5), (4.0, 4.0, 5.0), oblique_degrees=20.0)
    volume, matrix, points = phantom(np.random.default_rng(0), shape=(28, 28, 28), affine=affine, modality="mr")
    truth = torch.tensor(np.stack(list(points.values())))
    truth[1] = torch.nan
    atlas = Source("atlas", torch.tensor(volume).float(), torch.tensor(matrix), truth)
    moved = compose(rotation(torch.tensor([0.1, -0.05, 0.08])), 1.05, torch.tensor([9.0, -6.0, 4.0]))
    case = Source("case", atlas.volume * 1.5, moved @ atlas.ras_from_voxel, apply(moved, truth))
    anatomy = Anatomy(list(points), torch.zeros(6, 3), torch.ones(6), 4.0)
    found = baselines.AtlasRegistration([atlas], anatomy, demons=demons)(case)
    error = (torch.tensor([point.position_mm for point in found]) - case.points_ras).norm(dim=1)
    assert error[1].isnan()
    before = (truth - case.points_ras).norm(dim=1)
    assert before.nanmean() > 10
    assert torch.nan_to_num(error).max() < (2.0 if demons else 1.0)


def test_heat_maps_are_monais():
    heatmaps = room("heatmaps")
    shape, sigma = (12, 14, 10), 1.0
    anatomy = Anatomy(["a", "b", "c"], torch.zeros(3, 3), torch.ones(3), 2.0)
    unet = heatmaps.HeatmapNet(anatomy, sigma=sigma)
    voxel = torch.tensor([[6.3, 5.2, 4.4], [1.0, 12.0, 5.0], [3.0, 3.0, 3.0]])
    logits = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    heat = GenerateHeatmap(sigma=sigma, spatial_shape=shape, truncated=3.0, normalize=False)(voxel[:1]).flatten()
    chance = logits[0, 0].flatten().softmax(0)
    axes = torch.cartesian_prod(*(torch.arange(n) for n in shape)).float()
    wanted = -(heat / heat.sum() * chance.log()).sum() + (chance @ axes - voxel[0]).norm()
    alone = torch.tensor([[True, False, False]])
    assert float(unet.loss(logits, voxel[None], alone)) == pytest.approx(float(wanted), rel=1e-4)
    # a peaked map is read out below a voxel; stray heat elsewhere does not pull
    peak = -((axes - voxel[0]).square().sum(1)) / 2
    peak = torch.logaddexp(peak, torch.where((axes == torch.tensor([0.0, 0, 9])).all(1), -1.0, -99.0))
    place, spread = unet.read_out(peak.reshape(1, *shape))
    assert torch.allclose(place[0], voxel[0], atol=0.05)
    assert spread[0] > 1.5  # but it counts as doubt


def test_the_unet_learns(tmp_path):
    """Two bodies, nearly unvaried, are learnt to half a voxel in 100 updates; the first answers lie voxels off."""
    heatmaps = room("heatmaps")
    write_phantoms(tmp_path, 4, np.random.default_rng(1), shape=(24, 24, 24), spacing_mm=8.0)
    still = {"rotation_degrees": 0.0, "log_size": 0.0, "deformation_mm": 0.0, "log_gamma": 0.0, "bias": 0.0}
    pool = Pool(
        tmp_path, spacing_mm=12.0, margin_mm=30.0, strides=(1,), count=4, **still, noise=0.0, cut=0.0, shift_mm=20.0
    )
    torch.manual_seed(0)
    unet = heatmaps.HeatmapNet(pool.anatomy, sigma=1.0)
    source = pool.sources[0]

    def error():
        found = torch.tensor([point.position_mm for point in unet(source)])
        return float((found - source.points_ras).norm(dim=1).mean())

    assert error() > 36.0  # mm: three voxels
    assert unet.train(pool, minutes=9.0, most=100, batch=4, rate=3e-3) == 100
    assert error() < 12.0


def test_all_rows_on_phantoms(tmp_path, capsys):
    accuracy = room("accuracy")
    write_phantoms(tmp_path, 6, np.random.default_rng(0), shape=(20, 20, 20), spacing_mm=9.0, test=0.34)
    pool = Pool(tmp_path, spacing_mm=8.0, margin_mm=40.0, strides=(1, 2), size=9, count=2)
    models = tmp_path / "models"
    models.mkdir()
    pool.anatomy.save(models / "anatomy.pt")
    settings = {"width": 4, "hidden": 16, "scales": 2}
    network = FoveaNet(landmarks=6, strides=(1, 2), spacing_mm=8.0, size=9, **settings)
    torch.save(network.state_dict(), models / "model.pt")
    (models / "agent.json").write_text(json.dumps({"network": settings, "walk": {"step_mm": [16.0, 8.0]}}))
    accuracy.main(
        [
            "--bundle", "brain_mri_landmark_detection", "--ckpt_dir", str(models),
            "--dataset_dir", str(tmp_path), "--split", "test", "--unet_minutes", "0.001", "--device", "cpu",
            "--variants", "--pictures", str(tmp_path / "pictures"), "--output", str(tmp_path / "results.json"),
        ]
    )  # fmt: skip
    result = json.loads((tmp_path / "results.json").read_text())
    names = list(result["rows"])
    assert names[:3] == ["mean position", "mean shape at the true pose (oracle)", "agent"]
    assert {"agent, policy moves", "agent, passes 1", "agent, starts 1"} <= set(names)
    assert "agent, policy jumps" not in names  # the default is not listed twice
    assert result["cases"] == 2
    assert (
        result["rows"]["mean shape at the true pose (oracle)"]["mean_mm"] < result["rows"]["mean position"]["mean_mm"]
    )
    assert set(result["per_landmark"]["agent"]) == set(LABELS)
    assert {"flipped", "axes permuted", "oblique 12-35°", "slices x3", "background cropped"} <= set(result["variants"])
    assert result["variants"]["flipped"]["moved_median_voxels"] < 0.01
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"agent_best.png", "agent_worst.png"}
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in names)
    best, worst = min(result["per_case"]["agent"].values()), max(result["per_case"]["agent"].values())
    assert best <= result["rows"]["agent"]["mean_mm"] <= worst
    with pytest.raises(AttributeError):
        accuracy.setting(accuracy.LandmarkInferer(pool.anatomy), "start")


def test_pictures_are_of_the_best_and_the_worst_case(tmp_path, monkeypatch):
    scores = room("scores")
    drawn = []
    monkeypatch.setattr(scores, "draw_landmarks", lambda path, *rest, title, **more: drawn.append((path.name, title)))
    answers = []
    for number, off in enumerate((2.0, 1.0, 3.0)):
        source = case_of([[5.0, 5, 5], [6, 6, 6]])
        source.name = f"c{number}"
        answers.append(scores.Answer(source, says([5, 5, 5 + off], [6, 6, 6]), 0.0))
    scores.draw_extremes(tmp_path, "agent", answers, points=1)
    assert [name for name, _ in drawn] == ["agent_best.png", "agent_worst.png"]
    assert "c1, mean error 0.500 mm; worst 1 points" in drawn[0][1]
    assert "c2, mean error 1.50 mm" in drawn[1][1]


def test_the_pose_of_turned_patients_starts_the_registration(monkeypatch):
    baselines = room("baselines")
    shape = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 20
    anatomy = Anatomy(list("abcdef"), shape, torch.ones(6), 1.0, template=torch.zeros(3, 3, 3, dtype=torch.uint8))
    frames = [compose(rotation(torch.tensor([2.0, -0.7, n])), 1.1, torch.tensor([n, 5.0, -3.0])) for n in (0.1, 3.0)]
    atlas, source = (case_of(apply(torch.linalg.inv(frame), shape.double()).tolist()) for frame in frames)
    monkeypatch.setattr(baselines, "search_pose", lambda *_: (frames[1], 1.0))
    start = baselines.AtlasRegistration([atlas], anatomy)._start(atlas, source)
    assert torch.allclose(apply(start, atlas.points_ras), source.points_ras, atol=1e-3)

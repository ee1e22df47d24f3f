"""Training of a cutter along clips, and validation and keeping of a cutting policy."""

from __future__ import annotations

import pytest
import torch
from cutting_examples import BrightCutter, moving_squares, small_cutting_task
from torch import nn

from medrl.data.video_phantoms import write_video_phantoms
from medrl.networks.cutter import Cutter
from medrl.networks.image_vector_policy import ImageVectorPolicy
from medrl.tasks.cutting import CuttingTask
from medrl.training.cutter import _changed, cutter_of, train_cutter
from medrl.training.cutting import BestCutting, CuttingEvaluator, measure_policy, read_video_cases


def small_policy() -> ImageVectorPolicy:
    image, vector = (small_cutting_task().observation_space[name].shape for name in ("image", "vector"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageVectorPolicy(
            channels=image[0], size=image[1], features=vector[0], actions=(9, 3), hidden=8, width=4
        )


def test_a_cutter_learns_to_cut_squares():
    torch.manual_seed(0)
    cases = moving_squares()
    network = Cutter(widths=(8, 16))
    before = small_loss(network, cases)
    trained = train_cutter(network, cases, updates=60, batch_size=16, size=12, average=5.0, learning_rate=1e-2)
    assert small_loss(trained, cases) < 0.5 * before
    assert not any(p.requires_grad for p in trained.parameters())


def small_loss(network: nn.Module, cases) -> float:
    """Share of wrong pixels under the true boxes."""
    task = CuttingTask(cases, cutter=network, size=12)
    case, frame = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 3, 4, 2])
    context = torch.tensor([0, 1, 2, 1])
    state = task.given(case, frame - 1, cases.box[case, frame], context, cases.truth[case, frame - 1])
    mask = task.cut(state._replace(frame=frame))
    return float((cases.unpacked(mask) != cases.unpacked(cases.truth[case, frame])).float().mean())


def test_pairs_and_truths_are_mirrored_alike(torch_generator):
    pair = torch.rand(6, 10, 6, 6, generator=torch_generator)
    truth = pair[:, 6:7].clone()
    changed, moved, _ = _changed(pair, truth, torch_generator)
    assert torch.equal(changed[:, 6:7], moved)
    assert not torch.equal(moved, truth)
    same = pair.clone()
    same[:, 3:6] = same[:, :3]  # equal frames stay equal, whatever happens to their colours
    changed, _, _ = _changed(same, truth, torch_generator)
    assert torch.equal(changed[:, :3], changed[:, 3:6])
    assert not torch.allclose(changed[:, :3], same[:, :3])


def test_a_trained_cutter_is_read_again(tmp_path):
    cases, options, training = moving_squares(), {"widths": [4, 8]}, {"updates": 2, "batch_size": 4, "size": 12}
    torch.manual_seed(0)
    first = cutter_of(tmp_path, cases, options=options, training=training)
    written = (tmp_path / "cutter.pt").stat().st_mtime_ns
    again = cutter_of(tmp_path, cases, options=options, training=training)
    assert (tmp_path / "cutter.pt").stat().st_mtime_ns == written
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    cutter_of(tmp_path, cases, options=options, training=training, resume=False)
    assert (tmp_path / "cutter.pt").stat().st_mtime_ns > written


def test_the_best_policy_is_kept(tmp_path):
    task = small_cutting_task(random_start=False)
    policy = small_policy()
    best = BestCutting(tmp_path, cutter=BrightCutter(), settings={"inference": {"longest": 24}})
    evaluator = CuttingEvaluator(device="cpu", task=task, network=policy, val_handlers=[best])
    evaluator.run()
    expected = measure_policy(task, policy.eval())
    assert evaluator.state.metrics["val_J"] == pytest.approx(expected["J"])
    assert best.best == pytest.approx(expected["J"])
    assert torch.load(tmp_path / "model.pt", weights_only=True)
    first = best.state_dict()["weights"]
    policy.policy_head[-1].bias.data[8] = 50.0  # stops at once
    best.best = 2.0
    evaluator.run()
    assert best.weights is first  # no better: not kept


def test_videos_of_a_dataset_and_phantoms(tmp_path):
    write_video_phantoms(tmp_path, 5, frames=3, size=(20, 20))
    cases = read_video_cases(tmp_path, "training", canvas=(16, 16))
    assert cases.frames.shape == (3, 3, 3, 16, 16)
    assert cases.names[0] == "phantom_000"
    assert len(read_video_cases(tmp_path, "training", canvas=(16, 16), phantoms=2)) == 2

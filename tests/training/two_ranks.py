"""What each rank of test_parallel.py runs: ``two_ranks.py FILE FOLDER`` under the environment variables of torchrun."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from monai.handlers import CheckpointSaver, ValidationHandler
from torch import Tensor, nn

from medrl.agents.cloning import Cloning
from medrl.agents.dqn import DQN
from medrl.data.cases import Cases, Source
from medrl.environment import Environment
from medrl.experience import Replay
from medrl.networks.concentric import ConcentricNet
from medrl.tasks.landmark import LandmarkTask
from medrl.training.evaluator import RLEvaluator
from medrl.training.metrics import landmark_metrics
from medrl.training.parallel import average_gradients, connect, finalize, initialize, rank_seed, ranks
from medrl.training.trainer import RLTrainer
from medrl.types import Landmark


def train(seed: int, *, initial: int) -> dict[str, dict[str, Tensor]]:
    """Five updates of both agents on data of ``seed``, from weights of ``initial``; returns their networks."""
    generator = torch.Generator().manual_seed(0)
    volumes = [torch.randint(1, 255, (16, 16, 16), generator=generator, dtype=torch.uint8) for _ in range(2)]
    points = 10 * (torch.rand(2, 2, 3, generator=generator) - 0.5)
    cases = Cases(volumes, points, labels=("a", "b"), spacing_mm=1.0, strides=(1, 2))
    task = LandmarkTask(cases, size=7, step_mm=(3.0, 1.0), max_steps=8)

    def network() -> ConcentricNet:
        torch.manual_seed(initial)
        return ConcentricNet(landmarks=2, levels=2, size=7, scales=2, width=4, hidden=16)

    cloning = connect(Cloning(network(), task=task, batch_size=8, updates=50, bf16=False, seed=seed))
    for _ in range(5):
        cloning.learn()
    environment = Environment(task, num_envs=8, seed=seed)
    replay = Replay(task, capacity=80, num_envs=8, alpha=0.5, seed=seed)
    dqn = connect(DQN(network(), replay=replay, batch_size=8, warm_up=16, updates=50, bf16=False, seed=seed))
    observation = environment.reset()
    while dqn.update < 5:
        state, action = environment.state, dqn.act(observation, explore=True).action
        step = environment.step(action)
        dqn.record(state, action, step)
        observation = step.observation
        if dqn.ready:
            dqn.learn()
    return {"cloning": cloning.state_dict(), "dqn": dqn.state_dict()}


def validate(rank: int, folder: str) -> float:
    """The mean error over both ranks' cases after a training of the engines; rank 0 alone saves."""
    saver = [
        CheckpointSaver(folder, {"model": nn.Linear(1, 1)}, save_key_metric=True, key_metric_negative_sign=True)
        for _ in range(1 - rank)
    ]
    errors = [[2.0, 2.0], [4.0, 6.0]][rank]
    truth = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    source = Source(f"case{rank}", torch.zeros(4, 4, 4), torch.eye(4, dtype=torch.float64), truth)
    found = [Landmark(str(n), (*truth[n, :2].tolist(), float(truth[n, 2]) + e)) for n, e in enumerate(errors)]
    agent = SimpleNamespace(
        network=nn.Linear(1, 1), optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))]), ready=True,
        learn=lambda: {"loss": torch.tensor(1.0)},
    )  # fmt: skip
    evaluator = RLEvaluator(
        device="cpu", val_data_loader=[source], network=agent.network, inferer=SimpleNamespace(locate=lambda *_: found),
        additional_metrics=landmark_metrics(), val_handlers=saver,
    )  # fmt: skip
    RLTrainer(
        device="cpu", max_epochs=1, epoch_length=2, agent=agent, train_handlers=[ValidationHandler(1, evaluator)]
    ).run()
    return evaluator.state.metrics["val_error_mm"]


def share(rank: int) -> dict[str, Tensor]:
    """Gradients and a buffer that differ by rank, averaged."""
    first, second = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    first.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 1:
        second.grad = torch.tensor([8.0, -2.0])  # rank 0 has none
    buffer = torch.tensor([10.0 * rank, 5.0])
    average_gradients([first, second, frozen], buffers=[buffer])
    return {"first": first.grad, "second": second.grad, "buffer": buffer}


if __name__ == "__main__":
    torch.set_num_threads(1)
    initialize("gloo")
    rank = torch.distributed.get_rank()
    result = {"ranks": ranks(), "seed": rank_seed(5), "error_mm": validate(rank, sys.argv[2]), "shared": share(rank)}
    result["trained"] = train(rank_seed(5), initial=rank)  # rank 1 begins with other weights
    torch.save(result, sys.argv[1])
    finalize()

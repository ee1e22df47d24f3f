"""One training on several devices under torchrun: every rank walks and replays on its own, gradients are shared.

Each rank has its own environment, replay and seeds; once an update one flat buffer is summed over the ranks [the
scheme of rsl_rl].  So all networks stay equal, bit by bit, and no wrapper is put round them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn

SEED_STRIDE = 1_000_003


def initialize(backend: str | None = None) -> torch.device:
    """Join the ranks that torchrun started (nothing to do for a single one); returns this rank's device.

    ``backend`` is nccl where there is CUDA, else gloo.
    """
    cuda = torch.cuda.is_available() and backend != "gloo"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(backend or ("nccl" if cuda else "gloo"))
        # ignite opens a group of its own at its first use, which all ranks must do together: a CheckpointSaver on
        # one rank only would wait for the others for ever
        idist.sync()
    return device


def finalize() -> None:
    """Leave the group, if there is one."""
    if idist.model_name() == "native-dist":
        idist.finalize()
    elif dist.is_initialized():
        dist.destroy_process_group()


def ranks() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank_seed(seed: int) -> int:
    """A seed of this rank's own, so that ranks see different data; rank 0 keeps ``seed``."""
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))
    return seed + SEED_STRIDE * rank


def connect(agent: Any) -> Any:
    """Give all ranks rank 0's networks, and let the agent average its gradients before every step; returns it."""
    if ranks() > 1:
        broadcast_parameters(agent)
        # running statistics of normalisation layers differ by rank like gradients do, and are averaged with them
        buffers = [b for b in agent.network.buffers() if b.is_floating_point()]
        agent.gradient_hook = partial(average_gradients, buffers=buffers)
    return agent


@torch.no_grad()
def broadcast_parameters(module: nn.Module, source: int = 0) -> None:
    """Overwrite parameters and buffers by those of one rank."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.detach(), source)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], *, buffers: Iterable[Tensor] = ()) -> None:
    """Replace gradients, and float buffers, by their means over the ranks: one flat all-reduce.

    A parameter without a gradient counts as zero, so that the ranks' buffers match whatever a loss left out.
    """
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    tensors = [*(p.grad for p in trained), *buffers]
    flat = torch.cat([t.reshape(-1).float() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.reshape(tensor.shape))

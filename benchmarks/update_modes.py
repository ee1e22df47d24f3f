"""One update in several ways: other memory layout, CUDA graph, torch.compile; and how to compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medrl.agents.dqn import DQN


def prepare(agent: DQN, mode: str, device: torch.device) -> Callable[[], Any]:
    """The update in a mode, as a function; the agent's networks and draws stay as they were."""
    networks = (agent.network, agent.target, agent.average)
    if "channels_last_3d" in mode:
        for network in networks:
            network.to(memory_format=torch.channels_last_3d)
    if "torch.compile" in mode:
        options: dict[str, Any] = {"dynamic": False} | ({} if device.type == "cuda" else {"backend": "eager"})
        for network in networks:
            network.compile(**options)
            if hasattr(network, "locate"):  # what an update calls instead of forward where places are voted for
                network.locate = torch.compile(network.locate, **options)
    if "CUDA graph" not in mode or device.type != "cuda":
        return agent.learn
    for group in agent.optimizer.param_groups:
        group["capturable"] = True
    before = keep(agent)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            agent.learn()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(agent.replay.generator)
    agent.optimizer.zero_grad(set_to_none=True)
    # the learning rate and the pace of the averages are numbers: the graph keeps those of this update
    with torch.cuda.graph(graph):
        agent.learn()
    restore(agent, before)
    return graph.replay


def keep(agent: DQN) -> dict[str, Any]:
    """A copy of what the first update depends on."""
    copies = [{k: v.clone() for k, v in n.state_dict().items()} for n in (agent.network, agent.target, agent.average)]
    return {"networks": copies, "generator": agent.replay.generator.get_state()}


def restore(agent: DQN, before: dict[str, Any]) -> None:
    """Undo updates in place, so that a captured graph still finds its tensors."""
    for network, saved in zip((agent.network, agent.target, agent.average), before["networks"], strict=True):
        network.load_state_dict(saved)
    agent.replay.generator.set_state(before["generator"])


def first_gradient(agent: DQN, learn: Callable[[], Any]) -> Tensor:
    """All gradients of the next update, in one vector."""
    learn()
    gradients = [p.grad for p in agent.network.parameters() if p.grad is not None]
    return torch.cat([g.detach().float().reshape(-1) for g in gradients])

"""The networks of an interactive segmentation in one module, so that a bundle has one ``network_def``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medrl.types import InputError

AGENT_CHANNELS = 6  # of an observation of ``medrl.tasks.seeding``; anything else is a click network's input


class SeedNetworks(nn.Module):
    """Seeding agents and click networks for slices and volumes.

    Args:
        agents: ``medrl.networks.seednet.SeedNet`` for slices, for volumes or for both, as their ``dims`` tell.
        clicks: ``medrl.networks.click_network.ClickNet``, likewise.
    """

    def __init__(self, agents: Sequence[nn.Module], clicks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.agents = nn.ModuleDict({str(network.dims): network for network in agents})
        self.clicks = nn.ModuleDict({str(network.dims): network for network in clicks})

    def forward(self, image: Tensor) -> Tensor:
        """Ask the network that the number of channels and axes of ``image`` (B, C, *S) is meant for."""
        axes = image.ndim - 2
        return self.agent(axes)(image) if image.shape[1] == AGENT_CHANNELS else self.click(axes)(image)

    def agent(self, axes: int) -> nn.Module:
        """The agent for slices (2) or volumes (3); InputError if it was not trained."""
        return _pick(self.agents, axes, "agent")

    def has_agent(self, axes: int) -> bool:
        """Whether there is an agent for slices (2) or volumes (3)."""
        return str(axes) in self.agents

    def has_click(self, axes: int) -> bool:
        """Whether there is a click network for slices (2) or volumes (3)."""
        return str(axes) in self.clicks

    def click(self, axes: int) -> nn.Module:
        """The click network for slices (2) or volumes (3); InputError if it was not trained."""
        return _pick(self.clicks, axes, "click network")


def compact_weights(network: nn.Module) -> dict[str, Tensor]:
    """A state dict in half precision on the CPU, for a file: what parts of a network share is there once."""
    made: dict[int, Tensor] = {}
    for value in network.state_dict().values():
        small = value.half() if value.is_floating_point() else value
        made.setdefault(value.data_ptr(), small.detach().cpu())
    return {name: made[value.data_ptr()] for name, value in network.state_dict().items()}


def _pick(networks: nn.ModuleDict, axes: int, kind: str) -> nn.Module:
    if str(axes) not in networks:
        image = "a single slice" if axes == 2 else "a volume"
        raise InputError(f"the weights hold no {kind} for {image}; train with --axes {axes}, or choose another mode")
    return networks[str(axes)]

"""Supervised training of a cutter, along clips, on the masks that it drew itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medrl.agents.base import schedule
from medrl.data.seed_cases import pack
from medrl.data.video_cases import VideoCases, filled
from medrl.data.write import whole_file
from medrl.geometry.boxes import from_middle_and_size, middle_and_size
from medrl.geometry.pasting import paste_boxes
from medrl.networks.cutter import Cutter, cut_loss
from medrl.tasks.cutting import CONTEXTS, CuttingTask
from medrl.training.parallel import rank_seed

logger = logging.getLogger(__name__)

RESTART = 0.04  # chance a step of going on in another clip
FILLED = 0.1  # chance that a clip starts with a filled box in the place of the mask before


def cutter_of(
    folder: Path | str, cases: VideoCases, *, options: dict[str, Any], training: dict[str, Any], resume: bool = True,
    seed: int = 0,
) -> nn.Module:  # fmt: skip
    """The frozen cutter in ``<folder>/cutter.pt``; trained and written there where there is none to resume from."""
    path = Path(folder) / "cutter.pt"
    network = Cutter(**options).to(cases.device)
    if resume and path.is_file():
        network.load_state_dict(torch.load(path, map_location=cases.device, weights_only=True))
        return network.eval().requires_grad_(False)
    network = train_cutter(network, cases, seed=seed, **training)
    if rank_seed(0) == 0:
        with whole_file(path) as part:
            torch.save(network.state_dict(), part)
    return network


def train_cutter(
    network: nn.Module, cases: VideoCases, *, updates: int = 1500, batch_size: int = 64, learning_rate: float = 3e-3,
    size: int = 32, shift: float = 0.12, growth: float = 0.12, average: float = 40.0, seed: int = 0,
    log_every: int = 100,
) -> nn.Module:  # fmt: skip
    """Train a cutter; returns its weight average, frozen.

    Rows walk along clips.  Each step cuts under the true box, moved and resized at random (``shift`` and ``growth``,
    standard deviations in sides; a third of the boxes twice as far), in a random context, with the network's own last
    mask as the mask before: so it learns to mend its own mistakes.  Pairs are mirrored and recoloured.
    """
    task = CuttingTask(cases, cutter=network, size=size)
    network.train().requires_grad_(True)
    device, generator = cases.device, torch.Generator(cases.device).manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    kept = [value.detach().clone() for value in network.parameters()]
    case, frame, previous = _start(task, batch_size, generator)
    total = torch.zeros((), device=device)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(update, updates, warm_up=50)
        box = task.kept(case, _jittered(cases.box[case, frame], shift, growth, generator))
        context = torch.randint(len(CONTEXTS), case.shape, generator=generator, device=device)
        around = task.context_box(box, context)
        pair = task.pair(case, frame, box, context, previous)
        truth = cases.crop_mask(cases.truth[case, frame], around, size)
        pair, truth, mirrored = _changed(pair, truth, generator)
        logits = network(pair)
        loss = cut_loss(logits, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(0.5 ** (1 / average), (update + 1) / (update + 10))
            torch._foreach_lerp_(kept, list(network.parameters()), 1 - keep)
            drawn = _mirrored(logits.detach(), *mirrored)[:, 0]
            previous = pack((paste_boxes(drawn, around, cases.shape) > 0).flatten(1))
            again = (frame >= cases.length[case] - 1) | _chance(case, RESTART, generator)
            fresh = _start(task, batch_size, generator)
            case, frame = torch.where(again, fresh[0], case), torch.where(again, fresh[1], frame + 1)
            previous = torch.where(again[:, None], fresh[2], previous)
            total += loss.detach()
        if update % log_every == log_every - 1:
            logger.info("cutter: update %d, loss %.4f", update + 1, float(total) / log_every)
            total.zero_()
    for value, mean in zip(network.parameters(), kept, strict=True):
        value.data.copy_(mean)
    return network.eval().requires_grad_(False)


def _start(task: CuttingTask, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Cases (B,), second frames (B,) and true masks (B, P) of those before; some start without a mask."""
    cases = task.cases
    case = torch.randint(len(cases), (count,), generator=generator, device=cases.device)
    state = task.initial(case, generator)
    frame = state.frame.long()
    bare = _chance(case, FILLED, generator) & (frame > 0)
    mask = torch.where(bare[:, None], filled(state.box, cases.shape), state.mask)
    return case, torch.where(bare, frame, frame + 1), mask


def _jittered(box: Tensor, shift: float, growth: float, generator: torch.Generator) -> Tensor:
    middle, side = middle_and_size(box)
    noise = torch.randn((len(box), 4), generator=generator, device=box.device)
    far = 1 + _chance(box[:, 0], 1 / 3, generator).float()[:, None]
    return from_middle_and_size(middle + far * shift * noise[:, :2] * side, side * (far * growth * noise[:, 2:]).exp())


def _changed(
    pair: Tensor, truth: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Pairs and truths mirrored, the colours of both frames permuted, scaled and inverted alike."""
    mirrored = _chance(pair[:, 0, 0, 0], 0.5, generator), _chance(pair[:, 0, 0, 0], 0.5, generator)
    order = torch.rand((len(pair), 3), generator=generator, device=pair.device).argsort(1)
    colours = pair[:, :6].unflatten(1, (2, 3))
    index = order[:, None, :, None, None].expand_as(colours)
    colours = colours.gather(2, index)
    gain = 1 + 0.2 * torch.randn((len(pair), 1, 3, 1, 1), generator=generator, device=pair.device)
    shift = 0.1 * torch.randn((len(pair), 1, 3, 1, 1), generator=generator, device=pair.device)
    flip = _chance(order[:, :1], 0.5, generator)[:, :, None, None, None]
    colours = torch.where(flip, 1 - colours, colours)
    colours = ((colours - 0.5) * gain + 0.5 + shift).clamp(0, 1).flatten(1, 2)
    return _mirrored(torch.cat([colours, pair[:, 6:]], 1), *mirrored), _mirrored(truth, *mirrored), mirrored


def _mirrored(images: Tensor, across: Tensor, along: Tensor) -> Tensor:
    images = torch.where(across[:, None, None, None], images.flip(-1), images)
    return torch.where(along[:, None, None, None], images.flip(-2), images)


def _chance(like: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device) < chance

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
from medrl.inference.cutting_walk import given_first
from medrl.networks.cutter import Cutter, cut_loss
from medrl.tasks.cutting import CONTEXTS, CuttingState, CuttingTask
from medrl.training.parallel import rank_seed
from medrl.types import where

logger = logging.getLogger(__name__)

RESTART = 0.02  # chance a step of going on in another clip
FIRST = 0.5  # share of clips that start with the first frame
SPOILT = 0.1  # share of masks before that are replaced
FAR = 0.1  # share of boxes that are moved by about a side
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

    Rows walk along clips, half of them from the first frame on.  Each step cuts under the true box, moved and resized
    at random (``shift`` and ``growth``, standard deviations in sides; a third of the boxes twice as far, some so far
    that nothing is to be cut), in a random context, with the network's own last mask as the mask before: so it learns
    to mend its own mistakes.  Some masks before are spoilt, so that it learns to mend what it would never do under such
    boxes.  Pairs are mirrored and recoloured.
    """
    task = CuttingTask(cases, cutter=network, size=size)
    network.train().requires_grad_(True)
    device, generator = cases.device, torch.Generator(cases.device).manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    kept = [value.detach().clone() for value in network.parameters()]
    state = _start(task, batch_size, generator)
    total = torch.zeros((), device=device)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(update, updates, warm_up=50)
        case, frame = state.case.long(), state.frame.long()
        box = task.kept(case, _jittered(cases.box[case, frame], shift, growth, generator))
        context = torch.randint(len(CONTEXTS), case.shape, generator=generator, device=device)
        state = state._replace(box=box, context=context, previous=_spoilt(task, state, generator))
        around = task.context_box(box, context)
        truth = cases.crop_mask(cases.truth[case, frame], around, size)
        pair, truth, mirrored = _changed(task.pair(state), truth, generator)
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
            mask = pack((paste_boxes(drawn, around, cases.shape) > 0).flatten(1))
            again = (frame >= cases.length[case] - 1) | _chance(case, RESTART, generator)
            known = torch.where((state.frame == state.given)[:, None], mask, state.known)
            state = state._replace(frame=state.frame + 1, known=known, previous=mask)
            state = where(again, _start(task, batch_size, generator), state)
            total += loss.detach()
        if update % log_every == log_every - 1:
            logger.info("cutter: update %d, loss %.4f", update + 1, float(total) / log_every)
            total.zero_()
    for value, mean in zip(network.parameters(), kept, strict=True):
        value.data.copy_(mean)
    return network.eval().requires_grad_(False)


def _start(task: CuttingTask, count: int, generator: torch.Generator) -> CuttingState:
    """Second frames of clips, after a true mask; or first ones, whose box alone is given."""
    cases = task.cases
    case = torch.randint(len(cases), (count,), generator=generator, device=cases.device)
    state = where(_chance(case, FIRST, generator), given_first(task, case), task.initial(case, generator))
    bare = _chance(case, FILLED, generator)
    mask = torch.where(bare[:, None], filled(state.box, cases.shape), state.mask)
    frame = torch.where(bare, state.frame, state.frame + 1)
    return state._replace(known=mask, frame=frame.to(state.frame.dtype), previous=mask, context=state.context.long())


def _spoilt(task: CuttingTask, state: CuttingState, generator: torch.Generator) -> Tensor:
    """Masks before (B, P), some of them empty, or elsewhere, or elsewhere, too."""
    middle, side = middle_and_size(state.box)
    noise = torch.randn(side.shape, generator=generator, device=side.device)
    elsewhere = filled(from_middle_and_size(middle + 0.7 * noise * side, 0.7 * side), task.cases.shape)
    kind = torch.rand(len(side), generator=generator, device=side.device)[:, None] / SPOILT
    kind = torch.where((state.frame == state.given)[:, None], 1.0, kind)  # there is no mask before but the box
    spoilt = torch.where(kind < 2 / 3, elsewhere, state.previous | elsewhere)
    return torch.where(kind < 1 / 3, 0, torch.where(kind < 1, spoilt, state.previous))


def _jittered(box: Tensor, shift: float, growth: float, generator: torch.Generator) -> Tensor:
    middle, side = middle_and_size(box)
    noise = torch.randn((len(box), 4), generator=generator, device=box.device)
    far = 1 + _chance(box[:, 0], 1 / 3, generator).float()[:, None]
    shift = torch.where(_chance(far, FAR, generator), 0.5 / far, shift)
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

"""What localisation.py measures of an agent, a regressor, the expert and random walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from localisation_arms import regress, regressed
from report import markdown
from torch import Tensor

from medrl.data.box_cases import BoxCases
from medrl.geometry.boxes import iou, suppress
from medrl.inference.localisation import follow, refine, search
from medrl.inference.localisation_assessment import (
    Judged,
    average_precision,
    best_threshold,
    bootstrap,
    f1,
    fit_chance,
    image_f1,
    judge,
)
from medrl.networks.localisation import BoxRegressor, LocalisationNet
from medrl.tasks.localisation import LocalisationTask
from medrl.types import where

PART = 100  # images searched at once
LIMIT = 4  # finds an image

Answers = Callable[[BoxCases, int], list[tuple[Tensor, Tensor]]]  # boxes and logits of every image


def expert_ceiling(sections: dict[str, BoxCases]) -> dict[str, Any]:
    """The greedy IoU expert from the whole image, and the best of its five starts."""
    cases = sections["test"]
    task = LocalisationTask(cases)
    case = torch.arange(len(cases))[cases.present.any(1)]
    ends, steps = [], []
    for start in range(len(task.starts)):
        state, count = task.start(case, start), torch.zeros(len(case))
        done = torch.zeros(len(case), dtype=torch.bool)
        for _ in range(task.max_steps):
            gain, action = task.action_gains(state)[:, : task.trigger].max(1)
            done = done | (gain <= 0)
            state, count = where(done, state, task.advance(state, action)), count + ~done
        ends.append(task.score(state))
        steps.append(count)
    best = torch.stack(ends).amax(0)
    out = _rates(best) | {"start_success50": float((ends[0] >= 0.5).float().mean())}
    return out | {"start_success70": float((ends[0] >= 0.7).float().mean()), "steps": float(steps[0].median())}


def random_walks(sections: dict[str, BoxCases], steps: int = 12) -> dict[str, Any]:
    """Where random moves from the whole image end."""
    cases = sections["test"]
    task, generator = LocalisationTask(cases), torch.Generator().manual_seed(0)
    state = task.start(torch.arange(len(cases))[cases.present.any(1)])
    for _ in range(steps):
        state = task.advance(state, torch.randint(task.trigger, (len(state.case),), generator=generator))
    return _rates(task.score(state))


@torch.no_grad()
def agent_answers(
    network: LocalisationNet, cases: BoxCases, *, attended: bool = True, limit: int = LIMIT, patience: int = 2,
    floor: float = -2.5,
) -> Any:  # fmt: skip
    """Detections of all images, best first: boxes (K, 2 D), logits (K,), steps (K,), actions spent (K,)."""
    task, out = LocalisationTask(cases), []
    for part in torch.arange(len(cases)).split(PART):
        found = search(task, network, part, limit=limit, patience=patience, floor=floor, attended=attended)
        for n in range(len(part)):
            order = found.logit[n].argsort(descending=True)
            order = order[found.logit[n][order].isfinite()]
            out.append((found.box[n][order], found.logit[n][order], found.steps[n][order], found.spent[n][order]))
    return out


@torch.no_grad()
def regressor_answers(network: BoxRegressor, cases: BoxCases, *, starts: int = 1) -> Any:
    """One box from the view of the whole image, or those of all five starts of which none overlaps a better one."""
    task, out = LocalisationTask(cases), []
    for part in torch.arange(len(cases)).split(PART):
        boxes, logits = [], []
        for start in range(starts):
            box, logit = regress(task, network, task.start(part, start))
            boxes.append(regressed(task, network, box, part))
            logits.append(logit)
        box, logit = torch.stack(boxes, 1), torch.stack(logits, 1)
        for row in range(len(part)):
            kept = suppress(box[row], logit[row], overlap=0.4)
            out.append((box[row][kept], logit[row][kept]))
    return out


def measure_agent(
    network: LocalisationNet, sections: dict[str, BoxCases], regressor: Any = None, *, brief: bool = False
) -> dict[str, Any]:
    """All figures of an agent; scores are calibrated, and the threshold of F1 is set, on the validation section.

    ``brief`` leaves out what takes several rounds, and the boxes where it triggered.
    """
    network.eval()
    figures = {} if brief else _measure(lambda cases: agent_answers(network, cases), sections)
    floor = figures.get("threshold_logit", 0.0)
    cases = sections["test"]
    for name, attended in (("", True),) if brief else (("", True), ("trigger_", False)):
        found = agent_answers(network, cases, attended=attended, limit=1, floor=floor)
        figures |= {f"{name}{key}": value for key, value in _rates(_first_iou(found, cases)).items()}
        if attended:
            figures["steps"] = float(np.median([int(f[2][0]) for f in found if len(f[2])]))
            figures["spent"] = float(np.median([int(f[3][0]) for f in found if len(f[3])]))
    task = LocalisationTask(cases)
    walks = follow(task, network, task.start(torch.arange(len(cases))))
    figures["triggered"] = float(walks.triggered.float().mean())
    ended = task.score(task.start(torch.arange(len(cases)), box=walks.box[-1]))
    figures["start_success50"] = float((ended >= 0.5).float().mean())
    if regressor is not None:
        case = torch.arange(len(cases))
        with torch.no_grad():
            box = regressed(task, regressor, regress(task, regressor, task.start(case))[0], case)
        refined = refine(task, network, case, box)[0]
        figures |= {f"refined_{key}": value for key, value in _rates(_iou_with_any(refined, cases, case)).items()}
    return figures


def measure_regressor(network: BoxRegressor, sections: dict[str, BoxCases]) -> dict[str, Any]:
    """All figures of a regressor, from the whole image; AP and F1 also of its five views."""
    cases = sections["test"]
    figures = _measure(lambda part: regressor_answers(network, part), sections)
    five = _measure(lambda part: regressor_answers(network, part, starts=5), sections)
    figures |= {f"five_{name}": five[name] for name in five}
    return figures | _rates(_first_iou(regressor_answers(network, cases), cases))


def _measure(answers: Any, sections: dict[str, BoxCases]) -> dict[str, Any]:
    """AP50 and F1 with their intervals, on "many" where there is one, else on "test"."""
    held, cases = sections["validation"], sections.get("many", sections["test"])
    tuned = _judged(answers(held), held)
    slope, bias = fit_chance(
        np.concatenate([image.score for image in tuned]), np.concatenate([image.right for image in tuned])
    )
    threshold = best_threshold(tuned)
    images = _judged(answers(cases), cases)
    chance = float(1 / (1 + np.exp(-slope * threshold - bias)))
    figures: dict[str, Any] = {"slope": slope, "bias": bias, "threshold": chance, "threshold_logit": threshold}
    measures: dict[str, Callable[[Sequence[Judged]], float]] = {
        "ap50": average_precision, "f1": lambda part: f1(part, threshold),
        "image_f1": lambda part: image_f1(part, threshold),
    }  # fmt: skip
    for name, measure in measures.items():
        figures[name], *interval = bootstrap(images, measure, draws=200)
        figures[f"{name}_interval"] = interval
    for count in sorted({image.objects for image in images}):
        part = [image for image in images if image.objects == count]
        figures[f"image_f1_{count}"] = image_f1(part, threshold)
    chance = 1 / (1 + np.exp(-(slope * np.concatenate([i.score for i in images]) + bias)))
    right = np.concatenate([i.right for i in images])
    figures["brier"] = float(((chance - right) ** 2).mean()) if len(right) else float("nan")
    return figures


def _judged(found: Any, cases: BoxCases) -> list[Judged]:
    return [judge(f[0], f[1], cases.boxes[n][cases.present[n]]) for n, f in enumerate(found)]


def _first_iou(found: Any, cases: BoxCases) -> Tensor:
    """IoU of each image's best box with any object, of the images that have one."""
    filled = torch.stack([f[0][0] if len(f[0]) else torch.zeros(2 * cases.dims) for f in found])
    return _iou_with_any(filled, cases, torch.arange(len(cases)))


def _iou_with_any(box: Tensor, cases: BoxCases, case: Tensor) -> Tensor:
    best = (iou(box[:, None], cases.boxes[case]) * cases.present[case]).amax(1)
    return best[cases.present[case].any(1)]


def _rates(best: Tensor) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for percent in (50, 70):
        hits = (best >= percent / 100).double().numpy()
        name = f"success{percent}"
        out[name], *out[f"{name}_interval"] = bootstrap(list(hits), lambda part: float(np.mean(part)), draws=300)
    return out


COLUMNS = {
    "success50": "success at IoU 0.5", "success70": "at IoU 0.7", "refined_success70": "regressor refined, at 0.7",
    "ap50": "AP50", "f1": "F1", "image_f1": "F1 an image", "steps": "median steps", "spent": "of all starts before",
}  # fmt: skip


def summarise(results: dict[str, dict[str, Any]]) -> str:
    """The table: the mean over seeds, and the mean 95 % interval over images."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, figures in results.items():
        arms.setdefault(name.rsplit(" ", 1)[0] if name[-1].isdigit() else name, []).append(figures)
    lines = []
    for arm, runs in arms.items():
        cells = [f"{arm} ({len(runs)})"]
        for column in COLUMNS:
            values = [run[column] for run in runs if column in run]
            if not values:
                cells.append("")
                continue
            digits = 1 if column in ("steps", "spent") else 3
            cell = f"{np.mean(values):.{digits}f}"
            bounds = [run[f"{column}_interval"] for run in runs if f"{column}_interval" in run]
            if bounds:
                low, high = np.mean(bounds, 0)
                cell += f" [{low:.3f}, {high:.3f}]"
            cells.append(cell)
        lines.append(cells)
    return markdown(("arm (seeds)", *COLUMNS.values()), lines)

"""Success of registrations against known misalignments, beside doing nothing and mutual information.

    python benchmarks/registration.py --data pairs/sts [--sections validation] [--levels medium large] [--per-pair 2]
        [--rows identity single multi reference climb agent climbed polished --bundle bundles/NAME]
        [--features MODELS/features] [--subset PAIR ...] [--ball]
        [--seed 0] [--jobs 1] [--picture success.png] [--output results.json]

Rows:

identity   no registration
single     mutual information from the centres laid on each other
multi      mutual information from many orientations, best metric wins
reference  mutual information on the finest grid from the reference itself: about the most that a start can give
climb      the bundle's search, then the plain climb of the learned similarity
agent      the bundle's agent alone, from the same proposals
climbed    the climb, then the bundle's polish
polished   the agent, then the bundle's polish: its default

``--data`` is a folder with the dataset.json of aligned pairs, as data_scripts/prepare_pairs.py writes it.  The error of
a success is below 10 mm where the reference is true to some millimetres, and below 2 mm where it is exact.  ``--ball``
keeps only a ball of the moving image, a control of what the edges of its box tell.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from report import figure, markdown

from medrl.bundle import load
from medrl.data.misalignment import LEVELS
from medrl.data.pairs import EXACT
from medrl.data.write import write_json
from medrl.geometry.transforms import rotation_vector
from medrl.inference.mutual_information import multi_start, polish, register_mutual_information
from medrl.inference.pair_prediction import list_misaligned_cases
from medrl.inference.registration_assessment import Result, measure, summarise
from medrl.inference.registration_transforms import LoadPaird, Misalignd
from medrl.networks.features import PairNetworks
from medrl.types import Registration

logger = logging.getLogger("registration")

Method = Callable[[dict[str, Any]], Registration]  # of a case with fixed and moving; ``truth`` is for a ceiling only

ROWS = {
    "identity": "identity", "single": "MI, single start", "multi": "MI, multi start",
    "reference": "MI from the reference (ceiling)", "climb": "plain climb", "agent": "agent",
    "climbed": "plain climb + polish", "polished": "agent + polish",
}  # fmt: skip
OF_BUNDLE = {  # mode and polish; "" is the bundle's own
    "climb": ("climb", "none"), "agent": ("agent", "none"), "climbed": ("climb", ""), "polished": ("agent", ""),
}  # fmt: skip
SILVER_MM, EXACT_MM = 10.0, 2.0
TURNS_DEG = (0, 15, 30, 60, 90, 180)


class Answer(NamedTuple):
    """What a row said of one case."""

    result: Result
    seconds: float
    angle_deg: float  # of the misalignment


def methods(options: argparse.Namespace) -> dict[str, Method]:
    """The rows by their keys."""
    found: dict[str, Method] = {
        "identity": lambda case: Registration(torch.eye(4, dtype=torch.float64), 0.0),
        "single": lambda case: _answer(register_mutual_information(*_images(case), scaled=_scaled(case))),
        "multi": lambda case: _answer(multi_start(*_images(case), scaled=_scaled(case))),
        "reference": lambda case: _answer(
            polish(*_images(case), case["truth"], limit_mm=math.inf, scaled=_scaled(case))
        ),
    }
    if set(OF_BUNDLE) & set(options.rows):
        bundle = load(options.bundle, options.device, ckpt_dir=options.ckpt_dir)
        folds = {} if options.features is None else json.loads((options.features / "folds.json").read_text())
        networks: dict[int | None, PairNetworks] = {None: bundle.network}

        def network_of(subject: str) -> PairNetworks:
            """Networks that never saw the subject, where such are at hand."""
            fold = None if options.features is None else folds[subject]
            if fold not in networks:
                networks[fold] = copy.deepcopy(bundle.network)
                weights = torch.load(options.features / f"coarse_{fold}.pt", weights_only=True)
                networks[fold].coarse.load_state_dict(weights)
            return networks[fold]

        def asked(mode: str, polish: str) -> Method:
            inferer = copy.copy(bundle.inferer)
            inferer.mode, inferer.polish = mode, polish or inferer.polish
            return lambda case: inferer(
                case["fixed"][None], network_of(case["subject"]), moving=[case["moving"]]
            )[0]  # fmt: skip

        found |= {row: asked(*kind) for row, kind in OF_BUNDLE.items()}
    return {row: found[row] for row in options.rows}


def _images(case: dict[str, Any]) -> tuple[Any, Any]:
    return case["fixed"], case["moving"]


def _scaled(case: dict[str, Any]) -> bool:
    """Mutual information is told whether the size changes; an agent is not."""
    return LEVELS[case["level"]].scale != 1.0


def _answer(found: tuple[torch.Tensor, float]) -> Registration:
    return Registration(found[0], confidence=0.0)


def ask(options: argparse.Namespace, cases: Sequence[dict[str, Any]]) -> list[dict[str, Answer]]:
    """Answers of every row to every case; the cases of a pair follow each other."""
    torch.set_num_threads(1)
    read, misalign = LoadPaird(), Misalignd(ball=options.ball, seed=options.seed)
    rows, answers = methods(options), []
    for described in cases:
        case = misalign(read(described))
        turn = case["truth"][:3, :3] / torch.linalg.det(case["truth"][:3, :3]) ** (1 / 3)
        angle_deg = float(rotation_vector(turn).norm().rad2deg())
        row_answers = {}
        for row, method in rows.items():
            start = time.perf_counter()
            answer = method(case)
            seconds = time.perf_counter() - start
            row_answers[row] = Answer(measure(case, answer), seconds, angle_deg)
        answers.append(row_answers)
    return answers


def ask_all(options: argparse.Namespace, cases: Sequence[dict[str, Any]]) -> Iterator[dict[str, Answer]]:
    """The same, pair by pair in ``--jobs`` processes of one thread each."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        pairs.setdefault(case["pair"], []).append(case)
    if options.jobs == 1:
        for number, pair in enumerate(pairs, 1):
            yield from ask(options, pairs[pair])
            logger.info("%d/%d pairs", number, len(pairs))
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(ask, options, cases) for cases in pairs.values()]
        for number, job in enumerate(jobs, 1):
            yield from job.result()
            logger.info("%d/%d pairs", number, len(pairs))


def level_table(rows: dict[str, dict[str, Any]]) -> str:
    """Per row and level: success, consistency, median error, seconds."""
    titles = ("row", "level", "cases", "success (95 % interval)", "consistent < 2 mm", "median TRE, mm", "s a case")
    lines = []
    for key, row in rows.items():
        for level, numbers in row["levels"].items():
            success = numbers["success"]
            lines.append([
                ROWS[key], level, str(numbers["cases"]),
                f"{success['value']:.0%} ({success['low']:.0%} to {success['high']:.0%})",
                "-" if numbers["consistent"] is None else f"{numbers['consistent']['value']:.0%}",
                "-" if numbers["tre_median"] is None else figure(numbers["tre_median"]["value"]),
                figure(numbers["seconds"]),
            ])  # fmt: skip
    return markdown(titles, lines)


def turn_table(rows: dict[str, dict[str, Any]]) -> str:
    """Success against the angle of the misalignment."""
    bins = list(next(iter(rows.values()))["turns"])
    lines = []
    for key, row in rows.items():
        shares = [(row["turns"][name]["success"], row["turns"][name]["cases"]) for name in bins]
        lines.append([ROWS[key], *("-" if share is None else f"{share:.0%} of {count}" for share, count in shares)])
    return markdown(("row", *(f"{name} degrees" for name in bins)), lines)


def score(answers: Sequence[Answer], *, success_mm: float, seed: int) -> dict[str, Any]:
    """Statistics of a row, by level and by the misalignment's angle, and the error of every case."""
    scores = summarise([answer.result for answer in answers], success_mm=success_mm, seed=seed)
    for level, numbers in scores["levels"].items():
        seconds = [answer.seconds for answer in answers if level in ("all", answer.result.level)]
        numbers["seconds"] = round(float(np.mean(seconds)), 3)
    scores["turns"] = {}
    for low, high in itertools.pairwise(TURNS_DEG):
        good = [a.result.tre_mm < success_mm for a in answers if low <= a.angle_deg < high + (high == TURNS_DEG[-1])]
        share = round(float(np.mean(good)), 4) if good else None
        scores["turns"][f"{low}-{high}"] = {"cases": len(good), "success": share}
    scores["per_case"] = {answer.result.case: round(answer.result.tre_mm, 3) for answer in answers}
    return scores


def draw_turns(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Draw success against the angle of the misalignment."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6, 4), layout="constrained")
    axes = picture.add_subplot()
    for key, row in rows.items():
        known = [(name, cell["success"]) for name, cell in row["turns"].items() if cell["success"] is not None]
        axes.plot([name for name, _ in known], [100 * share for _, share in known], marker="o", label=ROWS[key])
    axes.set(xlabel="misalignment, degrees", ylabel="success, %", ylim=(-2, 102))
    axes.legend()
    FigureCanvasAgg(picture).print_png(path)


def find_cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases of all sections asked for."""
    cases = []
    for section in options.sections:
        cases += list_misaligned_cases(options.data, section, levels=options.levels, repeats=options.per_pair)
    return [case for case in cases if not options.subset or case["pair"] in options.subset]


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with dataset.json")
    parser.add_argument("--sections", nargs="+", default=["validation"], choices=("training", "validation", "test"))
    parser.add_argument("--levels", nargs="+", default=["medium", "large"], choices=tuple(LEVELS))
    parser.add_argument("--per-pair", type=int, default=2, help="misalignments a pair and level")
    parser.add_argument("--subset", nargs="*", help="only these pairs")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS))
    parser.add_argument("--bundle", type=Path, help="adds the rows of a bundle")
    parser.add_argument("--features", type=Path, help="folder of the training with features that left out a fold each")
    parser.add_argument("--ckpt_dir", type=Path, help="other weights, such as those of a training of one's own")
    parser.add_argument("--ball", action="store_true")
    parser.add_argument("--success_mm", type=float, help="default: 10, or 2 where all references are exact")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--picture", type=Path, help="PNG of the success against the misalignment")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    options.rows = options.rows or [row for row in ROWS if options.bundle or row not in OF_BUNDLE]
    if set(OF_BUNDLE) & set(options.rows) and options.bundle is None:
        parser.error("the rows agent and polished need --bundle")
    return options


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print the tables; returns what ``--output`` holds."""
    options = read_options(arguments)
    cases = find_cases(options)
    if not cases:
        raise SystemExit("no pair is left; check --sections and --subset")
    exact = all(case["reference"] == EXACT for case in cases)
    success_mm = options.success_mm or (EXACT_MM if exact else SILVER_MM)
    answers = list(ask_all(options, cases))
    rows = {row: score([a[row] for a in answers], success_mm=success_mm, seed=options.seed) for row in options.rows}
    result = {
        "data": options.data.resolve().name, "sections": options.sections, "per_pair": options.per_pair,
        "seed": options.seed, "ball": options.ball, "success_mm": success_mm, "rows": rows,
    }  # fmt: skip
    print(level_table(rows) + "\n\n" + turn_table(rows))
    if options.picture:
        draw_turns(options.picture, rows)
    if options.output:
        write_json(options.output, result)
    return result


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

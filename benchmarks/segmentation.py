"""How fast segmentation is: the random walker, beside scikit-image's on the same systems, and the environment.

    python benchmarks/segmentation.py [--parts walker,environment] [--shapes 84x84,48x48x48] [--rows 1,16,64]
        [--seconds 2] [--threads 1] [--json speed.json]

The walker's rows:

solve      seconds a potential from the image and all its seeds, edge weights included
seed       seconds for one more seed: ours begins from the potential before it; scikit-image can only solve again
prior      as solve, with a probability for every node that the potential is drawn to
responses  seconds to prepare an image for exact potentials, and seconds for each of them

The environment's, on slices and boxes of synthetic lesions:

steps      steps/s of all rows: random actions, resets and observations included
agent      seconds for a seed of an agent: observation, network of width 24 on these rows at once, and solve
replay     bytes a transition; observations are rendered when drawn

Beside each time of the walker stands the largest error of a potential against an exact solution, over all nodes of all
rows: modes of scikit-image at their default tolerance are far from equal in it.  The ratios compare ours at its default
tolerance with the fastest of its modes that is as good as the error named.  Images are soft ellipsoids with noise;
seeds are one to three inside an object and one to five outside.  The walker's rows need scikit-image, whose mode cg_mg
needs pyamg.  Prints a markdown table.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from report import Row, figure, table, write_json
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d
from workloads import Timing, measure, random_steps

from medrl.environment import Environment
from medrl.experience import Replay
from medrl.geometry.random_walker import combine, edge_weights, eliminate, responses, walk
from medrl.gym import phantom_seeding
from medrl.networks.seednet import SeedNet
from medrl.tasks.seeding import SeedingState, SeedingTask

PARTS = ("walker", "environment")
MODES = ("bf", "cg", "cg_j", "cg_mg")
GOOD = 2e-2  # the error of cg_j, its default, at its default tolerance
LARGEST_DIRECT = 20_000  # nodes from which on a direct solver takes minutes
LATTICES = (((84, 84), (20, 20)), ((24, 24, 24), (6, 6, 6)))  # of the environment, and their grids of cells
WIDTH = 24  # of the agent's network


def taken(timing: Timing) -> float:
    """Seconds of the CPU on one thread, by the clock on several."""
    return timing.cpu if torch.get_num_threads() == 1 else timing.wall


def timed(part: str, what: str, timing: Timing, rows: int, wrong: float | None = None) -> Row:
    """Seconds for each of ``rows``."""
    return Row(part, what, taken(timing) / rows, "s", "" if wrong is None else f"error {figure(wrong)}")


def systems(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, *S) in [0, 1], seeds, and seeds with one more."""
    generator = torch.Generator().manual_seed(0)
    smooth = avg_pool2d if len(shape) == 2 else avg_pool3d
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    images, seeds, more = [], [], []
    for row in range(rows):
        image, inside = torch.full(shape, 0.3), torch.zeros(shape, dtype=torch.bool)
        for part in range(6):
            centre = torch.rand(len(shape), generator=generator) * 1.2 - 0.6
            radius = torch.rand(len(shape), generator=generator) * 0.4 + 0.2
            distance = torch.stack([((g - c) / r).square() for g, c, r in zip(grid, centre, radius, strict=True)])
            inside = distance.sum(0) < 1
            image[inside] = 0.1 + 0.8 * torch.rand((), generator=generator) if part < 5 else 0.7
        image += 0.05 * torch.randn(shape, generator=generator)
        image = smooth(image[None, None], 3, 1, 1, count_include_pad=False)[0, 0].clamp(0, 1)
        labels = torch.zeros(image.numel(), dtype=torch.int8)
        for label, region, count in ((1, inside, 1 + row % 3), (2, ~inside, 1 + row % 5)):
            nodes = region.flatten().nonzero()[:, 0]
            labels[nodes[torch.randperm(len(nodes), generator=generator)[:count]]] = label
        images.append(image)
        seeds.append(labels.reshape(shape))
        free = (inside.flatten() & (labels == 0)).nonzero()[:, 0]
        labels = labels.clone()
        labels[free[len(free) // 2]] = 1
        more.append(labels.reshape(shape))
    return torch.stack(images), torch.stack(seeds), torch.stack(more)


def exact(image: Tensor, seeds: Tensor, prior: Tensor | None = None, weight: float = 0.0) -> Tensor:
    """Potentials in float64, by elimination or, on large lattices, from iterations to a tolerance of 1e-7."""
    weights = [values.double() for values in edge_weights(image)]
    if image[0].numel() <= LARGEST_DIRECT:
        priors = [None] * len(image) if prior is None else list(prior)
        solved = [eliminate([w[row] for w in weights], seeds[row], priors[row], weight) for row in range(len(image))]
        return torch.stack(solved).float()
    return walk(weights, seeds, prior=prior, prior_weight=weight, tolerance=1e-7).float()


def error(potential: Tensor, truth: Tensor) -> float:
    """Largest difference."""
    return float((potential - truth).abs().max())


def scikit_rows(image: Tensor, seeds: Tensor, truth: Tensor, seconds: float) -> list[tuple[Row, float]]:
    """Seconds a potential of every mode at its default tolerance, and its error."""
    from skimage.segmentation import random_walker

    arrays = [(values.double().numpy(), labels.numpy()) for values, labels in zip(image, seeds, strict=True)]
    out = []
    for mode in MODES:
        if mode == "cg_mg" and importlib.util.find_spec("pyamg") is None:
            continue
        if mode == "bf" and image[0].numel() > LARGEST_DIRECT:
            continue

        def solve(mode: str = mode) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice to install other libraries
                solved = [random_walker(*each, mode=mode, return_full_prob=True)[0] for each in arrays]
            return torch.stack([torch.from_numpy(potential) for potential in solved]).float()

        wrong = error(solve(), truth)
        row = timed(
            "solve", f"{name_of(image)}, scikit-image {mode}", measure(solve, seconds=seconds), len(image), wrong
        )
        out.append((row, wrong))
    return out


def shape_rows(shape: tuple[int, ...], counts: Sequence[int], seconds: float) -> list[Row]:
    """All measurements on one shape."""
    few = 8 if len(shape) == 2 else 2  # systems that scikit-image and the exact solver are given
    image, seeds, more = systems(shape, max(*counts, few))
    truth, next_truth = exact(image[:few], seeds[:few]), exact(image[:few], more[:few])
    name = name_of(image)
    theirs = scikit_rows(image[:few], seeds[:few], truth, seconds)
    rows = [row for row, _ in theirs]
    best = min((row for row, wrong in theirs if wrong <= GOOD), key=lambda row: row.value, default=None)
    for count in counts:
        few_here = min(few, count)
        pictures, labels = image[:count], seeds[:count]

        def solve(pictures: Tensor = pictures, labels: Tensor = labels) -> Tensor:
            return walk(edge_weights(pictures), labels)

        before = solve()
        wrong = error(before[:few_here], truth[:few_here])
        what = f"{name}, {rows_of(count)}"
        rows.append(timed("solve", what, measure(solve, seconds=seconds), count, wrong))
        if best is not None:
            note = f"{best.what.split(', ')[1]} / ours"
            rows.append(Row("solve", what, best.value / rows[-1].value, "times", note))

        def another(pictures: Tensor = pictures, labels: Tensor = more[:count], before: Tensor = before) -> Tensor:
            return walk(edge_weights(pictures), labels, start=before)

        wrong = error(another()[:few_here], next_truth[:few_here])
        rows.append(timed("seed", what, measure(another, seconds=seconds), count, wrong))
    return rows + prior_rows(image[:few], seeds[:few], seconds) + response_rows(image[:1], seeds[:1], seconds)


def prior_rows(image: Tensor, seeds: Tensor, seconds: float) -> list[Row]:
    """With a prior; its weight is in units of an edge between equal nodes."""
    prior = torch.sigmoid(20 * (image - 0.55))

    def solve() -> Tensor:
        return walk(edge_weights(image), seeds, prior=prior, prior_weight=0.05)

    wrong = error(solve(), exact(image, seeds, prior, 0.05))
    what = f"{name_of(image)}, {len(image)} rows, prior weight 0.05"
    return [timed("prior", what, measure(solve, seconds=seconds), len(image), wrong)]


def response_rows(image: Tensor, seeds: Tensor, seconds: float) -> list[Row]:
    """Exact potentials from prepared columns, which only lattices of some ten thousand nodes allow."""
    size = image[0].numel()
    if size > LARGEST_DIRECT:
        return []
    weights, columns = edge_weights(image), min(416, size // 4)
    nodes = torch.linspace(0, size - 1, columns).long()
    prepared = measure(lambda: responses(weights, nodes), seconds=seconds)
    response = responses(weights, nodes)
    pick = torch.arange(64 * 12).reshape(64, 12) % columns
    labels = torch.tensor([1, 2, 2]).repeat(4).expand(64, 12)
    found = measure(lambda: combine(response[pick], nodes[pick], labels), seconds=seconds)
    name = name_of(image)
    return [
        timed("responses", f"{name}, {columns} columns of an image", prepared, 1),
        timed("responses", f"{name}, a potential of 12 seeds, 64 rows", found, 64),
    ]


def environment_rows(task: SeedingTask, counts: Sequence[int], seconds: float) -> list[Row]:
    """Steps/s for every number of rows, seconds of an agent's seed for the fewest and the most, and bytes."""
    name = name_of(task.cases.image)
    out = []
    for count in counts:
        timing = measure(random_steps(Environment(task, num_envs=count)), seconds=seconds)
        out.append(Row("steps", f"{name}, {rows_of(count)}", count / taken(timing), "steps/s"))
    torch.manual_seed(0)
    network = SeedNet(dims=len(task.cases.shape), grid=task.cases.grid, width=WIDTH).eval()
    for count in sorted({min(counts), max(counts)}):
        state = task.start(torch.arange(count) % len(task.cases), 0)

        @torch.inference_mode()
        def seed(state: SeedingState = state) -> SeedingState:
            values = network.split(network(task.observe(state))).q[:, 0, 0, : 2 * task.count]
            return task.advance(state, values.argmax(1))

        out.append(timed("agent", f"{name}, {rows_of(count)}", measure(seed, seconds=seconds), count))
    return [*out, Row("replay", name, transition_bytes(task), "bytes/transition")]


def transition_bytes(task: SeedingTask) -> float:
    """What a replay of 64 rows reserves for each transition, which the first step shows."""
    environment = Environment(task, num_envs=64)
    environment.reset()
    replay, state = Replay(task, capacity=2048, num_envs=64), environment.state
    action = torch.zeros(64, dtype=torch.int64)
    step = environment.advance(action)
    ended = step.terminated | step.truncated
    replay.add(state, action, step.final_state, step.terminated, ended, step.metrics["active"])
    return replay.bytes_per_transition()


def name_of(image: Tensor) -> str:
    """For instance 84x84."""
    return "x".join(str(n) for n in image.shape[1:])


def rows_of(count: int) -> str:
    """For instance 16 rows."""
    return f"{count} row{'s' * (count > 1)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas between")
    parser.add_argument("--shapes", default="84x84,48x48x48", help="lattices of the walker, with commas between")
    parser.add_argument("--rows", default="1,16,64", help="batch sizes, with commas between")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of torch; from 2 on, times are those of the clock")
    parser.add_argument("--small", action="store_true", help="a few seconds on small lattices, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: expected {' or '.join(PARTS)}")
    if "walker" in parts and importlib.util.find_spec("skimage") is None:
        print("scikit-image is needed for the comparison: pip install scikit-image pyamg", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    try:
        shapes = [tuple(int(n) for n in shape.split("x")) for shape in options.shapes.split(",")]
        counts = [int(count) for count in options.rows.split(",")]
    except ValueError:
        parser.error("shapes are written as 84x84,48x48x48 and rows as 1,16,64")
    lattices, patients = LATTICES, 8
    if options.small:
        shapes, counts, options.seconds = [(24, 20), (9, 10, 11)], [1, 3], 0.0
        lattices, patients = (((24, 20), (6, 5)), ((9, 10, 11), (2, 2, 2))), 2
    rows: list[Row] = []
    for shape in shapes if "walker" in parts else ():
        # volumes are solved one after another: on a CPU a batch of them gains nothing
        rows += shape_rows(shape, counts if len(shape) == 2 else counts[:1], options.seconds)
    for shape, grid in lattices if "environment" in parts else ():
        rows += environment_rows(phantom_seeding(patients=patients, shape=shape, grid=grid), counts, options.seconds)
    kind = "CPU seconds on one thread" if options.threads == 1 else f"seconds by the clock, {options.threads} threads"
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    print(f"Times are {kind} ({machine}).\n")
    print(table(rows))
    if options.json is not None:
        write_json(options.json, machine, rows, [])
    return 0


if __name__ == "__main__":
    sys.exit(main())

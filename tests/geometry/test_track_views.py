"""What a tracked object sees."""

from __future__ import annotations

import torch

from medrl.geometry.box_motion import MotionNoise, start
from medrl.geometry.boxes import iou_matrix
from medrl.geometry.track_views import A_CANDIDATE, CANDIDATES, FAR, LENGTH, OWN, Frame, Record, likeliest, look

NOISE = MotionNoise()
MINE = torch.tensor([[100.0, 100.0, 120.0, 150.0]])


def frame(boxes, others=(), *, exists=None, known=False, appearance=0.0):
    box = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    other = torch.tensor(others, dtype=torch.float32).reshape(1, -1, 4) if others else torch.zeros(1, 1, 4)
    count = box.shape[1]
    return Frame(
        torch.tensor([[640.0, 360.0]]), box, torch.full((1, count), 0.8),
        torch.ones(1, count, dtype=torch.bool) if exists is None else torch.tensor([exists]),
        torch.full((1, count, 9), appearance), torch.tensor([known]), other,
        torch.full((1, other.shape[1]), bool(others)), iou_matrix(other, box), box[:, None],
        torch.zeros(1, 1, count, dtype=torch.bool),
    )  # fmt: skip


def record(**changes):
    values = {name: torch.ones(1) for name in Record._fields} | {
        "hidden": torch.tensor([False]), "appearance": torch.zeros(1, 9), "misses": torch.zeros(1),
    }  # fmt: skip
    return Record(**(values | {name: torch.tensor([float(value)]) for name, value in changes.items()}))


def candidate(view, number=0):
    part = view.vector[0, OWN + number * A_CANDIDATE :][:A_CANDIDATE]
    names = (
        "there", "dx", "dy", "dw", "dh", "overlap", "score", "claim", "need", "near", "better", "double", "unlike",
        "known", "distance",
    )  # fmt: skip
    return dict(zip(names, part.tolist(), strict=True))


def test_candidates_come_by_distance():
    boxes = [[300, 100, 320, 150], [104, 100, 124, 150], [101, 100, 121, 150], [110, 100, 130, 150], [0, 0, 9, 9]]
    exists = [True, True, False, True, True]
    motion = start(MINE, NOISE)
    index, there, distance = likeliest(motion, NOISE, *(frame(boxes, exists=exists)[n] for n in (1, 3)))
    assert index[0].tolist()[:2] == [1, 3]
    assert there.all()
    assert (distance.diff() > 0).all()
    # 4 pixels of a width of 20: predicted and measured each within 2 pixels
    assert abs(float(distance[0, 0]) - 4 / 8**0.5) < 1e-4
    view = look(motion, NOISE, record(), frame(boxes, exists=exists))
    assert view.vector.shape == (1, LENGTH)
    first = candidate(view)
    assert first["there"] == 1
    assert abs(first["dx"] - 4 * 4 / 20) < 1e-5
    assert abs(first["overlap"] - 16 / 24) < 1e-5


def test_missing_candidates_are_zeros():
    view = look(start(MINE, NOISE), NOISE, record(), frame([[104, 100, 124, 150]]))
    assert view.exists.tolist() == [[True] + [False] * (CANDIDATES - 1)]
    assert not view.vector[0, OWN + A_CANDIDATE : OWN + CANDIDATES * A_CANDIDATE].any()
    empty = look(start(MINE, NOISE), NOISE, record(), frame([[0, 0, 0, 0]], exists=[False]))
    assert not empty.exists.any()
    assert empty.vector.isfinite().all()
    assert empty.vector.abs().max() <= FAR


def test_a_neighbour_claims_what_it_needs():
    motion, here = start(MINE, NOISE), [[104, 100, 124, 150]]
    free = candidate(look(motion, NOISE, record(), frame(here)))
    claimed = candidate(look(motion, NOISE, record(), frame(here, [[104, 100, 124, 150]])))
    assert (free["claim"], claimed["claim"]) == (0, 1)
    assert (free["need"], claimed["need"]) == (-2, 2)
    spare = candidate(look(motion, NOISE, record(), frame([*here, [106, 100, 126, 150]], [[104, 100, 124, 150]])))
    assert abs(spare["need"] - 2 * (1 - 18 / 22)) < 1e-5  # it could take the other one
    assert abs(spare["double"] - 18 / 22) < 1e-5


def test_colours_count_only_where_known():
    motion, box = start(MINE, NOISE), [[104, 100, 124, 150]]
    unknown = candidate(look(motion, NOISE, record(), frame(box, appearance=0.3)))
    known = candidate(look(motion, NOISE, record(), frame(box, appearance=0.3, known=True)))
    assert (unknown["unlike"], unknown["known"]) == (0, 0)
    assert abs(known["unlike"] - 3) < 1e-5


def test_moving_everything_changes_little():
    """Only the room to the borders is told in pixels of the picture."""
    boxes, other = torch.tensor([[104.0, 100, 124, 150], [90, 98, 112, 151]]), torch.tensor([[95.0, 90, 118, 149]])
    views = []
    for shift in (0.0, 50.0):
        seen = frame((boxes + shift).tolist(), (other + shift).tolist())
        views.append(look(start(MINE + shift, NOISE), NOISE, record(), seen).vector[0])
    torch.testing.assert_close(views[0][OWN:], views[1][OWN:], atol=1e-4, rtol=1e-4)

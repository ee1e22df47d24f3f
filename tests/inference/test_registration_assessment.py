"""Assessment of registrations by numbers worked by hand."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from ignite.engine import Engine
from monai.data import Dataset

from medrl.data.pair_phantoms import write_pair_phantoms
from medrl.inference.pair_prediction import RegistrationAnswers, list_misaligned_cases
from medrl.inference.prediction import CasePredictor
from medrl.inference.registration_assessment import FAILED, RegistrationAssessment, Result, measure, summarise
from medrl.inference.registration_transforms import LoadPaird, Misalignd
from medrl.types import CONVERGED, NOT_CONVERGED, Registration

EYE = torch.eye(4, dtype=torch.float64)
POINTS = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]], dtype=torch.float64)


def shift(x, y=0.0):
    matrix = EYE.clone()
    matrix[0, 3], matrix[1, 3] = x, y
    return matrix


def result(case, pair, answer, *, level="small", status=CONVERGED, confidence=0.5, truth=None):
    data = {"case": case, "pair": pair, "level": level, "truth": shift(30.0) if truth is None else truth}
    return measure(data | {"points": POINTS}, Registration(answer, confidence, status))


def test_error_of_a_case():
    assert result("a", "p", shift(30.0, 4.0)).tre_mm == pytest.approx(4.0)
    assert result("a", "p", shift(30.0, 4.0)).initial_mm == pytest.approx(30.0)
    doubled = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    assert result("a", "p", EYE, truth=doubled).error_mm == pytest.approx(25.0)  # 0 stays, 100 goes to 50
    withheld = result("a", "p", shift(30.0, 4.0), status=NOT_CONVERGED)
    assert withheld.error_mm == pytest.approx(4.0)
    assert withheld.tre_mm == 999.0
    assert withheld.back is None
    assert result("a", "p", EYE * float("nan")).tre_mm == 999.0


def test_summary_by_hand():
    results = [
        result("a0", "a", shift(30.0, 1.0), confidence=0.9), result("a1", "a", shift(31.0, 1.0), confidence=0.8),
        result("a2", "a", shift(30.0, 9.0), confidence=0.7),
        result("b0", "b", shift(30.0, 2.0), confidence=0.6, status=NOT_CONVERGED),
        result("b1", "b", shift(30.0, 40.0), confidence=0.1), result("b2", "b", shift(10.0), level="large"),
    ]  # fmt: skip
    results.append(Result("b3", "b", "large", FAILED, 999.0, float("nan"), 0.0, 0.0, None))
    summary = summarise(results, success_mm=5.0, resamples=50)
    small, large = summary["levels"]["small"], summary["levels"]["large"]
    value = {name: number["value"] for name, number in small.items() if isinstance(number, dict)}
    assert (summary["cases"], summary["pairs"], small["cases"]) == (7, 2, 5)
    assert value["success"] == 0.4  # a0 and a1; b0 was withheld
    assert value["success_answered"] == 0.5
    assert value["not_converged"] == 0.2
    assert value["failed"] == 0.0
    assert value["tre_median"] == 9.0
    assert value["tre_p90"] == pytest.approx(40 + 0.6 * 959)
    assert value["initial_median"] == 30.0
    assert value["consistent"] == 0.25  # a0 and a1, out of three couples of a and one of b
    assert value["consistency_median"] == pytest.approx((8.0 + 65**0.5) / 2, abs=1e-3)  # of 1, 8, 8.06 and 999
    assert large["failed"]["value"] == 0.5
    assert large["success"]["value"] == 0.0
    assert large["consistent"]["value"] == 0.0
    assert large["tre_median"]["value"] == pytest.approx((20 + 999) / 2)
    assert large["initial_median"]["value"] == 30.0
    assert summary["levels"]["all"]["consistent"]["value"] == pytest.approx(1 / (3 + 6), abs=1e-3)
    # right: .9, .8, .6; wrong: .7, .1, .5; 8 of 9 couples in order
    assert summary["confidence_auc"]["value"] == pytest.approx(8 / 9, abs=1e-4)
    # over pairs: of a alone 2 of 3 are successes, of b alone none
    assert small["success"]["low"] == 0.0
    assert small["success"]["high"] == pytest.approx(0.6667)


def test_what_cannot_be_had_is_none():
    summary = summarise([result("a", "p", shift(30.0))], success_mm=2.0, resamples=10)
    assert summary["levels"]["small"]["consistent"] is None
    assert summary["confidence_auc"] is None
    assert summary["levels"]["small"]["success"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    json.dumps(summary, allow_nan=False)


def test_answers_that_use_confidence_wrongly_show_it():
    results = [result(str(n), str(n), shift(30.0, 10.0 * (n % 2)), confidence=0.5 + 0.4 * (n % 2)) for n in range(6)]
    assert summarise(results, success_mm=5.0, resamples=10)["confidence_auc"]["value"] == 0.0


class Oracle:
    """Answers the truth and a few mm more; refuses one case, and fails at another."""

    def __init__(self, dataset):
        self.truths = iter([dataset[index]["truth"] for index in range(len(dataset))])
        self.calls = 0

    def __call__(self, inputs, network, *, moving):
        self.calls += 1
        truth = next(self.truths)
        if self.calls == 2:
            raise RuntimeError
        status = NOT_CONVERGED if self.calls == 3 else CONVERGED
        return [Registration(truth @ shift(0.0, self.calls - 1.0), 1.0 / self.calls, status, "doubtful")]


def test_handler(tmp_path, generator):
    write_pair_phantoms(tmp_path / "pairs", 3, generator, shape=(16, 16, 16), spacing_mm=9.0, validation=0, test=0.6)
    cases = list_misaligned_cases(tmp_path / "pairs", "test", levels=["small", "large"], repeats=1)
    dataset = Dataset(cases, lambda case: Misalignd()(LoadPaird()(case)))
    handler = RegistrationAssessment(tmp_path, success_mm=2.0, resamples=20)
    predictor = CasePredictor(
        device="cpu", dataset=dataset, network=torch.nn.Identity(), inferer=Oracle(dataset), output_dir=tmp_path,
        postprocessing=lambda data: data, answers=RegistrationAnswers(), arguments=["moving"], image_key="fixed",
        val_handlers=[handler], progress_bar=False,
    )  # fmt: skip
    predictor.run()
    assert set(predictor.failures) == {cases[1]["case"], cases[2]["case"]}
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    numbers = summary["levels"]["all"]
    assert (summary["cases"], summary["pairs"], summary["success_mm"]) == (4, 2, 2.0)
    assert numbers["success"]["value"] == 0.25
    assert numbers["not_converged"]["value"] == 0.25
    assert numbers["failed"]["value"] == 0.25
    assert summary["levels"]["large"]["initial_median"]["value"] > summary["levels"]["small"]["initial_median"]["value"]
    with (tmp_path / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [case["case"] for case in cases]
    assert [row["status"] for row in rows] == ["converged", "failed", "not converged", "converged"]
    assert [float(row["error_mm"]) for row in rows] == [0.0, 999.0, 2.0, 3.0]
    assert float(rows[2]["tre_mm"]) == 999.0


def test_handler_forgets_an_earlier_run(tmp_path):
    handler = RegistrationAssessment(tmp_path, success_mm=2.0)
    handler.results.append(result("a", "p", EYE))
    engine = Engine(lambda engine, batch: [])
    engine.dataset = Dataset([{"case": "x", "pair": "p", "level": "small"}])
    handler.attach(engine)
    engine.run([[{"case": "x"}]])  # it fails
    assert [item.case for item in handler.results] == ["x"]

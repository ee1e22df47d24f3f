"""Rewards that need no truth: how much more alike the images of a pair have become."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medrl.rewards.scores import Shape


class AlikenessGain(Shape):
    """What an action gains of a measure of alikeness; scales, clips and sums as all shapes do.

    For tasks whose ``cases`` can ``look`` at a pose (`medrl.data.pair_cases.PairCases`).  The measures are
    differentiable: as a reward they serve what is not, the choice among discrete actions and when to stop.
    """

    def measure(self, cases: Any, case: Tensor, pose: Any) -> Tensor:
        """Alikeness (B,) of the pairs ``case`` (B,) under poses (B,)."""
        raise TypeError(f"{type(self).__name__} does not say how it measures")

    def __call__(self, task: Any, state: Any, action: Tensor, next_state: Any) -> Tensor:
        before = self.measure(task.cases, state.case, state.pose)
        return self.measure(task.cases, next_state.case, next_state.pose) - before


class SimilarityGain(AlikenessGain):
    """Of the learned similarity: the log-likelihood ratio of the two poses."""

    def measure(self, cases: Any, case: Tensor, pose: Any) -> Tensor:
        """The score of what is seen."""
        return cases.look(case, pose, information=False).score


class InformationGain(AlikenessGain):
    """Of the mutual information of the grey values, in nats, times the share of the points inside the moving image.

    The few points of a small overlap share information by chance: without the factor it would pay to leave the image.
    """

    def measure(self, cases: Any, case: Tensor, pose: Any) -> Tensor:
        """The information of what is seen."""
        inside, information = cases.information(case, pose)
        return information * inside


class SelfSimilarityGain(AlikenessGain):
    """Of minus the mean squared difference of MIND [Heinrich 2012]; the cases must have the descriptors."""

    def measure(self, cases: Any, case: Tensor, pose: Any) -> Tensor:
        """The alikeness of the descriptors."""
        return cases.self_similarity(case, pose)

"""Pairwise-weighted rewards."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import Estimate, WeightedEstimator
from tca_sb3.returns import pwr_advantages, pwr_returns


class PWR(WeightedEstimator):
    """Eqs. 10, 11: ``Ψ_t = Σ_k f_η(S_t, S_k, k − t) R_k − v_ψ(S_t)``; the critic ``v_ψ`` regresses on the sum (Eq.
    14).

    With hand-written weights this is H-PWR. It needs whole episodes: the weighted sum has no recursive form
    from which a value function could bootstrap (§5.3).
    """

    regular_critic: ClassVar[bool] = False

    def check(self, episodes: Episodes) -> None:
        episodes.require_whole(type(self).__name__)

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        self.check(episodes)
        weights = self.pair_weights(episodes)
        returns = pwr_returns(weights, episodes.rewards)
        return Estimate(pwr_advantages(returns, values), returns, weights)

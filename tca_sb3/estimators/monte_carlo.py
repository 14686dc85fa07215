"""The Monte-Carlo estimator."""

from __future__ import annotations

from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import AdvantageEstimator, Estimate, bootstrapped_rewards
from tca_sb3.returns import discounted_returns, monte_carlo_advantages


class MonteCarlo(AdvantageEstimator):
    """Eq. 7: ``Ψ_t = G_t − v(S_t)``; the critic regresses on ``G_t``.

    Columns that were cut bootstrap from the critic, as SB3's A2C does with ``gae_lambda=1``.
    """

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        returns = discounted_returns(bootstrapped_rewards(episodes, values, self.gamma), self.gamma)
        return Estimate(monte_carlo_advantages(returns, values), returns)

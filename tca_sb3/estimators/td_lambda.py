"""The λ-estimator, generalised advantage estimation."""

from __future__ import annotations

from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import AdvantageEstimator, Estimate
from tca_sb3.returns import lambda_advantages


class TDLambda(AdvantageEstimator):
    """Eq. 8: ``Ψ_t = Σ (γλ)^{k−t−1} δ_k``; the critic regresses on the λ-return ``Ψ_t + v(S_t)``.

    What SB3's own A2C and PPO compute. Columns that were cut bootstrap from the critic.
    """

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        advantages = lambda_advantages(self.td_errors(episodes, values), self.gamma, self.gae_lambda)
        return Estimate(advantages, advantages + values[:-1])

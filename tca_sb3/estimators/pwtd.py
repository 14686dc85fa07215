"""Pairwise-weighted TD errors."""

from __future__ import annotations

from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import Estimate, WeightedEstimator
from tca_sb3.returns import lambda_advantages, pwtd_advantages


class PWTD(WeightedEstimator):
    """Eq. 9: ``Ψ_t = Σ_k f_η(S_t, S_k, k − t) δ_k``; the critic regresses on the λ-return.

    Columns that were cut bootstrap from the critic through their last TD error.

    Reading note: the paper says that PWTD "does not need this extra value function"; the TD errors are then
    those of the regular value ``v_φ``, and the discount sits inside ``δ_k`` only.
    """

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        errors = self.td_errors(episodes, values)
        weights = self.pair_weights(episodes)
        targets = lambda_advantages(errors, self.gamma, self.gae_lambda) + values[:-1]
        return Estimate(pwtd_advantages(weights, errors), targets, weights)

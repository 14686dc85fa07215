"""The λ-estimator whose λ is a learned function of the state."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import Estimate, PairwiseEstimator
from tca_sb3.estimators.steps import StateEncoder
from tca_sb3.returns import state_lambda_advantages, state_lambda_weights
from tca_sb3.weights.base import MakeEncoder


class StateLambda(PairwiseEstimator):
    """``Ψ_t = Σ_k [Π_{j=t+1..k-1} γ λ_η(S_j)] δ_k``; the critic regresses on the λ(s)-return ``Ψ_t + v(S_t)``.

    The estimator of Meta-λ(s) (Xu, van Hasselt and Silver 2018, "Meta-Gradient Reinforcement Learning"). Theirs:
    policy and critic both learn from the return of the adapted λ, and ``η`` by the metagradient of a regular
    objective on the following trajectory. The pairwise-weights paper's: λ as a function of the state. Ours: the
    network, ``λ_η(s) = σ(net(s))`` with one hidden layer on the policy's kind of features extractor, or one logit for
    each state where observations are ``Discrete``; and the value at the start.

    Columns that were cut bootstrap from the critic through their last TD error. ``gae_lambda`` has no part in it: it
    is the λ of the outer loop.

    :param initial_lambda: ``λ_η`` of every state at the start.
    :param hidden_dim: width of the hidden layer.
    :raises ValueError: if ``initial_lambda`` is not strictly between 0 and 1, ``hidden_dim`` is not positive, or
        ``make_encoder`` is missing where observations are not ``Discrete``.
    """

    weights_name = "lambda"

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        gamma: float,
        gae_lambda: float,
        make_encoder: MakeEncoder | None = None,
        action_space: spaces.Space | None = None,
        initial_lambda: float = 0.9,
        hidden_dim: int = 64,
    ) -> None:
        super().__init__(observation_space, gamma=gamma, gae_lambda=gae_lambda)
        if not 0.0 < initial_lambda < 1.0:
            raise ValueError(
                f"StateLambda got initial_lambda={initial_lambda}; a sigmoid gives what lies strictly between 0 and 1."
            )
        if hidden_dim < 1:
            raise ValueError(f"StateLambda got hidden_dim={hidden_dim}; it must be at least 1.")
        start = math.log(initial_lambda / (1.0 - initial_lambda))
        self.states: StateEncoder | None = None
        if isinstance(observation_space, spaces.Discrete):
            self.first_state = int(observation_space.start)
            self.logits = nn.Parameter(torch.full((int(observation_space.n),), start))
        else:
            self.states = StateEncoder(type(self).__name__, make_encoder)
            last = nn.Linear(hidden_dim, 1)
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, start)
            self.head = nn.Sequential(nn.Linear(self.states.features_dim, hidden_dim), nn.Tanh(), last)

    def fit(self, episodes: Episodes) -> dict[str, float]:
        """Nothing but the scale of the network's inputs, with the first rollout."""
        if self.states is not None:
            self.states.calibrate(episodes)
        return {}

    def lambdas(self, episodes: Episodes) -> Tensor:
        """``λ_η(S_0) … λ_η(S_{T-1})``, shape ``(T, B)``."""
        if self.states is not None:
            return torch.sigmoid(self.head(self.states(episodes)[:-1]).squeeze(2))
        assert isinstance(episodes.observations, Tensor)
        return torch.sigmoid(self.logits[episodes.observations[:-1].long() - self.first_state])

    def pair_weights(self, episodes: Episodes) -> Tensor:
        return state_lambda_weights(self.lambdas(episodes), self.gamma)

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        errors = self.td_errors(episodes, values)
        lambdas = self.lambdas(episodes)
        advantages = state_lambda_advantages(errors, lambdas, self.gamma)
        return Estimate(advantages, advantages + values[:-1], lambdas)

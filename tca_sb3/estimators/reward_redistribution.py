"""Rewards redistributed to the steps that change the predicted return."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import AdvantageEstimator, Estimate
from tca_sb3.estimators.steps import ActionEncoder, StateEncoder
from tca_sb3.returns import lambda_advantages, redistributed_rewards, td_errors
from tca_sb3.weights.base import MakeEncoder


class RewardRedistribution(AdvantageEstimator):
    """λ-advantages of redistributed rewards ``g_t − g_{t-1}``, where ``g_t`` is the return predicted after ``A_t``.

    The estimator of A2C-RR. From RUDDER (Arjona-Medina et al. 2019): an LSTM that reads states and actions and
    predicts the episode's undiscounted return at every step, its loss ``(g_{T-1} − G)² + 0.5 mean_t (g_t − G)²``,
    differences of successive predictions as rewards, and the correction that makes them sum to the return. The
    pairwise-weights paper takes that idea into A2C with a low discount factor and says no more. Ours: a plain LSTM
    (RUDDER's has no forget and output gates) on the policy's features extractor; one Adam step a rollout on the very
    rollout whose rewards are redistributed next, instead of lessons replayed until the prediction is good; the sizes;
    and standardised inputs and targets.

    The LSTM is trained here, by :meth:`fit`; the metagradient has nothing to learn. The critic predicts the return of
    the redistributed rewards. It needs whole episodes: a return that was not seen cannot be predicted.

    :param hidden_dim: width of the LSTM.
    :param learning_rate: of the LSTM (Adam).
    :param n_epochs: passes over the rollouts each time; one gradient step for each rollout and pass.
    :param n_past_rollouts: how many earlier rollouts are kept and trained on as well; they are saved with the model.
    :param reward_mix: share of the environment's own rewards: 0 for the redistributed ones alone, 1 for the
        λ-estimator. Any mixture sums to the return.
    :raises ValueError: if a number is out of range, or ``make_encoder`` or ``action_space`` is missing.
    """

    regular_critic: ClassVar[bool] = False

    return_mean: Tensor
    return_square: Tensor
    n_fits: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        gamma: float,
        gae_lambda: float,
        make_encoder: MakeEncoder | None = None,
        action_space: spaces.Space | None = None,
        hidden_dim: int = 32,
        learning_rate: float = 3e-3,
        n_epochs: int = 1,
        n_past_rollouts: int = 0,
        reward_mix: float = 0.0,
    ) -> None:
        super().__init__(observation_space, gamma=gamma, gae_lambda=gae_lambda)
        if min(hidden_dim, n_epochs) < 1 or n_past_rollouts < 0:
            raise ValueError(
                f"RewardRedistribution got hidden_dim={hidden_dim}, n_epochs={n_epochs}, "
                f"n_past_rollouts={n_past_rollouts}; the first two must be at least 1, the last at least 0."
            )
        if not (learning_rate > 0 and 0.0 <= reward_mix <= 1.0):
            raise ValueError(
                f"RewardRedistribution got learning_rate={learning_rate}, reward_mix={reward_mix}; the rate must be "
                "positive and the share in [0, 1]."
            )
        self.n_epochs = n_epochs
        self.n_past_rollouts = n_past_rollouts
        self.reward_mix = reward_mix
        self.states = StateEncoder(type(self).__name__, make_encoder)
        self.actions = ActionEncoder(type(self).__name__, action_space)
        self.lstm = nn.LSTM(self.states.features_dim + self.actions.features_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, 1)
        # Running moments of the returns, to standardise what the network predicts.
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_square", torch.ones(()))
        self.register_buffer("n_fits", torch.zeros((), dtype=torch.long))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        self._past: list[Episodes] = []

    def meta_parameters(self) -> list[nn.Parameter]:
        return []

    def check(self, episodes: Episodes) -> None:
        episodes.require_whole(type(self).__name__)

    @property
    def _scale(self) -> Tensor:
        variance = self.return_square - self.return_mean.square()
        # Where returns have become all alike, a rare other one must not look like a hundred deviations.
        variance = torch.maximum(variance, 0.01 * self.return_square)
        return torch.where(variance > 0, variance, 1.0).sqrt()

    def predictions(self, episodes: Episodes) -> Tensor:
        """``g_0 … g_{T-1}``: the return as predicted from ``S_0, A_0 … S_t, A_t``, shape ``(T, B)``."""
        return self.return_mean + self._scale * self._standardised(episodes)

    def _standardised(self, episodes: Episodes) -> Tensor:
        states = self.states(episodes)[:-1]
        # Nothing runs backwards in time: padding at the end cannot reach a real step.
        hidden, _ = self.lstm(torch.cat([states, self.actions(episodes).to(states)], dim=2))
        return self.head(hidden).squeeze(2)

    def prediction_loss(self, episodes: Episodes) -> Tensor:
        """``(g_{T-1} − G)² + 0.5 mean_t (g_t − G)²`` in standardised returns, averaged over episodes."""
        returns = (episodes.rewards.sum(0) - self.return_mean) / self._scale
        errors = (self._standardised(episodes) - returns).square() * episodes.mask
        last = errors.gather(0, episodes.lengths.unsqueeze(0) - 1).squeeze(0)
        return (last + 0.5 * errors.sum(0) / episodes.lengths).mean()

    def fit(self, episodes: Episodes) -> dict[str, float]:
        """Train the LSTM on the new rollout and those kept.

        :return: ``prediction_loss`` on the new rollout, before the last step on it.
        """
        self.check(episodes)
        self.states.calibrate(episodes)
        returns = episodes.rewards.sum(0).to(self.return_mean)
        self.n_fits += 1
        # The mean of all at first, one that forgets later: returns change while the policy learns.
        share = max(1.0 / int(self.n_fits), 0.01)
        self.return_mean.lerp_(returns.mean(), share)
        self.return_square.lerp_(returns.square().mean(), share)
        # cuDNN differentiates an LSTM in training mode only; without dropout the mode changes no number.
        self.lstm.train()
        with torch.enable_grad():
            for _ in range(self.n_epochs):
                for rollout in (*self._past, episodes):
                    loss = self.prediction_loss(rollout)
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
        self.optimizer.zero_grad()
        if self.n_past_rollouts:
            self._past = [*self._past, episodes][-self.n_past_rollouts :]
        return {"prediction_loss": loss.item()}

    def redistribute(self, episodes: Episodes) -> Tensor:
        """The rewards that take the place of the environment's: the same sum in every episode; shape ``(T, B)``."""
        with torch.no_grad():
            predictions = self.predictions(episodes).to(episodes.rewards)
        redistributed = redistributed_rewards(predictions, episodes.rewards, episodes.mask)
        return torch.lerp(redistributed, episodes.rewards, self.reward_mix)

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        self.check(episodes)
        errors = td_errors(self.redistribute(episodes), values, self.gamma)
        errors = errors.masked_fill(~episodes.mask, 0.0)
        advantages = lambda_advantages(errors, self.gamma, self.gae_lambda)
        return Estimate(advantages, advantages + values[:-1])

    def get_extra_state(self) -> dict[str, Any]:
        """What is saved besides parameters and buffers: the optimiser's state and the rollouts kept."""
        past = [{name: getattr(one, name) for name in Episodes.__dataclass_fields__} for one in self._past]
        return {"optimizer": self.optimizer.state_dict(), "past": past}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._past = [Episodes(**fields) for fields in state["past"]]

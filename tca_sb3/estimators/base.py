"""What an advantage estimator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes
from tca_sb3.returns import require_shape, td_errors
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights, checked_weights


class Estimate(NamedTuple):
    """What an estimator hands to the policy update.

    :param advantages: ``Ψ_t``, shape ``(T, B)``.
    :param value_targets: what the critic's ``v(S_t)`` regresses on, shape ``(T, B)``.
    :param weights: the weights used, in [0, 1], for the log: ``(B, T, T)`` if one for each pair of times, ``(T, B)``
        if one for each step, ``None`` if there are none.
    """

    advantages: Tensor
    value_targets: Tensor
    weights: Tensor | None = None


class AdvantageEstimator(nn.Module, ABC):
    """Turns episodes and a critic's values into advantages and value targets.

    A new estimator is one subclass in one file: write :meth:`forward`.

    :param observation_space: the observation space, for weight functions that need it.
    :param gamma: discount factor.
    :param gae_lambda: the trace parameter λ.
    :param make_encoder: builds an observation encoder, for estimators with a network.
    :param action_space: the action space, for networks that look at actions.
    :raises ValueError: if ``gamma`` or ``gae_lambda`` lies outside [0, 1].
    """

    regular_critic: ClassVar[bool] = True
    """The critic predicts the regular discounted return (and may serve the outer loop as ``v_φ``)."""

    weights_name: ClassVar[str] = "weight"
    """What the log calls ``Estimate.weights``."""

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        gamma: float,
        gae_lambda: float,
        make_encoder: MakeEncoder | None = None,
        action_space: spaces.Space | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("gae_lambda", gae_lambda)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{type(self).__name__} got {name}={value}; it must lie in [0, 1].")
        self.gamma = gamma
        self.gae_lambda = gae_lambda

    def check(self, episodes: Episodes) -> None:
        """Refuse episodes that the estimator cannot use; called by :meth:`forward`, and before an outer step.

        :raises ValueError: if the estimator needs whole episodes and gets less.
        """

    def meta_parameters(self) -> list[nn.Parameter]:
        """``η``, what the metagradient learns: all trainable parameters, unless the estimator trains some itself."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def fit(self, episodes: Episodes) -> dict[str, float]:
        """Train what the estimator learns by itself, not by the metagradient; by default nothing.

        Called exactly once for every rollout, before its advantages are computed. What it needs beyond parameters
        and buffers (an optimiser's state) goes into ``get_extra_state``, so that it is saved with the model.

        :param episodes: the new rollout.
        :return: what is worth logging.
        :raises ValueError: if the estimator needs whole episodes and gets less; then nothing has changed.
        """
        return {}

    @abstractmethod
    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        """Estimate advantages.

        :param episodes: ``B`` columns of at most ``T`` steps.
        :param values: the critic's ``v(S_0) … v(S_T)``, shape ``(T + 1, B)``: 0 after termination, the bootstrap
            value in the last row of a column that was cut, anything in the padding after it.
        :return: advantages and targets, ``(T, B)``; what they hold in the padding is not used.
        :raises ValueError: if the estimator needs whole episodes and gets less.
        """

    def td_errors(self, episodes: Episodes, values: Tensor) -> Tensor:
        """``δ_1 … δ_T``, 0 in the padding; shape ``(T, B)``."""
        errors = td_errors(episodes.rewards, values, self.gamma)
        return errors if episodes.full else torch.where(episodes.mask, errors, 0.0)


class PairwiseEstimator(AdvantageEstimator):
    """An estimator whose advantages are a sum over pairs of times with weights in [0, 1], explicit or implied."""

    @abstractmethod
    def pair_weights(self, episodes: Episodes) -> Tensor:
        """The weights of all pairs, ``[b, t, k - 1]``, shape ``(B, T, T)``; below the diagonal they mean nothing."""


class WeightedEstimator(PairwiseEstimator):
    """An estimator that sums over pairs of times with a weight function.

    :param weights_class: a :class:`~tca_sb3.weights.base.PairwiseWeights`.
    :param weights_kwargs: its arguments besides the observation space and the encoder.
    :raises TypeError: if ``weights_class`` is not a weight function.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        gamma: float,
        gae_lambda: float,
        weights_class: type[PairwiseWeights],
        weights_kwargs: dict[str, Any] | None = None,
        make_encoder: MakeEncoder | None = None,
        action_space: spaces.Space | None = None,
    ) -> None:
        super().__init__(observation_space, gamma=gamma, gae_lambda=gae_lambda)
        if not (isinstance(weights_class, type) and issubclass(weights_class, PairwiseWeights)):
            raise TypeError(
                f"{type(self).__name__} got weights_class={weights_class!r}; it needs a subclass of PairwiseWeights "
                "(the class, not an object), for instance weights_class=Tabular."
            )
        self.weights = weights_class(observation_space, make_encoder, **(weights_kwargs or {}))

    def pair_weights(self, episodes: Episodes) -> Tensor:
        """The weights of all pairs, checked; shape ``(B, T, T)``."""
        return checked_weights(self.weights, episodes)


def bootstrapped_rewards(episodes: Episodes, values: Tensor, gamma: float) -> Tensor:
    """Rewards with ``γ v(S_T)`` added to each column's last one; shape ``(T, B)``."""
    require_shape("bootstrapped_rewards", "values", values, episodes.rewards, "(T + 1, B)")
    last = episodes.lengths - 1
    columns = torch.arange(episodes.batch_size, device=last.device)
    rewards = episodes.rewards.clone()
    rewards[last, columns] += gamma * values[last + 1, columns]
    return rewards

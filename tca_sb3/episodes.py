"""Whole episodes, or pieces of them, as one padded batch.

Index convention, everywhere in this package: states ``S_0 … S_T``; action ``A_t`` is taken in ``S_t``;
reward ``R_{t+1}`` is received on arriving in ``S_{t+1}``. In tensors, row ``t`` of ``actions`` is ``A_t`` and
row ``k - 1`` of ``rewards`` is ``R_k``: both arrays have ``T`` rows, ``observations`` has ``T + 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Observations = Tensor | dict[str, Tensor]


def map_observations(function: Callable[[Tensor], Tensor], observations: Observations) -> Observations:
    """Apply ``function`` to an array observation, or to every entry of a dict observation."""
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


_TENSOR_FIELDS = ("actions", "rewards", "lengths", "terminated", "truncated", "started")


def _parts(observations: Observations) -> dict[str, Tensor]:
    if not isinstance(observations, dict):
        return {"observations": observations}
    return {f"observations[{key!r}]": value for key, value in observations.items()}


@dataclass(frozen=True)
class Episodes:
    """``B`` episodes (or contiguous pieces of episodes), one a column, padded at the end to ``T`` steps.

    An ``Episodes`` that exists is consistent; nobody downstream checks again.

    :param observations: ``S_0 … S_T``, shape ``(T + 1, B, *observation shape)``, or a dict of such tensors.
        Row ``lengths[b]`` of column ``b`` is the state the last action led to, terminal or not.
    :param actions: ``A_0 … A_{T-1}``, shape ``(T, B, *action shape)``.
    :param rewards: ``R_1 … R_T``, shape ``(T, B)``, floating point, finite, 0 in the padding.
    :param lengths: number of real steps of each column, shape ``(B,)``, integer, from 1 to ``T``.
    :param terminated: the column ends in a terminal state, shape ``(B,)``, bool. Then ``v(S_T) = 0``.
    :param truncated: the column ends because a time limit cut the episode, shape ``(B,)``, bool.
        Neither flag: the collection stopped in the middle of the episode.
    :param started: the column begins with the episode's first state, shape ``(B,)``, bool.
    :raises TypeError: where a dtype cannot serve.
    :raises ValueError: where shapes disagree, rewards are not finite, or flags contradict each other.
    """

    observations: Observations
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    terminated: Tensor
    truncated: Tensor
    started: Tensor

    def __post_init__(self) -> None:
        rewards = self.rewards
        for name, value in {**_parts(self.observations), **{f: getattr(self, f) for f in _TENSOR_FIELDS}}.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"Episodes got {name} as {type(value).__name__}; write torch.as_tensor({name}).")
        if rewards.ndim != 2 or 0 in rewards.shape:
            raise ValueError(
                f"Episodes got rewards of shape {tuple(rewards.shape)}; it needs (T, B) with T, B >= 1: "
                "stack episodes along the second axis."
            )
        if not rewards.is_floating_point():
            raise TypeError(f"Episodes got rewards of dtype {rewards.dtype}; write rewards.float().")
        horizon, batch = rewards.shape
        for name, part in _parts(self.observations).items():
            if part.shape[:2] != (horizon + 1, batch):
                raise ValueError(
                    f"Episodes got {name} of shape {tuple(part.shape)} for {horizon} rewards in {batch} columns; "
                    f"it needs ({horizon + 1}, {batch}, ...): keep the last state S_T, it is where R_T arrives."
                )
        if self.actions.shape[:2] != (horizon, batch):
            raise ValueError(
                f"Episodes got actions of shape {tuple(self.actions.shape)}; it needs ({horizon}, {batch}, ...)."
            )
        for name in ("lengths", "terminated", "truncated", "started"):
            value = getattr(self, name)
            if value.shape != (batch,):
                raise ValueError(f"Episodes got {name} of shape {tuple(value.shape)}; it needs ({batch},).")
            is_integer = value.dtype != torch.bool and not value.is_floating_point()
            if not (is_integer if name == "lengths" else value.dtype == torch.bool):
                wanted = "an integer dtype" if name == "lengths" else "torch.bool"
                raise TypeError(f"Episodes got {name} of dtype {value.dtype}; it needs {wanted}.")
        if not self.full:
            shortest, longest = (bound.item() for bound in self.lengths.aminmax())
            if shortest < 1 or longest > horizon:
                raise ValueError(
                    f"Episodes got lengths from {shortest} to {longest}; each must be from 1 to T = {horizon}."
                )
        if not torch.isfinite(rewards).all():
            raise ValueError("Episodes got a reward that is NaN or infinite; check the environment's reward.")
        if not self.full and rewards[~self.mask].any():
            raise ValueError("Episodes got non-zero rewards after an episode's end; pad rewards with 0.")
        if (self.terminated & self.truncated).any():
            raise ValueError("Episodes got a column that is both terminated and truncated; it must be one of them.")

    @property
    def horizon(self) -> int:
        """``T``, the length of the longest column."""
        return self.rewards.shape[0]

    @property
    def batch_size(self) -> int:
        """``B``, the number of columns."""
        return self.rewards.shape[1]

    @cached_property
    def full(self) -> bool:
        """Every column has ``T`` steps: there is no padding."""
        return bool((self.lengths == self.horizon).all())

    @cached_property
    def mask(self) -> Tensor:
        """True where a step is real; shape ``(T, B)``, bool."""
        return torch.arange(self.horizon, device=self.rewards.device).unsqueeze(1) < self.lengths

    @cached_property
    def n_steps(self) -> int:
        """The number of real steps in the batch."""
        return int(self.lengths.sum())

    @property
    def whole(self) -> bool:
        """Every column runs from an initial to a terminal state."""
        return bool((self.terminated & self.started).all())

    def flatten(self, per_step: Tensor) -> Tensor:
        """The real steps of a ``(T, B, ...)`` tensor as ``(n_steps, ...)``, time-major."""
        return per_step.flatten(0, 1) if self.full else per_step[self.mask]

    def unflatten(self, flat: Tensor) -> Tensor:
        """The way back: ``(n_steps, ...)`` to ``(T, B, ...)``, 0 in the padding."""
        if self.full:
            return flat.unflatten(0, (self.horizon, self.batch_size))
        out = flat.new_zeros(self.horizon, self.batch_size, *flat.shape[1:])
        out[self.mask] = flat
        return out

    @cached_property
    def flat_observations(self) -> Observations:
        """The states in which an action was taken, ``(n_steps, ...)``, in the order of :meth:`flatten`."""
        return map_observations(lambda part: self.flatten(part[:-1]), self.observations)

    @cached_property
    def flat_actions(self) -> Tensor:
        """The actions, ``(n_steps, ...)``, in the order of :meth:`flatten`."""
        return self.flatten(self.actions)

    def require_whole(self, who: str) -> None:
        """Refuse truncated episodes and pieces of episodes.

        :param who: the name of what needs whole episodes, for the message.
        :raises ValueError: if a column is truncated, or is a piece of an episode.
        """
        if self.whole:
            return
        if self.truncated.any():
            raise ValueError(
                f"{who} got an episode cut by a time limit (TimeLimit.truncated); its weighted sums need every "
                "reward up to a terminal state and cannot be bootstrapped. Use an environment that ends its "
                "episodes with terminated=True, or the PWTD estimator, which may bootstrap."
            )
        raise ValueError(
            f"{who} got a piece of an episode (of at most {self.horizon} steps); it needs whole episodes. "
            "Pass n_episodes=1 (rollouts of whole episodes) instead of an n_steps that cuts them."
        )

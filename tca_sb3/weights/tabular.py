"""One learned weight for every pair of states (§5.1 of the pairwise-weights paper)."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights


def require_discrete(who: str, observation_space: spaces.Space) -> int:
    """The number of states of a ``Discrete`` space that counts from 0.

    :raises TypeError: for every other space.
    """
    if not isinstance(observation_space, spaces.Discrete) or observation_space.start != 0:
        raise TypeError(
            f"{who} indexes states by number but the observation space is {observation_space}; it needs "
            "Discrete(n) starting at 0. For other observations use weights_class=Product."
        )
    return int(observation_space.n)


def gather_state_pairs(table: Tensor, episodes: Episodes) -> Tensor:
    """``table[S_t, S_k]`` for every pair of times.

    :param table: shape ``(n, n)``, one row and one column for each state.
    :return: shape ``(B, T, T)``, differentiable with respect to ``table``.
    """
    assert isinstance(episodes.observations, Tensor)
    states = episodes.observations.reshape(episodes.horizon + 1, episodes.batch_size).long().T
    return table[states[:, :-1, None], states[:, None, 1:]]


class Tabular(PairwiseWeights):
    """``f = σ(η[S_t, S_k])`` with one logit for each pair of states.

    Weights start at 0.5, as the paper's do. Between two states of an environment such as the DAG the lag is
    fixed, so the table needs no lag argument.

    :raises TypeError: if the observation space is not ``Discrete(n)`` starting at 0.
    """

    def __init__(self, observation_space: spaces.Space, make_encoder: MakeEncoder | None = None) -> None:
        super().__init__(observation_space)
        n_states = require_discrete("Tabular", observation_space)
        self.logits = nn.Parameter(torch.zeros(n_states, n_states))

    def forward(self, episodes: Episodes) -> Tensor:
        return torch.sigmoid(gather_state_pairs(self.logits, episodes))

    def table(self) -> Tensor:
        """The weights themselves, ``(n, n)``: row the state to credit, column the state the reward arrives in."""
        return torch.sigmoid(self.logits.detach())

"""Hand-written weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights
from tca_sb3.weights.tabular import gather_state_pairs, require_discrete


class Fixed(PairwiseWeights):
    """A constant matrix: the weights of H-PWR.

    :param matrix: weights in [0, 1]. With ``index="time"``, ``matrix[t, k - 1]`` is the weight of the reward
        received at time ``k`` for the action at time ``t``, shape ``(T, T)`` with ``T`` at least the length of the
        longest episode. With ``index="state"``, ``matrix[S_t, S_k]`` for a ``Discrete(n)`` observation space,
        shape ``(n, n)``.
    :param index: ``"time"`` or ``"state"``.
    :raises TypeError: if the matrix does not hold numbers, or states are not numbers to index by.
    :raises ValueError: if the matrix is not square, of the wrong size, or has entries outside [0, 1].
    """

    matrix: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        make_encoder: MakeEncoder | None = None,
        *,
        matrix: np.ndarray | Tensor,
        index: Literal["time", "state"] = "time",
    ) -> None:
        super().__init__(observation_space)
        array = np.asarray(matrix)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"Fixed got a matrix of dtype {array.dtype}; it needs numbers in [0, 1].")
        table = torch.tensor(array, dtype=torch.float32)
        if table.ndim != 2 or table.shape[0] != table.shape[1]:
            raise ValueError(f"Fixed got a matrix of shape {tuple(table.shape)}; it needs a square one.")
        if not ((table >= 0) & (table <= 1)).all():
            raise ValueError("Fixed got a matrix with entries outside [0, 1] or NaN; weights must lie in [0, 1].")
        if index not in ("time", "state"):
            raise ValueError(f"Fixed got index={index!r}; write index='time' or index='state'.")
        if index == "state" and require_discrete("Fixed(index='state')", observation_space) != len(table):
            raise ValueError(
                f"Fixed got a matrix for {len(table)} states and {observation_space}; "
                "it needs one row and one column for every observation."
            )
        self.index = index
        self.register_buffer("matrix", table)

    def forward(self, episodes: Episodes) -> Tensor:
        table = self.matrix.to(episodes.rewards.dtype)
        if self.index == "state":
            return gather_state_pairs(table, episodes)
        if episodes.horizon > len(table):
            raise ValueError(
                f"Fixed holds weights for {len(table)} steps but an episode has {episodes.horizon}; "
                "give a matrix as long as the longest episode."
            )
        # A time-indexed row means nothing for a piece whose first step is not the episode's first.
        if not bool(episodes.started.all()):
            episodes.require_whole("Fixed(index='time')")
        return table[: episodes.horizon, : episodes.horizon].expand(episodes.batch_size, -1, -1)

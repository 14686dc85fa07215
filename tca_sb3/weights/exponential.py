"""Weights that decay with the lag alone."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights


class Exponential(PairwiseWeights):
    """``f = rate^{k−t−1}``: with ``rate = γλ`` PWTD is the λ-estimator (Eq. 8), with ``rate = γ`` PWR is MC (Eq. 7).

    :param rate: the base, in [0, 1]; ``0^0`` is 1.
    :raises ValueError: if ``rate`` lies outside [0, 1].
    """

    def __init__(
        self, observation_space: spaces.Space, make_encoder: MakeEncoder | None = None, *, rate: float = 0.99
    ) -> None:
        super().__init__(observation_space)
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"Exponential got rate={rate}; rate^(k-t-1) is a weight only for rate in [0, 1].")
        self.rate = rate

    def forward(self, episodes: Episodes) -> Tensor:
        times = torch.arange(episodes.horizon, device=episodes.rewards.device)
        lag_minus_one = (times - times.unsqueeze(1)).clamp(min=0)  # [t, k - 1] -> k - t - 1
        table = torch.pow(torch.tensor(self.rate, dtype=episodes.rewards.dtype), lag_minus_one)
        return table.to(episodes.rewards).expand(episodes.batch_size, -1, -1)

"""Weights for observations of any kind: embeddings fused by an element-wise product (§5.2)."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes, map_observations
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights


class Product(PairwiseWeights):
    """``f = σ(b + Σ_d a_d(S_t) · b_d(S_k) · c_d(k − t))``: three embeddings, their product, a linear read-out.

    The paper embeds the two observations and the time difference, multiplies the three vectors element by element
    and maps the product to one number under a sigmoid. Here:

    * both embeddings are linear heads on **one** trunk (the policy's features extractor and one hidden layer), and
      each observation passes through it once, never once a pair;
    * the read-out vector is absorbed into the lag embedding, which changes nothing that can be expressed;
    * the lag embedding is linear in ``1, cos(ω_m l), sin(ω_m l)``. Because those separate into functions of ``t``
      and ``k`` (angle addition), all pairs are one batched matrix product: the cost is ``O(T² d)`` multiplications
      and the memory ``O(T² + T d)`` a column. Lags are smooth on the scale of ``2 / max_lag``.

    The widths and the lag features are ours; the paper gives none.

    :param make_encoder: builds the observation encoder; required, the algorithms pass the policy's.
    :param embedding_dim: ``d``.
    :param hidden_dim: width of the trunk's hidden layer.
    :param n_frequencies: number of cosine-sine pairs in the lag embedding.
    :param max_lag: the longest lag that the slowest feature tells apart from lag 0.
    :raises ValueError: if ``make_encoder`` is missing or a size is not positive.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        make_encoder: MakeEncoder | None = None,
        *,
        embedding_dim: int = 16,
        hidden_dim: int = 64,
        n_frequencies: int = 3,
        max_lag: int = 128,
    ) -> None:
        super().__init__(observation_space)
        if make_encoder is None:
            raise ValueError(
                "Product needs make_encoder, a function that builds an observation encoder with a features_dim; "
                "the algorithms of tca_sb3 pass the policy's own."
            )
        if min(embedding_dim, hidden_dim, max_lag) < 1 or n_frequencies < 0:
            raise ValueError(
                f"Product got embedding_dim={embedding_dim}, hidden_dim={hidden_dim}, max_lag={max_lag}, "
                f"n_frequencies={n_frequencies}; sizes must be at least 1 and n_frequencies at least 0."
            )
        self.encoder = make_encoder()
        features_dim = int(self.encoder.features_dim)  # type: ignore[arg-type]
        self.trunk = nn.Sequential(nn.Linear(features_dim, hidden_dim), nn.Tanh())
        self.action_head = nn.Linear(hidden_dim, embedding_dim)
        self.reward_head = nn.Linear(hidden_dim, embedding_dim)
        # Octaves from one half-wave over max_lag upwards.
        self.register_buffer("frequencies", math.pi / max_lag * 2.0 ** torch.arange(n_frequencies))
        # Row 0 is the lag-free part; starting there at 1/√d and at 0 elsewhere keeps the first weights near 0.5.
        lag = torch.zeros(1 + 2 * n_frequencies, embedding_dim)
        lag[0] = embedding_dim**-0.5
        self.lag_coefficients = nn.Parameter(lag)
        self.bias = nn.Parameter(torch.zeros(()))

    frequencies: Tensor

    def forward(self, episodes: Episodes) -> Tensor:
        horizon, batch = episodes.horizon, episodes.batch_size
        states = map_observations(lambda part: part.flatten(0, 1), episodes.observations)
        hidden = self.trunk(self.encoder(states)).view(horizon + 1, batch, -1).transpose(0, 1)
        credit = self.action_head(hidden[:, :-1])  # a(S_t), (B, T, d)
        arrival = self.reward_head(hidden[:, 1:])  # b(S_k), (B, T, d)

        times = torch.arange(horizon, device=credit.device, dtype=credit.dtype).unsqueeze(1)
        t, k = times * self.frequencies, (times + 1) * self.frequencies
        # cos ω(k−t) = cos ωk cos ωt + sin ωk sin ωt;  sin ω(k−t) = sin ωk cos ωt − cos ωk sin ωt.
        one, cos_t, sin_t = torch.ones_like(times), t.cos(), t.sin()
        features_k = torch.cat([one, k.cos(), k.sin()], dim=1)  # (T, F)
        n = len(self.frequencies)
        constant, cosine, sine = self.lag_coefficients.split([1, n, n])
        # What multiplies 1, cos ωk and sin ωk, for every t: (T, F, d).
        mixed = torch.cat(
            [
                constant.expand(horizon, 1, -1),
                cos_t.unsqueeze(2) * cosine - sin_t.unsqueeze(2) * sine,
                sin_t.unsqueeze(2) * cosine + cos_t.unsqueeze(2) * sine,
            ],
            dim=1,
        )
        left = (mixed * credit.unsqueeze(2)).flatten(2)  # (B, T, F·d)
        right = (features_k.unsqueeze(2) * arrival.unsqueeze(2)).flatten(2)
        return torch.sigmoid(self.bias + torch.bmm(left, right.transpose(1, 2)))

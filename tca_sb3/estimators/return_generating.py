"""Returns whose weights are generated from the whole episode, one for each reward."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes
from tca_sb3.estimators.base import Estimate, PairwiseEstimator
from tca_sb3.estimators.steps import ActionEncoder, StateEncoder
from tca_sb3.returns import discounted_returns, pwr_advantages
from tca_sb3.weights.base import MakeEncoder


class ReturnGeneratingModel(PairwiseEstimator):
    """``Ψ_t = G_t − v_ψ(S_t)`` with ``G_t = Σ_{k=t+1..T} β_k R_k`` and ``β_1 … β_T = g_η(episode)``.

    The estimator of RGM (Wang, Ye and Liu 2019, "Beyond Exponentially Discounted Sum"). From the pairwise-weights
    paper: the model takes the whole episode and gives one weight a step, the return is a linear combination of the
    rewards, and ``η`` is learned by the metagradient. As we read that, ``β_k`` takes the place of the discount and is
    the same for every ``t``: PWR with ``f = β_k``. The original is said to use a Transformer encoder; ours is a small
    one (pre-norm blocks, sines and cosines of the time added). Ours too: each step enters as its state, action, reward
    (as ``sign(r) log(1 + |r|)``) and the state it led to; the sizes; and the output.

    It needs whole episodes: ``β`` depends on all of it, and its sum has no recursive form to bootstrap from.

    :param output: ``"sigmoid"``: each ``β_k`` in (0, 1), 0.5 at the start; ``"softmax"``: they sum to 1 over the
        episode, equal at the start.
    :param embedding_dim: width of the encoder, a multiple of ``2 * n_heads``.
    :param n_layers: number of blocks.
    :param n_heads: attention heads a block.
    :raises ValueError: if a size is out of range, ``output`` is neither, or ``make_encoder`` or ``action_space`` is
        missing.
    """

    regular_critic: ClassVar[bool] = False
    weights_name = "beta"

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        gamma: float,
        gae_lambda: float,
        make_encoder: MakeEncoder | None = None,
        action_space: spaces.Space | None = None,
        output: Literal["sigmoid", "softmax"] = "sigmoid",
        embedding_dim: int = 32,
        n_layers: int = 1,
        n_heads: int = 2,
    ) -> None:
        super().__init__(observation_space, gamma=gamma, gae_lambda=gae_lambda)
        if output not in ("sigmoid", "softmax"):
            raise ValueError(f"ReturnGeneratingModel got output={output!r}; write 'sigmoid' or 'softmax'.")
        if min(embedding_dim, n_layers, n_heads) < 1 or embedding_dim % (2 * n_heads):
            raise ValueError(
                f"ReturnGeneratingModel got embedding_dim={embedding_dim}, n_layers={n_layers}, n_heads={n_heads}; "
                "sizes must be at least 1 and embedding_dim a multiple of 2 * n_heads."
            )
        self.output = output
        self.states = StateEncoder(type(self).__name__, make_encoder)
        self.actions = ActionEncoder(type(self).__name__, action_space)
        self.embed = nn.Linear(2 * self.states.features_dim + self.actions.features_dim + 1, embedding_dim)
        self.blocks = nn.ModuleList(_Block(embedding_dim, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(embedding_dim)
        self.head = nn.Linear(embedding_dim, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def check(self, episodes: Episodes) -> None:
        episodes.require_whole(type(self).__name__)

    def fit(self, episodes: Episodes) -> dict[str, float]:
        """Nothing but the scale of the network's inputs, with the first rollout."""
        self.check(episodes)
        self.states.calibrate(episodes)
        return {}

    def betas(self, episodes: Episodes) -> Tensor:
        """``β_1 … β_T``, shape ``(T, B)``."""
        states = self.states(episodes)
        rewards = episodes.rewards.unsqueeze(2).to(states)
        rewards = rewards.sign() * rewards.abs().log1p()
        steps = torch.cat([states[:-1], states[1:], self.actions(episodes).to(states), rewards], dim=2)
        hidden = self.embed(steps).transpose(0, 1)  # (B, T, d)
        hidden = hidden + _times(episodes.horizon, hidden)
        real = episodes.mask.T
        for block in self.blocks:
            hidden = block(hidden, None if episodes.full else real[:, None, None])
        logits = self.head(self.norm(hidden)).squeeze(2)  # (B, T)
        if self.output == "sigmoid":
            return torch.sigmoid(logits).T
        return torch.softmax(logits.masked_fill(~real, -torch.inf), dim=1).T

    def pair_weights(self, episodes: Episodes) -> Tensor:
        return self.betas(episodes).T.unsqueeze(1).expand(-1, episodes.horizon, -1)

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        self.check(episodes)
        betas = self.betas(episodes)
        returns = discounted_returns(betas * episodes.rewards, gamma=1.0)
        return Estimate(pwr_advantages(returns, values), returns, betas)


def _times(horizon: int, like: Tensor) -> Tensor:
    """Sines and cosines of the time at wave lengths from 2π to 20 000π, as Transformers have them; ``(T, d)``."""
    pairs = like.shape[2] // 2
    rates = 1e-4 ** (torch.arange(pairs, device=like.device, dtype=like.dtype) / pairs)
    angles = torch.arange(horizon, device=like.device, dtype=like.dtype).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Block(nn.Module):
    """Attention over all steps, then one hidden layer a step; both on top of what came in.

    Not ``nn.TransformerEncoderLayer``, which computes other numbers without gradients than with them.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attended = nn.Linear(dim, dim)
        self.hidden = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """``(B, T, d)`` to the same; ``real``, ``(B, 1, 1, T)``, says which steps may be looked at."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, T, d / heads)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=real)
        x = x + self.attended(seen.transpose(1, 2).flatten(2))
        return x + self.hidden(x)

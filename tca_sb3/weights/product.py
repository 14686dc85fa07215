"""Weights for observations of any kind: embeddings fused by an element-wise product (§5.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tca_sb3.episodes import Episodes, map_observations
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights, new_encoder

_LARGEST_EXPONENT = 32  # a block's decays reach from exp(-32) to exp(32), far from single precision's limits
_SIDE = 128  # columns, and rows, handled together at most; a block then needs a few megabytes, however long T is
_BLOCK_PAIRS = 2**17  # pairs of all episodes handled together; a processor's cache holds a block of that size


class Product(PairwiseWeights):
    """``f = σ(c_0(k − t) + Σ_d a_d(S_t) · b_d(S_k) · c_d(k − t))``: three embeddings, their product, a linear read-out.

    The paper embeds the two observations and the time difference, multiplies the three vectors element by element
    and maps the product to one number under a sigmoid. Here:

    * embeddings start around 0, of size 1, and in pairs that cancel: every weight is ½ at first (unless
      ``initial_discount`` says otherwise) while its gradient is not 0, and what is learned of one pair of states
      reaches others only as far as both states are alike. Embeddings around 1, whose product is nearly a sum, tie all
      weights into the same state together: on Key-to-Door key → door rose and fell with apple → door;
    * both embeddings are linear heads on **one** trunk (the policy's features extractor and one hidden layer), and
      each observation passes through it once, never once a pair;
    * the read-out vector is absorbed into the lag embedding, which changes nothing that can be expressed;
    * the lag embedding is a mixture of discounts, ``c_d(l) = c_{d,0} + Σ_m c_{d,m} exp(−l / τ_m)``, and so is the term
      ``c_0`` of the lag alone. What is far away is judged by the observations alone, what is near also by how near, and
      weights that decay like ``γ^l`` can be expressed. Exponentials separate into functions of ``t`` and of ``k``, so
      all pairs are matrix products: the cost is ``O(T² d)`` multiplications, and besides the weights themselves the
      memory is ``O(T d)`` a column;
    * at first half of the dimensions count for near pairs, as ``exp(−l / τ)`` with the middle ``τ``, and the others for
      far ones, as ``1 − exp(−l / τ)``, so that what is learned of one kind, from its own noisy gradients, leaves the
      other alone. Where all dimensions count for all lags, key → door and door → door of Key-to-Door rose and fell
      against each other.

    The widths and the lag scales are ours; the paper gives none.

    :param make_encoder: builds the observation encoder; required, the algorithms pass the policy's.
    :param embedding_dim: ``d``.
    :param hidden_dim: width of the trunk's hidden layer.
    :param lag_scales: ``τ_m``, in steps; ``()`` for weights that do not look at the lag.
    :param embedding_scale: size of the first embeddings, in units of torch's own initial weights of a linear layer.
    :param initial_discount: ``γ_0``: weights begin at ``γ_0^(k − t − 1)``, but within ``initial_floor`` of neither 0
        nor 1, instead of at ½; what is learned is added under the sigmoid. A warm start: learning begins as it would
        with that discount. Ours.
    :param initial_floor: the least of these weights; where it is small, so is the gradient.
    :raises ValueError: if ``make_encoder`` is missing, a size is not positive, a lag scale is under 1 step, the
        discount is not in [0, 1] or the floor not in (0, ½].
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        make_encoder: MakeEncoder | None = None,
        *,
        embedding_dim: int = 16,
        hidden_dim: int = 64,
        lag_scales: Sequence[float] = (4.0, 16.0, 64.0),
        embedding_scale: float = 2.0,
        initial_discount: float | None = None,
        initial_floor: float = 0.1,
    ) -> None:
        super().__init__(observation_space)
        if min(embedding_dim, hidden_dim) < 1 or min(lag_scales, default=1.0) < 1.0 or not embedding_scale > 0:
            raise ValueError(
                f"Product got embedding_dim={embedding_dim}, hidden_dim={hidden_dim}, lag_scales={tuple(lag_scales)}, "
                f"embedding_scale={embedding_scale}; widths and lag scales (in steps) must be at least 1, and "
                "embedding_scale above 0."
            )
        if not (0.0 <= (initial_discount or 0.0) <= 1.0 and 0.0 < initial_floor <= 0.5):
            raise ValueError(
                f"Product got initial_discount={initial_discount}, initial_floor={initial_floor}; the discount must "
                "lie in [0, 1], or be None, and the floor above 0 and up to 0.5."
            )
        self.initial_discount, self.initial_floor = initial_discount, initial_floor
        self.encoder, features_dim = new_encoder(type(self).__name__, make_encoder)
        self.trunk = nn.Sequential(nn.Linear(features_dim, hidden_dim), nn.Tanh())
        self.action_head = nn.Linear(hidden_dim, embedding_dim)
        self.reward_head = nn.Linear(hidden_dim, embedding_dim)
        self.register_buffer("rates", torch.tensor([0.0, *(1.0 / scale for scale in lag_scales)]))
        half, quarter = embedding_dim // 2, embedding_dim // 4
        with torch.no_grad():
            for head in (self.action_head, self.reward_head):
                head.bias.zero_()
                head.weight.mul_(embedding_scale)
                head.weight[half : 2 * half] = head.weight[:half]
        # Row 0 is the lag-free part. An odd last dimension has no partner and waits for its coefficient.
        lag = torch.zeros(1 + len(lag_scales), embedding_dim)
        lag[0, :half] = embedding_dim**-0.5
        if lag_scales:
            middle = 1 + len(lag_scales) // 2
            lag[0, :quarter] = 0.0
            lag[middle, :quarter] = embedding_dim**-0.5
            lag[middle, quarter : 2 * quarter] = -(embedding_dim**-0.5)
        lag[:, half : 2 * half] = -lag[:, :half]
        self.lag_coefficients = nn.Parameter(lag)
        self.lag_bias = nn.Parameter(torch.zeros(1 + len(lag_scales)))

    rates: Tensor

    def forward(self, episodes: Episodes) -> Tensor:
        horizon, batch = episodes.horizon, episodes.batch_size
        states = map_observations(lambda part: part.flatten(0, 1), episodes.observations)
        hidden = self.trunk(self.encoder(states)).view(horizon + 1, batch, -1).transpose(0, 1)
        credit, arrival = self.action_head(hidden[:, :-1]), self.reward_head(hidden[:, 1:])  # a(S_t), b(S_k), (B, T, d)
        # The term of the lag alone is one more dimension, in which both embeddings are 1.
        one = hidden.new_ones(()).expand(batch, horizon, 1)
        credit, arrival = torch.cat([credit, one], 2), torch.cat([arrival, one], 2)
        coefficients = torch.cat([self.lag_coefficients, self.lag_bias.unsqueeze(1)], 1)
        rates = self.rates.to(credit.dtype)
        start = None
        if self.initial_discount is not None:
            start = discount_logits(horizon, self.initial_discount, self.initial_floor).to(rates)
        return _Fusion.apply(credit, arrival, coefficients, rates, start)


def discount_logits(horizon: int, discount: float, floor: float) -> Tensor:
    """The logits of weights ``discount^(k − t − 1)`` that are kept within ``floor`` of neither 0 nor 1.

    :return: ``[t, k − 1]``, shape ``(T, T)``, double precision; what stands below the diagonal means nothing.
    """
    times = torch.arange(horizon, dtype=torch.float64)
    return torch.logit(discount ** (times - times.unsqueeze(1)).clamp(min=0), eps=floor)


class _Fusion(torch.autograd.Function):
    """``σ(s[t, k] + Σ_{d,m} credit[t, d] · arrival[k, d] · coefficients[m, d] · exp(−rates[m] (k − t)))``, 0 where
    ``k <= t``; ``s`` is ``start``.

    By blocks: with ``r`` the first ``k`` of a block, ``exp(−rate (k − t))`` is ``exp(−rate (k − r))`` times
    ``exp(−rate (r − t))``, and a block is one batched matrix product over the ``(m, d)`` pairs. Nothing but the inputs
    and the weights is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        credit: Tensor,
        arrival: Tensor,
        coefficients: Tensor,
        rates: Tensor,
        start: Tensor | None,
    ) -> Tensor:
        batch, horizon, _ = credit.shape
        weights = credit.new_empty(batch, horizon, horizon)
        for block in _blocks(batch, horizon, rates):
            left, right = block.factors(credit, arrival, coefficients)
            weights[block.pairs] = torch.bmm(left.flatten(2), right.flatten(2).transpose(1, 2))
        if start is not None:
            weights.add_(start)
        weights.sigmoid_().triu_()  # in place: beside the inputs one tensor of the size of all pairs is kept
        ctx.save_for_backward(credit, arrival, coefficients, rates, weights)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        credit, arrival, coefficients, rates, weights = ctx.saved_tensors
        blocks = list(_blocks(credit.shape[0], credit.shape[1], rates))
        # One for all blocks: the allocator's fresh pages would cost more than the arithmetic.
        scratch = weights.new_empty(max(weights[block.pairs].numel() for block in blocks))

        into_credit, into_arrival = torch.zeros_like(credit), torch.zeros_like(arrival)
        into_coefficients = torch.zeros_like(coefficients)
        for block in blocks:
            weight = weights[block.pairs]
            # What reaches the logits; 0 where there is no pair t < k, for there the weight is 0.
            slope = scratch[: weight.numel()].view(weight.shape)
            torch.addcmul(weight, weight, weight, value=-1, out=slope)
            slope.mul_(gradient[block.pairs])
            left, right = block.factors(credit, arrival, coefficients)
            # What reaches credit[t, d] · coefficients[m, d], then what reaches arrival.
            mixed = torch.bmm(slope, right.flatten(2)).view(left.shape).mul_(block.decay_rows.unsqueeze(2))
            into_credit[block.episodes, block.rows] += (mixed * coefficients).sum(2)
            into_coefficients += mixed.mul_(credit[block.episodes, block.rows].unsqueeze(2)).sum((0, 1))
            reached = torch.bmm(slope.transpose(1, 2), left.flatten(2)).view(right.shape)
            into_arrival[block.episodes, block.columns] += reached.mul_(block.decay_columns.unsqueeze(2)).sum(2)
        return into_credit, into_arrival, into_coefficients, None, None


class _Block(NamedTuple):
    """Rows ``t`` and columns ``k − 1`` of some episodes, and the two factors of the decays, ``(·, m)``."""

    episodes: slice
    rows: slice
    columns: slice
    decay_rows: Tensor
    decay_columns: Tensor

    @property
    def pairs(self) -> tuple[slice, slice, slice]:
        return self.episodes, self.rows, self.columns

    def factors(self, credit: Tensor, arrival: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """What the logits are the products of, each ``(B, ·, m, d)``."""
        left = credit[self.episodes, self.rows].unsqueeze(2) * (self.decay_rows.unsqueeze(2) * coefficients)
        return left, arrival[self.episodes, self.columns].unsqueeze(2) * self.decay_columns.unsqueeze(2)


def _blocks(batch: int, horizon: int, rates: Tensor) -> Iterator[_Block]:
    """Blocks that together hold all pairs of all episodes, each once."""
    fastest = float(rates.max())
    height = min(_SIDE, horizon)
    width = min(height, int(_LARGEST_EXPONENT / fastest)) if fastest else height
    together = max(1, _BLOCK_PAIRS // (width * height))
    times = torch.arange(horizon, device=rates.device, dtype=rates.dtype).unsqueeze(1)
    for start in range(0, horizon, width):
        stop = min(start + width, horizon)
        decay_columns = torch.exp(-rates * (times[start:stop] - start))
        for top in range(0, stop, height):
            bottom = min(top + height, stop)
            # Below the diagonal of the last rows the lag is negative; those pairs do not count.
            decay_rows = torch.exp(-rates * (start + 1 - times[top:bottom]))
            for first in range(0, batch, together):
                yield _Block(
                    slice(first, first + together), slice(top, bottom), slice(start, stop), decay_rows, decay_columns
                )

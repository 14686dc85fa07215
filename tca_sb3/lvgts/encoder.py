"""Algorithm 2: the encoder ``b``, a network that attends to ``k`` moments of its past.

Tensors are batch-first here and in the modules downstream: ``B`` episodes, ``T`` times, ``d`` latent components. Time
``t`` runs from 0 (the paper counts from 1).

Reading notes. Algorithm 2 and Eq. 3 describe two encoders. Eq. 3 feeds ``h_{t-1}`` and recalls latents, as the text
around both says (an "attention-augmented RNN"); Algorithm 2 embeds ``(o_t, a_{t-1})`` alone and recalls inputs.
:class:`RecurrentEncoder` is the first. :class:`AttentionEncoder` is the second, and the default, with the embedding
recalled in place of the input, whose size does not fit ``ĥ_t + h_m``. Agents end closer to the optimum with the first;
with the second they learn more evenly and in less time. Both recall strictly earlier times (Eq. 3's ``i < t``;
Algorithm 2's sum runs to ``t``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

FIRST_CAPACITY = 16


class Encoding(NamedTuple):
    """What the encoder makes of a batch of episodes."""

    latents: Tensor
    """``h_t``, shape ``(B, T, d)``."""
    weights: Tensor
    """``w[t, i]``: the share of time ``i`` in what is recalled at time ``t``, shape ``(B, T, T)``, 0 for ``i >= t``."""


class _Layers(nn.Sequential):
    """Layers without hooks, for ``(..., fan_in)``. Each sees rows: views and hooks take time, in networks so small."""

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]) if inputs.ndim > 2 else inputs
        for layer in self:
            rows = layer.forward(rows)
        return rows.reshape(*inputs.shape[:-1], -1) if inputs.ndim > 2 else rows


def mlp(
    input_dim: int, net_arch: Sequence[int], output_dim: int, activation_fn: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A multilayer perceptron with a linear last layer."""
    widths = [input_dim, *net_arch]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation_fn()]
    return _Layers(*layers, nn.Linear(widths[-1], output_dim))


def top_k_attention(scores: Tensor, candidates: Tensor | None, n_recalls: int) -> Tensor:
    """Algorithm 2's sparse attention: ``w_i = ReLU(s_i - s_(k+1)) / Σ_j ReLU(s_j - s_(k+1))``.

    ``s_(k+1)`` is the ``(k+1)``-th largest score, and a gradient flows through it. At most ``k`` weights are not 0,
    and they sum to 1. Where the ``k+1`` largest scores are equal all weights are 0, and so they are where there is
    no candidate; the paper's text divides 0 by 0 there.

    Reading note: with ``k`` candidates or fewer there is no ``(k+1)``-th score. Ours then takes the smallest less 1, so
    that every candidate keeps a weight.

    :param scores: ``(..., L)``, finite.
    :param candidates: bool, broadcastable to ``scores``: what may be recalled; ``None`` for all, of which there is one
        at least, in fewer operations.
    :param n_recalls: ``k``, at least 1.
    :return: weights in the shape of ``scores``, 0 outside ``candidates``.
    """
    length = scores.shape[-1]
    kept = min(n_recalls + 1, length)
    if candidates is None:
        threshold = scores.topk(kept, dim=-1).values[..., -1:]
        excess = torch.relu(scores - threshold if length > n_recalls else scores - threshold + 1.0)
    else:
        candidates = candidates.expand_as(scores)
        counts = candidates.sum(-1, keepdim=True)
        # Finite, because the gradient of a threshold at -inf would be NaN.
        best = scores.masked_fill(~candidates, torch.finfo(scores.dtype).min / 2).topk(kept, dim=-1).values
        rank = counts.clamp(min=1, max=n_recalls + 1) - 1
        threshold = best.gather(-1, rank) - (counts <= n_recalls).to(scores.dtype)
        excess = torch.relu(scores - threshold).masked_fill(~candidates, 0.0)
    total = excess.sum(-1, keepdim=True)
    return excess / total.masked_fill(total == 0.0, 1.0)


def earlier(horizon: int, device: torch.device | None = None) -> Tensor:
    """``[t, i]`` is True where ``i < t``; shape ``(horizon, horizon)``."""
    return torch.ones(horizon, horizon, dtype=torch.bool, device=device).tril(-1)


class Memory:
    """What acting step by step has to remember of ``n`` episodes in progress; grows as they do.

    :param keys: ``(n, L, d)``.
    :param values: ``(n, L, d)``, what is recalled.
    :param lengths: times stored, shape ``(n,)``, integer.
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths

    @classmethod
    def empty(cls, n: int, latent_dim: int, device: torch.device | None = None) -> Memory:
        """No episode has begun."""
        keys = torch.zeros(n, FIRST_CAPACITY, latent_dim, device=device)
        return cls(keys, torch.zeros_like(keys), torch.zeros(n, dtype=torch.long, device=device))

    @property
    def candidates(self) -> Tensor:
        """Which places hold something; bool, ``(n, L)``."""
        return torch.arange(self.keys.shape[1], device=self.keys.device) < self.lengths.unsqueeze(1)

    @property
    def last(self) -> Tensor:
        """The newest value of each episode, ``(n, d)``; 0 where there is none."""
        rows = torch.arange(len(self.lengths), device=self.keys.device)
        newest = self.values[rows, (self.lengths - 1).clamp(min=0)]
        return newest * (self.lengths > 0).unsqueeze(1)

    def forget(self, episodes: Tensor) -> None:
        """Begin anew where ``episodes``, bool ``(n,)``, is True."""
        self.lengths = self.lengths.masked_fill(episodes, 0)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store one more time of every episode, ``(n, d)`` each."""
        if int(self.lengths.max()) == self.keys.shape[1]:
            self.keys = torch.cat([self.keys, torch.zeros_like(self.keys)], dim=1)
            self.values = torch.cat([self.values, torch.zeros_like(self.values)], dim=1)
        rows = torch.arange(len(self.lengths), device=self.keys.device)
        self.keys[rows, self.lengths] = keys
        self.values[rows, self.lengths] = values
        self.lengths = self.lengths + 1


class Encoder(nn.Module, ABC):
    """``h_t, w_t = b(o_{0..t}, a_{0..t-1})``. Derive from this for an encoder of your own.

    An encoder is causal: ``h_t`` and ``w_t`` depend on inputs up to ``t`` only. Padding at the end of an episode
    therefore needs no mask.

    :param input_dim: size of an input, the features of ``o_t`` and then ``a_{t-1}`` (0 at ``t = 0``).
    :param latent_dim: ``d``, size of a latent state.
    :param n_recalls: ``k``, the most moments that one step recalls.
    :raises ValueError: if a number is below 1.
    """

    def __init__(self, input_dim: int, latent_dim: int, n_recalls: int) -> None:
        super().__init__()
        for name, number in (("input_dim", input_dim), ("latent_dim", latent_dim), ("n_recalls", n_recalls)):
            if number < 1:
                raise ValueError(f"{type(self).__name__} got {name}={number}; it must be at least 1.")
        self.input_dim, self.latent_dim, self.n_recalls = input_dim, latent_dim, n_recalls

    @abstractmethod
    def forward(self, inputs: Tensor) -> Encoding:
        """Encode whole episodes.

        :param inputs: ``(B, T, input_dim)``.
        """

    @abstractmethod
    def step(self, inputs: Tensor, memory: Memory) -> Tensor:
        """Encode one more time of each episode, and store it in ``memory``; equals what ``forward`` computes.

        :param inputs: ``(n, input_dim)``.
        :param memory: changed in place; cannot be differentiated through.
        :return: ``h_t``, shape ``(n, d)``.
        """

    def _recall(
        self, embeddings: Tensor, queries: Tensor, keys: Tensor, values: Tensor, candidates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``h_t = z_t + Σ_i w[t, i] · value_i`` at one time of each episode.

        :param embeddings: ``z_t``, shape ``(n, d)``.
        :param queries: ``(n, d)``; scores are ``queries · keys``.
        :param keys: of the past, ``(n, L, d)``; likewise ``values``, and ``candidates``, ``(n, L)``.
        :return: ``h_t``, shape ``(n, d)``, and its weights over the past, ``(n, L)``.
        """
        scores = torch.bmm(keys, queries.unsqueeze(2)).squeeze(2)
        weights = top_k_attention(scores, candidates, self.n_recalls)
        return embeddings + torch.bmm(weights.unsqueeze(1), values).squeeze(1), weights


class AttentionEncoder(Encoder):
    """Algorithm 2: ``z_t = MLP(o_t, a_{t-1})``, ``h_t = z_t + Σ_{i<t} w[t, i] z_i``.

    Keys are ``(o_i, a_{i-1}) W``, the query is ``z_t``, and scores are divided by ``√d`` (the division is ours, from
    the dot-product attention that the paper cites). No state is handed from step to step: what is needed later has to
    pass through the attention, and nothing here is a loop over time.

    :param net_arch: widths of the hidden layers.
    :param activation_fn: between them.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int = 32,
        n_recalls: int = 3,
        net_arch: Sequence[int] = (128, 128),
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(input_dim, latent_dim, n_recalls)
        self.embedding = mlp(input_dim, net_arch, latent_dim, activation_fn)
        self.key = nn.Linear(input_dim, latent_dim, bias=False)

    def forward(self, inputs: Tensor) -> Encoding:
        embeddings = self.embedding(inputs)
        scores = embeddings @ self.key(inputs).mT / sqrt(self.latent_dim)  # (B, T, T)
        weights = top_k_attention(scores, earlier(inputs.shape[1], inputs.device), self.n_recalls)
        return Encoding(embeddings + weights @ embeddings, weights)

    def step(self, inputs: Tensor, memory: Memory) -> Tensor:
        embeddings = self.embedding(inputs)
        queries = embeddings / sqrt(self.latent_dim)
        latents, _ = self._recall(embeddings, queries, memory.keys, memory.values, memory.candidates)
        memory.append(self.key(inputs), embeddings)
        return latents


class RecurrentEncoder(Encoder):
    """Eq. 3: ``z_t = MLP(o_t, a_{t-1}, tanh h_{t-1})``, ``h_t = z_t + Σ_{i<t} w[t, i] h_i``; keys are ``h_i W``.

    ``h_{-1} = 0``. The tanh is ours: without it, latents of 100 steps overflowed. The loop over time is Eq. 3's: every
    latent needs the one before it. Memory need not come straight from where it was made: a step in between may have
    recalled it and be recalled in its place. Not for long episodes: agents with it broke down on memory tasks of 100
    steps (README beside this file).

    :param net_arch: widths of the hidden layers.
    :param activation_fn: between them.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int = 32,
        n_recalls: int = 3,
        net_arch: Sequence[int] = (128, 128),
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(input_dim, latent_dim, n_recalls)
        self.embedding = mlp(input_dim + latent_dim, net_arch, latent_dim, activation_fn)
        self.key = nn.Linear(latent_dim, latent_dim, bias=False)

    def _query_weight(self) -> Tensor:
        """``Wᵀ / √d``. ``z_t Wᵀ · h_i`` is the product of ``z_t`` with the key ``h_i W``, which is never made."""
        return self.key.weight / sqrt(self.latent_dim)

    def forward(self, inputs: Tensor) -> Encoding:
        horizon = inputs.shape[1]
        query_weight = self._query_weight()
        # What a loop costs is its operations: the first layer sees the inputs of all times at once.
        first, later_layers = self.embedding[0], self.embedding[1:]
        assert isinstance(first, nn.Linear) and isinstance(later_layers, nn.Sequential)
        of_input, of_latent = first.weight.split([self.input_dim, self.latent_dim], dim=1)
        from_inputs = nn.functional.linear(inputs, of_input, first.bias).unbind(1)
        latent = later_layers(from_inputs[0])
        latents, rows = latent.unsqueeze(1), [inputs.new_zeros(len(inputs), horizon)]
        for t in range(1, horizon):
            embeddings = later_layers(from_inputs[t] + nn.functional.linear(latent.tanh(), of_latent))
            latent, weights = self._recall(embeddings, embeddings @ query_weight, latents, latents, None)
            latents = torch.cat([latents, latent.unsqueeze(1)], dim=1)
            rows.append(nn.functional.pad(weights, (0, horizon - t)))
        return Encoding(latents, torch.stack(rows, dim=1))

    def step(self, inputs: Tensor, memory: Memory) -> Tensor:
        embeddings = self.embedding(torch.cat([inputs, memory.last.tanh()], dim=-1))
        queries = embeddings @ self._query_weight()
        latents, _ = self._recall(embeddings, queries, memory.values, memory.values, memory.candidates)
        memory.append(latents, latents)
        return latents

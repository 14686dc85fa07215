"""Eq. 2's models of the latent dynamics, and the losses that train them (Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tca_sb3.lvgts.encoder import Encoding, mlp


class WorldModel(nn.Module):
    """Decoder ``d(h_t) ≈ o_t``, transition ``f(h_t, h_m, a_t) ≈ h_{t+1}`` and reward ``r(h_t, a_t)`` (Eq. 2, §3.2).

    For networks of your own derive a class and override the three methods. All take any leading shape.

    :param latent_dim: ``d``.
    :param action_dim: components of an action; actions are scaled to [-1, 1].
    :param observation_dim: components of what the decoder predicts.
    :param net_arch: widths of the hidden layers of each of the three networks.
    :param activation_fn: between them.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        observation_dim: int,
        net_arch: Sequence[int] = (128, 128),
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.decoder = mlp(latent_dim, net_arch, observation_dim, activation_fn)
        self.transition = mlp(2 * latent_dim + action_dim, net_arch, latent_dim, activation_fn)
        self.reward = mlp(latent_dim + action_dim, net_arch, 1, activation_fn)

    def decode(self, latents: Tensor) -> Tensor:
        """``(..., d)`` to ``(..., observation_dim)``."""
        return self.decoder(latents)

    def predict_latent(self, latents: Tensor, memories: Tensor | None, actions: Tensor) -> Tensor:
        """``h_{t+1}`` from ``h_t``, what is recalled at ``t + 1``, and ``a_t``; ``(..., d)``.

        :param memories: ``h_m``, or ``None`` for LM-SVG's transition (Eq. 2), which has no such argument. The network
            is the same, with zeros in place of the memory: the two algorithms can be compared weight by weight.
        """
        if memories is None:
            memories = torch.zeros_like(latents)
        return self.transition(torch.cat([latents, memories, actions], dim=-1))

    def predict_reward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """``r(h_t, a_t)``, shape ``(...)``."""
        return self.reward(torch.cat([latents, actions], dim=-1)).squeeze(-1)


class ModelLosses(NamedTuple):
    """The three terms of Eq. 7, each a sum over time and components and a mean over episodes."""

    reward: Tensor
    decoder: Tensor
    transition: Tensor


def recall(encoding: Encoding) -> Tensor:
    """``h_m`` of every time, ``Σ_{i<t} w[t, i] h_i``, shape ``(B, T, d)``.

    What the transition is given in training. Row ``t + 1`` goes with the step from ``t`` to ``t + 1``: it is what the
    encoder recalled to make ``h_{t+1}``.
    """
    return encoding.weights @ encoding.latents


def next_latents(world_model: WorldModel, encoding: Encoding, actions: Tensor, shortcuts: bool) -> Tensor:
    """``f(h_t, h_m, a_t)`` along real episodes, for ``t = 0 … T-2``; shape ``(B, T-1, d)``.

    :param actions: ``(B, T, action_dim)``, scaled.
    :param shortcuts: give ``f`` its memory argument (LVGTS) or not (LM-SVG).
    """
    memories = recall(encoding)[:, 1:] if shortcuts else None
    return world_model.predict_latent(encoding.latents[:, :-1], memories, actions[:, :-1])


def model_losses(
    world_model: WorldModel,
    encoding: Encoding,
    observations: Tensor,
    actions: Tensor,
    rewards: Tensor,
    mask: Tensor,
    shortcuts: bool,
) -> ModelLosses:
    """Eq. 7's ``L_rew``, ``L_decoder`` and ``L_trans``, each with its factor ½.

    Latents, weights and targets are constants in ``L_trans``: the encoder learns from the other two, with gradients
    through its whole past. Reading notes: the paper stops the gradient at ``h_t`` and ``h_{t+1}`` and, omitting
    ``h_m``, says nothing of the weights; it leaves open whether time is summed or averaged.

    :param encoding: of the same episodes, with its graph.
    :param observations: what the decoder should say, ``(B, T, observation_dim)``.
    :param actions: ``(B, T, action_dim)``, scaled.
    :param rewards: ``(B, T)``: row ``t`` is paid for action ``t``.
    :param mask: True where a step is real, ``(B, T)``.
    :param shortcuts: give ``f`` its memory argument (LVGTS) or not (LM-SVG).
    """
    latents = encoding.latents
    real = mask.to(latents.dtype)

    def half_square(predicted: Tensor, target: Tensor, real: Tensor) -> Tensor:
        return (nn.functional.mse_loss(predicted, target, reduction="none") * real).sum() * (0.5 / len(mask))

    fixed = Encoding(latents.detach(), encoding.weights.detach())
    # A step to padding has no target; one to the last real time has.
    reached = next_latents(world_model, fixed, actions, shortcuts)
    return ModelLosses(
        reward=half_square(world_model.predict_reward(latents, actions), rewards, real),
        decoder=half_square(world_model.decode(latents), observations, real.unsqueeze(2)),
        transition=half_square(reached, fixed.latents[:, 1:], real[:, 1:].unsqueeze(2)),
    )

"""Algorithm 1's second half: real episodes replayed through the model, and the policy's gradient along them.

A real episode gives the first latent state, the attention weights ``w`` and the transition noise ``ξ``; actions,
states and rewards are the model's. Under the recorded actions the replay repeats the encoder's latents exactly. Under
the policy's actions the return is a differentiable function of the policy's parameters, through three doors: the
reward's action, the next state, and the *shortcut*, a state recalled much later.

Stochastic dynamics enter by reparameterisation. The transition is ``f(h, h_m, a) + ξ``, and ``ξ`` is inferred from the
real episode as the part of ``h_{t+1}`` that ``f`` does not explain; it is additive because Eq. 7's squared error
says so. The policy's noise ``η`` is drawn afresh (:func:`reparameterized`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tca_sb3.lvgts.encoder import Encoding
from tca_sb3.lvgts.world_model import WorldModel, next_latents

Act = Callable[[int, Tensor], Tensor]
"""``(t, latents (..., B, d)) -> actions (..., B, action_dim)`` in [-1, 1]."""


class Imagination(NamedTuple):
    """Replayed episodes."""

    latents: Tensor
    """``ĥ_t``, shape ``(B, T, d)``."""
    actions: Tensor
    """``â_t``, shape ``(B, T, action_dim)``, scaled."""
    rewards: Tensor
    """``r̂_t``, shape ``(B, T)``."""


def cut_times(horizon: int, truncation: int | None) -> range:
    """The times of states to which the state before them is a constant: counted from 1, multiples of ``truncation``.

    The first state has none before it and does not count.
    """
    return range(0) if truncation is None else range(max(1, truncation - 1), horizon, truncation)


def reparameterized(actor: Callable[[Tensor], Tensor], noise: Tensor) -> Act:
    """``π_θ(h, η)`` as a function of time: ``clip(actor(h) + η_t, -1, 1)``.

    :param actor: mean actions, in [-1, 1].
    :param noise: ``η``, shape ``(B, T, action_dim)``.
    """
    of_time = noise.unbind(1)

    def act(t: int, latents: Tensor) -> Tensor:
        # clamp(), with a derivative of one operation
        return nn.functional.hardtanh(actor(latents) + of_time[t])

    return act


def infer_noise(world_model: WorldModel, encoding: Encoding, actions: Tensor, shortcuts: bool) -> Tensor:
    """``ξ_{t+1} = h_{t+1} - f(h_t, h_m, a_t)`` along real episodes, a constant; shape ``(B, T-1, d)``.

    :param actions: those really taken, ``(B, T, action_dim)``, scaled.
    :param shortcuts: as in the replay that ``ξ`` is for.
    """
    with torch.no_grad():
        return encoding.latents[:, 1:] - next_latents(world_model, encoding, actions, shortcuts)


def imagine(
    act: Act,
    world_model: WorldModel,
    encoding: Encoding,
    noise: Tensor,
    truncation: int | None = None,
    shortcuts: bool = True,
) -> Imagination:
    """Algorithm 1's replay.

    ``ĥ_{t+1} = f(ĥ_t, Σ_{i≤t} w[t+1, i] M[i], â_t) + ξ_{t+1}`` with ``M[i] = ĥ_i``. Every ``truncation`` states the
    gradient is cut: the last state is a constant for this step, as an argument of ``f`` and for the action that ``f``
    is given. What is recalled is none, nor is any entry of ``M``: behind a cut a state is still connected to those that
    it recalls, and they to the actions before them.

    Reading notes. Algorithm 1 gives ``f`` the weights ``w_t``; §3.2 makes ``ĥ_m`` part of the state that is being
    predicted, which is ``w_{t+1}``. Algorithm 1 detaches ``ĥ_t``, counted from 1 those with ``t + 1`` a multiple of
    ``truncation``, but after ``ĥ_{t+1}`` was computed from it, so that nothing is cut, and stores it as ``M[t+1]``;
    here it is detached before, for that one step, and ``M`` keeps it attached.

    :param act: the actions.
    :param encoding: of the real episodes; constants here.
    :param noise: ``ξ`` of :func:`infer_noise`.
    :param truncation: ``N``; ``None`` cuts nowhere.
    :param shortcuts: ``False`` is LM-SVG: ``f`` recalls nothing.
    """
    horizon = encoding.latents.shape[1]
    cuts = cut_times(horizon, truncation)
    recalls, shocks = encoding.weights.detach().unsqueeze(2).unbind(1), noise.unbind(1)
    latents = [encoding.latents[:, 0].detach()]
    stored = latents[0].unsqueeze(1)  # M; grown, not stacked anew: backwards a stack is as many sums as it has entries
    actions: list[Tensor] = []

    for t in range(horizon):
        actions.append(act(t, latents[t]))
        if t + 1 == horizon:
            break
        before, action, memories = latents[t], actions[t], None
        if t + 1 in cuts:
            before = before.detach()
            action = act(t, before)
        if shortcuts:
            memories = torch.bmm(recalls[t + 1][..., : t + 1], stored).squeeze(1)
        latent = world_model.predict_latent(before, memories, action) + shocks[t]
        latents.append(latent)
        if shortcuts:
            stored = torch.cat([stored, latent.unsqueeze(1)], dim=1)
    states, taken = torch.stack(latents, dim=1), torch.stack(actions, dim=1)
    return Imagination(states, taken, world_model.predict_reward(states, taken))


def imagined_return(rewards: Tensor, mask: Tensor) -> Tensor:
    """``G``, the mean over episodes of the undiscounted sum of rewards; both ``(B, T)``.

    An episode is replayed for as long as it lasted. Where a time limit cut it, nothing is added for what would have
    followed.
    """
    return torch.where(mask, rewards, 0.0).sum() / len(rewards)


def sliding_window_objective(
    act: Act,
    world_model: WorldModel,
    encoding: Encoding,
    noise: Tensor,
    mask: Tensor,
    window: int,
    shortcuts: bool = True,
) -> tuple[Tensor, Imagination]:
    """Appendix A.1's truncation in place of Algorithm 1's: every reward reaches ``window`` states back (Eq. 5).

    Algorithm 1 cuts at fixed times, so that a reward just behind a cut reaches back no further than that. In A.1 the
    window slides: ``∂V_n(h_i)/∂h_i`` collects the rewards of times ``i … i + n``, and an action collects its own reward
    and that derivative at the next state. Reading notes: Eq. 5's product has to run from ``l = i`` to ``j - 1``; as
    printed (to ``j``) it is not the gradient of an n-step return. Eq. 4's single boundary at ``T - n`` is not the
    sliding window that Eq. 5 makes of it. A.1 knows no memory; ours lets a shortcut renew the window, so that a
    derivative arrives at a recalled state with ``window`` transitions to go.

    The derivatives run backwards in time with ``window + 1`` channels, one for each number of transitions that a
    derivative may still pass.

    :param mask: True where a step is real, ``(B, T)``.
    :param window: ``n``, at least 0.
    :return: a scalar whose gradient with respect to the actor's parameters is the truncated ``∇_θ G`` (its value means
        nothing), and the replay, without a graph.
    """
    with torch.no_grad():
        replay = imagine(act, world_model, encoding, noise, None, shortcuts)
        weights = encoding.weights
        memories = weights @ replay.latents
    batch, horizon, latent_dim = replay.latents.shape
    real = mask.to(replay.latents.dtype) / batch
    # [t, c]: the derivative of G by ĥ_t that may pass c more transitions; the last channel is as good as new.
    by_latent = replay.latents.new_zeros(horizon, window + 1, batch, latent_dim)
    objective = replay.latents.new_zeros(())
    for t in reversed(range(horizon)):
        # One copy for each channel, and a first one for derivatives that may reach the action a_t but no state.
        latent = replay.latents[:, t].expand(window + 2, -1, -1).clone().requires_grad_()
        own_action = act(t, latent).expand(window + 2, -1, -1)
        action = own_action.detach().requires_grad_()
        outputs = [world_model.predict_reward(latent, action)]
        cotangents = [torch.zeros_like(outputs[0])]
        cotangents[0][-1] = real[:, t]
        sources = [latent, action]
        if t + 1 < horizon:
            if shortcuts:
                memory = memories[:, t + 1].expand(window + 2, -1, -1).clone().requires_grad_()
                sources.append(memory)
            outputs.append(world_model.predict_latent(latent, memory if shortcuts else None, action))
            fresh = torch.zeros_like(by_latent[t + 1][:1])
            cotangents.append(torch.cat([by_latent[t + 1], fresh]))  # channel c + 1 becomes c by the shift
        by_source = torch.autograd.grad(outputs, sources, cotangents, materialize_grads=True)
        by_action = by_source[1]
        by_latent[t] += by_source[0][1:]
        if own_action.requires_grad:
            (through_actor,) = torch.autograd.grad(own_action, latent, by_action, materialize_grads=True)
            by_latent[t] += through_actor[1:]
        if len(sources) == 3:
            by_latent[: t + 1, -1] += torch.einsum("bi,bd->ibd", weights[:, t + 1, : t + 1], by_source[2].sum(0))
        objective = objective + (act(t, replay.latents[:, t]) * by_action.sum(0)).sum()
    return objective, replay

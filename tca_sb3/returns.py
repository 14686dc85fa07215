"""Returns and advantages: Eqs. 4 and 7-11 of "Adaptive Pairwise Weights for Temporal Credit Assignment".

Pure functions on tensors. ``rewards[k - 1]`` is ``R_k``, ``values[t]`` is ``v(S_t)``, and row ``t`` of every
result belongs to action ``A_t`` (see :mod:`tca_sb3.episodes`). ``values`` at the end of a column is 0 after
termination and the bootstrap value otherwise. In the padding after a column's end, rewards and TD errors must be
0; then padding never reaches a real step. Every function raises ``ValueError`` where shapes disagree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def require_shape(who: str, name: str, tensor: Tensor, like: Tensor, shape: str) -> None:
    """Refuse ``tensor`` unless it has the shape that ``shape`` names for a ``(T, B)`` tensor ``like``.

    Without this, a missing last value or an axis of 1 would broadcast into a wrong answer.
    """
    if like.ndim != 2 or 0 in like.shape:
        raise ValueError(f"{who} got a tensor of shape {tuple(like.shape)}; it needs (T, B), one episode a column.")
    horizon, batch = like.shape
    wanted = {"(T, B)": (horizon, batch), "(T + 1, B)": (horizon + 1, batch), "(B, T, T)": (batch, horizon, horizon)}
    if tensor.shape != wanted[shape]:
        raise ValueError(f"{who} got {name} of shape {tuple(tensor.shape)}; it needs {shape} = {wanted[shape]}.")


def episode_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Eq. 4, the sum inside the expectation: ``Σ_{t=1..T} γ^{t-1} R_t``.

    :param rewards: ``R_1 … R_T``, shape ``(T, B)``.
    :param gamma: discount factor.
    :return: shape ``(B,)``.
    """
    require_shape("episode_returns", "rewards", rewards, rewards, "(T, B)")
    exponents = torch.arange(rewards.shape[0], device=rewards.device, dtype=rewards.dtype)
    return (gamma**exponents).to(rewards.dtype) @ rewards


def _backward_sum(signal: Tensor, rates: Sequence[float | Tensor]) -> Tensor:
    """``y_t = x_{t+1} + rate_{t+1} y_{t+1}`` from the end backwards; ``rates[0]`` is not used. Shape ``(T, B)``."""
    rows = list(signal.unbind(0))
    for t in reversed(range(len(rows) - 1)):
        rows[t] = rows[t] + rates[t + 1] * rows[t + 1]
    return torch.stack(rows)


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """``G_t = Σ_{k=t+1..T} γ^{k-t-1} R_k``, the return above Eq. 1.

    :param rewards: ``R_1 … R_T``, shape ``(T, B)``. For a column that was cut before its terminal state, add the
        bootstrap ``γ v(S_T)`` to its last reward.
    :param gamma: discount factor.
    :return: shape ``(T, B)``.
    """
    require_shape("discounted_returns", "rewards", rewards, rewards, "(T, B)")
    return _backward_sum(rewards, [gamma] * len(rewards))


def td_errors(rewards: Tensor, values: Tensor, gamma: float) -> Tensor:
    """``δ_k = R_k + γ v(S_k) − v(S_{k-1})``, below Eq. 8.

    :param rewards: ``R_1 … R_T``, shape ``(T, B)``.
    :param values: ``v(S_0) … v(S_T)``, shape ``(T + 1, B)``.
    :param gamma: discount factor.
    :return: ``δ_1 … δ_T``, shape ``(T, B)``.
    """
    require_shape("td_errors", "values", values, rewards, "(T + 1, B)")
    return rewards + gamma * values[1:] - values[:-1]


def monte_carlo_advantages(returns: Tensor, values: Tensor) -> Tensor:
    """Eq. 7: ``Ψ_t = G_t − v(S_t)``.

    :param returns: ``G_0 … G_{T-1}``, shape ``(T, B)``.
    :param values: ``v(S_0) … v(S_T)``, shape ``(T + 1, B)``.
    :return: shape ``(T, B)``.
    """
    require_shape("monte_carlo_advantages", "values", values, returns, "(T + 1, B)")
    return returns - values[:-1]


def lambda_advantages(td_errors: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Eq. 8: ``Ψ_t = Σ_{k=t+1..T} (γλ)^{k-t-1} δ_k``, by the recursion ``Ψ_t = δ_{t+1} + γλ Ψ_{t+1}``.

    :param td_errors: ``δ_1 … δ_T``, shape ``(T, B)``.
    :param gamma: discount factor.
    :param gae_lambda: the trace parameter λ.
    :return: shape ``(T, B)``.
    """
    require_shape("lambda_advantages", "td_errors", td_errors, td_errors, "(T, B)")
    return _backward_sum(td_errors, [gamma * gae_lambda] * len(td_errors))


def state_lambda_advantages(td_errors: Tensor, lambdas: Tensor, gamma: float) -> Tensor:
    """``Ψ_t = Σ_{k=t+1..T} [Π_{j=t+1..k-1} γ λ(S_j)] δ_k``, by ``Ψ_t = δ_{t+1} + γ λ(S_{t+1}) Ψ_{t+1}``.

    The λ-estimator with a λ for every state (Xu et al. 2018). Between a reward and an action lies the product of
    the states on the way: neither ``λ(S_t)`` of the action's own state nor that of the state the reward arrives in
    counts.

    :param td_errors: ``δ_1 … δ_T``, shape ``(T, B)``.
    :param lambdas: ``λ(S_0) … λ(S_{T-1})``, shape ``(T, B)``; the first row is not used.
    :param gamma: discount factor.
    :return: shape ``(T, B)``.
    """
    require_shape("state_lambda_advantages", "lambdas", lambdas, td_errors, "(T, B)")
    return _backward_sum(td_errors, (gamma * lambdas).unbind(0))


def state_lambda_weights(lambdas: Tensor, gamma: float) -> Tensor:
    """``w[t, k] = Π_{j=t+1..k-1} γ λ(S_j)``: the pairwise weights that :func:`state_lambda_advantages` amounts to.

    :param lambdas: ``λ(S_0) … λ(S_{T-1})``, shape ``(T, B)``; the first row is not used.
    :param gamma: discount factor.
    :return: shape ``(B, T, T)``, stored as :func:`pairwise_sum` takes them, 1 below the diagonal.
    """
    require_shape("state_lambda_weights", "lambdas", lambdas, lambdas, "(T, B)")
    horizon, batch = lambdas.shape
    # Column k - 1 contributes the factor of S_{k-1} to all rows before it.
    factors = (gamma * lambdas).T.unsqueeze(1).expand(batch, horizon, horizon)
    above = torch.ones(horizon, horizon, dtype=torch.bool, device=lambdas.device).triu(1)
    return torch.where(above, factors, 1.0).cumprod(2)


def redistributed_rewards(predictions: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Each step's reward is what it adds to the predicted return: ``g_t − g_{t-1}``, and its share of the error.

    With ``g_{-1} = 0`` the differences sum to the last prediction; what it misses of the return ``G`` is spread
    evenly over the episode, so that the sum is ``G`` (return equivalence; RUDDER, Arjona-Medina et al. 2019).

    :param predictions: ``g_0 … g_{T-1}``, the return as predicted after each action, shape ``(T, B)``; anything
        finite in the padding.
    :param rewards: ``R_1 … R_T`` as the environment paid them, shape ``(T, B)``.
    :param mask: where a step is real, shape ``(T, B)``, bool.
    :return: shape ``(T, B)``, 0 in the padding.
    """
    for name, tensor in (("predictions", predictions), ("mask", mask)):
        require_shape("redistributed_rewards", name, tensor, rewards, "(T, B)")
    differences = torch.cat([predictions[:1], predictions[1:] - predictions[:-1]]).masked_fill(~mask, 0.0)
    missing = rewards.sum(0) - differences.sum(0)
    return differences + (missing / mask.sum(0)) * mask


def pairwise_sum(weights: Tensor, signal: Tensor) -> Tensor:
    """``Σ_{k=t+1..T} w[t, k] x_k``, the sum that Eqs. 9 and 10 share.

    Weights are stored as ``(B, T, T)``, because a batched matrix product is many times faster than an einsum
    over ``(T, T, B)``. Entries with ``k <= t`` (below the diagonal of the stored matrix) are ignored.

    :param weights: ``w[b, t, k - 1] = f(S_t, S_k, k − t)``, shape ``(B, T, T)``.
    :param signal: ``x_1 … x_T`` (rewards or TD errors), shape ``(T, B)``, 0 in the padding.
    :return: shape ``(T, B)``.
    """
    require_shape("pairwise_sum", "weights", weights, signal, "(B, T, T)")
    return torch.bmm(weights.triu(), signal.T.unsqueeze(2)).squeeze(2).T


def pwtd_advantages(weights: Tensor, td_errors: Tensor) -> Tensor:
    """Eq. 9: ``Ψ_t = Σ_{k=t+1..T} f_η(S_t, S_k, k − t) δ_k``.

    :param weights: shape ``(B, T, T)``, see :func:`pairwise_sum`.
    :param td_errors: ``δ_1 … δ_T``, shape ``(T, B)``.
    :return: shape ``(T, B)``.
    """
    require_shape("pwtd_advantages", "weights", weights, td_errors, "(B, T, T)")
    return pairwise_sum(weights, td_errors)


def pwr_returns(weights: Tensor, rewards: Tensor) -> Tensor:
    """Eq. 10: ``G_{η,t} = Σ_{k=t+1..T} f_η(S_t, S_k, k − t) R_k``.

    Reading note: ``f`` takes the place of the discount; no further ``γ`` enters.

    :param weights: shape ``(B, T, T)``, see :func:`pairwise_sum`.
    :param rewards: ``R_1 … R_T``, shape ``(T, B)``.
    :return: shape ``(T, B)``.
    """
    require_shape("pwr_returns", "weights", weights, rewards, "(B, T, T)")
    return pairwise_sum(weights, rewards)


def pwr_advantages(weighted_returns: Tensor, values: Tensor) -> Tensor:
    """Eq. 11: ``Ψ_{η,t} = G_{η,t} − v_ψ(S_t)``.

    :param weighted_returns: ``G_{η,0} … G_{η,T-1}`` of Eq. 10, shape ``(T, B)``.
    :param values: ``v_ψ(S_0) … v_ψ(S_T)``, shape ``(T + 1, B)``; the last row is not used.
    :return: shape ``(T, B)``.
    """
    require_shape("pwr_advantages", "values", values, weighted_returns, "(T + 1, B)")
    return weighted_returns - values[:-1]

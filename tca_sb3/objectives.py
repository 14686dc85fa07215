"""The losses of the inner and the outer loop, in the form that SB3 minimises."""

from __future__ import annotations

import torch
from torch import Tensor

_EPISODES_FOR_EACH_NUMBER = 4


def _require_same_shape(who: str, one: Tensor, other: Tensor) -> None:
    """Refuse what would broadcast: ``(n,)`` against SB3's ``(n, 1)`` is an ``n × n`` table."""
    if one.shape != other.shape:
        raise ValueError(
            f"{who} got tensors of shape {tuple(one.shape)} and of shape {tuple(other.shape)}; both need (n,): "
            "flatten SB3's values."
        )


def normalize(advantages: Tensor) -> Tensor:
    """Zero mean and unit deviation, as SB3's ``normalize_advantage`` does; shape unchanged."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def policy_gradient_loss(advantages: Tensor, log_prob: Tensor) -> Tensor:
    """``−mean_t Ψ_t log π_θ(A_t|S_t)``; Eqs. 12 and 16 are minus its gradient.

    Reading note: the paper sums over the steps of an episode, SB3 averages over the steps of a rollout; the factor
    between them belongs to the learning rate.

    :param advantages: ``Ψ_t``, shape ``(n,)``, held constant.
    :param log_prob: ``log π_θ(A_t|S_t)``, shape ``(n,)``.
    """
    _require_same_shape("policy_gradient_loss", advantages, log_prob)
    return -(advantages * log_prob).mean()


def value_loss(targets: Tensor, values: Tensor) -> Tensor:
    """Eq. 14: ``mean_t (G_{η,t} − v_ψ(S_t))²``.

    :param targets: shape ``(n,)``.
    :param values: shape ``(n,)``.
    """
    _require_same_shape("value_loss", targets, values)
    return (targets - values).square().mean()


def inner_loss(
    advantages: Tensor,
    targets: Tensor,
    log_prob: Tensor,
    values: Tensor,
    entropy: Tensor | None,
    ent_coef: float,
    vf_coef: float,
) -> Tensor:
    """Eq. 13 with the value loss of Eq. 14 beside it: what ``stable_baselines3.A2C.train`` minimises.

    :param entropy: ``H(π_θ(·|S_t))``, shape ``(n,)``; ``None`` where it has no closed form, then ``−log π`` stands
        in.
    """
    bonus = (-log_prob if entropy is None else entropy).mean()
    return policy_gradient_loss(advantages, log_prob) - ent_coef * bonus + vf_coef * value_loss(targets, values)


def center_scores(scores: Tensor, mask: Tensor, values: Tensor | None = None) -> Tensor:
    """``s_{t,b} − ŝ_{t,b}``: scores less what the other episodes' scores at the same time let one expect, their mean.

    With ``values``, their least-squares fit by a linear function of those; then a reward that the state has already
    decided, so that its value tells of it, adds no noise either.

    A control variate for ``∇_η [g(η)·u]``, ours. On-policy ``s_t = D_u log π_θ(A_t|S_t)`` has mean 0 whatever the
    state, and other episodes know nothing of this one's weights and rewards; ``ŝ`` weighs the others' scores by what is
    known in ``S_t``. So nothing changes in expectation. A score without others at its time stays. (Where advantages are
    normalised, or weights centred, over the batch, episodes do know of each other, by one part in the batch's size.)

    :param scores: shape ``(T, B)``, anything finite in the padding.
    :param mask: where a step is real, ``(T, B)``, bool.
    :param values: what is known of ``S_t``, ``(T, B, n)``, anything finite in the padding; used at times that have at
        least four episodes for each number fitted.
    :return: shape ``(T, B)``, 0 in the padding.
    """
    _require_same_shape("center_scores", scores, mask)
    real = mask.double().unsqueeze(2)
    columns = [real]
    if values is not None:
        count = real.sum(1, keepdim=True)
        known = values.double() * real
        known = (known - known.sum(1, keepdim=True) / count.clamp(min=1)) * real
        known = known / known.norm(dim=1, keepdim=True).clamp(min=1e-12)
        columns.append(known * (count >= _EPISODES_FOR_EACH_NUMBER * (1 + values.shape[2])))
    design = torch.cat(columns, 2)
    # A trace of ridge, for values that say the same, and for those that are left out.
    ridge = torch.full(design.shape[2:], 1e-9, dtype=design.dtype, device=design.device)
    ridge[0] = 0.0
    hat = design @ torch.linalg.inv(design.mT @ design + torch.diag(ridge))
    own = (hat * design).sum(2)  # the share that a score has in its own fit
    flat = scores.double().masked_fill(~mask, 0.0)
    fit = (hat @ (design.mT @ flat.unsqueeze(2))).squeeze(2)
    alone = own > 1 - 1e-6
    # Without its own share: what the others alone would have it be.
    centred = torch.where(alone, flat, (flat - fit) / (1 - own).masked_fill(alone, 1.0))
    return centred.masked_fill(~mask, 0.0).to(scores.dtype)


def adjoint_loss(
    advantages: Tensor,
    targets: Tensor,
    log_prob_along_u: Tensor,
    values_along_u: Tensor | None,
    vf_coef: float,
) -> Tensor:
    """``g(η)·u`` up to terms without ``η``, where ``g = ∇_θ inner_loss``: the adjoint form of Eq. 15.

    Its gradient with respect to ``η`` is the metagradient if ``u`` is the outer gradient pulled back through the
    optimiser's step. Read it as: raise the credit of actions whose log-probability moves the outer objective up.

    :param advantages: ``Ψ_{η,t}``, shape ``(n,)``, with its graph to ``η``.
    :param targets: the critic's targets, shape ``(n,)``, with their graph to ``η`` if they have one.
    :param log_prob_along_u: directional derivatives ``D_u log π_θ(A_t|S_t)``, shape ``(n,)``.
    :param values_along_u: directional derivatives ``D_u v(S_t)``, shape ``(n,)``; ``None`` if the targets do not
        depend on ``η``.
    :param vf_coef: the weight of the value loss in the inner loss.
    """
    loss = policy_gradient_loss(advantages, log_prob_along_u)
    if values_along_u is not None:
        _require_same_shape("adjoint_loss", targets, values_along_u)
        # d/dη of ∇_θ (G − v)² · u = −2 (dG/dη) D_u v; the rest of the square has no η.
        loss = loss - 2.0 * vf_coef * (targets * values_along_u).mean()
    return loss

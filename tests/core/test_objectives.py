"""The losses, term by term and step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from samples import generator
from torch import Tensor

from tca_sb3 import objectives

N = 6


def column(seed: int) -> Tensor:
    return torch.randn(N, generator=generator(seed), dtype=torch.float64)


ADVANTAGES, TARGETS, LOG_PROB, VALUES, ENTROPY = (column(seed) for seed in range(5))


def test_normalize() -> None:
    x = ADVANTAGES.tolist()
    mean = sum(x) / N
    deviation = math.sqrt(sum((value - mean) ** 2 for value in x) / (N - 1))
    result = objectives.normalize(ADVANTAGES)
    for t in range(N):
        assert result[t].item() == pytest.approx((x[t] - mean) / (deviation + 1e-8), abs=1e-12)


def test_policy_gradient_loss() -> None:
    wanted = -sum(ADVANTAGES[t].item() * LOG_PROB[t].item() for t in range(N)) / N
    assert objectives.policy_gradient_loss(ADVANTAGES, LOG_PROB).item() == pytest.approx(wanted, abs=1e-12)


def test_value_loss() -> None:
    wanted = sum((TARGETS[t].item() - VALUES[t].item()) ** 2 for t in range(N)) / N
    assert objectives.value_loss(TARGETS, VALUES).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("entropy", [ENTROPY, None])
def test_inner_loss(entropy: Tensor | None) -> None:
    total = 0.0
    for t in range(N):
        bonus = -LOG_PROB[t].item() if entropy is None else entropy[t].item()
        total += -ADVANTAGES[t].item() * LOG_PROB[t].item() - 0.3 * bonus
        total += 0.7 * (TARGETS[t].item() - VALUES[t].item()) ** 2
    result = objectives.inner_loss(ADVANTAGES, TARGETS, LOG_PROB, VALUES, entropy, ent_coef=0.3, vf_coef=0.7)
    assert result.item() == pytest.approx(total / N, abs=1e-12)


@pytest.mark.parametrize("targets_depend", [True, False])
def test_adjoint_loss_has_the_gradient_of_the_inner_gradient_along_u(targets_depend: bool) -> None:
    """A linear policy and critic, ``log π_t = x_t·θ``, ``v_t = y_t·θ``, so that ``D_u`` is known: ``x_t·u``, ``y_t·u``.

    ``η`` enters the advantages, and the targets where these depend on it. Then ``∇_η [∇_θ L(θ; η) · u]`` by finite
    differences in ``η`` of the gradient in ``θ`` must be the gradient of the adjoint loss.
    """
    x, y = (torch.randn(N, 3, generator=generator(seed), dtype=torch.float64) for seed in (10, 11))
    a, b = (torch.randn(N, 2, generator=generator(seed), dtype=torch.float64) for seed in (12, 13))
    theta, u = (torch.randn(3, generator=generator(seed), dtype=torch.float64) for seed in (14, 15))
    eta = torch.randn(2, generator=generator(16), dtype=torch.float64)

    def estimate(eta: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(a @ eta), torch.cos(b @ eta) if targets_depend else TARGETS

    def gradient_along_u(eta: Tensor) -> Tensor:
        point = theta.clone().requires_grad_()
        loss = objectives.inner_loss(*estimate(eta), x @ point, y @ point, ENTROPY, ent_coef=0.3, vf_coef=0.7)
        return torch.autograd.grad(loss, point)[0] @ u

    leaf = eta.clone().requires_grad_()
    advantages, targets = estimate(leaf)
    loss = objectives.adjoint_loss(advantages, targets, x @ u, y @ u if targets_depend else None, vf_coef=0.7)
    (result,) = torch.autograd.grad(loss, leaf)
    assert result.abs().min() > 1e-3
    assert torch.allclose(result, oracles.central_difference(gradient_along_u, eta), rtol=0, atol=1e-8)


BAD: dict[str, Callable[[], Tensor]] = {
    "policy_gradient_loss": lambda: objectives.policy_gradient_loss(ADVANTAGES, LOG_PROB[:, None]),
    "value_loss": lambda: objectives.value_loss(TARGETS, VALUES[:, None]),
    "inner_loss": lambda: objectives.inner_loss(ADVANTAGES, TARGETS, LOG_PROB, VALUES[:, None], None, 0.0, 0.5),
    "adjoint_loss": lambda: objectives.adjoint_loss(ADVANTAGES, TARGETS, LOG_PROB, VALUES[:, None], 0.5),
}


@pytest.mark.parametrize("function", BAD)
def test_shapes_that_would_broadcast_are_refused(function: str) -> None:
    """SB3's ``evaluate_actions`` gives values as ``(n, 1)``: against ``(n,)`` they would make an n×n table."""
    with pytest.raises(ValueError, match=r"got tensors of shape \(6,\) and of shape \(6, 1\).*\.$"):
        BAD[function]()

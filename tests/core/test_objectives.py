"""The losses, term by term and step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
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


def test_center_scores_takes_away_what_the_others_have() -> None:
    """By a loop over the others; the third column is shorter, and the last time has one episode only."""
    scores = torch.randn(4, 3, generator=generator(7), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    found = objectives.center_scores(scores, mask)
    for t in range(4):
        for b in range(3):
            others = [scores[t, c].item() for c in range(3) if c != b and mask[t, c]]
            wanted = scores[t, b].item() - (sum(others) / len(others) if others else 0.0)
            assert found[t, b].item() == pytest.approx(wanted if mask[t, b] else 0.0, abs=1e-12)


def test_center_scores_fits_the_others_scores_by_values() -> None:
    """By leaving each episode out and asking numpy's least squares; where episodes are few it is the mean of the
    others, and two values that say the same do no harm."""
    scores = torch.randn(3, 14, generator=generator(7), dtype=torch.float64)
    values = torch.randn(3, 14, 2, generator=generator(8), dtype=torch.float64)
    mask = torch.ones(3, 14, dtype=torch.bool)
    mask[1, 12:] = mask[2, 11:] = False
    found = objectives.center_scores(scores, mask, values)
    for t in range(3):
        n = int(mask[t].sum())
        for b in range(n):
            others = [c for c in range(n) if c != b]
            design = np.array([[1.0, *(values[t, c].tolist() if n >= 12 else [])] for c in range(n)])
            fit = np.linalg.lstsq(design[others], scores[t, others].numpy(), rcond=None)[0]
            assert found[t, b].item() == pytest.approx(scores[t, b].item() - design[b] @ fit, abs=1e-6)
        assert not found[t, n:].any()
    twice = objectives.center_scores(scores, mask, values[..., [0, 0]])
    assert torch.allclose(twice[:2], objectives.center_scores(scores, mask, values[..., :1])[:2], rtol=0, atol=1e-6)


def test_center_scores_with_values_takes_away_what_the_state_has_decided() -> None:
    """A reward that the value tells exactly: against it the scores of every time sum to nearly nothing."""
    scores = torch.randn(1, 200, generator=generator(7), dtype=torch.float64)
    decided = torch.randint(2, (1, 200), generator=generator(8)).double()
    mask = torch.ones(1, 200, dtype=torch.bool)
    plain = (objectives.center_scores(scores, mask) * decided).sum().abs()
    assert (objectives.center_scores(scores, mask, decided.unsqueeze(2)) * decided).sum().abs() < 0.1 * plain


def test_center_scores_changes_nothing_in_expectation() -> None:
    """Two independent episodes of one step, every outcome enumerated: mean 0 scores against any signal of their own."""
    probability = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    score = torch.tensor([1.0, 2.0, -4.0], dtype=torch.float64)  # its mean is 0
    signal = torch.tensor([3.0, -1.0, 5.0], dtype=torch.float64)
    assert (probability @ score).item() == pytest.approx(0.0, abs=1e-12)
    plain = centred = 0.0
    mask = torch.ones(1, 2, dtype=torch.bool)
    for one in range(3):
        for other in range(3):
            chance = (probability[one] * probability[other]).item()
            both = torch.stack([score[one], score[other]]).view(1, 2)
            signals = torch.stack([signal[one], signal[other]]).view(1, 2)
            plain += chance * (both * signals).sum().item()
            centred += chance * (objectives.center_scores(both, mask) * signals).sum().item()
    assert centred == pytest.approx(plain, abs=1e-12)
    assert abs(plain) > 1.0

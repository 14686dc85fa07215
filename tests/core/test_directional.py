"""``D_u log π`` and ``D_u v``: score tape, forward mode, one backward pass a step, and finite differences."""

from __future__ import annotations

from typing import Any

import policies
import pytest
import torch
from samples import generator
from torch import Tensor, nn

from tca_sb3.directional import Linearization, evaluate_with

N = 7


def direction(policy: nn.Module, seed: int = 4) -> dict[str, Tensor]:
    draw = generator(seed)
    return {
        name: torch.randn(p.shape, generator=draw, dtype=p.dtype) * p.requires_grad
        for name, p in policy.named_parameters()
    }


def one_backward_pass_a_step(
    policy: nn.Module, observations: Any, actions: Tensor, u: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``∇ log π_t · u`` and ``∇ v_t · u``, one number after the other."""
    values, log_prob, _ = policy.evaluate_actions(observations, actions)
    live = {name: p for name, p in policy.named_parameters() if p.requires_grad}

    def along(number: Tensor) -> Tensor:
        grads = torch.autograd.grad(number, list(live.values()), retain_graph=True, allow_unused=True)
        return sum((g * u[name]).sum() for name, g in zip(live, grads, strict=True) if g is not None)  # type: ignore[return-value]

    return torch.stack([along(x) for x in log_prob]), torch.stack([along(x) for x in values.flatten()])


@pytest.fixture(params=policies.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_along_is_exact(kind: str) -> None:
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    u = direction(policy)
    wanted = one_backward_pass_a_step(policy, observations, actions, u)
    assert wanted[0].abs().min() > 1e-6
    for forward_mode in (False, True):
        linearization = Linearization(policy, observations, actions, forward_mode=forward_mode)
        linearization.freeze()
        found = linearization.along(u)
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == (N,)
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-12), forward_mode


def test_along_is_what_a_small_step_does(kind: str) -> None:
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    u = direction(policy)
    linearization = Linearization(policy, observations, actions)
    linearization.freeze()
    found = linearization.along(u)

    def moved(step: float) -> tuple[Tensor, Tensor]:
        point = {name: p.detach() + step * u[name] for name, p in policy.named_parameters()}
        values, log_prob, _ = evaluate_with(policy, point, observations, actions)
        return log_prob.detach(), values.detach().flatten()

    for one, above, below in zip(found, moved(1e-6), moved(-1e-6), strict=True):
        assert torch.allclose(one, (above - below) / 2e-6, rtol=1e-5, atol=1e-7)


def test_other_parameters_than_the_live_ones(kind: str) -> None:
    """As after loading: the snapshot's ``θ`` is given, the policy has moved on, and must not notice."""
    policy, elsewhere = policies.make(kind), policies.make(kind)
    with torch.no_grad():
        for parameter in elsewhere.parameters():
            parameter.add_(0.3)
    live = {name: p.detach().clone() for name, p in policy.named_parameters()}
    point = {name: p.detach().clone() for name, p in elsewhere.named_parameters()}
    observations, actions = policies.batch(kind, N)
    u = direction(policy)
    wanted = one_backward_pass_a_step(elsewhere, observations, actions, u)
    for forward_mode in (False, True):
        linearization = Linearization(policy, observations, actions, dict(point), forward_mode=forward_mode)
        linearization.freeze()
        for one, other in zip(linearization.along(u), wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    linearization = Linearization(policy, observations, actions, dict(point))
    elsewhere.evaluate_actions(observations, actions)[1].sum().backward()
    gradient = linearization.log_prob_gradient(torch.ones(N, dtype=torch.float64))
    for name, parameter in elsewhere.named_parameters():
        there = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(gradient[name], there, rtol=1e-10, atol=1e-12), name
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, live[name]), f"{name} was overwritten"
        assert parameter.grad is None


def test_a_frozen_linearization_outlives_the_step(kind: str) -> None:
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    u = direction(policy)
    linearization = Linearization(policy, observations, actions)
    linearization.freeze()
    before = linearization.along(u)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(-1.7)
    for one, other in zip(linearization.along(u), before, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_gradient_is_autograds(kind: str) -> None:
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    cotangent = torch.randn(N, generator=generator(8), dtype=torch.float64)
    (policy.evaluate_actions(observations, actions)[1] * cotangent).sum().backward()
    for forward_mode in (False, True):
        linearization = Linearization(policy, observations, actions, forward_mode=forward_mode)
        found = linearization.log_prob_gradient(cotangent)
        assert list(found) == [name for name, _ in policy.named_parameters()]
        for name, parameter in policy.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(found[name], wanted, rtol=1e-12, atol=1e-14), name


def test_without_values_none_are_computed(kind: str) -> None:
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    u = direction(policy)
    linearization = Linearization(policy, observations, actions)
    linearization.freeze()
    log_prob, _ = linearization.along(u, values=False)
    assert torch.equal(log_prob, linearization.along(u)[0])


@pytest.mark.parametrize("kind", policies.PLAIN)
def test_plain_policies_take_the_tape(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the fast path would be tested by nobody."""

    def refuse(*_: Any) -> None:
        raise AssertionError("forward mode was used")

    monkeypatch.setattr(torch.func, "jvp", refuse)
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    linearization = Linearization(policy, observations, actions)
    linearization.freeze()
    log_prob, values = linearization.along(direction(policy))
    assert log_prob.any()
    assert values.any()
    with pytest.raises(AssertionError, match="forward mode was used"):
        Linearization(policy, observations, actions, forward_mode=True).along(direction(policy))


def test_no_hook_stays_behind(kind: str) -> None:
    policy = policies.make(kind)
    observations, actions = policies.batch(kind, N)
    Linearization(policy, observations, actions).freeze()
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError)):
        Linearization(policy, observations, actions[:1].repeat(2, 3))
    assert not any(module._forward_hooks for module in policy.modules())

"""The differentiable optimiser step against the optimisers it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from samples import generator
from torch import Tensor

from tca_sb3.inner import InnerOptimizer, clip_by_norm, flatten, safe_sqrt, unflatten

rmsprop_tf_like = pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like")

SHAPES = [(3, 2), (2,), (1, 2, 2), ()]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-5),
    "rmsprop_tf": lambda p: rmsprop_tf_like.RMSpropTFLike(p, lr=0.01, alpha=0.9, eps=1e-5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
    "adam with torch's own settings": lambda p: torch.optim.Adam(p),
    "rmsprop with torch's own settings": lambda p: torch.optim.RMSprop(p),
}


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(random(shape, i, dtype)) for i, shape in enumerate(SHAPES)]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random ones; some entries never get any gradient, as the states that are never visited."""
    result = [random(shape, 100 * step + i, dtype) for i, shape in enumerate(SHAPES)]
    result[0][1] = 0.0
    return result


def total(tensors: list[Any]) -> Tensor:
    return flatten(tensor.detach() for tensor in tensors)


@pytest.mark.parametrize("max_norm", [None, 0.3, 1e3], ids=["unclipped", "clipped", "clip inactive"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_steps_are_the_optimizers_own(name: str, max_norm: float | None) -> None:
    live = parameters()
    optimizer = OPTIMIZERS[name](live)
    settings = InnerOptimizer.of(optimizer, max_norm)
    theta = total(live)
    state = settings.initial_state(theta)
    for step in range(6):
        read = settings.state_of(optimizer)
        assert set(read) == set(state)
        for key, value in state.items():
            assert torch.allclose(read[key].double(), value.double(), rtol=1e-12, atol=1e-15), key
        raw = gradients(step)
        for parameter, gradient in zip(live, raw, strict=True):
            parameter.grad = gradient.clone()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(live, max_norm)
        optimizer.step()
        decrement, state = settings.update(total(raw), state)
        theta = theta - decrement
        assert torch.allclose(theta, total(live), rtol=0, atol=1e-12), step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_after_loading_a_state_midway(name: str) -> None:
    live = parameters()
    optimizer = OPTIMIZERS[name](live)
    for step in range(3):
        for parameter, gradient in zip(live, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    settings = InnerOptimizer.of(optimizer, None)
    before, state = total(live), settings.state_of(optimizer)
    kept = {key: value.clone() for key, value in state.items()}
    raw = gradients(9)
    for parameter, gradient in zip(live, raw, strict=True):
        parameter.grad = gradient
    optimizer.step()
    assert all(torch.equal(kept[key], value) for key, value in state.items()), "the state read is a copy"
    decrement, _ = settings.update(total(raw), state)
    assert torch.allclose(before - decrement, total(live), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_single_precision_follows_too(name: str) -> None:
    live = parameters(torch.float32)
    optimizer = OPTIMIZERS[name](live)
    settings = InnerOptimizer.of(optimizer, 0.5)
    for step in range(4):
        before, state = total(live), settings.state_of(optimizer)
        raw = gradients(step, torch.float32)
        for parameter, gradient in zip(live, raw, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(live, 0.5)
        optimizer.step()
        decrement, _ = settings.update(total(raw), state)
        assert decrement.dtype == torch.float32
        assert torch.allclose(before - decrement, total(live), rtol=0, atol=2e-7)


@pytest.mark.parametrize("max_norm", [None, 0.3, 1e3], ids=["unclipped", "clipped", "clip inactive"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pull_back_is_the_transposed_jacobian(name: str, max_norm: float | None) -> None:
    """Against the full Jacobian, one entry of the decrement at a time, and against central differences."""
    settings = InnerOptimizer.of(OPTIMIZERS[name](parameters()), max_norm)
    size = total(parameters()).numel()
    _, state = settings.update(random((size,), 50), settings.initial_state(random((size,), 0)))
    gradient, cotangent = random((size,), 51), random((size,), 52)

    def decrement(g: Tensor) -> Tensor:
        return settings.update(g, state)[0]

    pulled = settings.pull_back(gradient, state, cotangent)
    assert not pulled.requires_grad
    jacobian = torch.autograd.functional.jacobian(decrement, gradient)
    assert torch.allclose(pulled, jacobian.T @ cotangent, rtol=0, atol=1e-12)
    numeric = oracles.central_difference(lambda g: decrement(g) @ cotangent, gradient)
    assert torch.allclose(pulled, numeric, rtol=1e-6, atol=1e-8)
    if max_norm == 0.3 and name == "sgd":
        diagonal = torch.diag(jacobian.diagonal())
        assert not torch.allclose(jacobian, diagonal, atol=1e-4), "clipping couples the entries"


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finite_where_there_is_no_gradient(name: str, max_norm: float | None) -> None:
    settings = InnerOptimizer.of(OPTIMIZERS[name](parameters()), max_norm)
    for gradient in (torch.zeros(5, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0, -2.0, 0.0]).double()):
        state = settings.initial_state(gradient)
        decrement, after = settings.update(gradient, state)
        assert (decrement[gradient == 0] == 0).all()
        assert torch.isfinite(decrement).all()
        assert all(torch.isfinite(value).all() for value in after.values())
        pulled = settings.pull_back(gradient, state, torch.ones_like(gradient))
        assert torch.isfinite(pulled).all()
        # The same through two unrolled steps, where the first step's state is part of the graph.
        leaf = gradient.clone().requires_grad_()
        first, state = settings.update(leaf, settings.initial_state(leaf))
        second, _ = settings.update(leaf * 2, state)
        assert torch.isfinite(torch.autograd.grad((first + second).sum(), leaf)[0]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_leading_axes_are_independent_lifetimes(name: str) -> None:
    settings = InnerOptimizer.of(OPTIMIZERS[name](parameters()), 0.5)
    gradient = random((3, 4), 7)
    together, _ = settings.update(gradient, settings.initial_state(gradient))
    for i in range(3):
        alone, _ = settings.update(gradient[i], settings.initial_state(gradient[i]))
        assert torch.allclose(together[i], alone, rtol=0, atol=1e-12)


def test_a_parameter_that_has_never_had_a_gradient_has_a_fresh_state() -> None:
    live = parameters()
    for name in OPTIMIZERS:
        optimizer = OPTIMIZERS[name](live)
        settings = InnerOptimizer.of(optimizer)
        for parameter, gradient in zip(live[:2], gradients(0), strict=False):
            parameter.grad = gradient
        optimizer.step()
        read, fresh = settings.state_of(optimizer), settings.initial_state(total(live))
        for key in read:
            if key != "step":
                assert torch.equal(read[key][8:], fresh[key][8:])
                assert not torch.equal(read[key][:8], fresh[key][:8])
        optimizer.zero_grad()


def test_the_settings_are_those_of_the_live_optimizer() -> None:
    adam = InnerOptimizer.of(OPTIMIZERS["adam"](parameters()), 0.5)
    assert adam == InnerOptimizer("adam", lr=0.01, eps=1e-6, betas=(0.8, 0.95), max_grad_norm=0.5)
    rmsprop = InnerOptimizer.of(OPTIMIZERS["rmsprop"](parameters()))
    assert (rmsprop.rule, rmsprop.alpha, rmsprop.max_grad_norm) == ("rmsprop", 0.9, None)
    optimizer = OPTIMIZERS["sgd"](parameters())
    optimizer.param_groups[0]["lr"] = 0.025  # as a schedule does
    assert InnerOptimizer.of(optimizer).lr == 0.025


def test_safe_sqrt() -> None:
    x = torch.tensor([0.0, 4.0, 1e-30], dtype=torch.float64, requires_grad=True)
    assert torch.equal(safe_sqrt(x), x.sqrt())
    (gradient,) = torch.autograd.grad(safe_sqrt(x).sum(), x)
    assert torch.allclose(gradient, torch.tensor([0.0, 0.25, 0.5e15], dtype=torch.float64))


def test_clip_by_norm() -> None:
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.allclose(clip_by_norm(gradient, 1.0), gradient / (5 + 1e-6), rtol=0, atol=1e-12)
    assert torch.equal(clip_by_norm(gradient, 5.1), gradient)
    assert torch.equal(clip_by_norm(torch.zeros(2), 1.0), torch.zeros(2))


def test_flatten_and_unflatten_are_inverse() -> None:
    named = {str(i): p.detach() for i, p in enumerate(parameters())}
    again = unflatten(flatten(named.values()), named)
    assert list(again) == list(named)
    assert all(torch.equal(again[name], value) for name, value in named.items())


def two_groups() -> torch.optim.Optimizer:
    first, *others = parameters()
    return torch.optim.SGD([{"params": [first]}, {"params": others}], lr=0.1)


REFUSED: dict[str, tuple[str, Callable[[], torch.optim.Optimizer]]] = {
    "AdamW": ("AdamW", lambda: torch.optim.AdamW(parameters())),
    "Adagrad": ("Adagrad", lambda: torch.optim.Adagrad(parameters())),
    "two groups": ("2 parameter group", two_groups),
    "momentum": ("momentum", lambda: torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)),
    "momentum of RMSprop": ("momentum", lambda: torch.optim.RMSprop(parameters(), momentum=0.9)),
    "centered": ("centered", lambda: torch.optim.RMSprop(parameters(), centered=True)),
    "weight decay": ("weight_decay", lambda: torch.optim.Adam(parameters(), weight_decay=0.1)),
    "amsgrad": ("amsgrad", lambda: torch.optim.Adam(parameters(), amsgrad=True)),
    "maximize": ("maximize", lambda: torch.optim.SGD(parameters(), lr=0.1, maximize=True)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_optimizers_without_a_differentiable_step_are_refused(case: str) -> None:
    words, build = REFUSED[case]
    with pytest.raises(ValueError, match=rf"^The metagradient .*{words}.*\.$"):
        InnerOptimizer.of(build())


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^InnerOptimizer got rule='lion'; write 'sgd'"):
        InnerOptimizer("lion", lr=0.1)


@pytest.mark.parametrize("name", ["lr", "eps", "max_grad_norm"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_settings_that_make_no_step_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^InnerOptimizer got {name}={value}; .*\.$"):
        InnerOptimizer(**{"rule": "adam", "lr": 0.1, name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^InnerOptimizer got lr="):
        InnerOptimizer("sgd", lr=torch.tensor([0.1, -0.1]))


def test_unflatten_refuses_another_number_of_entries() -> None:
    named = {str(i): p.detach() for i, p in enumerate(parameters())}
    with pytest.raises(ValueError, match=r"^unflatten got a vector of shape \(12,\) for 13 numbers\.$"):
        unflatten(torch.zeros(12), named)

"""Eqs. 4 and 7-11 against literal double loops, one episode at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import oracles
import pytest
import torch
from samples import random_episodes, random_values
from torch import Tensor

from tca_sb3 import returns

SETTINGS = list(itertools.product([0.0, 0.9, 1.0], [0.0, 0.6, 1.0]))
LENGTHS = [7, 1, 4, 7, 2]
EPISODES = random_episodes(LENGTHS, terminated=[True, False, True, False, True])
VALUES = random_values(EPISODES)
WEIGHTS = torch.rand(5, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def by_column(oracle: Callable[[int, list[float], list[float]], list[float]]) -> Tensor:
    """An oracle for single episodes, applied to each real part of ``EPISODES``; NaN in the padding."""
    result = torch.full((7, 5), torch.nan, dtype=torch.float64)
    for b, length in enumerate(LENGTHS):
        column = oracle(b, EPISODES.rewards[:length, b].tolist(), VALUES[: length + 1, b].tolist())
        result[:length, b] = torch.tensor(column, dtype=torch.float64)
    return result


def assert_same_steps(result: Tensor, wanted: Tensor) -> None:
    assert result.shape == wanted.shape
    real = ~wanted.isnan()
    assert torch.allclose(result[real], wanted[real], rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_episode_returns(gamma: float) -> None:
    wanted = [
        oracles.objective_sample(EPISODES.rewards[:length, b].tolist(), gamma) for b, length in enumerate(LENGTHS)
    ]
    result = returns.episode_returns(EPISODES.rewards, gamma)
    assert torch.allclose(result, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(returns.discounted_returns(EPISODES.rewards, gamma)[0], result, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_discounted_returns(gamma: float) -> None:
    result = returns.discounted_returns(EPISODES.rewards, gamma)
    assert_same_steps(result, by_column(lambda b, r, v: oracles.returns(r, gamma)))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_td_errors(gamma: float) -> None:
    result = returns.td_errors(EPISODES.rewards, VALUES, gamma)
    assert_same_steps(result, by_column(lambda b, r, v: oracles.td_errors(r, v, gamma)))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_monte_carlo_advantages(gamma: float) -> None:
    result = returns.monte_carlo_advantages(returns.discounted_returns(EPISODES.rewards, gamma), VALUES)
    wanted = by_column(lambda b, r, v: [g - v[t] for t, g in enumerate(oracles.returns(r, gamma))])
    assert_same_steps(result, wanted)


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_lambda_advantages(gamma: float, gae_lambda: float) -> None:
    errors = returns.td_errors(EPISODES.rewards, VALUES, gamma) * EPISODES.mask
    result = returns.lambda_advantages(errors, gamma, gae_lambda)

    def oracle(b: int, rewards: list[float], values: list[float]) -> list[float]:
        deltas = oracles.td_errors(rewards, values, gamma)
        return oracles.pairwise_sum(deltas, lambda t, k: (gamma * gae_lambda) ** (k - t - 1))

    assert_same_steps(result, by_column(oracle))


def test_pwtd_advantages() -> None:
    errors = returns.td_errors(EPISODES.rewards, VALUES, 0.9) * EPISODES.mask
    wanted = by_column(
        lambda b, r, v: oracles.pairwise_sum(oracles.td_errors(r, v, 0.9), lambda t, k: WEIGHTS[b, t, k - 1].item())
    )
    assert_same_steps(returns.pwtd_advantages(WEIGHTS, errors), wanted)


def test_pwr_returns_and_advantages() -> None:
    def weighted(b: int, rewards: list[float]) -> list[float]:
        return oracles.pairwise_sum(rewards, lambda t, k: WEIGHTS[b, t, k - 1].item())

    result = returns.pwr_returns(WEIGHTS, EPISODES.rewards)
    assert_same_steps(result, by_column(lambda b, r, v: weighted(b, r)))
    wanted = by_column(lambda b, r, v: [g - v[t] for t, g in enumerate(weighted(b, r))])
    assert_same_steps(returns.pwr_advantages(result, VALUES), wanted)


def test_weights_of_the_past_and_of_the_padding_are_not_looked_at() -> None:
    unused = ~EPISODES.mask.T.unsqueeze(1).expand(-1, 7, -1).triu()
    changed = torch.where(unused, torch.full_like(WEIGHTS, 1e6), WEIGHTS)
    real = EPISODES.mask
    for function in (returns.pairwise_sum, returns.pwtd_advantages, returns.pwr_returns):
        assert torch.equal(function(changed, EPISODES.rewards)[real], function(WEIGHTS, EPISODES.rewards)[real])


def test_batch_permutation_equivariance() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    rewards, values = EPISODES.rewards, VALUES
    errors = returns.td_errors(rewards, values, 0.9) * EPISODES.mask
    assert torch.equal(returns.episode_returns(rewards[:, order], 0.9), returns.episode_returns(rewards, 0.9)[order])
    for before, after in (
        (returns.discounted_returns(rewards, 0.9), returns.discounted_returns(rewards[:, order], 0.9)),
        (returns.td_errors(rewards, values, 0.9), returns.td_errors(rewards[:, order], values[:, order], 0.9)),
        (returns.lambda_advantages(errors, 0.9, 0.5), returns.lambda_advantages(errors[:, order], 0.9, 0.5)),
        (returns.pairwise_sum(WEIGHTS, rewards), returns.pairwise_sum(WEIGHTS[order], rewards[:, order])),
    ):
        assert torch.equal(before[:, order], after)


def test_lambda_one_is_monte_carlo() -> None:
    """Below Eq. 8: "when λ = 1, it recovers the MC estimator"."""
    whole = random_episodes([6, 3])
    values = random_values(whole)
    errors = returns.td_errors(whole.rewards, values, 0.9) * whole.mask
    wanted = returns.monte_carlo_advantages(returns.discounted_returns(whole.rewards, 0.9), values)
    result = returns.lambda_advantages(errors, 0.9, 1.0)
    assert torch.allclose(result[whole.mask], wanted[whole.mask], rtol=0, atol=1e-12)


def test_gradients_reach_weights_signal_and_values() -> None:
    weights = WEIGHTS[:2, :3, :3].clone().requires_grad_()
    signal = EPISODES.rewards[:3, :2].clone().requires_grad_()
    values = VALUES[:4, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(returns.pairwise_sum, (weights, signal))
    assert torch.autograd.gradcheck(lambda r: returns.discounted_returns(r, 0.9), (signal,))
    assert torch.autograd.gradcheck(lambda r, v: returns.td_errors(r, v, 0.9), (signal, values))
    assert torch.autograd.gradcheck(lambda x: returns.lambda_advantages(x, 0.9, 0.5), (signal,))
    assert torch.autograd.gradcheck(lambda r: returns.episode_returns(r, 0.9), (signal,))


T, B = 4, 3
R, V, W = torch.zeros(T, B), torch.zeros(T + 1, B), torch.zeros(B, T, T)
BAD: dict[str, Callable[[], Tensor]] = {
    "episode_returns of one column": lambda: returns.episode_returns(R[:, 0], 0.9),
    "discounted_returns of one column": lambda: returns.discounted_returns(R[:, 0], 0.9),
    "td_errors without the last value": lambda: returns.td_errors(R, V[:-1], 0.9),
    "td_errors that would broadcast": lambda: returns.td_errors(R, V[:, :1], 0.9),
    "monte_carlo_advantages without the last value": lambda: returns.monte_carlo_advantages(R, V[:-1]),
    "monte_carlo_advantages that would broadcast": lambda: returns.monte_carlo_advantages(R, V[:, :1]),
    "lambda_advantages of one column": lambda: returns.lambda_advantages(R[:, 0], 0.9, 0.9),
    "pairwise_sum with time first": lambda: returns.pairwise_sum(torch.zeros(T, T, B), R),
    "pairwise_sum of another batch": lambda: returns.pairwise_sum(W[:1], R),
    "pairwise_sum of a single matrix": lambda: returns.pairwise_sum(W[0], R),
    "pwtd_advantages of values": lambda: returns.pwtd_advantages(W, V),
    "pwr_returns of longer episodes": lambda: returns.pwr_returns(torch.zeros(B, T + 1, T + 1), R),
    "pwr_advantages without the last value": lambda: returns.pwr_advantages(R, V[:-1]),
    "pwr_advantages that would broadcast": lambda: returns.pwr_advantages(R, V[:, :1]),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_shapes_get_a_sentence(case: str) -> None:
    with pytest.raises(ValueError, match=rf"^{case.split()[0]} got .*\.$"):
        BAD[case]()

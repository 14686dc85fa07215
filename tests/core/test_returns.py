"""Eqs. 4 and 7-11, and what other methods put in their place, against literal loops, one episode at a time."""

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


LAMBDAS = torch.rand(7, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def trace(b: int, t: int, k: int, gamma: float) -> float:
    """``Π_{j=t+1..k-1} γ λ(S_j)``, factor by factor."""
    product = 1.0
    for j in range(t + 1, k):
        product *= gamma * LAMBDAS[j, b].item()
    return product


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_state_lambda_advantages_and_their_weights(gamma: float) -> None:
    errors = returns.td_errors(EPISODES.rewards, VALUES, gamma) * EPISODES.mask
    wanted = by_column(
        lambda b, r, v: oracles.pairwise_sum(oracles.td_errors(r, v, gamma), lambda t, k: trace(b, t, k, gamma))
    )
    assert_same_steps(returns.state_lambda_advantages(errors, LAMBDAS, gamma), wanted)
    weights = returns.state_lambda_weights(LAMBDAS, gamma)
    for b in range(5):
        for t in range(7):
            for k in range(t + 1, 8):
                assert weights[b, t, k - 1].item() == pytest.approx(trace(b, t, k, gamma), abs=1e-15)
    assert_same_steps(returns.pwtd_advantages(weights, errors), wanted)


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_one_lambda_for_all_states_is_the_lambda_estimator(gamma: float, gae_lambda: float) -> None:
    errors = returns.td_errors(EPISODES.rewards, VALUES, gamma) * EPISODES.mask
    same = torch.full_like(errors, gae_lambda)
    wanted = returns.lambda_advantages(errors, gamma, gae_lambda)
    assert torch.allclose(returns.state_lambda_advantages(errors, same, gamma), wanted, rtol=0, atol=1e-14)


def test_redistributed_rewards() -> None:
    predictions = torch.randn(7, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def oracle(b: int, rewards: list[float], values: list[float]) -> list[float]:
        g = predictions[: len(rewards), b].tolist()
        missing = (sum(rewards) - g[-1]) / len(g)
        return [g[t] - (g[t - 1] if t else 0.0) + missing for t in range(len(g))]

    result = returns.redistributed_rewards(predictions, EPISODES.rewards, EPISODES.mask)
    assert_same_steps(result, by_column(oracle))
    assert not result[~EPISODES.mask].any()
    garbage = predictions.masked_fill(~EPISODES.mask, 1e9)
    assert torch.equal(returns.redistributed_rewards(garbage, EPISODES.rewards, EPISODES.mask), result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
def test_redistribution_keeps_every_return(seed: int, dtype: torch.dtype) -> None:
    """Whatever the predictions and however long the episodes."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 200, (6,), generator=draw).tolist()
    episodes = random_episodes(lengths, seed=seed, dtype=dtype)
    size = 10.0 ** torch.randint(-3, 4, (), generator=draw)
    predictions = size * torch.randn(episodes.horizon, 6, generator=draw, dtype=dtype)
    result = returns.redistributed_rewards(predictions, episodes.rewards, episodes.mask)
    largest = result.abs().sum(0) + episodes.rewards.abs().sum(0)
    error = (result.double().sum(0) - episodes.rewards.double().sum(0)).abs()
    assert (error <= 4 * torch.finfo(dtype).eps * largest).all()


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
        (
            returns.state_lambda_advantages(errors, LAMBDAS, 0.9),
            returns.state_lambda_advantages(errors[:, order], LAMBDAS[:, order], 0.9),
        ),
        (
            returns.redistributed_rewards(LAMBDAS, rewards, EPISODES.mask),
            returns.redistributed_rewards(LAMBDAS[:, order], rewards[:, order], EPISODES.mask[:, order]),
        ),
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
    lambdas = LAMBDAS[:3, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: returns.state_lambda_advantages(x, s, 0.9), (signal, lambdas))
    assert torch.autograd.gradcheck(lambda s: returns.state_lambda_weights(s, 0.9), (lambdas,))


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
    "state_lambda_advantages of one lambda": lambda: returns.state_lambda_advantages(R, R[:, :1], 0.9),
    "state_lambda_advantages with the last state": lambda: returns.state_lambda_advantages(R, V, 0.9),
    "state_lambda_weights of one column": lambda: returns.state_lambda_weights(R[:, 0], 0.9),
    "redistributed_rewards of one prediction an episode": lambda: returns.redistributed_rewards(R[:1], R, R > 0),
    "redistributed_rewards with another mask": lambda: returns.redistributed_rewards(R, R, V > 0),
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

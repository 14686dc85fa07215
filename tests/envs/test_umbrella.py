"""The umbrella problem against its closed forms (paper 1, Section 3) and exhaustive search."""

from __future__ import annotations

from itertools import product

import gymnasium as gym
import numpy as np
import pytest

import tca_envs

assert tca_envs


def rewards_of(env, seed, actions):
    env.reset(seed=seed)
    return [env.step(action)[1] for action in actions]


def test_credit_matrix_by_exhaustive_search():
    """Try every pair of action sequences that differ at one time: what changes is what the matrix says."""
    env = gym.make("tca/Umbrella-v0", length=4).unwrapped
    found = np.zeros((4, 4))
    for actions in product((0, 1), repeat=4):
        base = np.array(rewards_of(env, 0, actions))
        for t in range(4):
            other = list(actions)
            other[t] = 1 - other[t]
            found[t] = np.maximum(found[t], base != rewards_of(env, 0, other))
    np.testing.assert_array_equal(env.credit_matrix, found)


@pytest.mark.parametrize("noise", ["normal", "two-point"])
def test_closed_forms_by_simulation(noise):
    """V, Psi and both variances: 40,000 episodes an action against the formulas, within 5 standard errors."""
    length, mean, variance, lanes = 6, 5.0, 25.0, 40_000
    env = gym.make_vec("tca/Umbrella-v0", num_envs=lanes, length=length, mean=mean, variance=variance, noise=noise)
    by_action = []
    for action in (0, 1):
        env.reset(seed=action * lanes)
        actions = np.full(lanes, action)
        by_action.append(np.stack([env.step(actions)[1] for _ in range(length)]))
    p = 0.3
    for action, rewards in enumerate(by_action):
        returns = rewards.sum(axis=0)
        value = env.state_value(p)
        error = np.sqrt(env.mc_variance / lanes)
        assert abs((returns - value).mean() - env.advantage(action, p)) < 5 * error
        spread = env.mc_variance * np.sqrt(2 / lanes)
        assert abs(returns.var() - env.mc_variance) < 5 * spread
        weighted = env.credit_matrix[0] @ rewards - (2 * p - 1)  # G_eta - v^PWR, Eq. 11
        assert np.ptp(weighted) == env.pwr_variance == 0.0
        np.testing.assert_allclose(weighted, env.advantage(action, p))
    assert env.state_value(p) == pytest.approx((length - 1) * mean + 2 * p - 1)
    assert env.mc_variance == (length - 1) * variance
    best = max(rewards.sum(axis=0).mean() for rewards in by_action)
    assert abs(best - env.optimal_return) < 5 * np.sqrt(env.mc_variance / lanes)
    assert env.random_return == env.myopic_return == env.state_value(0.5)


def test_noise_is_independent_of_the_choice_and_over_time():
    env = gym.make_vec("tca/Umbrella-v0", num_envs=20_000, length=5)
    runs = []
    for action in (0, 1):
        env.reset(seed=3)
        runs.append(np.stack([env.step(np.full(20_000, action))[1] for _ in range(5)]))
    np.testing.assert_array_equal(runs[0][:4], runs[1][:4])
    np.testing.assert_array_equal(runs[0][4], -1.0)
    np.testing.assert_array_equal(runs[1][4], 1.0)
    correlation = np.corrcoef(runs[0][:4]) - np.eye(4)
    assert abs(correlation).max() < 5 / np.sqrt(20_000)


def test_observations_tell_time_and_choice():
    env = gym.make("tca/Umbrella-v0", length=3).unwrapped
    for choice in (0, 1):
        seen = [env.reset(seed=0)[0]] + [env.step(action)[0] for action in (choice, 1, 0)]
        assert seen == [0, 1 + choice, 3 + choice, 5 + choice]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length": 1}, "at least 2"),
        ({"length": 2.5}, "integer"),
        ({"variance": -1.0}, "variance must be at least 0"),
        ({"variance": float("nan")}, "finite"),
        ({"mean": "high"}, "number"),
        ({"noise": "cauchy"}, "two-point"),
    ],
)
def test_bad_arguments(arguments, words):
    for make in (gym.make, gym.make_vec):
        with pytest.raises((ValueError, TypeError), match=words):
            make("tca/Umbrella-v0", **arguments)
    env = gym.make("tca/Umbrella-v0").unwrapped
    with pytest.raises(ValueError, match="probability"):
        env.state_value(1.5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        env.advantage(2)

"""Slow checks that the algorithms learn what they are for, on the depth-8 DAG, through the public API."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import tca_envs  # noqa: F401  (registers tca/…)
from tca_sb3 import A2C, HPWR, PWR, PWTD, InnerLoopReset, MetaPWR, make_gym_vec_env

pytestmark = pytest.mark.ci

HORIZON = 8
GOAL = 0.95 * 4


def tabular(algorithm: type[A2C], n_envs: int, seed: int, **kwargs: Any) -> A2C:
    return algorithm(
        "TabularPolicy",
        make_gym_vec_env("tca/DAG8-v0", n_envs=n_envs, seed=seed),
        gamma=1.0,
        max_grad_norm=float("inf"),
        policy_kwargs={"optimizer_class": torch.optim.SGD},
        seed=seed,
        device="cpu",
        **kwargs,
    )


def exact_return(model: A2C) -> float:
    dag = gym.make("tca/DAG8-v0").unwrapped
    with torch.no_grad():
        policy = model.policy.get_distribution(torch.arange(dag.n_states)).distribution.probs.numpy()
    value = np.zeros(dag.n_states + 1)
    for state in reversed(range(dag.n_states)):
        value[state] = policy[state] @ (dag.reward[state] + value[dag.next_state[state]])
    return float(value[0])


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "episodes"),
    [
        # Budgets at two to four times the medians that the demo reports. About one run in eight of Meta-PWR
        # settles on a worse policy, as the demo's table says.
        (A2C, {"n_steps": HORIZON, "learning_rate": 1.2}, 300),
        (HPWR, {"learning_rate": 15.0}, 50),
        (MetaPWR, {"learning_rate": 3.2, "meta_kwargs": {"learning_rate": 0.2, "value_learning_rate": 0.03}}, 200),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_reaches_the_best_return(algorithm: type[A2C], kwargs: dict[str, Any], episodes: int) -> None:
    seeds = range(300, 306)
    returns = [exact_return(tabular(algorithm, 1, seed, **kwargs).learn(episodes * HORIZON)) for seed in seeds]
    assert sum(value >= GOAL for value in returns) >= 4, returns


def test_handwritten_weights_learn_from_fewer_episodes_than_the_regular_return() -> None:
    after = {
        algorithm: [exact_return(tabular(algorithm, 1, seed, **kwargs).learn(25 * HORIZON)) for seed in range(210, 216)]
        for algorithm, kwargs in (
            (A2C, {"n_steps": HORIZON, "learning_rate": 1.2}),
            (HPWR, {"learning_rate": 15.0}),
        )
    }
    assert np.median(after[HPWR]) > np.median(after[A2C]) + 0.5, after


@pytest.mark.parametrize("estimator", [PWR, PWTD])
def test_inner_loop_reset_finds_the_rewards_that_a_decision_determines(estimator: type) -> None:
    lifetimes, updates, n_envs = 40, 16, 8
    model = tabular(A2C, n_envs, 3, learning_rate=4.0, estimator_class=estimator, n_episodes=1)
    callback = InnerLoopReset(updates, learning_rate=0.1, value_learning_rate=0.1)
    model.learn(lifetimes * (updates + 1) * n_envs * HORIZON, callback=callback)
    dag = gym.make("tca/DAG8-v0").unwrapped
    weights = model.estimator.weights.table().numpy()
    partner = dag.state_credit_matrix == 1
    # Entries that never occurred kept their start, 0.5; the other rewards that follow a decision did not.
    moved = partner.any(axis=1)[:, None] & (np.abs(weights - 0.5) > 1e-4) & ~partner
    moved[:, : dag.n_states - 14] = False  # columns in which no reward arrives
    assert moved.sum() > 20
    auc = (weights[partner][:, None] > weights[moved]).mean()
    assert weights[partner].mean() > 0.75, weights[partner]
    assert auc > 0.8, auc

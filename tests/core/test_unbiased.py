"""Estimators against the exact advantage ``Ψ(s, a) = Q(s, a) − V(s)`` (Eq. 3), in problems small enough to list.

The problem is written as a table; ``Ψ`` comes from backward induction. All trajectories are listed with their
probabilities and go through the estimator as one batch, so expectations and variances are sums, not samples.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import gymnasium as gym
import numpy as np
import oracles
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from tca_sb3.episodes import Episodes
from tca_sb3.estimators import PWR, PWTD, AdvantageEstimator, MonteCarlo, TDLambda
from tca_sb3.weights import Exponential, Fixed

PROBLEMS = {
    "umbrella": oracles.umbrella(length=5, mean=5.0, std=2.0, prefer=0.3),
    "dag": oracles.tree_that_closes(layers=3, seed=1),
    "dag under the uniform policy": oracles.tree_that_closes(layers=3, seed=2, uniform=True),
}


def everything(table: oracles.Table) -> tuple[Tensor, Episodes]:
    """Every trajectory as a column, and their probabilities."""
    chances, observations, actions, rewards = zip(*table.trajectories(), strict=True)
    episodes = Episodes(
        observations=torch.tensor(observations).T,
        actions=torch.tensor(actions).T.unsqueeze(2).float(),
        rewards=torch.tensor(rewards, dtype=torch.float64).T,
        lengths=torch.full((len(chances),), len(rewards[0])),
        terminated=torch.ones(len(chances), dtype=torch.bool),
        truncated=torch.zeros(len(chances), dtype=torch.bool),
        started=torch.ones(len(chances), dtype=torch.bool),
    )
    return torch.tensor(chances, dtype=torch.float64), episodes


def moments(chances: Tensor, episodes: Episodes, x: Tensor) -> dict[tuple[int, int], tuple[float, float]]:
    """Mean and variance of ``x[t]`` given ``(S_t, A_t)``, for every pair that occurs."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for t in range(episodes.horizon):
        for b in range(episodes.batch_size):
            pair = int(episodes.observations[t, b]), int(episodes.actions[t, b, 0])
            found[pair].append((chances[b].item(), x[t, b].item()))
    result = {}
    for pair, entries in found.items():
        weight = sum(p for p, _ in entries)
        mean = sum(p * value for p, value in entries) / weight
        result[pair] = mean, sum(p * (value - mean) ** 2 for p, value in entries) / weight
    return result


def state_means(chances: Tensor, episodes: Episodes, x: Tensor, n_states: int) -> Tensor:
    """``E[x_t | S_t = s]`` for every state, 0 for terminal ones."""
    total, weight = torch.zeros(n_states, dtype=torch.float64), torch.zeros(n_states, dtype=torch.float64)
    for t in range(episodes.horizon):
        total.index_add_(0, episodes.observations[t], chances * x[t])
        weight.index_add_(0, episodes.observations[t], chances)
    return total / weight.clamp(min=1e-300)


def estimator_of(
    cls: type[AdvantageEstimator], table: oracles.Table, gamma: float, **kwargs: Any
) -> AdvantageEstimator:
    arguments = {"gamma": gamma, "gae_lambda": 0.6, **kwargs}
    return cls(spaces.Discrete(table.n_states), **arguments).double()


def exact_values(table: oracles.Table, episodes: Episodes, gamma: float) -> Tensor:
    return torch.tensor(table.action_values(gamma)[0], dtype=torch.float64)[episodes.observations]


def assert_means(found: dict[tuple[int, int], tuple[float, float]], table: oracles.Table, gamma: float) -> None:
    v, q = table.action_values(gamma)
    assert len(found) == sum(len(actions) for actions in table.outcomes)
    for (state, action), (mean, _) in found.items():
        assert mean == pytest.approx(q[state][action] - v[state], abs=1e-12), (state, action)


@pytest.mark.parametrize("gamma", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (MonteCarlo, {}),
        (TDLambda, {"gae_lambda": 0.0}),
        (TDLambda, {"gae_lambda": 0.6}),
        (TDLambda, {"gae_lambda": 1.0}),
        # With exact values every later TD error has mean 0, so any weights of the lag will do that begin with 1.
        (PWTD, {"weights_class": Exponential, "weights_kwargs": {"rate": 0.3}}),
    ],
)
def test_with_exact_values_the_mean_is_the_advantage(
    cls: type[AdvantageEstimator], kwargs: dict[str, Any], problem: str, gamma: float
) -> None:
    table = PROBLEMS[problem]
    chances, episodes = everything(table)
    assert chances.sum().item() == pytest.approx(1.0)
    estimate = estimator_of(cls, table, gamma, **kwargs)(episodes, exact_values(table, episodes, gamma))
    assert_means(moments(chances, episodes, estimate.advantages), table, gamma)


def credit(table: oracles.Table, episodes: Episodes) -> np.ndarray:
    """1 where the mean reward on arriving in state j depends on the action taken in state i, found by comparing.

    Written for these problems, whose episodes have one length and whose decisions have two actions.
    """
    matrix = np.zeros((table.n_states, table.n_states), dtype=np.float32)
    chances, _ = everything(table)
    for t in range(episodes.horizon):
        for k in range(t + 1, episodes.horizon + 1):
            by_action: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
            for b in range(episodes.batch_size):
                pair = int(episodes.observations[t, b]), int(episodes.actions[t, b, 0])
                by_action[pair].append((chances[b].item(), episodes.rewards[k - 1, b].item()))
            means = {p: sum(c * r for c, r in e) / sum(c for c, _ in e) for p, e in by_action.items()}
            for b in range(episodes.batch_size):
                i, j = int(episodes.observations[t, b]), int(episodes.observations[k, b])
                if len(table.outcomes[i]) == 2 and abs(means[i, 0] - means[i, 1]) > 1e-9:
                    matrix[i, j] = 1.0
    return matrix


@pytest.mark.parametrize("problem", PROBLEMS)
def test_handcrafted_weights_are_unbiased(problem: str) -> None:
    """§3: with weight 1 where the action matters, 0 elsewhere, and a correct ``v_ψ``, PWR's mean is ``Ψ`` (γ = 1).

    On the DAG an action also chooses the subtree of later decisions. Under the uniform policy these pay 0 on average
    wherever they are, each decision is left with its own reward, and the estimate has no variance at all.
    """
    table = PROBLEMS[problem]
    chances, episodes = everything(table)
    matrix = credit(table, episodes)
    decisions = [s for s, actions in enumerate(table.outcomes) if len(actions) == 2]
    assert set(np.nonzero(matrix)[0]) == set(decisions)
    pwr = estimator_of(PWR, table, 1.0, weights_class=Fixed, weights_kwargs={"matrix": matrix, "index": "state"})
    zero = torch.zeros(episodes.horizon + 1, episodes.batch_size, dtype=torch.float64)
    weighted_values = state_means(chances, episodes, pwr(episodes, zero).value_targets, table.n_states)
    estimate = pwr(episodes, weighted_values[episodes.observations])
    found = moments(chances, episodes, estimate.advantages)
    v, q = table.action_values(1.0)
    for state in decisions:
        for action in range(2):
            mean, variance = found[state, action]
            assert mean == pytest.approx(q[state][action] - v[state], abs=1e-12)
            if problem != "dag":
                assert variance == pytest.approx(0.0, abs=1e-12)
    if problem == "dag under the uniform policy":
        assert all(matrix[state].sum() == 1 for state in decisions)  # each decision has one partner


@pytest.mark.parametrize(("length", "std"), [(2, 1.0), (5, 2.0), (8, 5.0)])
def test_variance_on_the_umbrella(length: int, std: float) -> None:
    """§3: the Monte-Carlo advantage of the first action has variance ``(T − 1)σ²``, the pairwise-weighted one 0."""
    table = oracles.umbrella(length=length, mean=5.0, std=std, prefer=0.3)
    chances, episodes = everything(table)
    values = exact_values(table, episodes, 1.0)
    found = moments(chances, episodes, estimator_of(MonteCarlo, table, 1.0)(episodes, values).advantages)
    matrix = np.zeros((length, length), dtype=np.float32)
    matrix[0, length - 1] = 1.0  # w_{0T} = 1, all others 0
    pwr = estimator_of(PWR, table, 1.0, weights_class=Fixed, weights_kwargs={"matrix": matrix})
    expected_last_reward = torch.zeros_like(values)
    expected_last_reward[0] = 0.3
    weighted = moments(chances, episodes, pwr(episodes, expected_last_reward).advantages)
    for action in range(2):
        assert found[0, action][1] == pytest.approx((length - 1) * std**2, rel=1e-9)
        assert weighted[0, action] == (pytest.approx(action - 0.3, abs=1e-7), pytest.approx(0.0, abs=1e-12))


def test_a_biased_estimator_is_caught() -> None:
    """The law has teeth: values that are wrong by a constant bias the λ-estimator, and the check sees it."""
    table = PROBLEMS["umbrella"]
    chances, episodes = everything(table)
    wrong = exact_values(table, episodes, 1.0)
    wrong[2] += 0.1
    estimate = estimator_of(TDLambda, table, 1.0)(episodes, wrong)
    with pytest.raises(AssertionError):
        assert_means(moments(chances, episodes, estimate.advantages), table, 1.0)


# -- the environments themselves ------------------------------------------------------------------------------------


def environment(name: str, **kwargs: Any) -> Any:
    pytest.importorskip("tca_envs")
    return gym.make(f"tca_envs:tca/{name}", **kwargs).unwrapped


def dag_by_playing(env: Any, n_decisions: int, policy: list[float]) -> oracles.Table:
    """The DAG environment as a table, from playing every sequence of decisions once."""
    outcomes: dict[int, dict[int, oracles.Outcome]] = defaultdict(dict)
    for actions in itertools.product(range(2), repeat=n_decisions):
        state, _ = env.reset(seed=0)
        for action in (*actions, *[0] * n_decisions):
            following, reward, terminated, truncated, _ = env.step(action)
            outcome = oracles.Outcome(1.0, int(following), float(reward))
            assert outcomes[int(state)].setdefault(action, outcome) == outcome, "the same again, whatever came before"
            state = following
        assert terminated
        assert not truncated
    n_states = int(env.observation_space.n)
    table = [[[outcomes[s][a]] for a in sorted(outcomes[s])] for s in range(n_states)]
    return oracles.Table(table, [policy if len(actions) == 2 else [1.0] * len(actions) for actions in table])


@pytest.mark.parametrize("index", ["time", "state"])
@pytest.mark.parametrize("depth", [2, 4, 6])
def test_the_dags_own_credit_matrix(depth: int, index: str) -> None:
    env = environment("DAG-v0", depth=depth)
    table = dag_by_playing(env, depth // 2, [0.5, 0.5])
    chances, episodes = everything(table)
    assert episodes.batch_size == 2 ** (depth // 2)
    matrix = env.credit_matrix if index == "time" else env.state_credit_matrix
    weights_kwargs = {"matrix": matrix, "index": index}
    pwr = estimator_of(PWR, table, 1.0, weights_class=Fixed, weights_kwargs=weights_kwargs)
    zero = torch.zeros(episodes.horizon + 1, episodes.batch_size, dtype=torch.float64)
    found = moments(chances, episodes, pwr(episodes, zero).advantages)  # v_ψ = 0 under the uniform policy
    v, q = table.action_values(1.0)
    for state, actions in enumerate(table.outcomes):
        if len(actions) == 2:
            for action in range(2):
                mean, variance = found[state, action]
                assert mean == pytest.approx(q[state][action] - v[state], abs=1e-12)
                assert abs(mean) == 1.0
                assert variance == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("cls", [MonteCarlo, TDLambda])
def test_estimators_on_the_dag_environment(cls: type[AdvantageEstimator]) -> None:
    table = dag_by_playing(environment("DAG-v0", depth=6, layout_seed=3), 3, [0.3, 0.7])
    chances, episodes = everything(table)
    estimate = estimator_of(cls, table, 0.9)(episodes, exact_values(table, episodes, 0.9))
    assert_means(moments(chances, episodes, estimate.advantages), table, 0.9)


def umbrella_by_playing(env: Any, length: int, prefer: float) -> oracles.Table:
    """The umbrella environment with two-point noise as a table: which rewards occur at each time, for each choice."""
    support: dict[tuple[int, int], set[float]] = defaultdict(set)
    path: dict[tuple[int, int], int] = {}
    for first in range(2):
        for seed in range(40):
            env.reset(seed=seed)
            for t in range(length):
                state, reward, terminated, _, _ = env.step(first if t == 0 else seed % 2)
                support[t, first].add(round(float(reward), 9))
                assert path.setdefault((t + 1, first), int(state)) == int(state)
            assert terminated
    outcomes: list[list[list[oracles.Outcome]]] = [[] for _ in range(int(env.observation_space.n))]
    for t in range(length):
        for first in range(2):
            rewards = sorted(support[t, first])
            assert len(rewards) == (1 if t == length - 1 else 2)
            possible = [oracles.Outcome(1 / len(rewards), path[t + 1, first], reward) for reward in rewards]
            outcomes[0 if t == 0 else path[t, first]].append(possible)
    return oracles.Table(outcomes, [[1 - prefer, prefer] if len(o) == 2 else [1.0] * len(o) for o in outcomes])


def test_the_umbrella_environment_is_what_its_closed_forms_say() -> None:
    env = environment("Umbrella-v0", length=5, mean=3.0, variance=4.0, noise="two-point")
    table = umbrella_by_playing(env, 5, 0.3)
    chances, episodes = everything(table)
    values = exact_values(table, episodes, 1.0)
    assert values[0, 0].item() == pytest.approx(env.state_value(0.3), abs=1e-9)
    regular = moments(chances, episodes, estimator_of(MonteCarlo, table, 1.0)(episodes, values).advantages)
    weights_kwargs = {"matrix": env.credit_matrix}
    pwr = estimator_of(PWR, table, 1.0, weights_class=Fixed, weights_kwargs=weights_kwargs)
    weighted_value = torch.zeros_like(values)
    weighted_value[0] = (chances * episodes.rewards[-1]).sum()  # v_ψ(s_0) = E[R_T]
    weighted = moments(chances, episodes, pwr(episodes, weighted_value).advantages)
    for action in range(2):
        assert regular[0, action][0] == pytest.approx(env.advantage(action, 0.3), abs=1e-9)
        assert regular[0, action][1] == pytest.approx(env.mc_variance, abs=1e-9)
        assert weighted[0, action] == (
            pytest.approx(env.advantage(action, 0.3), abs=1e-6),
            pytest.approx(env.pwr_variance, abs=1e-9),
        )

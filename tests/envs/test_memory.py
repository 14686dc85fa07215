"""Memory tasks against literal loops, Gymnasium's own Pendulum, quadrature and simulated Bayesian agents."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import tca_envs  # noqa: F401
from tca_envs.envs import memory

IDS = tuple(f"tca/{entry.name}" for entry in memory.REGISTRATIONS)
NATIVE_IDS = IDS[:4]
PASSIVE_IDS = ("tca/DummyPMT-v0", "tca/PendulumPMT-v0", "tca/PMT-v0")


def make(id_: str, **kwargs: Any) -> Any:
    return gym.make(id_, **kwargs).unwrapped


def run(env: Any, actions: Any, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """An episode of given actions: observations 0..T, shape (T + 1, d), and rewards 1..T."""
    observations, rewards = [env.reset(seed=seed)[0]], []
    for t, action in enumerate(actions):
        obs, reward, terminated, truncated, _ = env.step(np.array([action], np.float32))
        assert (terminated, truncated) == (t == env.horizon - 1, False)
        observations.append(obs)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


def posterior_mean(shown: np.ndarray, remembered: np.ndarray, env: Any) -> np.ndarray:
    """E[o_m | what was shown], by Bayes' rule for a prior N(0, 1); literal, one observation after the other.

    Args:
        shown: (n, t1), the numbers of the remember phase.
        remembered: (n, t1), the actions before each of them; column 0 is the paper's missing a_{-1} = 0.
    """
    rules = env.rules
    precision, mean = np.ones(len(shown)), np.zeros(len(shown))
    for k in range(rules.t1):
        noise = (rules.a_m - remembered[:, k]) * rules.sigma
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = np.where(noise == 0.0, 1e18, 1.0 / noise**2)
        mean = (precision * mean + weight * shown[:, k]) / (precision + weight)
        precision = precision + weight
    return np.clip(mean, -rules.action_bound, rules.action_bound)


# Dynamics.


@pytest.mark.parametrize("id_", NATIVE_IDS)
@pytest.mark.parametrize("arguments", [{}, {"t1": 4, "t2": 5, "length": 9, "c": 2.0, "a_m": -0.5, "action_bound": 1.5}])
def test_rewards_and_phases_are_the_papers(id_: str, arguments: dict[str, Any]) -> None:
    env = make(id_, **arguments)
    t1, t2 = arguments.get("t1", 3), arguments.get("t2", 10)
    length, c, bound = arguments.get("length", 15), arguments.get("c", 0.5), arguments.get("action_bound", 3.0)
    rng = np.random.default_rng(0)
    for seed in range(5):
        actions = rng.uniform(-bound, bound, length).astype(np.float32)
        observations, rewards = run(env, actions, seed)
        target = float(env.target[0])
        for t in range(length):
            expected = c - (float(actions[t]) - target) ** 2 if t > t2 else 0.0
            assert rewards[t] == expected
        for t in range(length + 1):
            phase = [t < t1, t1 <= t <= t2, t > t2]
            np.testing.assert_array_equal(observations[t, -3:], phase)
        if "PMT" in id_:
            np.testing.assert_array_equal(observations[:t1, 0], np.float32(target))
        if "Dummy" in id_:
            assert not observations[t1 : t2 + 1, 0].any()
        else:
            assert not observations[:t1, 1:3].any()


def test_remember_noise_vanishes_at_the_right_action_and_grows_with_the_distance() -> None:
    env = make("tca/DummyAMT-v0", sigma=2.0, a_m=0.5)
    for seed in range(20):
        noise = {}
        for first in (0.5, 1.5, -0.5, -2.5):
            observations, _ = run(env, [first] * 15, seed)
            noise[first] = observations[:3, 0] - np.float32(env.target[0])
        # o_0 comes before any action: a_{-1} = 0 in its place.
        assert len({values[0] for values in noise.values()}) == 1
        np.testing.assert_array_equal(noise[0.5][1:], 0.0)
        np.testing.assert_allclose(noise[-0.5][1:], -noise[1.5][1:], atol=1e-6)
        np.testing.assert_allclose(noise[-2.5][1:], -3 * noise[1.5][1:], atol=1e-5)


def test_all_that_is_random_has_the_right_distribution() -> None:
    n = 20_000
    envs = gym.make_vec("tca/PendulumAMT-v0", num_envs=n, sigma=2.0, a_m=0.5)
    obs, _ = envs.reset(seed=0)
    target = envs.unwrapped.target
    actions = np.full((n, 1), -0.5, np.float32)
    samples = {"target": target, "eps 0": (obs[:, 0] - target) / (0.5 * 2.0)}
    for t in range(14):
        obs, *_ = envs.step(actions)
        if t + 1 < 3:
            samples[f"eps {t + 1}"] = (obs[:, 0] - target) / ((0.5 + 0.5) * 2.0)
        elif t + 1 == 3:
            angle, velocity = np.arctan2(obs[:, 1], obs[:, 0]), 4.0 * obs[:, 2]
        elif t + 1 > 10:
            samples |= {f"recall {t + 1} {j}": obs[:, j] for j in range(3)}
    for name, values in samples.items():
        # Four standard errors of a mean and of a variance of n normal draws.
        assert abs(values.mean()) < 4 / np.sqrt(n), name
        assert abs(values.var() - 1.0) < 4 * np.sqrt(2 / n), name
    samples |= {"angle": angle / (np.pi / np.sqrt(3)), "velocity": velocity * np.sqrt(3)}
    names = list(samples)
    correlation = np.corrcoef([samples[name] for name in names]) - np.eye(len(names))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)
    for values, bound in ((angle, np.pi), (velocity, 1.0)):
        assert bound * 0.999 < np.abs(values).max() <= bound * (1 + 1e-6)
        shares = np.histogram(values, 10, (-bound, bound))[0] / n
        assert np.abs(shares - 0.1).max() < 4.5 * np.sqrt(0.09 / n)


@pytest.mark.parametrize("distractor_reward", [False, True])
def test_pendulum_is_gymnasiums_own(distractor_reward: bool) -> None:
    env = make("tca/PendulumAMT-v0", t2=60, length=65, distractor_scale=1.0, distractor_reward=distractor_reward)
    theirs = PendulumEnv()
    theirs.reset()
    rng = np.random.default_rng(0)
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        for _ in range(3):
            obs, *_ = env.step(np.array([3.0], np.float32))
        theirs.state = np.array([env._state.angle[0], env._state.velocity[0]])
        np.testing.assert_allclose(obs[:3], theirs._get_obs(), rtol=1e-6)
        for _ in range(3, 60):
            # Beyond the torque of 2 it is clipped; a constant push reaches the largest speed.
            action = np.array([3.0 if seed == 0 else rng.uniform(-3, 3)], np.float32)
            obs, reward, *_ = env.step(action)
            their_obs, their_reward, *_ = theirs.step(action.astype(np.float64))
            np.testing.assert_allclose(obs[:3], their_obs, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                [env._state.angle[0], env._state.velocity[0]], theirs.state, rtol=1e-9, atol=1e-9
            )
            assert reward == (pytest.approx(their_reward, rel=1e-9) if distractor_reward else 0.0)


def test_a_distractor_of_ones_own_does_what_it_does_outside() -> None:
    """Gymnasium's Pendulum as a parameter against the built-in one, from the same state."""
    own, built_in = (
        make(id_, distractor_scale=(1.0, 1.0, 0.25), distractor_reward=True)
        for id_ in ("tca/AMT-v0", "tca/PendulumAMT-v0")
    )
    assert own.observation_space == built_in.observation_space
    rng = np.random.default_rng(0)
    for seed in range(5):
        first, _ = own.reset(seed=seed)
        second, _ = built_in.reset(seed=seed)
        np.testing.assert_array_equal(first, second)
        own._state.world[0].env.unwrapped.state = np.array([built_in._state.angle[0], built_in._state.velocity[0]])
        for t in range(15):
            action = rng.uniform(-3, 3, 1).astype(np.float32)
            (obs, reward, *_), (their_obs, their_reward, *_) = own.step(action), built_in.step(action)
            assert reward == pytest.approx(their_reward, rel=1e-6)
            if 3 < t + 1 <= 10:
                np.testing.assert_allclose(obs, their_obs, rtol=1e-5, atol=1e-6)


class Countdown(gym.Env):
    """Shows the action it was given and the steps that are left of its four."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-10, 10, (2, 1), np.float64)

    def _observe(self, action: float) -> np.ndarray:
        return np.array([[action], [self.left]], np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = 4
        self.nonce = float(self.np_random.random())
        return self._observe(self.nonce), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return self._observe(np.sum(action)), 7.0, False, self.left == 0, {}


def test_a_distractors_actions_and_episodes() -> None:
    box = spaces.Box(-1.0, 0.5, (2,), np.float32)
    env = make("tca/PMT-v0", distractor=lambda: Countdown(box), distractor_scale=(1.0, 2.0))
    observations, rewards = run(env, [0.25] * 3 + [3.0, -3.0, 0.25, 0.1, 0.2, 0.3, 0.4, 0.5] + [0.0] * 4, seed=1)
    # The numbers go to both components, clipped; after four steps a new episode starts.
    np.testing.assert_allclose(observations[4:7, 0], [1.0, -2.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(observations[3:11, 1], 2.0 * np.array([4, 3, 2, 1, 4, 3, 2, 1]))
    assert not rewards[:11].any()
    starts = observations[[3, 7], 0]
    again, _ = run(env, [0.0] * 15, seed=1)
    np.testing.assert_array_equal(again[[3, 7], 0], starts)
    assert starts[0] != starts[1]
    other, _ = run(env, [0.0] * 15)
    assert other[3, 0] not in starts

    discrete = make("tca/AMT-v0", distractor=lambda: Countdown(spaces.Discrete(3, start=5)))
    observations, _ = run(discrete, [0.0] * 3 + [-3.0, -1.1, -0.9, 0.9, 1.1, 3.0, 0.0, 0.0] + [0.0] * 4)
    np.testing.assert_array_equal(observations[[4, 5, 6, 8, 9], 0], [5, 5, 6, 7, 7])
    cartpole = make("tca/AMT-v0", distractor="CartPole-v1", distractor_scale=(1, 0, 1, 0)).observation_space
    assert cartpole.shape == (7,)
    np.testing.assert_array_equal(cartpole.low[-3:], 0.0)
    np.testing.assert_array_equal(cartpole.high[-3:], 1.0)
    assert np.isfinite(cartpole.high).all()
    assert cartpole.high[1] == pytest.approx(4.33, abs=0.01)
    paid = run(make("tca/PMT-v0", distractor=lambda: Countdown(box), distractor_reward=True), [0.0] * 15)[1]
    np.testing.assert_array_equal(paid[:11], [0.0] * 3 + [7.0] * 8)


def test_passive_and_active_tasks_share_their_targets() -> None:
    targets = [[make(id_), []] for id_ in NATIVE_IDS]
    for env, seen in targets:
        env.reset(seed=4)
        for _ in range(5):
            seen.append(float(env.target[0]))
            env.reset()
    assert all(seen == targets[0][1] for _, seen in targets)
    assert len(set(targets[0][1])) == 5


# Single and vector, backends, autoreset.


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=pytest.mark.ci)])
@pytest.mark.parametrize("id_", NATIVE_IDS)
@pytest.mark.parametrize(
    "arguments", [{}, {"observation": "time", "t1": 2, "t2": 3, "length": 6}, {"observation": "bare", "sigma": 0.3}]
)
def test_vector_environments_give_the_single_ones_episodes(id_: str, backend: str, arguments: dict[str, Any]) -> None:
    """Bit for bit for the dummy; sine and cosine may differ in the last bit between the backends."""
    if backend == "numba":
        pytest.importorskip("numba")
    if "Pendulum" in id_:
        arguments = {**arguments, "distractor_reward": True}
    vector = gym.make_vec(id_, num_envs=5, backend=backend, **arguments)
    sync = gym.make_vec(
        id_,
        num_envs=5,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **arguments,
    )

    def same(ours: Any, theirs: Any) -> None:
        if "Dummy" in id_:
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)

    rng = np.random.default_rng(0)
    same(vector.reset(seed=3)[0], sync.reset(seed=3)[0])
    for _ in range(2 * vector.unwrapped.horizon + 3):
        actions = rng.uniform(-3, 3, (5, 1)).astype(np.float32)
        ours, theirs = vector.step(actions), sync.step(actions)
        for part in range(4):
            same(ours[part], theirs[part])
        np.testing.assert_array_equal(ours[4]["phase"], theirs[4]["phase"])
        if ours[2].any():
            same(ours[4]["final_obs"], np.stack(theirs[4]["final_obs"]))


def test_an_episode_does_not_depend_on_its_neighbours() -> None:
    alone = gym.make_vec("tca/DummyAMT-v0", num_envs=1)
    many = gym.make_vec("tca/DummyAMT-v0", num_envs=9)
    first, second = alone.reset(seed=7)[0], many.reset(seed=2)[0]
    np.testing.assert_array_equal(first[0], second[5])
    action = np.ones((9, 1), np.float32) * 0.3
    for _ in range(20):
        first, second = alone.step(action[:1])[0], many.step(action)[0]
        np.testing.assert_array_equal(first[0], second[5])


# What is known of returns.


@pytest.mark.parametrize("id_", NATIVE_IDS)
@pytest.mark.parametrize("bound", [3.0, 1.0])
def test_returns_by_simulation(id_: str, bound: float) -> None:
    """Agents that know the target, that act uniformly, and that use Bayes' rule; four standard errors."""
    n = 20_000
    envs = gym.make_vec(id_, num_envs=n, action_bound=bound).unwrapped
    rng = np.random.default_rng(1)

    def simulate(act: Callable[[int, list[np.ndarray], list[np.ndarray]], np.ndarray]) -> tuple[float, float]:
        obs, _ = envs.reset(seed=int(rng.integers(1 << 30)))
        shown, done, total = [obs[:, 0]], [np.zeros(n)], np.zeros(n)
        for t in range(envs.horizon):
            action = act(t, shown, done).astype(np.float32)
            obs, rewards, *_ = envs.step(action[:, None])
            shown.append(obs[:, 0])
            done.append(action)
            total += rewards
        return float(total.mean()), float(total.std() / np.sqrt(n))

    def uniform(*_: Any) -> np.ndarray:
        return rng.uniform(-bound, bound, n)

    def knowing(t: int, shown: list[np.ndarray], done: list[np.ndarray]) -> np.ndarray:
        return np.clip(envs.target, -bound, bound)

    def bayes(t: int, shown: list[np.ndarray], done: list[np.ndarray]) -> np.ndarray:
        if t <= envs.rules.t2:
            return uniform()
        return posterior_mean(np.stack(shown[:3], axis=1), np.stack(done[:3], axis=1), envs)

    for stated, agent in (
        (envs.random_return, uniform),
        (envs.optimal_return, knowing),
        (envs.myopic_return, bayes),
    ):
        mean, error = simulate(agent)
        assert abs(mean - stated) < 4 * error + 1e-6
    assert envs.random_return < envs.myopic_return <= envs.optimal_return <= 2.0
    assert (envs.myopic_return == envs.optimal_return) == ("PMT" in id_)


@pytest.mark.parametrize("id_", ["tca/DummyAMT-v0", "tca/PendulumAMT-v0", "tca/DummyPMT-v0"])
@pytest.mark.parametrize("remembered", [(0.0, 0.0), (1.0, -2.0), (0.5, 0.7)])
def test_recall_return_by_simulation(id_: str, remembered: tuple[float, float]) -> None:
    """Bayes' rule after these remember actions; four standard errors. In half of the episodes they change places."""
    n = 10_000
    envs = gym.make_vec(id_, num_envs=n).unwrapped
    obs, _ = envs.reset(seed=3)
    rows = np.tile([remembered, remembered[::-1]], (n // 2, 1))
    shown, done, total = [obs[:, 0]], [np.zeros(n), *rows.T], np.zeros(n)
    for t in range(envs.horizon):
        if t > envs.rules.t2:
            action = posterior_mean(np.stack(shown[:3], axis=1), np.stack(done, axis=1), envs)
        else:
            action = rows[:, t] if t < 2 else np.zeros(n)
        obs, rewards, *_ = envs.step(action.astype(np.float32)[:, None])
        shown.append(obs[:, 0])
        total += rewards
    wanted = envs.rules.recall_return(rows)
    assert total.mean() == pytest.approx(wanted, abs=4 * total.std() / np.sqrt(n) + 1e-5)
    assert wanted <= envs.optimal_return + 1e-5
    alone = [envs.rules.recall_return(row[None]) for row in rows[:2]]
    assert wanted == pytest.approx(np.mean(alone), abs=1e-12)


@pytest.mark.parametrize("shape", [(2,), (4, 3), (0, 2)])
def test_recall_return_wants_the_actions_that_show(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"recall_return got remember actions of shape .* t1 - 1 = 2 actions"):
        make("tca/DummyAMT-v0").rules.recall_return(np.zeros(shape))


def test_recall_return_where_the_distractor_pays_is_not_claimed() -> None:
    with pytest.raises(ValueError, match="the distractor pays too"):
        make("tca/PendulumAMT-v0", distractor_reward=True).rules.recall_return(np.zeros((1, 2)))


def test_best_active_agent_looks_first() -> None:
    """Acting a_m in the first step and answering with o_1 earns the optimal return."""
    n = 5_000
    envs = gym.make_vec("tca/DummyAMT-v0", num_envs=n).unwrapped
    envs.reset(seed=0)
    answer, total = np.zeros(n), np.zeros(n)
    for t in range(15):
        action = answer if t > 10 else np.ones(n)
        obs, rewards, *_ = envs.step(np.float32(action)[:, None])
        total += rewards
        if t == 0:
            answer = np.clip(obs[:, 0], -3, 3)
    assert total.mean() == pytest.approx(envs.optimal_return, abs=4 * total.std() / np.sqrt(n) + 1e-5)


@pytest.mark.parametrize(("sigma", "a_m"), [(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (0.2, -3.0)])
def test_myopic_return_by_quadrature(sigma: float, a_m: float) -> None:
    """Gauss-Legendre over both remember actions, and a fine grid over the posterior mean for the clipping."""
    env = make("tca/DummyAMT-v0", sigma=sigma, a_m=a_m)
    nodes, weights = np.polynomial.legendre.leggauss(300)
    precision = 1.0 / ((a_m - 3.0 * nodes) * sigma) ** 2
    variance = 1.0 / (1.0 + 1.0 / (a_m * sigma) ** 2 + precision[:, None] + precision[None, :])
    grid = np.linspace(-8.0, 8.0, 4001)
    density = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi) * (grid[1] - grid[0])
    levels = np.linspace(0.0, 1.0, 400)
    beyond = [density @ np.maximum(np.abs(grid * np.sqrt(1 - v)) - 3.0, 0.0) ** 2 for v in levels]
    loss = variance + np.interp(variance, levels, beyond)
    expected = 4 * (0.5 - weights @ loss @ weights / 4.0)
    assert env.myopic_return == pytest.approx(expected, abs=1e-3)


def test_a_first_number_without_noise_leaves_nothing_to_look_for() -> None:
    """a_m = 0 is what the missing a_{-1} = 0 stands for."""
    env = make("tca/DummyAMT-v0", a_m=0.0)
    assert env.myopic_return == pytest.approx(env.optimal_return, abs=1e-4)


def test_returns_with_the_distractors_reward_are_not_claimed() -> None:
    for id_ in ("tca/PendulumAMT-v0", "tca/PMT-v0"):
        env = make(id_, distractor_reward=True)
        assert env.optimal_return is env.random_return is env.myopic_return is None


# Credit.


def interventions(
    env: Any, answer: Callable[[np.ndarray, np.ndarray], float] | None, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which rewards change when one action does, and how often nothing else was possible.

    With `answer`, recall actions are the agent's, unless they are the ones that are changed.
    """
    horizon, t1, t2 = env.horizon, env.rules.t1, env.rules.t2
    found = np.zeros((horizon, horizon))
    rng = np.random.default_rng(0)

    def rewards_of(actions: np.ndarray, fixed: int | None, seed: int) -> np.ndarray:
        shown, rewards = [env.reset(seed=seed)[0][0]], []
        for t in range(horizon):
            action = actions[t]
            if answer is not None and t > t2 and t != fixed:
                action = answer(np.array(shown[:t1]), np.append(0.0, actions[: t1 - 1]))
            obs, reward, *_ = env.step(np.array([action], np.float32))
            shown.append(obs[0])
            rewards.append(reward)
        return np.array(rewards)

    for seed in range(seeds):
        actions = rng.uniform(-3, 3, horizon).astype(np.float32)
        for t in range(horizon):
            changed = actions.copy()
            changed[t] = rng.uniform(-3, 3)
            fixed = t if t > t2 else None
            found[t] += rewards_of(actions, fixed, seed) != rewards_of(changed, fixed, seed)
    return found > 0, found


@pytest.mark.parametrize("id_", NATIVE_IDS)
@pytest.mark.parametrize("t1", [3, 5])
def test_credit_matrix_is_what_a_bayesian_agent_shows(id_: str, t1: int) -> None:
    env = make(id_, t1=t1)

    def bayes(shown: np.ndarray, remembered: np.ndarray) -> float:
        return float(posterior_mean(shown[None], remembered[None], env)[0])

    found, _ = interventions(env, bayes, seeds=4)
    np.testing.assert_array_equal(found, env.credit_matrix == 1.0)
    # The remember actions act through what the agent knows, and through nothing else.
    found, _ = interventions(env, None, seeds=2)
    np.testing.assert_array_equal(found, np.diag(np.arange(15) > 10))
    with pytest.raises(ValueError, match="read-only"):
        env.credit_matrix[0, 0] = 1.0


def test_distracting_rewards_are_independent_of_the_credited_actions() -> None:
    env = make("tca/PendulumAMT-v0", distractor_reward=True)
    found, _ = interventions(env, None, seeds=4)
    stated = env.credit_matrix == 1.0
    distractor = slice(3, 11)
    assert not found[:3, distractor].any()
    np.testing.assert_array_equal(found[distractor], stated[distractor])
    np.testing.assert_array_equal(stated[distractor, distractor], np.triu(np.ones((8, 8))) == 1.0)
    without = make("tca/PendulumAMT-v0").credit_matrix == 1.0
    np.testing.assert_array_equal(stated[:3], without[:3])
    np.testing.assert_array_equal(stated[11:], without[11:])


# Hosts and bad input.


@pytest.mark.parametrize("id_", IDS)
def test_gymnasium_is_content(id_: str) -> None:
    env = gym.make(id_, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        check_env(env.unwrapped)
    for seed in range(30):
        observations, _ = run(env.unwrapped, [-3.0] * 15, seed)
        assert all(obs in env.observation_space for obs in observations)
    env.unwrapped.reset(seed=1)
    env.unwrapped.step(np.zeros(1, np.float32))
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    for _ in range(14):
        action = np.array([0.4], np.float32)
        (obs, reward, *_), (their_obs, their_reward, *_) = env.unwrapped.step(action), copy.step(action)
        np.testing.assert_array_equal(obs, their_obs)
        assert reward == their_reward


def test_bounds_of_observations_hold_at_the_extremes() -> None:
    """All noise at its largest, all actions at the bound farthest from a_m."""
    env = make("tca/DummyAMT-v0", sigma=3.0, a_m=-1.0, action_bound=2.0)
    env.reset(seed=0)
    largest = float(env._tables.quantiles[-1])
    for sign in (1.0, -1.0):
        env._state.target[0] = sign * largest
        env._state.eps[:] = -sign * 3.0 * largest
        env._t = 0
        obs, *_ = env.step(np.array([2.0], np.float32))
        assert obs in env.observation_space
        assert abs(obs[0]) > 0.999 * env.observation_space.high[0]
    env = make("tca/PendulumPMT-v0")
    for sign in (1.0, -1.0):
        run(env, [0.0] * 15, seed=0)
        env._state.chatter[:] = sign * largest
        env._t = 13
        obs, *_ = env.step(np.zeros(1, np.float32))
        assert obs in env.observation_space
        np.testing.assert_allclose(obs[:3], sign * env.observation_space.high[:3], rtol=1e-5)


@pytest.mark.parametrize("id_", [*NATIVE_IDS, "tca/AMT-v0"])
def test_every_random_draw_has_bits_of_its_own(id_: str) -> None:
    """Three 16-bit fields of a word for recall noise, and no word for two purposes."""
    env = make(id_)
    rules, quantiles, asked = env.rules, env._tables.quantiles, []

    class Words:
        def __getitem__(self, d: int) -> int:
            asked.append(d)
            return (3 * d + 1) | (3 * d + 2) << 16 | (3 * d + 3) << 32

    env.reset(seed=0)
    rules.deal(env._tables, env._state, 0, Words())
    assert env._state.target[0] == quantiles[1]
    np.testing.assert_array_equal(env._state.eps[0], rules.sigma * np.array([quantiles[k] for k in (4, 7, 10)]))
    first = 1 + 3 + rules.used_words
    expected = [quantiles[3 * (first + j // 3) + 1 + j % 3] for j in range(env._state.chatter.shape[1])]
    np.testing.assert_array_equal(env._state.chatter[0], expected)
    assert sorted(set(asked)) == list(range(rules.words))
    assert all(asked.count(d) == 1 for d in range(first))


def test_frames_show_what_happens() -> None:
    for id_ in NATIVE_IDS:
        env = make(id_, render_mode="rgb_array")
        env.reset(seed=0)
        frames = [env.render()]
        for _ in range(15):
            env.step(np.array([0.7], np.float32))
            frames.append(env.render())
        assert all(frame.shape == (240, 480, 3) and frame.dtype == np.uint8 for frame in frames)
        assert len({frame.tobytes() for frame in frames}) == 16


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"t1": 0}, ValueError, "t1 must be at least 1"),
        ({"t1": 1}, ValueError, "t1 must be at least 2 where sigma is above 0"),
        ({"t1": 2.0}, TypeError, "t1 must be an integer"),
        ({"t1": 5, "t2": 4}, ValueError, "t2 must be at least 5"),
        ({"length": 11}, ValueError, "length must be at least 12"),
        ({"sigma": -1.0}, ValueError, "sigma must be at least 0"),
        ({"sigma": np.nan}, ValueError, "sigma must be finite"),
        ({"c": "big"}, TypeError, "c must be a number"),
        ({"a_m": 3.5}, ValueError, "a_m=3.5 must lie within the action bounds of 3"),
        ({"action_bound": 0.0}, ValueError, "action_bound must be above 0"),
        ({"observation": "all"}, ValueError, "observation='all' is unknown"),
        ({"distractor_reward": 1}, TypeError, "distractor_reward must be True or False"),
        ({"distractor_scale": (1.0, 2.0)}, ValueError, "one for each of the 3 components"),
        ({"distractor_scale": np.inf}, ValueError, "distractor_scale must be finite"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        memory.PendulumMemoryEnv(**arguments)


def test_bad_distractors_are_refused() -> None:
    class Discrete(Countdown):
        def __init__(self) -> None:
            super().__init__(spaces.Discrete(2))
            self.observation_space = spaces.Discrete(3)  # type: ignore[assignment]

    with pytest.raises(ValueError, match="observations must be a Box, got Discrete"):
        memory.DistractedMemoryEnv(distractor=Discrete)
    with pytest.raises(ValueError, match="actions must be a Box or Discrete, got MultiBinary"):
        memory.DistractedMemoryEnv(distractor=lambda: Countdown(spaces.MultiBinary(2)))
    with pytest.raises(TypeError, match="distractor must be the id of a registered environment"):
        memory.DistractedMemoryEnv(distractor=3)
    with pytest.raises(TypeError, match="distractor_reward"):
        memory.DummyMemoryEnv(distractor_reward=True)


@pytest.mark.parametrize("id_", IDS)
def test_bad_actions_change_nothing(id_: str) -> None:
    env, twin = make(id_), make(id_)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="unknown option 'target'"):
        env.reset(options={"target": 1.0})
    env.reset(seed=0)
    twin.reset(seed=0)
    for action, error in (
        (np.array([np.nan], np.float32), ValueError),
        (np.array([3.01], np.float32), ValueError),
        (np.array([-3.01], np.float32), ValueError),
        (np.array([-np.inf], np.float32), ValueError),
        (np.zeros(2, np.float32), ValueError),
        (np.array(["a"]), TypeError),
    ):
        with pytest.raises(error, match="Actions must"):
            env.step(action)
    for _ in range(15):
        (obs, *_), (their_obs, *_) = env.step([0.5]), twin.step(np.array([0.5], np.float32))
        np.testing.assert_array_equal(obs, their_obs)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1, np.float32))

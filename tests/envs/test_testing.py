"""`check_credit_env` passes what is right and names what is wrong."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import tca_envs
from tca_envs.testing import CreditEnvError, check_credit_env

assert tca_envs


class Bandit(gym.Env):
    """Three steps; the first action earns the last reward, the second one its own. Somebody else's class."""

    observation_space = spaces.Discrete(4)
    horizon = 3
    credit_matrix = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    optimal_return, random_return, myopic_return = 2.0, 1.0, 1.5
    truncate = False
    length = 3

    def __init__(self):
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.first = 0, 0
        return 0, {}

    def step(self, action):
        reward = (0.0, float(action), float(self.first))[self.t]
        if self.t == 0:
            self.first = action
        self.t += 1
        over = self.t == self.length
        return self.t, reward, over and not self.truncate, over and self.truncate, {}


def test_right_is_passed():
    check_credit_env(Bandit(), simulations=300)
    check_credit_env(gym.wrappers.TimeLimit(Bandit(), 10))
    for env_id in ("tca/DAG4-v0", "tca/Umbrella-v0", "tca/KeyToDoorMini-v0"):
        check_credit_env(gym.make(env_id), simulations=200)


class NoHorizon(Bandit):
    @property
    def horizon(self):
        raise AttributeError("horizon")


class Missing(Bandit):
    credit_matrix = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


class Late(Bandit):
    credit_matrix = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


class Graded(Bandit):
    credit_matrix = Bandit.credit_matrix / 2


class Small(Bandit):
    credit_matrix = np.eye(2)


class Below(Bandit):
    influence_matrix = np.eye(3)


class Truncating(Bandit):
    truncate = True


class Short(Bandit):
    length = 2


class Modest(Bandit):
    optimal_return = 0.5


class Boastful(Bandit):
    random_return = 1.9


class Forgetful(Bandit):
    """Remembers the last episode."""

    count = 0

    def reset(self, *, seed=None, options=None):
        self.count += 1
        super().reset(seed=seed)
        return self.count % 2, {}


class Global(Bandit):
    """Draws from the global generator."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + np.random.random(), *rest  # noqa: NPY002


class Endless(Bandit):
    def step(self, action):
        return 0, 0.0, False, False, {}


class Foreseeing(Bandit):
    """Begins with what will be done, in so far as the last run of the same episode did it."""

    last = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return Foreseeing.last, {}

    def step(self, action):
        Foreseeing.last = int(action)
        return super().step(action)


def test_observations_from_the_future_are_named():
    with pytest.raises(CreditEnvError, match="changed an observation before it"):
        check_credit_env(Foreseeing(), episodes=0)


@pytest.mark.parametrize(
    ("env_class", "words"),
    [
        (NoHorizon, "no `horizon`"),
        (Missing, r"changing the action at time 1 .* arrives at 2 .* 0 at \[1, 1\]"),
        (Late, r"credit_matrix\[1, 0\] = 1"),
        (Graded, "zeros and ones"),
        (Small, r"shape \(horizon, horizon\) = \(3, 3\), got \(2, 2\)"),
        (Below, "all ones of credit_matrix"),
        (Truncating, "truncated"),
        (Short, "ended after 2 steps, but horizon is 3"),
        (Modest, "random_return = 1 exceeds optimal_return = 0.5"),
        (Boastful, "random_return is 1.9"),
        (Forgetful, "another episode"),
        (Global, "another episode"),
        (Endless, "still running after horizon = 3"),
    ],
)
def test_wrong_is_named(env_class, words):
    with pytest.raises(CreditEnvError, match=words):
        check_credit_env(env_class(), simulations=300)

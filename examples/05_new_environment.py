"""An environment of your own is one file: rules written once, run as a single and as a native vector environment.

A loan: the choice at the first step pays at the very end, every later choice pays at once. In a file of
``tca_envs/envs/`` the list ``REGISTRATIONS`` replaces the two lines of ``gym.register``.
"""

import argparse
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tca_envs.checks import check_count
from tca_envs.env import CreditEnv
from tca_envs.rules import Rules
from tca_envs.testing import check_credit_env
from tca_envs.vector import CreditVectorEnv
from tca_sb3 import MetaPWR, make_gym_vec_env


class Tables(NamedTuple):
    last: int  # time of the last action


class State(NamedTuple):
    loan: np.ndarray  # the first choice
    time: np.ndarray


class LoanRules(Rules):
    """The kernels `begin` and `step` hold indexing and arithmetic only, so they run on numbers and on arrays."""

    def __init__(self, length: int = 6) -> None:
        self.horizon = check_count("length", length, minimum=2)
        self.observation_space = spaces.Discrete(self.horizon + 1)
        self.action_space = spaces.Discrete(2)

    def tables(self) -> Tables:
        return Tables(self.horizon - 1)

    def allocate(self, lanes: int) -> State:
        return State(loan=np.zeros(lanes, np.int64), time=np.zeros(lanes, np.int64))

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        state.time[i] = 0

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        state.time[i] = t + 1
        if t == 0:
            state.loan[i] = action
            return 0.0 * action
        if t == tables.last:
            return action + 3.0 * state.loan[i]
        return 1.0 * action

    def observe(self, state: Any, i: Any) -> np.ndarray:
        return np.array(state.time[i])

    @property
    def credit_matrix(self) -> np.ndarray:
        matrix = np.diag((np.arange(self.horizon) > 0).astype(float))
        matrix[0, -1] = 1.0
        return matrix

    @property
    def optimal_return(self) -> float:
        return self.horizon - 1 + 3.0

    @property
    def random_return(self) -> float:
        return self.optimal_return / 2

    @property
    def myopic_return(self) -> float:
        return self.horizon - 1 + 1.5

    def frame(self, state: Any, lane: int, trace: Any) -> np.ndarray:
        picture = np.full((20, 20 * self.horizon, 3), 255, np.uint8)
        picture[:, : 20 * trace.t] = (0, 114, 178)
        return picture


class LoanEnv(CreditEnv):
    rules_class = LoanRules


class LoanVectorEnv(CreditVectorEnv):
    rules_class = LoanRules


gym.register("Loan-v0", entry_point=LoanEnv, vector_entry_point=LoanVectorEnv)


def main(timesteps: int) -> None:
    check_credit_env(gym.make("Loan-v0"), simulations=500)
    env = make_gym_vec_env("Loan-v0", n_envs=16, seed=0)
    meta = {"learning_rate": 0.05}
    model = MetaPWR("TabularPolicy", env, meta_kwargs=meta, gamma=1.0, learning_rate=0.01, seed=0, device="cpu")
    model.learn(timesteps)
    print("weights of the rewards (columns) for the actions (rows):")
    print(model.mean_weights().round(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--timesteps", type=int, default=20_000)
    main(parser.parse_args().timesteps)

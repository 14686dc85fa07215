"""The umbrella problem: one choice, a long noisy day, and then its consequence (paper 1, Figure 1)."""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tca_envs import rendering as draw
from tca_envs.checks import check_count, check_number
from tca_envs.env import CreditEnv
from tca_envs.randomness import NoiseKind, noise_slot, noise_table
from tca_envs.registration import Registration
from tca_envs.rules import Rules, Trace, read_only
from tca_envs.vector import CreditVectorEnv

REGISTRATIONS = (Registration("Umbrella-v0", "UmbrellaEnv", "UmbrellaVectorEnv"),)

LEAVE, TAKE = 0, 1
FINAL_REWARDS = (-1.0, 1.0)


class Tables(NamedTuple):
    last: int  # T - 1, the time of the last action
    mean: float
    deviation: float
    quantiles: NDArray[np.float64]  # of the noise
    final: NDArray[np.float64]  # reward of the last transition, by choice


class State(NamedTuple):
    first: NDArray[np.int64]  # where a lane's stretch of `noise` begins
    noise: NDArray[np.float64]  # rewards 1..T-1 of the episode
    choice: NDArray[np.int64]
    node: NDArray[np.int64]  # the observation


class UmbrellaRules(Rules):
    """Rules of the umbrella problem; see `UmbrellaEnv` for the arguments."""

    render_fps = 4

    def __init__(self, length: int = 20, mean: float = 0.0, variance: float = 1.0, noise: NoiseKind = "normal") -> None:
        self.horizon = check_count("length", length, minimum=2)
        self.mean = check_number("mean", mean)
        self.variance = check_number("variance", variance, minimum=0.0)
        self.noise = noise
        noise_table(noise)  # refuses an unknown kind
        self.words = self.horizon - 1
        self.observation_space = spaces.Discrete(2 * self.horizon + 1)
        self.action_space = spaces.Discrete(2)

    def tables(self) -> Tables:
        return Tables(
            self.horizon - 1, self.mean, sqrt(self.variance), noise_table(self.noise), np.array(FINAL_REWARDS)
        )

    def allocate(self, lanes: int) -> State:
        return State(
            first=np.arange(lanes) * self.words,
            noise=np.zeros(lanes * self.words),
            choice=np.zeros(lanes, np.int64),
            node=np.zeros(lanes, np.int64),
        )

    @staticmethod
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        first = state.first[i]
        for k in range(tables.last):
            state.noise[first + k] = tables.mean + tables.deviation * tables.quantiles[noise_slot(words[k])]

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        state.node[i] = 0

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        if t == 0:
            state.choice[i] = action
        choice = state.choice[i]
        state.node[i] = 2 * t + 1 + choice
        if t == tables.last:
            return tables.final[choice]
        return state.noise[state.first[i] + t]

    def observe(self, state: Any, i: Any) -> NDArray[np.int64]:
        return np.array(state.node[i])

    def observe_one(self, state: Any) -> int:
        return int(state.node[0])

    @cached_property
    def credit_matrix(self) -> NDArray[np.float64]:
        matrix = np.zeros((self.horizon, self.horizon))
        matrix[0, -1] = 1.0
        return read_only(matrix)

    def _expected_return(self, p_take: float) -> float:
        final = (1.0 - p_take) * FINAL_REWARDS[LEAVE] + p_take * FINAL_REWARDS[TAKE]
        return (self.horizon - 1) * self.mean + final

    @property
    def optimal_return(self) -> float:
        return self._expected_return(1.0)

    @property
    def random_return(self) -> float:
        return self._expected_return(0.5)

    @property
    def myopic_return(self) -> float:
        return self._expected_return(0.5)

    def state_value(self, p_take: float = 0.5) -> float:
        p_take = check_number("p_take", p_take, minimum=0.0)
        if p_take > 1.0:
            raise ValueError(f"p_take is a probability, got {p_take:g}.")
        return self._expected_return(p_take)

    def advantage(self, action: int, p_take: float = 0.5) -> float:
        after = self._expected_return(float(self.check_action(action)))
        return after - self.state_value(p_take)

    def frame(self, state: Any, lane: int, trace: Trace) -> NDArray[np.uint8]:
        return _picture(self, trace)


class _UmbrellaFacts:
    """What is known of the umbrella problem in closed form."""

    rules: UmbrellaRules

    def state_value(self, p_take: float = 0.5) -> float:
        """V(s_0) = (T - 1) mean + E[R_T] under a policy that takes the umbrella with probability `p_take`."""
        return self.rules.state_value(p_take)

    def advantage(self, action: int, p_take: float = 0.5) -> float:
        """Psi(s_0, action) = E[R_T | action] - E[R_T] under a policy that takes it with `p_take`."""
        return self.rules.advantage(action, p_take)

    @property
    def mc_variance(self) -> float:
        """Variance of the Monte Carlo advantage at (s_0, a_0), given a_0: (T - 1) variance."""
        return (self.rules.horizon - 1) * self.rules.variance

    @property
    def pwr_variance(self) -> float:
        """The same for pairwise weighted rewards under the credit matrix: 0, for R_T is certain given a_0."""
        return 0.0


class UmbrellaEnv(_UmbrellaFacts, CreditEnv):
    """The umbrella problem (Zheng et al., "Adaptive Pairwise Weights for Temporal Credit Assignment", Figure 1).

    ## Description

    In the morning, at s_0, you take an umbrella or leave it. A day of T - 1 noisy rewards follows, on which
    you have no influence. In the evening it rains, and the last reward is the consequence of the morning.

    ## Action Space

    `Discrete(2)`: 0 leaves the umbrella, 1 takes it. Only the first action counts.

    ## Observation Space

    `Discrete(2T + 1)`: 0 at the start, and 2t - 1 + choice at time t = 1..T, so the state is Markov.

    ## Rewards

    R_1 .. R_{T-1} are independent draws with mean `mean` and variance `variance`. R_T is +1 with the umbrella
    and -1 without (ours; the figure prints no numbers).

    ## Starting State

    Always s_0. The day's rewards are drawn at reset.

    ## Episode End

    Terminates after T = `length` steps.

    ## Arguments

    - `length` (int, default 20): T, at least 2. Ours, as all defaults here: the paper gives none.
    - `mean` (float, default 0): mean of the noisy rewards, the paper's μ.
    - `variance` (float, default 1): their variance, the paper's σ², not its root.
    - `noise` ("normal" or "two-point", default "normal"): their distribution.

    ## Credit structure

    The first action influences the last reward, and that is all. `optimal_return` takes the umbrella;
    `random_return` and `myopic_return` take it with probability one half: an agent that credits actions with
    the rewards that follow soon has nothing to choose by. `state_value`, `advantage`, `mc_variance` and
    `pwr_variance` are the paper's closed forms.

    ## Version History

    - v0: first version.
    """

    rules_class = UmbrellaRules
    rules: UmbrellaRules


class UmbrellaVectorEnv(_UmbrellaFacts, CreditVectorEnv):
    """Many umbrella problems side by side; see `UmbrellaEnv` for the rules, `CreditVectorEnv` for the rest."""

    rules_class = UmbrellaRules
    rules: UmbrellaRules


def _picture(rules: UmbrellaRules, trace: Trace) -> draw.Frame:
    """The day as a path from the morning's choice to the evening's rain; rewards as bars along it."""
    width, height = 480, 200
    picture = draw.canvas(height, width)
    horizon, t = rules.horizon, trace.t
    left, right, middle = 60, width - 60, 110
    taken = bool(trace.actions) and trace.actions[0] == TAKE

    def x_of(time: float) -> float:
        return left + (right - left) * time / horizon

    draw.line(picture, (middle, left), (middle, right), draw.PALE, 4)
    draw.line(picture, (middle, left), (middle, x_of(t)), draw.GREY, 4)
    scale = 32 / max(1e-9, abs(rules.mean) + 2.5 * sqrt(rules.variance), 1.0)
    bar = max(1.0, 0.6 * (right - left) / horizon)
    for k, reward in enumerate(trace.rewards, start=1):
        size = float(np.clip(reward * scale, -45, 45))
        colour = draw.GREY if k < horizon else draw.GREEN if reward > 0 else draw.RED
        top = middle - 4 - size if size > 0 else middle + 4
        draw.rectangle(picture, top, x_of(k) - bar / 2, abs(size), bar, colour)
    # The evening: a cloud with rain.
    for dy, dx, radius in ((0, -12, 9), (-5, 0, 11), (0, 12, 9)):
        draw.disc(picture, 62 + dy, right + dx, radius, draw.GREY)
    for dx in (-12, -4, 4, 12):
        draw.line(picture, (74, right + dx), (84, right + dx - 3), draw.BLUE, 2)
    # The agent, and its umbrella.
    x = x_of(t)
    draw.disc(picture, middle, x, 7, draw.BLUE)
    if taken:
        draw.line(picture, (middle - 8, x + 9), (middle - 26, x + 9), draw.INK, 2)
        _dome(picture, middle - 22, x + 9)
    chosen = "CHOICE: " + ("UMBRELLA" if taken else "NO UMBRELLA") if trace.actions else "TAKE AN UMBRELLA?"
    draw.write(picture, chosen, 12, 12)
    clock = f"T={t}/{horizon}"
    draw.write(picture, clock, 12, width - 12 - draw.text_size(clock)[1])
    if trace.rewards:
        draw.write(picture, f"REWARD {trace.rewards[-1]:+.2f}", height - 22, 12)
        total = f"RETURN {sum(trace.rewards):+.2f}"
        draw.write(picture, total, height - 22, width - 12 - draw.text_size(total)[1])
    return picture


def _dome(picture: draw.Frame, y: float, x: float) -> None:
    dome = draw.canvas(12, 24)
    draw.disc(dome, 12, 12, 11, draw.RED)
    top, left = round(y) - 12, round(x) - 12
    right = min(picture.shape[1], left + 24)
    part = dome[:, : right - left]
    target = picture[top : top + 12, left:right]
    target[(part == draw.RED).all(axis=2)] = draw.RED

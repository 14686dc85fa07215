"""Memory tasks of paper 2, Section 4.1: see a number, be distracted, and recall it when it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import erfc, exp, pi, sqrt
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from tca_envs import rendering as draw
from tca_envs.checks import check_choice, check_count, check_number
from tca_envs.env import CreditEnv
from tca_envs.phases import Phases
from tca_envs.randomness import noise_slot, noise_table
from tca_envs.registration import Registration
from tca_envs.rules import Lanes, Rules, Trace, read_only
from tca_envs.vector import CreditVectorEnv

PASSIVE = {"sigma": 0.0}

REGISTRATIONS = (
    Registration("DummyPMT-v0", "DummyMemoryEnv", "DummyMemoryVectorEnv", PASSIVE),
    Registration("DummyAMT-v0", "DummyMemoryEnv", "DummyMemoryVectorEnv"),
    Registration("PendulumPMT-v0", "PendulumMemoryEnv", "PendulumMemoryVectorEnv", PASSIVE),
    Registration("PendulumAMT-v0", "PendulumMemoryEnv", "PendulumMemoryVectorEnv"),
    Registration("PMT-v0", "DistractedMemoryEnv", None, PASSIVE),
    Registration("AMT-v0", "DistractedMemoryEnv"),
)

Shown = Literal["phase", "time", "bare"]
Distractor = str | EnvSpec | Callable[[], gym.Env[Any, Any]]

SHOWS_NOTHING, SHOWS_PHASE, SHOWS_TIME = 0, 1, 2
REMEMBER, DISTRACTOR, RECALL = 0, 1, 2

# Gymnasium's Pendulum-v1, with its arguments put into its two coefficients.
PENDULUM_PULL = 15.0  # 3 g / (2 l), g = 10, l = 1
PENDULUM_PUSH = 3.0  # 3 / (m l^2), m = 1
PENDULUM_DT = 0.05
PENDULUM_MAX_TORQUE = 2.0
PENDULUM_MAX_SPEED = 8.0


class Tables(NamedTuple):
    t1: int  # first time of the distractor phase
    recall: int  # first time of the recall phase, t2 + 1
    length: int
    c: float
    sigma: float
    a_m: float
    content: int  # components of an observation before phase or time
    shown: int
    scale: NDArray[np.float64]  # of the distractor's observation, one entry a component
    distractor_reward: float  # 1 or 0
    quantiles: NDArray[np.float64]


class State(NamedTuple):
    """The target, the observation, and all noise of the episode, one row a lane."""

    target: NDArray[np.float64]  # o_m
    obs: NDArray[np.float32]  # (lanes, components)
    eps: NDArray[np.float64]  # (lanes, t1), times sigma
    chatter: NDArray[np.float64]  # observations of the recall phase, (lanes, times * content)


class PendulumState(NamedTuple):
    target: NDArray[np.float64]
    obs: NDArray[np.float32]
    eps: NDArray[np.float64]
    chatter: NDArray[np.float64]
    angle: NDArray[np.float64]
    sine: NDArray[np.float64]  # of the angle
    velocity: NDArray[np.float64]


class WorldState(NamedTuple):
    target: NDArray[np.float64]
    obs: NDArray[np.float32]
    eps: NDArray[np.float64]
    chatter: NDArray[np.float64]
    world: NDArray[np.object_]


# The task around the distractor, once for all distractors.


def deal_task(tables: Any, state: Any, i: Any, words: Any, used: int) -> None:
    """Kernel: the target from word 0, the remember noise from the next t1, the rest after `used` words."""
    state.target[i] = tables.quantiles[noise_slot(words[0])]
    for k in range(tables.t1):
        state.eps[i, k] = tables.sigma * tables.quantiles[noise_slot(words[1 + k])]
    first = 1 + tables.t1 + used
    for j in range((tables.length - tables.recall + 1) * tables.content):
        # A word has bits for three draws.
        state.chatter[i, j] = tables.quantiles[noise_slot(words[first + j // 3] >> 16 * (j % 3))]


def begin_task(tables: Any, state: Any, i: Any) -> None:
    """Kernel: the first observation. No action precedes it, so a_{-1} = 0 stands in for one."""
    for j in range(tables.content):
        state.obs[i, j] = 0.0
    state.obs[i, 0] = state.target[i] + tables.a_m * state.eps[i, 0]
    if tables.shown == SHOWS_TIME:
        state.obs[i, tables.content] = 0.0
    elif tables.shown == SHOWS_PHASE:
        state.obs[i, tables.content + REMEMBER] = 1.0
        state.obs[i, tables.content + DISTRACTOR] = 0.0
        state.obs[i, tables.content + RECALL] = 0.0


def step_task(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
    """Kernel: all of a transition but the distractor; returns the reward of the recall phase."""
    k = t + 1
    if k < tables.t1:
        state.obs[i, 0] = state.target[i] + (tables.a_m - action) * state.eps[i, k]
    elif k >= tables.recall:
        for j in range(tables.content):
            state.obs[i, j] = state.chatter[i, (k - tables.recall) * tables.content + j]
    if tables.shown == SHOWS_TIME:
        state.obs[i, tables.content] = k / tables.length
    elif tables.shown == SHOWS_PHASE:
        if k == tables.t1:
            state.obs[i, tables.content + REMEMBER] = 0.0
            state.obs[i, tables.content + DISTRACTOR] = 1.0
        elif k == tables.recall:
            state.obs[i, tables.content + DISTRACTOR] = 0.0
            state.obs[i, tables.content + RECALL] = 1.0
    if t < tables.recall:
        return action - action  # zero, in the shape of a batch
    error = action - state.target[i]
    return tables.c - error * error


class Outlook(NamedTuple):
    """What a distractor shows: the bounds of its flat observation, and how that enters the task."""

    low: Sequence[float] | NDArray[np.float64]
    high: Sequence[float] | NDArray[np.float64]
    scale: float | Sequence[float] = 1.0
    reward: bool = False


class MemoryRules(Rules):
    """The memory tasks without their distractor; see `DummyMemoryEnv` for the arguments."""

    render_fps = 2
    used_words = 0  # of the distractor's start

    def __init__(
        self,
        outlook: Outlook,
        *,
        t1: int = 3,
        t2: int = 10,
        length: int = 15,
        c: float = 0.5,
        sigma: float = 1.0,
        a_m: float = 1.0,
        action_bound: float = 3.0,
        observation: Shown = "phase",
    ) -> None:
        self.t1 = check_count("t1", t1, minimum=1)
        self.t2 = check_count("t2", t2, minimum=self.t1)
        self.horizon = check_count("length", length, minimum=self.t2 + 2)
        self.phases = Phases(
            ("remember", "distractor", "recall"),
            (self.t1, self.t2 + 1 - self.t1, self.horizon - self.t2 - 1),
        )
        self.c = check_number("c", c)
        self.sigma = check_number("sigma", sigma, minimum=0.0)
        self.a_m = check_number("a_m", a_m)
        self.action_bound = check_number("action_bound", action_bound, minimum=0.0)
        if self.action_bound == 0.0:
            raise ValueError("action_bound must be above 0, or there is nothing to choose.")
        if abs(self.a_m) > self.action_bound:
            raise ValueError(
                f"a_m={self.a_m:g} must lie within the action bounds of {self.action_bound:g}, "
                "or no action shows the target without noise."
            )
        if self.sigma > 0.0 and self.t1 < 2:
            raise ValueError(
                "t1 must be at least 2 where sigma is above 0: with t1=1 the only observation of the target "
                "comes before the first action, which then has nothing to act on."
            )
        self.observation = check_choice("observation", observation, get_args(Shown))
        if not isinstance(outlook.reward, (bool, np.bool_)):
            raise TypeError(f"distractor_reward must be True or False, got {outlook.reward!r}.")
        self.distractor_reward = bool(outlook.reward)
        self.content = len(outlook.low)
        try:
            scale = np.broadcast_to(np.asarray(outlook.scale, np.float64), self.content)
        except ValueError:
            raise ValueError(
                f"distractor_scale must be one number or one for each of the {self.content} components of the "
                f"distractor's observation, got {outlook.scale!r}."
            ) from None
        for number in scale.tolist():
            check_number("distractor_scale", number)
        self.scale = read_only(scale.copy())
        self.recall_times = self.horizon - self.t2  # the terminal observation included
        self.words = 1 + self.t1 + self.used_words + -(-self.recall_times * self.content // 3)
        self.observation_space = self._observation_space(outlook)
        self.action_space = spaces.Box(-self.action_bound, self.action_bound, (1,), np.float32)

    def _observation_space(self, outlook: Outlook) -> spaces.Box:
        """Bounds of what is shown in any phase."""
        largest = float(self._quantiles[-1])
        # A component without bounds that is scaled to 0 is 0.
        ends = np.stack([np.where(self.scale == 0.0, 0.0, end) * self.scale for end in (outlook.low, outlook.high)])
        least, most = np.minimum(-largest, ends.min(axis=0)), np.maximum(largest, ends.max(axis=0))
        remembered = largest * (1.0 + self.sigma * (abs(self.a_m) + self.action_bound))
        least[0], most[0] = min(-remembered, least[0]), max(remembered, most[0])
        extra = {"phase": 3, "time": 1, "bare": 0}[self.observation]
        # Rounded outwards, since observations are rounded too.
        low = np.append(np.nextafter(np.float32(least), np.float32(-np.inf)), np.zeros(extra, np.float32))
        high = np.append(np.nextafter(np.float32(most), np.float32(np.inf)), np.ones(extra, np.float32))
        return spaces.Box(low, high, dtype=np.float32)

    @property
    def _quantiles(self) -> NDArray[np.float64]:
        return noise_table("normal")

    def tables(self) -> Tables:
        shown = {"phase": SHOWS_PHASE, "time": SHOWS_TIME, "bare": SHOWS_NOTHING}[self.observation]
        return Tables(
            t1=self.t1,
            recall=self.t2 + 1,
            length=self.horizon,
            c=self.c,
            sigma=self.sigma,
            a_m=self.a_m,
            content=self.content,
            shown=shown,
            scale=self.scale,
            distractor_reward=float(self.distractor_reward),
            quantiles=self._quantiles,
        )

    def allocate(self, lanes: int) -> Any:
        return self._task_state(lanes)

    def _task_state(self, lanes: int) -> State:
        assert self.observation_space.shape is not None
        return State(
            target=np.zeros(lanes),
            obs=np.zeros((lanes, *self.observation_space.shape), np.float32),
            eps=np.zeros((lanes, self.t1)),
            chatter=np.zeros((lanes, self.recall_times * self.content)),
        )

    def observe(self, state: Any, i: Lanes) -> NDArray[np.float32]:
        return np.array(state.obs[i])

    def view(self, state: Any, i: Lanes) -> NDArray[np.float32]:
        return state.obs[i]

    def observe_one(self, state: Any) -> NDArray[np.float32]:
        return state.obs[0].copy()

    def check_action(self, action: Any) -> int | float:
        # What policies send, a float32 array of shape (1,), needs none of the general check's array arithmetic.
        if type(action) is np.ndarray and action.dtype == np.float32 and action.shape == (1,):
            value = action.item()
            if -self.action_bound <= value <= self.action_bound:
                return value
        return super().check_action(action)

    def info(self, t: int, reward: Any) -> dict[str, Any]:
        return {"phase": self._schedule[t]}

    @cached_property
    def _schedule(self) -> tuple[int, ...]:
        return tuple(self.phases.schedule())

    # Credit structure.

    @cached_property
    def credit_matrix(self) -> NDArray[np.float64]:
        matrix = np.zeros((self.horizon, self.horizon))
        recall = np.arange(self.t2 + 1, self.horizon)
        matrix[recall, recall] = 1.0
        if self.sigma > 0.0:
            matrix[: self.t1 - 1, recall] = 1.0
        if self.distractor_reward:
            for t in range(self.t1, self.t2 + 1):
                matrix[t, t : self.t2 + 1] = 1.0
        return read_only(matrix)

    @property
    def optimal_return(self) -> float | None:
        if self.distractor_reward:
            return None
        beyond = np.maximum(np.abs(self._quantiles) - self.action_bound, 0.0)
        return (self.horizon - self.t2 - 1) * (self.c - float(np.mean(beyond**2)))

    @property
    def random_return(self) -> float | None:
        if self.distractor_reward:
            return None
        return (self.horizon - self.t2 - 1) * (self.c - self.action_bound**2 / 3.0 - 1.0)

    def recall_return(self, remember_actions: NDArray[np.floating]) -> float:
        """Expected return of an agent that takes these actions and then answers as well as what it saw allows.

        It is no worse than any agent with these remember actions, so that it tells how much an agent lost in the
        remember phase and how much in the recall phase.

        :param remember_actions: of some episodes, ``(n, t1 - 1)``: the last action of the phase shows nothing any more.
        :raises ValueError: for another shape, or where the distractor pays too.
        """
        actions = np.asarray(remember_actions, np.float64)
        if actions.ndim != 2 or actions.shape[1] != self.t1 - 1 or not len(actions):
            raise ValueError(
                f"recall_return got remember actions of shape {actions.shape}; it needs one row for each episode and "
                f"t1 - 1 = {self.t1 - 1} actions in a row, as actions[:, :{self.t1 - 1}] of whole episodes."
            )
        if self.distractor_reward:
            raise ValueError("recall_return knows the recall phase only, and here the distractor pays too.")
        # Posterior variance of o_m ~ N(0, 1) given observations with noise variances n_0, ..., n_{t1-1}:
        # 1 / (1 + sum 1 / n).
        noise = np.column_stack([np.full(len(actions), self.a_m), self.a_m - actions]) * self.sigma
        with np.errstate(divide="ignore"):
            variance = 1.0 / (1.0 + (1.0 / noise**2).sum(axis=1))
        return (self.horizon - self.t2 - 1) * (self.c - float(np.mean(self._squared_error(variance))))

    @cached_property
    def _myopic_return(self) -> float:
        return self.recall_return(self.action_bound * (2.0 * _lattice(1 << 14, self.t1 - 1) - 1.0))

    @property
    def myopic_return(self) -> float | None:
        if self.distractor_reward:
            return None
        return self.optimal_return if self.sigma == 0.0 else self._myopic_return

    def _squared_error(self, variance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected squared error of the best answer within the action bounds, given the posterior variance.

        The posterior mean is itself normal, with variance s^2 = 1 - `variance`; beyond the bound b the answer
        adds E[max(|mean| - b, 0)^2] = 2 ((s^2 + b^2) Q(b / s) - b s phi(b / s)).
        """
        bound = self.action_bound
        beyond = []
        for s in np.sqrt(1.0 - variance).tolist():
            z = bound / max(s, 1e-12)
            tail, density = 0.5 * erfc(z / sqrt(2.0)), exp(-0.5 * z * z) / sqrt(2.0 * pi)
            beyond.append(2.0 * ((s * s + bound * bound) * tail - bound * s * density))
        return variance + np.array(beyond)

    # Pictures.

    def frame(self, state: Any, lane: int, trace: Trace) -> NDArray[np.uint8]:
        return _picture(self, state, lane, trace)

    def scene(self, picture: draw.Frame, state: Any, lane: int) -> None:
        """Draw the distractor."""


class DummyRules(MemoryRules):
    """A distractor that shows 0."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(Outlook((0.0,), (0.0,)), **arguments)

    @staticmethod
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        deal_task(tables, state, i, words, 0)

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        begin_task(tables, state, i)

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        if t + 1 == tables.t1:
            state.obs[i, 0] = 0.0
        return step_task(tables, state, i, t, action)


def show_pendulum(tables: Any, state: Any, i: Any) -> None:
    """Kernel: the observation of Gymnasium's Pendulum, scaled; keeps the sine, which the dynamics need."""
    angle = state.angle[i]
    state.sine[i] = np.sin(angle)
    state.obs[i, 0] = tables.scale[0] * np.cos(angle)
    state.obs[i, 1] = tables.scale[1] * state.sine[i]
    state.obs[i, 2] = tables.scale[2] * state.velocity[i]


class PendulumRules(MemoryRules):
    """Gymnasium's Pendulum as a distractor."""

    used_words = 2

    def __init__(
        self,
        *,
        distractor_scale: float | Sequence[float] = (1.0, 1.0, 0.25),
        distractor_reward: bool = False,
        **arguments: Any,
    ) -> None:
        low, high = (-1.0, -1.0, -PENDULUM_MAX_SPEED), (1.0, 1.0, PENDULUM_MAX_SPEED)
        super().__init__(Outlook(low, high, distractor_scale, distractor_reward), **arguments)

    def allocate(self, lanes: int) -> PendulumState:
        return PendulumState(*self._task_state(lanes), np.zeros(lanes), np.zeros(lanes), np.zeros(lanes))

    @staticmethod
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        deal_task(tables, state, i, words, 2)
        # 53 bits of a word are a uniform number in [0, 1).
        state.angle[i] = pi * (2.0 * (words[1 + tables.t1] >> 10) / 9007199254740992.0 - 1.0)
        state.velocity[i] = 2.0 * (words[2 + tables.t1] >> 10) / 9007199254740992.0 - 1.0

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        begin_task(tables, state, i)

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        reward = step_task(tables, state, i, t, action)
        if tables.t1 <= t < tables.recall:
            torque = np.minimum(np.maximum(action, -PENDULUM_MAX_TORQUE), PENDULUM_MAX_TORQUE)
            velocity = state.velocity[i]
            if tables.distractor_reward > 0.0:
                angle = (state.angle[i] + pi) % (2.0 * pi) - pi
                reward = -(angle * angle + 0.1 * velocity * velocity + 0.001 * torque * torque)
            velocity = velocity + (PENDULUM_PULL * state.sine[i] + PENDULUM_PUSH * torque) * PENDULUM_DT
            velocity = np.minimum(np.maximum(velocity, -PENDULUM_MAX_SPEED), PENDULUM_MAX_SPEED)
            state.velocity[i] = velocity
            state.angle[i] = state.angle[i] + velocity * PENDULUM_DT
        if tables.t1 <= t + 1 < tables.recall:
            show_pendulum(tables, state, i)
        return reward

    def scene(self, picture: draw.Frame, state: Any, lane: int) -> None:
        angle = float(state.angle[lane])
        y, x = 92, 400
        draw.line(picture, (y, x), (y - 40 * np.cos(angle), x - 40 * np.sin(angle)), draw.GOLD, 8)
        draw.disc(picture, y, x, 4, draw.INK)


class World:
    """A Gymnasium environment as a distractor: one number as its action, a flat array as its observation."""

    def __init__(self, env: gym.Env[Any, Any], action_bound: float) -> None:
        self.env = env
        self.action_bound = action_bound
        self.observation = np.zeros(0)

    def restart(self, seed: int) -> None:
        self.observation = np.ravel(self.env.reset(seed=seed)[0])

    def act(self, action: float) -> float:
        """One step, and a new episode after the last; returns the reward."""
        observation, reward, terminated, truncated, _ = self.env.step(self.action_of(action))
        if terminated or truncated:
            observation, _ = self.env.reset()
        self.observation = np.ravel(observation)
        return float(reward)

    def action_of(self, action: float) -> Any:
        """A `Box` gets the number in each component, clipped; `Discrete(n)` cuts the bounds into n equal
        parts."""
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            part = int((action + self.action_bound) / (2.0 * self.action_bound) * space.n)
            return int(space.start) + min(part, int(space.n) - 1)
        assert isinstance(space, spaces.Box)
        return np.clip(np.full(space.shape, action), space.low, space.high).astype(space.dtype)


class WorldRules(MemoryRules):
    """Any Gymnasium environment as a distractor, one lane at a time."""

    used_words = 1

    def __init__(
        self,
        *,
        distractor: Distractor = "Pendulum-v1",
        distractor_scale: float | Sequence[float] = 1.0,
        distractor_reward: bool = False,
        **arguments: Any,
    ) -> None:
        self.distractor = distractor
        env = self._make()
        space = env.observation_space
        if not isinstance(space, spaces.Box):
            raise ValueError(
                f"The distractor's observations must be a Box, got {space}; wrap it, for example in "
                "gymnasium.wrappers.FlattenObservation."
            )
        if not isinstance(env.action_space, (spaces.Box, spaces.Discrete)):
            raise ValueError(f"The distractor's actions must be a Box or Discrete, got {env.action_space}.")
        outlook = Outlook(space.low.ravel(), space.high.ravel(), distractor_scale, distractor_reward)
        super().__init__(outlook, **arguments)

    def _make(self) -> gym.Env[Any, Any]:
        if isinstance(self.distractor, (str, EnvSpec)):
            return gym.make(self.distractor)
        if not callable(self.distractor):
            raise TypeError(
                "distractor must be the id of a registered environment, an EnvSpec or a function that makes an "
                f"environment, got {self.distractor!r}."
            )
        return self.distractor()

    def allocate(self, lanes: int) -> WorldState:
        worlds = np.empty(lanes, object)
        worlds[:] = [World(self._make(), self.action_bound) for _ in range(lanes)]
        return WorldState(*self._task_state(lanes), world=worlds)

    @staticmethod
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        deal_task(tables, state, i, words, 1)
        state.world[i].restart(words[1 + tables.t1] >> 31)

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        begin_task(tables, state, i)

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        reward = step_task(tables, state, i, t, action)
        if tables.t1 <= t < tables.recall:
            reward = tables.distractor_reward * state.world[i].act(action)
        if tables.t1 <= t + 1 < tables.recall:
            state.obs[i, : tables.content] = tables.scale * state.world[i].observation
        return reward


class _MemoryFacts:
    """What is known of the current episode."""

    rules: MemoryRules
    _state: Any

    @property
    def target(self) -> NDArray[np.float64]:
        """o_m of the current episode, an array of shape (1,) or (num_envs,): for oracles, not for agents."""
        return np.array(self._state.target)


class DummyMemoryEnv(_MemoryFacts, CreditEnv):
    """Dummy-PMT and dummy-AMT, the passive and the active memory task (Latent Value Gradients with Temporal
    Shortcuts, Section 4.1).

    ## Description

    In the remember phase the agent is shown a number o_m ~ N(0, 1). A distractor phase follows; the dummy
    shows 0. In the recall phase it is shown random numbers and paid for naming o_m. In the passive task the
    number is shown as it is, whatever the agent does. In the active task it is shown with noise, which
    vanishes if the agent acted right just before: information has to be sought long before it pays.

    The passive task is the active one without noise, sigma = 0, and that is how it is made: under the same
    seed the two show the same targets.

    ## Action Space

    `Box(-action_bound, action_bound, (1,))`. The bound of 3 is ours: at 2 the targets beyond it would cost
    the best agent 0.05 of its return, at 3 it is 0.002.

    ## Observation Space

    `Box` of shape (1 + 3,): the number shown, and the phase as one-hot (remember, distractor, recall), which
    an agent cannot infer otherwise since recall noise looks like a target. That it is part of the observation
    is ours; `observation` changes it.

    - Remember, t < t1: o_m + (a_m - a_{t-1}) eps_t with eps_t ~ N(0, sigma^2) afresh in each step. Reading
      notes: the paper writes a_t for an action that follows the observation, so ours is the one before, with
      a_{-1} = 0; it writes N(0, sigma), and ours takes sigma as standard deviation.
    - Distractor, t1 <= t <= t2: 0. Reading note: the paper leaves t1 and t2 themselves open; the maximal
      return of 2 fits four steps of recall, t = 11, ..., 14.
    - Recall, t > t2: N(0, 1), afresh in each step.

    ## Rewards

    c - (a_t - o_m)^2 for actions at t > t2, else 0. Reading note: the paper prints (a_t - o_m)^2 + c, with
    which the return has no maximum.

    ## Starting State

    o_m and all noise are drawn at reset.

    ## Episode End

    Terminates after `length` steps.

    ## Arguments

    - `t1` (int, default 3), `t2` (int, default 10), `length` (int, default 15): the paper's t1, t2 and T.
    - `c` (float, default 0.5): the paper's c, the largest reward of a step.
    - `sigma` (float, default 1, and 0 in the passive tasks): standard deviation of the remember noise. 1 is
      ours.
    - `a_m` (float, default 1): the action that shows the target without noise. 1 is ours.
    - `action_bound` (float, default 3).
    - `observation` ("phase", "time" or "bare", default "phase"): add the phase as one-hot, t / T, or nothing.

    ## Credit structure

    Every recall action influences its own reward. In the active task the actions at t < t1 - 1 influence what
    the agent knows of o_m, and so all rewards of the recall phase under an agent that answers with what it
    has been shown. No reward depends on them directly: `credit_matrix` and `influence_matrix` count them,
    though a change of such an action alone, with all others fixed, changes no reward. The action at t1 - 1
    and those of the distractor phase influence nothing.

    `optimal_return` knows o_m and answers with it, within the bounds. `random_return` acts uniformly.
    `myopic_return` is the paper's: acting uniformly in the remember phase, and perfectly afterwards on what
    was shown. It averages the posterior variance of o_m over 16,384 evenly spread remember actions, and is
    within 0.001 of the exact value at the defaults.

    ## Version History

    - v0: first version.
    """

    rules_class: ClassVar[type[Rules]] = DummyRules
    rules: DummyRules


class DummyMemoryVectorEnv(_MemoryFacts, CreditVectorEnv):
    """Many dummy memory tasks side by side; see `DummyMemoryEnv`, and `CreditVectorEnv` for the rest."""

    rules_class: ClassVar[type[Rules]] = DummyRules
    rules: DummyRules


class PendulumMemoryEnv(_MemoryFacts, CreditEnv):
    """Pendulum-PMT and pendulum-AMT: the memory tasks with Gymnasium's Pendulum as distractor.

    ## Description

    As `DummyMemoryEnv`, but in the distractor phase the agent sees and pushes a pendulum: the dynamics of
    Gymnasium's `Pendulum-v1` (the paper's `Pendulum-v0` by its old number). It starts when the distractor
    phase does and stands still otherwise.

    ## Action Space

    `Box(-action_bound, action_bound, (1,))`; as a torque it is clipped to 2, as Pendulum does.

    ## Observation Space

    `Box` of shape (3 + 3,): remember (number, 0, 0), distractor (cos, sin, angular velocity / 4), recall
    three numbers N(0, 1); then the phase. Division by 4 is ours, `distractor_scale` changes it.

    ## Rewards

    As `DummyMemoryEnv`. Reading note: the paper calls 2 the maximal return of all three of its tasks, so the
    pendulum's own reward, which is negative, is left out; `distractor_reward=True` adds it.

    ## Starting State

    The pendulum's angle is uniform in [-pi, pi] and its velocity in [-1, 1], as in Gymnasium.

    ## Episode End

    Terminates after `length` steps.

    ## Arguments

    As `DummyMemoryEnv`, and:

    - `distractor_scale` (float or three, default (1, 1, 0.25)): factors of the pendulum's observation.
    - `distractor_reward` (bool, default False): pay the pendulum's reward in the distractor phase. The three
      returns are then None, and each distractor action influences all later rewards of its phase.

    ## Credit structure

    As `DummyMemoryEnv`.

    ## Version History

    - v0: first version.
    """

    rules_class: ClassVar[type[Rules]] = PendulumRules
    rules: PendulumRules


class PendulumMemoryVectorEnv(_MemoryFacts, CreditVectorEnv):
    """Many of them side by side; see `PendulumMemoryEnv`, and `CreditVectorEnv` for the rest."""

    rules_class: ClassVar[type[Rules]] = PendulumRules
    rules: PendulumRules


class DistractedMemoryEnv(_MemoryFacts, CreditEnv):
    """PMT and AMT with your own distractor, any Gymnasium environment of continuous observations.

    ## Description

    As `DummyMemoryEnv`, but in the distractor phase the agent acts in another environment. That starts when
    the distractor phase does, starts again should an episode of it end, and stands still otherwise. For many
    copies use `gym.make_vec`, which steps them one by one.

    ## Action Space

    `Box(-action_bound, action_bound, (1,))`. A distractor with a `Box` of actions gets the number in every
    component, clipped to its bounds; one with `Discrete(n)` gets the number of the part, of n equal parts of
    the bounds, in which it lies.

    ## Observation Space

    `Box` of shape (d + 3,), where d is the size of the distractor's observation: remember (number, 0, ...,
    0), distractor its observation, recall d numbers N(0, 1); then the phase.

    ## Rewards

    As `DummyMemoryEnv`; `distractor_reward=True` adds the distractor's.

    ## Starting State

    The distractor is seeded at each reset by the environment's own stream.

    ## Episode End

    Terminates after `length` steps.

    ## Arguments

    As `DummyMemoryEnv`, and:

    - `distractor` (default "Pendulum-v1"): a registered id, an `EnvSpec`, or a function that makes an
      environment.
    - `distractor_scale` (float or d of them, default 1): factors of the distractor's observation.
    - `distractor_reward` (bool, default False): pay the distractor's reward in its phase. The three returns
      are then None, and `credit_matrix` counts all later rewards of the phase as influenced by each of its
      actions, which is the most that they can be.

    ## Credit structure

    As `DummyMemoryEnv`.

    ## Version History

    - v0: first version.
    """

    rules_class: ClassVar[type[Rules]] = WorldRules
    rules: WorldRules

    def close(self) -> None:
        """Close the window and the distractor."""
        super().close()
        self._state.world[0].env.close()


def _lattice(n: int, dimensions: int) -> NDArray[np.float64]:
    """`n` points spread evenly over the unit cube: steps of the powers of a generalised golden ratio.

    The ratio is the root above 1 of x^(d+1) = x + 1.
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1.0))
    strides = ratio ** -np.arange(1.0, dimensions + 1.0)
    return (0.5 + np.outer(np.arange(1, n + 1), strides)) % 1.0


_HINTS = ("REMEMBER THIS NUMBER", "BE DISTRACTED", "WHICH NUMBER WAS IT?")


def _picture(rules: MemoryRules, state: Any, lane: int, trace: Trace) -> draw.Frame:
    """The phase, a line of numbers with what is shown and what is done, and the clock."""
    width, height, left, right, middle = 480, 240, 30, 450, 176
    picture = draw.canvas(height, width)
    phase = rules._schedule[trace.t]
    draw.write(picture, _HINTS[phase], 12, 12)
    clock = f"T={trace.t}/{rules.horizon}"
    draw.write(picture, clock, 12, width - 12 - draw.text_size(clock)[1])
    reach = max(rules.action_bound, 3.0) * 1.1

    def x_of(number: float) -> float:
        return left + (right - left) * (min(max(number, -reach), reach) + reach) / (2.0 * reach)

    draw.line(picture, (middle, left), (middle, right), draw.GREY, 2)
    for tick in range(-int(reach), int(reach) + 1):
        draw.line(picture, (middle - 4, x_of(tick)), (middle + 4, x_of(tick)), draw.GREY, 2)
        draw.write(picture, str(tick), middle + 10, x_of(tick) - 4, draw.GREY)
    target = float(state.target[lane])
    draw.line(picture, (middle - 26, x_of(target)), (middle + 4, x_of(target)), draw.GREEN, 3)
    draw.write(picture, "TARGET", middle - 40, x_of(target) - 22, draw.GREEN)
    if phase == DISTRACTOR:
        rules.scene(picture, state, lane)
    else:
        shown = float(state.obs[lane, 0])
        colour = draw.BLUE if phase == REMEMBER else draw.GREY
        draw.disc(picture, 90, x_of(shown), 7, colour)
        draw.write(picture, f"SHOWN {shown:+.2f}", 66, min(max(x_of(shown) - 40, 12), width - 100), colour)
    if trace.actions:
        action = float(trace.actions[-1])
        draw.disc(picture, middle, x_of(action), 6, draw.RED)
        draw.write(picture, f"ACTION {action:+.2f}", 40, 12, draw.RED)
    draw.progress_bar(
        picture,
        height - 12,
        12,
        width - 24,
        zip(rules.phases.lengths, (draw.BLUE, draw.GREY, draw.GREEN), strict=True),
        trace.t,
    )
    if trace.rewards:
        draw.write(picture, f"REWARD {trace.rewards[-1]:+.2f}", height - 34, 12)
        total = f"RETURN {sum(trace.rewards):+.2f}"
        draw.write(picture, total, height - 34, width - 12 - draw.text_size(total)[1])
    return picture

"""bsuite's credit-assignment experiments as a Gymnasium environment, through the bsuite package itself."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from tca_envs import rendering as draw
from tca_envs.checks import check_choice
from tca_envs.env import ENDED, check_options
from tca_envs.registration import Registration
from tca_envs.rules import read_only

REGISTRATIONS = (Registration("Bsuite-v0", "BsuiteEnv"),)

DOMAINS = (
    "catch",
    "catch_noise",
    "catch_scale",
    "umbrella_length",
    "umbrella_distract",
    "cartpole",
    "discounting_chain",
)

CARTPOLE_BASE_REGRET = 1000.0
"""Return per episode against which bsuite's analysis of cartpole counts regret."""
CHAIN_BEST_RETURN = 1.1
"""The same for discounting_chain."""


class BsuiteEnv(gym.Env[NDArray[np.float32], int], EzPickle):
    """Seven domains of the Behaviour Suite for Reinforcement Learning (Osband et al., ICLR 2020).

    ## Description

    bsuite runs one agent on many small experiments; `bsuite_id="catch/3"` is setting 3 of the experiment
    `catch`. These are the seven domains and their settings:

    | Domain | Settings | What varies | Episodes to score |
    |---|---|---|---|
    | `catch` | 20 | nothing but the seed | 10,000 |
    | `catch_noise` | 20 | standard deviation of the noise on the reward, 0.1 to 10 | 10,000 |
    | `catch_scale` | 20 | scale of the reward, 0.001 to 1,000 | 10,000 |
    | `umbrella_length` | 23 | length of the chain, 1 to 100 (20 distractors) | 10,000 |
    | `umbrella_distract` | 23 | number of distractors, 1 to 100 (length 20) | 10,000 |
    | `cartpole` | 20 | nothing but the seed | 1,000 |
    | `discounting_chain` | 20 | which of the five rewards has the bonus | 1,000 |

    Dynamics, settings and regret are the bsuite package's (extra `bsuite`, imported when an environment is
    made). This adapter is ours rather than Shimmy's: Shimmy dropped bsuite after its release 2.0.1, which
    makes environments from keyword arguments and not from a `bsuite_id`, and does not reseed the reward
    noise.

    ## Action Space

    `Discrete(3)` in catch and cartpole (left, stay, right), `Discrete(2)` in umbrella, `Discrete(5)` in
    discounting_chain.

    ## Observation Space

    `Box` of bsuite's observation, flattened: shape (50,) in catch, (3 + distractors,) in umbrella, (6,) in
    cartpole, (2,) in discounting_chain; float32, unbounded where bsuite gives no bounds.

    ## Rewards

    bsuite's.

    ## Starting State

    `reset(seed=s)` seeds every random stream of the bsuite environment, reward noise included, from
    `np_random`. The first `reset()` without a seed draws seeds, so that two environments differ, even where
    bsuite fixes one (umbrella_distract).

    ## Episode End

    Terminates where bsuite ends an episode; truncates where it ends one with a discount above 0, which none
    of the seven does. The last `info` holds `total_regret`, so SB3's
    `Monitor(info_keywords=("total_regret",))` writes it down.

    ## Arguments

    - `bsuite_id` (str, default "catch/0"): one of `bsuite_ids()`.
    - `results_dir` (str or None): a folder where bsuite's own logger writes this environment's CSV file, for
      `bsuite.logging.csv_load` and bsuite's scores. One environment a file: do not use it with several
      copies.
    - `overwrite` (bool, default False): replace the CSV file of an earlier run.
    - `render_mode` ("rgb_array", "human" or None).

    ## Credit structure

    `credit_matrix` is known where all episodes have one length. umbrella: the first action influences the
    last reward, and that is all. discounting_chain: the first action chooses when the reward comes, 1, 3, 10,
    30 or 100 steps later, so it influences these five and no other. catch: every action influences the last
    reward, the only one. cartpole: None, for an action decides how long the episode lasts.

    `optimal_return` is bsuite's zero regret, in cartpole the longest episode, 1,001 steps.
    `random_return` is exact, None in cartpole. `myopic_return` is reached by an agent that credits an action
    with the next reward alone and else acts uniformly: in umbrella it has no reason to take the right
    umbrella, in discounting_chain it takes the reward that comes at once, in catch it gets only the last move
    right. In cartpole it is None.

    ## Version History

    - v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        bsuite_id: str = "catch/0",
        *,
        results_dir: str | None = None,
        overwrite: bool = False,
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(self, bsuite_id, results_dir=results_dir, overwrite=overwrite, render_mode=render_mode)
        self.render_mode = check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.bsuite_id = bsuite_id
        self.domain, settings = _settings_of(bsuite_id)
        make = _import("bsuite.bsuite").EXPERIMENT_NAME_TO_ENVIRONMENT[self.domain]
        self.bsuite_env: Any = make(**settings)
        """bsuite's `dm_env` environment."""
        self._facts = _FACTS[self.domain](_raw(self.bsuite_env), settings)
        if results_dir is not None:
            log = _import("bsuite.logging.csv_logging")
            self.bsuite_env = log.wrap_environment(self.bsuite_env, bsuite_id, results_dir, overwrite)

        spec = self.bsuite_env.observation_spec()
        low, high = (
            np.full(spec.shape, getattr(spec, name, bound), np.float32).ravel()
            for name, bound in (("minimum", -np.inf), ("maximum", np.inf))
        )
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space = spaces.Discrete(self.bsuite_env.action_spec().num_values)  # type: ignore[assignment]

        self._source: np.random.Generator | None = None
        self._running = False
        self._t = 0
        self._rewards: list[float] = []
        self._observation = np.zeros(0, np.float32)
        self._episodes = 0
        self._total_return = 0.0
        self._total_regret = 0.0
        self._window: draw.Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`. There are no options.

        Raises:
            ValueError: If an option is given.
        """
        check_options(options, ())
        super().reset(seed=seed)
        if self._source is not self.np_random:
            self._source = self.np_random
            for stream in _random_streams(self.bsuite_env):
                stream.seed(int(self.np_random.integers(2**32)))
        self._t, self._rewards, self._running = 0, [], True
        observation = self._flat(self.bsuite_env.reset())
        if self.render_mode == "human":
            self.render()
        return observation, {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one action; see `gymnasium.Env.step`.

        Raises:
            ResetNeeded: If no episode is running.
            TypeError: If the action is not an integer.
            ValueError: If the action is outside the action space.
        """
        if not self._running:
            raise ResetNeeded(ENDED)
        timestep = self.bsuite_env.step(self._check_action(action))
        reward = float(timestep.reward)
        self._t += 1
        self._total_return += reward
        if self.render_mode is not None:
            self._rewards.append(reward)
        info: dict[str, Any] = {}
        terminated = truncated = False
        if timestep.last():
            terminated, truncated = timestep.discount == 0.0, timestep.discount > 0.0
            self._running = False
            self._episodes += 1
            self._total_regret = self._regret()
            info["total_regret"] = self._total_regret
        observation = self._flat(timestep)
        if self.render_mode == "human":
            self.render()
        return observation, reward, terminated, truncated, info

    def _check_action(self, action: Any) -> int:
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        wanted = f"An action of {self.domain} must be an integer from 0 to {n_actions - 1}, got {action!r}"
        try:
            index = operator.index(action)
        except TypeError:
            raise TypeError(f"{wanted} of type {type(action).__name__}.") from None
        if not 0 <= index < n_actions:
            raise ValueError(f"{wanted}.")
        return index

    def _flat(self, timestep: Any) -> NDArray[np.float32]:
        self._observation = np.array(timestep.observation, np.float32).ravel()
        return self._observation.copy()

    def _regret(self) -> float:
        info = self.bsuite_info()
        if self.domain == "cartpole":
            return CARTPOLE_BASE_REGRET * self._episodes - float(info["raw_return"])
        if self.domain == "discounting_chain":
            return CHAIN_BEST_RETURN * self._episodes - self._total_return
        return float(info["total_regret"])

    @property
    def total_regret(self) -> float:
        """Regret summed over all finished episodes of this environment, as bsuite counts it.

        The bsuite environment keeps it for catch (without noise and unscaled) and umbrella; for cartpole and
        discounting_chain bsuite's analysis derives it from the return, as here.
        """
        return self._total_regret

    @property
    def num_episodes(self) -> int:
        """Episodes after which bsuite scores the agent."""
        return int(self.bsuite_env.bsuite_num_episodes)

    def bsuite_info(self) -> dict[str, Any]:
        """What bsuite logs for its score beside return and length."""
        return dict(self.bsuite_env.bsuite_info())

    @property
    def horizon(self) -> int | None:
        """Steps of every episode; None in cartpole, where they vary."""
        return self._facts.horizon

    @property
    def credit_matrix(self) -> NDArray[np.float64] | None:
        """Which action can influence which reward: shape (T, T), read-only; None where it is not known.

        Entry [t, k - 1] is 1 iff, for some behaviour before and after, changing the action at time t changes
        the reward that arrives at time k > t; else 0.
        """
        return self._facts.credit_matrix

    @property
    def optimal_return(self) -> float:
        """Expected undiscounted return of the best policy."""
        return self._facts.optimal_return

    @property
    def random_return(self) -> float | None:
        """Expected undiscounted return of the uniformly random policy; None where not known exactly."""
        return self._facts.random_return

    @property
    def myopic_return(self) -> float | None:
        """Expected return of an agent that credits an action with the next reward alone; None if not
        known."""
        return self._facts.myopic_return

    def render(self) -> Any:
        """The current moment as an RGB array or in a window, according to `render_mode`."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render mode; write render_mode="rgb_array".')
            return None
        if not self._observation.size:
            raise ResetNeeded("There is nothing to render before the first reset().")
        frame = _picture(self)
        if self.render_mode == "rgb_array":
            return frame
        if self._window is None:
            self._window = draw.Window(self.bsuite_id)
        self._window.show(frame, self.metadata["render_fps"])
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


def bsuite_ids(domain: str | None = None) -> tuple[str, ...]:
    """Every `bsuite_id` of a domain, in the order of its sweep; without one, of all seven.

    Raises:
        ValueError: If the domain is not one of the seven.
        DependencyNotInstalled: If bsuite is not installed.
    """
    if domain is not None:
        check_choice("domain", domain, DOMAINS)
    sweep = _import("bsuite.sweep")
    return tuple(one for name in DOMAINS if domain in (None, name) for one in getattr(sweep, name.upper()))


def _settings_of(bsuite_id: str) -> tuple[str, dict[str, Any]]:
    """The domain and the arguments of a `bsuite_id`."""
    if not isinstance(bsuite_id, str):
        raise TypeError(f'bsuite_id must be a string such as "catch/0", got {bsuite_id!r}.')
    domain = bsuite_id.partition("/")[0]
    if domain not in DOMAINS:
        raise ValueError(
            f'bsuite_id={bsuite_id!r} names none of the domains {", ".join(DOMAINS)}; write for example "catch/0".'
        )
    ids = bsuite_ids(domain)
    if bsuite_id not in ids:
        raise ValueError(f"bsuite_id={bsuite_id!r} is unknown; {domain} has the settings {ids[0]} to {ids[-1]}.")
    return domain, dict(_import("bsuite.sweep").SETTINGS[bsuite_id])


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "bsuite":
            raise
        raise DependencyNotInstalled(
            'tca/Bsuite-v0 needs bsuite; install it with: pip install "tca-envs[bsuite]"'
        ) from error


def _layers(env: Any) -> list[Any]:
    """A bsuite environment and what its wrappers wrap, outermost first."""
    layers = [env]
    while "_env" in vars(layers[-1]):
        layers.append(vars(layers[-1])["_env"])
    return layers


def _raw(env: Any) -> Any:
    return _layers(env)[-1]


def _random_streams(env: Any) -> list[np.random.RandomState]:
    return [vars(layer)["_rng"] for layer in _layers(env) if "_rng" in vars(layer)]


# --- What is known of each domain ---


class _Facts(NamedTuple):
    horizon: int | None
    credit_matrix: NDArray[np.float64] | None
    optimal_return: float
    random_return: float | None
    myopic_return: float | None


def _catch_facts(raw: Any, settings: dict[str, Any]) -> _Facts:
    rows, columns = raw.observation_spec().shape
    horizon = rows - 1
    credit = np.zeros((horizon, horizon))
    credit[:, -1] = 1.0
    scale = settings.get("reward_scale", 1.0)
    # The column of the ball is uniform and independent of a paddle that takes no notice of it.
    random_return = scale * (2.0 / columns - 1.0)
    # Where the paddle is before the last move, after horizon - 1 uniform ones; the walls hold it.
    paddle = np.zeros(columns)
    paddle[columns // 2] = 1.0
    for _ in range(horizon - 1):
        padded = np.pad(paddle, 1, mode="edge")
        paddle = (padded[:-2] + padded[1:-1] + padded[2:]) / 3.0
    reach = np.convolve(np.ones(columns), np.ones(3), mode="same")  # columns within one move
    myopic_return = scale * (2.0 * float(paddle @ reach) / columns - 1.0)
    return _Facts(horizon, read_only(credit), scale, random_return, myopic_return)


def _umbrella_facts(raw: Any, settings: dict[str, Any]) -> _Facts:
    horizon = int(raw._chain_length)
    credit = np.zeros((horizon, horizon))
    credit[0, -1] = 1.0
    # In a chain of one step the next reward is the last.
    return _Facts(horizon, read_only(credit), 1.0, 0.0, 1.0 if horizon == 1 else 0.0)


def _chain_facts(raw: Any, settings: dict[str, Any]) -> _Facts:
    horizon = int(raw._episode_len)
    credit = np.zeros((horizon, horizon))
    credit[0, np.array(raw._reward_timestep) - 1] = 1.0
    rewards = [float(reward) for reward in raw._rewards]
    return _Facts(horizon, read_only(credit), max(rewards), sum(rewards) / len(rewards), rewards[0])


def _cartpole_facts(raw: Any, settings: dict[str, Any]) -> _Facts:
    steps, elapsed = 0, 0.0
    while elapsed <= raw._max_time:  # bsuite's own sum, rounding included
        elapsed += raw._timescale
        steps += 1
    return _Facts(None, None, float(steps), None, None)


_FACTS: dict[str, Callable[[Any, dict[str, Any]], _Facts]] = {
    "catch": _catch_facts,
    "catch_noise": _catch_facts,
    "catch_scale": _catch_facts,
    "umbrella_length": _umbrella_facts,
    "umbrella_distract": _umbrella_facts,
    "cartpole": _cartpole_facts,
    "discounting_chain": _chain_facts,
}


# --- Pictures ---

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 400, 300, 36, 264


def _picture(env: BsuiteEnv) -> draw.Frame:
    """The id and the clock above, the reward and the return below, and the domain's own scene between."""
    picture = draw.canvas(_HEIGHT, _WIDTH)
    draw.write(picture, env.bsuite_id, 12, 12)
    clock = f"T={env._t}" if env.horizon is None else f"T={env._t}/{env.horizon}"
    draw.write(picture, clock, 12, _WIDTH - 12 - draw.text_size(clock)[1])
    if env._rewards:
        draw.write(picture, f"REWARD {env._rewards[-1]:+.2f}", _HEIGHT - 22, 12)
        total = f"RETURN {sum(env._rewards):+.2f}"
        draw.write(picture, total, _HEIGHT - 22, _WIDTH - 12 - draw.text_size(total)[1])
    _SCENES[env.domain.partition("_")[0]](picture, env)
    return picture


def _catch_scene(picture: draw.Frame, env: BsuiteEnv) -> None:
    raw = _raw(env.bsuite_env)
    cell = (_BOTTOM - _TOP) // raw._rows
    left = (_WIDTH - raw._columns * cell) // 2
    draw.rectangle(picture, _TOP, left, raw._rows * cell, raw._columns * cell, draw.PALE)
    paddle = (_TOP + raw._paddle_y * cell, left + raw._paddle_x * cell)
    draw.rectangle(picture, paddle[0] + cell // 2, paddle[1] + 1, cell // 2, cell - 2, draw.BLUE)
    missed = raw._ball_y == raw._paddle_y and raw._ball_x != raw._paddle_x
    y, x = _TOP + (raw._ball_y + 0.5) * cell, left + (raw._ball_x + 0.5) * cell
    draw.disc(picture, y, x, cell / 3, draw.RED if missed else draw.GOLD)


def _umbrella_scene(picture: draw.Frame, env: BsuiteEnv) -> None:
    need, have, time_left = env._observation[:3].tolist()
    middle, left, right = 150, 50, _WIDTH - 50
    agent = right - (right - left) * time_left
    draw.line(picture, (middle, left), (middle, right), draw.PALE, 4)
    draw.line(picture, (middle, left), (middle, agent), draw.GREY, 4)
    draw.disc(picture, middle, agent, 8, draw.BLUE)
    draw.write(picture, "RAIN AHEAD" if need else "DRY AHEAD", 60, 12, draw.BLUE if need else draw.GOLD)
    draw.write(picture, "HAS UMBRELLA" if have else "NO UMBRELLA", 80, 12, draw.RED if have else draw.INK)
    for place, distractor in enumerate(env._observation[3:].tolist()):
        y, x = 190 + 14 * (place // 25), 28 + 14 * (place % 25)
        draw.rectangle(picture, y, x, 12, 12, draw.INK if distractor else draw.PALE)


def _discounting_scene(picture: draw.Frame, env: BsuiteEnv) -> None:
    raw = _raw(env.bsuite_env)
    context, left, right = int(env._observation[0]), 40, _WIDTH - 30
    assert env.horizon is not None
    for chain, (when, reward) in enumerate(zip(raw._reward_timestep, raw._rewards, strict=True)):
        y = 65 + 42 * chain
        draw.write(picture, str(chain), y - 5, 14)
        draw.line(picture, (y, left), (y, right), draw.BLUE if chain == context else draw.PALE, 3)
        place = left + (right - left) * when / env.horizon
        draw.disc(picture, y, place, 8 if reward > 1 else 6, draw.GREEN if reward > 1 else draw.GOLD)
        if chain == context:
            draw.disc(picture, y, left + (right - left) * env._t / env.horizon, 4, draw.INK)


def _cartpole_scene(picture: draw.Frame, env: BsuiteEnv) -> None:
    position, _, sine, cosine, _, _ = env._observation.tolist()
    ground, x = 220, _WIDTH / 2 + position * (_WIDTH / 2 - 40)
    draw.line(picture, (ground, 20), (ground, _WIDTH - 20), draw.GREY, 2)
    draw.rectangle(picture, ground - 18, x - 24, 18, 48, draw.BLUE)
    draw.line(picture, (ground - 18, x), (ground - 18 - 120 * cosine, x + 120 * sine), draw.GOLD, 6)


_SCENES: dict[str, Callable[[draw.Frame, BsuiteEnv], None]] = {
    "catch": _catch_scene,
    "umbrella": _umbrella_scene,
    "discounting": _discounting_scene,
    "cartpole": _cartpole_scene,
}

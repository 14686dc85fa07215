"""The native vector environment: any `Rules` on many lanes at once.

All episodes of a family have one length, so a batch that starts together stays together, and one clock serves
all lanes. A reset of some lanes in mid-episode (`options={"reset_mask": ...}`) takes the batch out of this
lockstep: lanes then move in groups of equal time, more slowly and with the same results, until all are equal
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from tca_envs.backends import BackendName, make_batch
from tca_envs.checks import check_choice, check_count
from tca_envs.env import ENDED, check_options, restored
from tca_envs.randomness import stream_of
from tca_envs.rules import CreditStructure, Lanes, Rules, Trace, read_only

ALL = slice(None)

Group = tuple[NDArray[np.int64], int, Any]
"""Lanes, the time t at which they have arrived, and the rewards of that arrival."""


class CreditVectorEnv(CreditStructure, VectorEnv[Any, Any, NDArray[Any]]):
    """Base of the vector environments; a family names its rules.

    Environment i of a batch seeded with s gives the episodes that the single environment gives under seed
    s + i, bit for bit, in the order `SyncVectorEnv` gives them.

    Args:
        num_envs: Number of lanes.
        autoreset_mode: What happens when episodes end, an `AutoresetMode` or its value. "SameStep", the
            default: the step that ends an episode returns the next one's first observation, and the last one
            as `infos["final_obs"]`, indexed by environment, with its mask `infos["_final_obs"]`.
            "NextStep": the next step starts the new episode, whatever the action. "Disabled": call
            `reset(options={"reset_mask": mask})`.
        backend: "numpy", or "numba" (extra `fast`), which compiles the same kernels at the first use.
        copy: Give observations in arrays of their own. False may give views of internal memory, which the
            next step overwrites: faster where observations are images.
        render_mode: None or "rgb_array"; `render()` gives one picture a lane.
        **arguments: Arguments of the family's rules.
    """

    rules_class: ClassVar[type[Rules]]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        backend: BackendName = "numpy",
        copy: bool = True,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self.num_envs = check_count("num_envs", num_envs, minimum=1)
        if not isinstance(autoreset_mode, AutoresetMode):
            modes = [mode.value for mode in AutoresetMode]
            autoreset_mode = AutoresetMode(check_choice("autoreset_mode", autoreset_mode, modes))
        self.autoreset_mode = autoreset_mode
        self.render_mode = check_choice("render_mode", render_mode, (None, "rgb_array"))
        self.rules = self.rules_class(**arguments)
        self.backend, self.copy = backend, copy
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": self.rules.render_fps,
            "autoreset_mode": autoreset_mode,
        }
        self.single_observation_space = self.rules.observation_space
        self.single_action_space = self.rules.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._streams = np.zeros(self.num_envs, np.uint64)
        self._seeded = np.zeros(self.num_envs, bool)
        self._stream_source: np.random.Generator | None = None
        self._deals = np.zeros(self.num_envs, np.int64)
        self._started = False
        # One time for all lanes, or an array with a time for each. At the horizon a lane has ended.
        self._clock: int | NDArray[np.int64] = self.rules.horizon
        # The steps of the running episodes, kept for drawing only.
        steps = (self.num_envs, self.rules.horizon) if self.render_mode else (0, 0)
        self._actions, self._rewards = np.zeros(steps), np.zeros(steps)
        self._everyone = read_only(np.ones(self.num_envs, bool))
        self._nobody = read_only(np.zeros(self.num_envs, bool))  # to copy, quicker than a new one
        self._constants: dict[int, tuple[dict[str, Any], list[str]]] = {}  # of infos, by time
        self._filled: dict[tuple[type, Any], NDArray[Any]] = {}  # arrays with one scalar in all lanes
        self._silent = type(self.rules).info is Rules.info
        self._state = self.rules.allocate(self.num_envs)
        self._bind()

    def _bind(self) -> None:
        """Connect the state to the kernels of the backend."""
        self._batch = make_batch(self.backend, self.rules, self._state, self.num_envs)
        self._observe = self.rules.observe if self.copy else self.rules.peek

    # Starting episodes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes in all lanes, or in those of a mask.

        Args:
            seed: s seeds lane i with s + i; a sequence gives each lane its own; None goes on with the
                running streams.
            options: `{"reset_mask": mask}`, boolean of shape (num_envs,), resets these lanes only;
                `{"new_lifetime": True}` redraws what lasts for a lifetime, where there are lifetimes.

        Returns:
            The observations of all lanes, and the infos of those that were reset.

        Raises:
            ValueError: If an option is unknown, or a mask or a sequence of seeds has the wrong length.
            TypeError: If the mask is not a boolean array.
            ResetNeeded: If the first reset is one of some lanes only.
        """
        once = self.rules.deals_every == "lifetime"
        options = check_options(options, ("reset_mask", "new_lifetime") if once else ("reset_mask",))
        lanes = self._lanes_of(options.get("reset_mask"))
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            self._stream_source = self.np_random
            seeds: Sequence[int | None] = range(int(seed), int(seed) + self.num_envs)
        elif seed is None:
            seeds = (None,) * self.num_envs
        else:
            if not isinstance(seed, (Sequence, np.ndarray)) or isinstance(seed, str):
                raise TypeError(f"seed must be None, an integer or a sequence of them, got {seed!r}.")
            seeds = tuple(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"{self.num_envs} environments need as many seeds, got {len(seeds)}.")
            for one in seeds:
                if one is not None:
                    check_count("a seed", one, minimum=0)
        fresh = self._choose_streams(lanes, seeds) if self.rules.words else False
        self._begin(lanes, fresh | bool(options.get("new_lifetime", False)))
        self._started = True
        infos = self._infos_of_all(0, 0.0) if isinstance(lanes, slice) else self._infos([(lanes, 0, 0.0)])
        return self._observe(self._state, ALL), infos

    def _lanes_of(self, mask: Any) -> Lanes:
        if mask is None:
            return ALL
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(
                "options['reset_mask'] must be a boolean numpy array, got "
                f"{f'dtype {mask.dtype}' if isinstance(mask, np.ndarray) else type(mask).__name__}."
            )
        if mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] must have shape ({self.num_envs},), got {mask.shape}.")
        if not mask.any():
            raise ValueError("options['reset_mask'] resets no environment; set at least one entry to True.")
        if mask.all():
            return ALL
        if not self._started:
            raise ResetNeeded("The first reset must be one of all environments: call reset() without a mask.")
        return np.flatnonzero(mask)

    def _choose_streams(self, lanes: Lanes, seeds: Sequence[int | None]) -> NDArray[np.bool_]:
        """Set the streams of the coming episodes; True, per lane of `lanes`, where one is new."""
        if self._stream_source is not self.np_random:
            if self._stream_source is not None:
                self._seeded[:] = False  # the user has put a generator of their own in place
            self._stream_source = self.np_random
        numbers = np.arange(self.num_envs)[lanes]
        fresh = np.zeros(numbers.size, bool)
        for j, lane in enumerate(numbers):
            seed = seeds[lane]
            if seed is None and self._seeded[lane]:
                continue
            self._streams[lane] = self.np_random.integers(1 << 63) if seed is None else stream_of(int(seed))
            self._seeded[lane], self._deals[lane], fresh[j] = True, 0, True
        return fresh

    def _begin(self, lanes: Lanes, fresh: Any = False) -> None:
        """Put lanes at the start of their next episode; `fresh` lanes also begin a lifetime."""
        i = self._batch.all if isinstance(lanes, slice) else lanes
        if self.rules.words:
            dealt = i
            if self.rules.deals_every == "lifetime":
                numbers = np.arange(self.num_envs)[lanes]
                dealt = numbers[np.broadcast_to(fresh, numbers.shape)]
            streams, deals = self._streams[dealt], self._deals[dealt]
            if streams.size:
                self._batch.deal(dealt, streams, deals)
                self._deals[dealt] += 1
        self._batch.begin(i)
        if isinstance(lanes, slice):
            self._clock = 0
        else:
            if isinstance(self._clock, int):
                self._clock = np.full(self.num_envs, self._clock)
            self._clock[lanes] = 0

    # Stepping

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one action in every lane; see `gymnasium.vector.VectorEnv.step`.

        Episodes end with `terminated`, never `truncated`. With "NextStep" the actions of lanes whose episode
        has ended are ignored, but must be valid.

        Raises:
            ResetNeeded: If no episode is running, or with "Disabled" one has ended and was not reset.
            TypeError: If actions are of the wrong type.
            ValueError: If an action is outside the action space.
        """
        actions = self.rules.read_actions(actions, self.num_envs)
        if self._batch.any_outside(actions):
            raise self.rules.refusal(actions)
        t = self._clock
        if not isinstance(t, int):
            return self._step_apart(actions, t)
        horizon = self.rules.horizon
        if t == horizon:
            if not self._started or self.autoreset_mode is not AutoresetMode.NEXT_STEP:
                raise ResetNeeded(ENDED)
            self._begin(ALL)
            t, rewards, infos = 0, np.zeros(self.num_envs), self._infos_of_all(0, 0.0)
        else:
            rewards = self._batch.step(self._batch.all, t, actions)
            if self.render_mode is not None:
                self._actions[:, t], self._rewards[:, t] = actions, rewards
            self._clock = t = t + 1
            infos = self._infos_of_all(t, rewards)
        truncated = self._nobody.copy()
        if t < horizon:
            terminated = self._nobody.copy()
        else:
            terminated = self._everyone.copy()
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos = self._begin_at_once(ALL, infos)
        return self._observe(self._state, ALL), rewards, terminated, truncated, infos

    def _step_apart(self, actions: NDArray[Any], clocks: NDArray[np.int64]) -> Any:
        """`step` out of lockstep: lanes of equal time go together."""
        horizon = self.rules.horizon
        ended = clocks == horizon
        if self.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            raise ResetNeeded(
                f"The episodes of environments {np.flatnonzero(ended).tolist()} have terminated: reset them "
                'with reset(options={"reset_mask": mask}) before the next step().'
            )
        rewards = np.zeros(self.num_envs)
        groups: list[Group] = []
        for t in np.unique(clocks[~ended]).tolist():
            lanes = np.flatnonzero(clocks == t)
            rewards[lanes] = self._batch.step(lanes, t, actions[lanes])
            if self.render_mode is not None:
                self._actions[lanes, t], self._rewards[lanes, t] = actions[lanes], rewards[lanes]
            groups.append((lanes, t + 1, rewards[lanes]))
        clocks[~ended] += 1
        terminated = ~ended & (clocks == horizon)
        if ended.any():
            lanes = np.flatnonzero(ended)
            self._begin(lanes)
            groups.append((lanes, 0, 0.0))
        infos = self._infos(groups)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and terminated.any():
            infos = self._begin_at_once(np.flatnonzero(terminated), infos)
        assert isinstance(self._clock, np.ndarray)
        if (self._clock == self._clock[0]).all():
            self._clock = int(self._clock[0])
        truncated = np.zeros(self.num_envs, bool)
        return self._observe(self._state, ALL), rewards, terminated, truncated, infos

    def _begin_at_once(self, lanes: Lanes, infos: dict[str, Any]) -> dict[str, Any]:
        """SAME_STEP: start the next episodes of lanes that have ended, and keep how they ended."""
        mask = np.zeros(self.num_envs, bool)
        mask[lanes] = True
        final_obs = self.rules.observe(self._state, ALL)
        if isinstance(self.single_observation_space, spaces.Dict):
            final_obs = _one_by_one(final_obs, self.num_envs)
        self._begin(lanes)
        if isinstance(lanes, slice):
            final_info, begun = infos, self._infos_of_all(0, 0.0)
        else:
            begun = self._infos([(lanes, 0, 0.0)])
            final_info = {name: np.where(mask, values, np.zeros_like(values)) for name, values in infos.items()}
            begun = {name: np.where(mask, values, infos[name]) for name, values in begun.items()}
        return {
            **begun,
            "final_obs": final_obs,
            "_final_obs": mask,
            "final_info": final_info,
            "_final_info": mask.copy(),
        }

    def _infos(self, groups: list[Group]) -> dict[str, Any]:
        """The info dictionaries of groups of lanes in Gymnasium's vector form: values and masks."""
        infos: dict[str, Any] = {}
        for lanes, t, rewards in groups:
            for name, value in self.rules.info(t, rewards).items():
                if name not in infos:
                    dtype = np.asarray(value).dtype
                    infos[name] = np.zeros(self.num_envs, dtype)
                    infos[f"_{name}"] = np.zeros(self.num_envs, bool)
                infos[name][lanes] = value
                infos[f"_{name}"][lanes] = True
        return infos

    def _infos_of_all(self, t: int, rewards: Any) -> dict[str, Any]:
        """The same for all lanes in lockstep: scalars become read-only arrays, made once."""
        if self._silent:
            return {}
        values = self.rules.info(t, rewards)
        if t not in self._constants:
            self._constants[t] = self._constants_of(values)
        constants, varying = self._constants[t]
        infos = constants.copy()
        for name in varying:
            value = values[name]
            infos[name] = value.copy() if value is rewards else value
        return infos

    def _constants_of(self, values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The infos of one time with all that is the same in every episode, and the names of what is not."""
        constants: dict[str, Any] = {}
        varying = []
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                varying.append(name)
            elif (type(value), value) not in self._filled:
                self._filled[type(value), value] = read_only(np.full(self.num_envs, value))
            constants[name] = None if name in varying else self._filled[type(value), value]
            constants[f"_{name}"] = self._everyone
        return constants, varying

    # Looking and keeping

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One RGB picture for every lane, or None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._started:
            raise ResetNeeded("There is nothing to render before the first reset().")
        clocks = np.broadcast_to(self._clock, self.num_envs).tolist()
        return tuple(
            self.rules.frame(
                self._state, lane, Trace(self._actions[lane, :t].tolist(), self._rewards[lane, :t].tolist())
            )
            for lane, t in enumerate(clocks)
        )

    def __getstate__(self) -> dict[str, Any]:
        bound = ("_batch", "_observe")
        return {name: value for name, value in self.__dict__.items() if name not in bound}

    def __setstate__(self, contents: dict[str, Any]) -> None:
        self.__dict__.update(contents)
        self._state = restored(self.rules.allocate(self.num_envs), contents["_state"])
        self._bind()


def _one_by_one(observations: dict[str, NDArray[Any]], lanes: int) -> NDArray[Any]:
    """A batch of dictionary observations as an object array with one dictionary a lane."""
    singles: list[dict[str, Any]] = [{} for _ in range(lanes)]
    for name, column in observations.items():
        # Scalars become Python numbers, as a single environment gives them.
        for single, value in zip(singles, column.tolist() if column.ndim == 1 else column):  # noqa: B905 (hot)
            single[name] = value
    return np.fromiter(singles, object, lanes)

"""Any Gymnasium ``VectorEnv`` as a Stable-Baselines3 ``VecEnv``.

Stable-Baselines3 steps a list of single environments; Gymnasium's vector environments step a whole batch in
one call. The two differ in how an episode ends. SB3 wants the first observation of the next episode at once,
with the last observation of the old one in ``info["terminal_observation"]``; Gymnasium knows three autoreset
modes:

* ``SAME_STEP``: what SB3 wants, under other names;
* ``DISABLED``: the caller resets the sub-environments that ended, with ``options={"reset_mask": ...}``;
* ``NEXT_STEP``: the sub-environment resets in the *next* call and ignores that call's action. SB3 would store
  this call as a transition that never happened, so it is refused.

Gymnasium's ``CartPoleVectorEnv`` knows ``NEXT_STEP`` only. Its whole state is three public arrays, so ended
poles are put back up here, the way its own next step would do it.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import repeat
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

__all__ = ["GymVecEnv", "make_gym_vec_env"]

_FINAL_KEYS = ("final_obs", "final_info")


class GymVecEnv(VecEnv):
    """A Gymnasium ``VectorEnv``, seen by SB3 as one of its own ``VecEnv``.

    What ``DummyVecEnv`` over ``Monitor`` gives, this gives, and the tests hold the two together bit for bit:
    ``terminal_observation`` and ``TimeLimit.truncated`` in the ``info`` of an ended episode, and its
    ``episode`` statistics ``r`` (undiscounted return), ``l`` (steps) and ``t`` (seconds since construction)
    as ``Monitor`` writes them, so neither ``Monitor`` nor ``VecMonitor`` is needed. ``VecNormalize``,
    ``VecMonitor``, ``VecFrameStack`` and ``VecVideoRecorder`` go around it as usual.

    Two things differ from ``DummyVecEnv``, both for speed. The ``info`` of a step that ends no episode is
    empty, but for the keys named in ``step_info_keys``. And a native vector environment is one object: its
    attributes and methods are those of all its sub-environments, so :meth:`get_attr` and :meth:`env_method`
    ask it once and return the answer for every index, and :meth:`set_attr` refuses a part of the indices.
    ``SyncVectorEnv`` and ``AsyncVectorEnv`` are asked sub-environment by sub-environment.

    Args:
        vector_env: any Gymnasium vector environment, wrapped or not, in autoreset mode ``SAME_STEP`` or
            ``DISABLED`` (or an unwrapped ``CartPoleVectorEnv``).
        step_info_keys: keys of the vector environment's ``info`` to hand over at every step. All keys are
            handed over when an episode ends. Each key costs one Python loop over the sub-environments.

    Raises:
        TypeError: if ``vector_env`` is not a Gymnasium vector environment.
        ValueError: if its autoreset mode cannot be adapted, or if it returns a part of its sub-environments
            at a time.

    Example:
        >>> import gymnasium as gym
        >>> from gymnasium.vector import AutoresetMode
        >>> from stable_baselines3 import A2C
        >>> envs = gym.make_vec(
        ...     "CartPole-v1",
        ...     num_envs=4,
        ...     vectorization_mode="sync",
        ...     vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        ... )
        >>> model = A2C("MlpPolicy", GymVecEnv(envs)).learn(100)
    """

    def __init__(self, vector_env: VectorEnv, step_info_keys: Sequence[str] = ()) -> None:
        self._end = _ending_of(vector_env)
        if isinstance(step_info_keys, str):
            raise TypeError(
                f"step_info_keys={step_info_keys!r} is one string, which would be read letter by letter: "
                f"write step_info_keys=({step_info_keys!r},)."
            )
        self.vector_env = vector_env
        self.step_info_keys = tuple(step_info_keys)
        self.spec = vector_env.spec
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self.metadata = dict(vector_env.metadata)
        self._action_dtype = vector_env.action_space.dtype
        self._t_start = time.time()
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._reuses_buffers: bool | None = None
        self._reset_obs: Any = None
        # A Monitor inside knows better where an episode ends (see SB3's AtariWrapper), so its word stands.
        self._monitored_inside = all(self._wrapped_inside(Monitor, None))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Use ``seed + i`` for sub-environment ``i`` at the next :meth:`reset`.

        As SB3 does, ``None`` draws a seed from NumPy's global generator; it stays below 2^31, since
        ``AtariVectorEnv`` takes no larger one.
        """
        if seed is None:
            seed = int(np.random.randint(0, 2**31 - self.num_envs))  # noqa: NPY002 (SB3 seeds this one)
        return super().seed(seed)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Give ``options`` to the next :meth:`reset`. A vector environment takes one dict for all.

        Raises:
            ValueError: if a list holds options that differ between sub-environments.
        """
        if isinstance(options, list) and any(option != options[0] for option in options):
            raise ValueError(
                "set_options got different options for different sub-environments, "
                "but a Gymnasium VectorEnv resets all of them with one dict: pass that dict."
            )
        super().set_options(options)

    def reset(self) -> VecEnvObs:
        """Reset all sub-environments; returns their first observations, ``(n_envs, *obs_shape)`` each."""
        kwargs: dict[str, Any] = {}
        if self._seeds[0] is not None:
            kwargs["seed"] = self._seeds[0]
        if self._options[0]:
            kwargs["options"] = self._options[0]
        obs, infos = self.vector_env.reset(**kwargs)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self.reset_infos = _infos_of(infos, range(self.num_envs))
        self._reset_obs = obs
        return _copy(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep ``actions``, ``(n_envs, *action_shape)``, for :meth:`step_wait`."""
        actions = np.asarray(actions)
        wanted = self._action_dtype
        if wanted is not None and actions.dtype != wanted and np.can_cast(actions.dtype, wanted, "same_kind"):
            actions = actions.astype(wanted)
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step with the actions of :meth:`step_async`.

        Returns:
            The observations, the rewards ``(n_envs,)`` in float32, the episode ends ``(n_envs,)`` and one
            ``info`` per sub-environment. Where an episode ended, the observation is the first of the next
            episode.
        """
        obs, rewards, terminated, truncated, infos = self.vector_env.step(self._actions)
        dones = np.logical_or(terminated, truncated)
        self._returns += rewards
        self._lengths += 1

        # The empty dicts are shared between steps; whoever wrote into one keeps it.
        if any(self._no_infos):
            self._no_infos = [{} for _ in range(self.num_envs)]
        sb3_infos = self._no_infos.copy()
        if self.step_info_keys:
            shown = {key: infos[key] for key in self.step_info_keys if key in infos}
            shown |= {f"_{key}": infos[f"_{key}"] for key in shown if f"_{key}" in infos}
            sb3_infos = _infos_of(shown, range(self.num_envs))
        if np.count_nonzero(dones):
            obs = self._end_episodes(obs, dones, terminated, infos, sb3_infos)
        if self._reuses_buffers is None:
            self._reuses_buffers = _shares_memory(obs, self._reset_obs)
            self._reset_obs = None
        if self._reuses_buffers:
            # SB3 stores an observation only after the step that follows it, which would have overwritten it.
            obs = _copy(obs)
        return obs, np.array(rewards, dtype=np.float32), dones, sb3_infos

    def _end_episodes(
        self,
        obs: Any,
        dones: np.ndarray,
        terminated: np.ndarray,
        infos: dict[str, Any],
        sb3_infos: list[dict[str, Any]],
    ) -> Any:
        """Write the ``info`` of what just ended into ``sb3_infos``; returns the observations to act on."""
        ending = self._end(self.vector_env, obs, dones, infos)
        seconds = round(time.time() - self._t_start, 6)
        ended = np.flatnonzero(dones)
        endings = zip(
            ended.tolist(),
            _infos_of(ending.final_infos, ended),
            _infos_of(ending.reset_infos, ended),
            terminated[ended].tolist(),
            self._returns[ended].tolist(),
            self._lengths[ended].tolist(),
            strict=True,
        )
        for index, info, reset_info, was_terminated, episode_return, length in endings:
            info["TimeLimit.truncated"] = not was_terminated
            info["terminal_observation"] = _row(ending.final_obs, index)
            if not self._monitored_inside:
                info["episode"] = {"r": round(episode_return, 6), "l": length, "t": seconds}
            sb3_infos[index] = info
            self.reset_infos[index] = reset_info
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return ending.obs

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per sub-environment, each ``None`` if the vector environment draws nothing."""
        frames = self.vector_env.render()
        return [None] * self.num_envs if frames is None else list(cast("Sequence[np.ndarray]", frames))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each sub-environment in ``indices``."""
        chosen = list(self._get_indices(indices))
        base = self.vector_env.unwrapped
        if isinstance(base, SyncVectorEnv):
            return [base.envs[index].get_wrapper_attr(attr_name) for index in chosen]
        if isinstance(base, AsyncVectorEnv):
            values = base.get_attr(attr_name)
            return [values[index] for index in chosen]
        return [_find_attr(self.vector_env, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of each sub-environment in ``indices``.

        Raises:
            ValueError: if ``indices`` is a part of a native vector environment, which has one value for all.
        """
        chosen = list(self._get_indices(indices))
        base = self.vector_env.unwrapped
        if isinstance(base, SyncVectorEnv):
            for index in chosen:
                base.envs[index].set_wrapper_attr(attr_name, value)
        elif isinstance(base, AsyncVectorEnv):
            values = list(base.get_attr(attr_name)) if len(chosen) < self.num_envs else [value] * self.num_envs
            for index in chosen:
                values[index] = value
            base.set_attr(attr_name, values)
        elif set(chosen) == set(range(self.num_envs)):
            setattr(base, attr_name, value)
        else:
            raise ValueError(
                f"set_attr({attr_name!r}, indices={indices!r}) names a part of the sub-environments, but "
                f"{type(base).__name__} is one object with one value for all of them: leave indices out."
            )

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the method on each sub-environment in ``indices`` and list the results.

        A native vector environment is called once, for all, and its one result stands in every place.
        """
        chosen = list(self._get_indices(indices))
        base = self.vector_env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            if set(chosen) != set(range(self.num_envs)):
                raise ValueError(
                    f"env_method({method_name!r}, indices={indices!r}) names a part of the sub-environments, "
                    "but AsyncVectorEnv calls all of them: leave indices out."
                )
            results = base.call(method_name, *method_args, **method_kwargs)
            return [results[index] for index in chosen]
        if isinstance(base, SyncVectorEnv):
            methods = self.get_attr(method_name, chosen)
            return [method(*method_args, **method_kwargs) for method in methods]
        return [_find_attr(self.vector_env, method_name)(*method_args, **method_kwargs)] * len(chosen)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each sub-environment is wrapped in ``wrapper_class``.

        True for ``Monitor`` in any case: the ``episode`` statistics are those of a ``Monitor`` around the
        sub-environment, and SB3 asks this question to know whether it may trust them.
        """
        return [wrapper_class is Monitor or inside for inside in self._wrapped_inside(wrapper_class, indices)]

    def _wrapped_inside(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices) -> list[bool]:
        base = self.vector_env.unwrapped
        return [
            isinstance(base, SyncVectorEnv) and is_wrapped(base.envs[index], wrapper_class)
            for index in self._get_indices(indices)
        ]


def make_gym_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    step_info_keys: Sequence[str] = (),
    **env_kwargs: Any,
) -> GymVecEnv:
    """SB3's ``make_vec_env`` for speed: the fastest ``VecEnv`` that a registered environment offers.

    The environment's own vector version (``vector_entry_point``) is used where it has one that can be
    adapted, a ``SyncVectorEnv`` otherwise.

    Args:
        env_id: a registered id, with or without the module that registers it (``"tca/DAG8-v0"`` or
            ``"tca_envs:tca/DAG8-v0"``).
        n_envs: number of sub-environments, at least 1.
        seed: sub-environment ``i`` starts from ``seed + i`` at the first reset, and the action space from
            ``seed``.
        step_info_keys: see :class:`GymVecEnv`.
        **env_kwargs: arguments of the environment, ``render_mode`` among them.

    Raises:
        ValueError: if ``n_envs`` is not a positive integer.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", make_gym_vec_env("CartPole-v1", n_envs=64, seed=0), n_steps=32)
    """
    if not isinstance(n_envs, int) or isinstance(n_envs, bool) or n_envs < 1:
        raise ValueError(f"n_envs={n_envs!r} is not a number of environments: pass an integer of at least 1.")
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    kwargs: dict[str, Any] = dict(env_kwargs)
    entry_point = gym.spec(name).vector_entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if creator is CartPoleVectorEnv:
        kwargs["vectorization_mode"] = "vector_entry_point"
    elif creator is not None and "autoreset_mode" in inspect.signature(creator).parameters:
        kwargs |= {"vectorization_mode": "vector_entry_point", "autoreset_mode": AutoresetMode.SAME_STEP}
    else:
        kwargs |= {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
    vec_env = GymVecEnv(gym.make_vec(name, num_envs=n_envs, **kwargs), step_info_keys)
    if seed is not None:
        vec_env.action_space.seed(seed)
    vec_env.seed(seed)
    return vec_env


# --- The three ways an episode can end ---


class _Ending(NamedTuple):
    """What a step gave in which some episode ended; every part is a batch over all sub-environments."""

    obs: Any
    """Observations to act on: the first of a new episode where one ended."""
    final_obs: Any
    """Last observations of the episodes that ended."""
    final_infos: dict[str, Any]
    """Infos of the steps that ended them."""
    reset_infos: dict[str, Any]
    """Infos of the resets."""


def _end_same_step(vector_env: VectorEnv, obs: Any, dones: np.ndarray, infos: dict[str, Any]) -> _Ending:
    reset_infos = {key: value for key, value in infos.items() if key.lstrip("_") not in _FINAL_KEYS}
    return _Ending(obs, _copy(infos["final_obs"]), infos.get("final_info", {}), reset_infos)


def _end_by_mask(vector_env: VectorEnv, obs: Any, dones: np.ndarray, infos: dict[str, Any]) -> _Ending:
    final_obs = _copy(obs)
    obs, reset_infos = vector_env.reset(options={"reset_mask": dones.copy()})
    return _Ending(obs, final_obs, infos, reset_infos)


def _end_cartpole(vector_env: VectorEnv, obs: Any, dones: np.ndarray, infos: dict[str, Any]) -> _Ending:
    """What ``CartPoleVectorEnv.step`` would do to the ended poles in its next call, done now."""
    poles = cast("CartPoleVectorEnv", vector_env)
    state = cast("np.ndarray", poles.state)
    state[:, dones] = poles.np_random.uniform(poles.low, poles.high, size=(4, int(dones.sum())))
    poles.steps[dones] = 0
    poles.prev_done = np.zeros_like(dones)
    return _Ending(state.T.astype(np.float32), obs, infos, {})


def _ending_of(vector_env: VectorEnv) -> Callable[[VectorEnv, Any, np.ndarray, dict[str, Any]], _Ending]:
    """How to end an episode of ``vector_env``; refuses what SB3 could not use."""
    name = type(vector_env).__name__
    if isinstance(vector_env, VecEnv):
        raise TypeError(f"GymVecEnv got {name}, which is a Stable-Baselines3 VecEnv already: pass it as it is.")
    if not isinstance(vector_env, VectorEnv):
        raise TypeError(
            f"GymVecEnv got {name}, which is not a Gymnasium VectorEnv: "
            "pass gym.make_vec(...), or use Stable-Baselines3's make_vec_env for single environments."
        )
    base = vector_env.unwrapped
    if getattr(base, "batch_size", vector_env.num_envs) != vector_env.num_envs:
        raise ValueError(
            f"{name} returns {base.batch_size} of its {vector_env.num_envs} sub-environments at a time, "  # type: ignore[attr-defined]
            "but SB3 steps all of them together: make it with batch_size=0."
        )
    if type(vector_env) is CartPoleVectorEnv:
        return _end_cartpole
    # The instance's word first: metadata may be a dict that several classes share.
    mode = getattr(base, "autoreset_mode", None) or vector_env.metadata.get("autoreset_mode")
    if mode is not None and AutoresetMode(mode) is AutoresetMode.SAME_STEP:
        return _end_same_step
    if mode is not None and AutoresetMode(mode) is AutoresetMode.DISABLED:
        return _end_by_mask
    what = "does not say its autoreset mode" if mode is None else "resets in the step after an episode's end"
    raise ValueError(
        f"{name} {what} (autoreset_mode={mode}), "
        "which would show SB3 one transition per episode that never happened: "
        'make it with autoreset_mode=AutoresetMode.SAME_STEP, or write make_gym_vec_env("id", n_envs=...).'
    )


# --- Batches of anything ---


def _copy(batch: Any) -> Any:
    """A batch of observations (array, dict or tuple of arrays) in memory of its own."""
    if isinstance(batch, dict):
        return {key: _copy(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_copy(value) for value in batch)
    return np.array(batch)


def _row(batch: Any, index: int) -> Any:
    """Entry ``index`` of a batch, which for final observations may be an array of objects."""
    if isinstance(batch, dict):
        return {key: _row(value, index) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_row(value, index) for value in batch)
    return batch[index]


def _shares_memory(batch: Any, other: Any) -> bool:
    if isinstance(batch, dict):
        return any(_shares_memory(batch[key], other[key]) for key in batch)
    if isinstance(batch, tuple):
        return any(map(_shares_memory, batch, other))
    return bool(np.may_share_memory(batch, other))


def _infos_of(infos: dict[str, Any], indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """The ``info`` of some sub-environments, out of a dict of arrays with their ``_key`` masks."""
    found: list[dict[str, Any]] = [{} for _ in indices]
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        given = repeat(True) if mask is None else np.asarray(mask)[indices].tolist()
        for info, is_given, entry in zip(found, given, _entries_of(value, indices)):  # noqa: B905 (one may be endless)
            if is_given:
                info[key] = entry
    return found


def _entries_of(value: Any, indices: Sequence[int] | np.ndarray) -> Iterable[Any]:
    """The entries of one value of an info, which nobody else holds."""
    if isinstance(value, dict):
        return _infos_of(value, indices)
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return repeat(value)
    if value.ndim == 1 and value.dtype != object:
        return value[indices].tolist()
    entries = (value[index] for index in indices)
    return (entry.item() if isinstance(entry, np.generic) else deepcopy(entry) for entry in entries)


def _find_attr(vector_env: VectorEnv, attr_name: str) -> Any:
    """An attribute of the outermost layer that has it (vector wrappers pass only the usual ones on)."""
    layer = vector_env
    while isinstance(layer, VectorWrapper) and not hasattr(layer, attr_name):
        layer = layer.env
    return getattr(layer, attr_name)

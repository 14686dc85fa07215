"""Rollout buffers that keep what credit assignment needs: raw rewards, every last state, and where episodes end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from tca_sb3.episodes import Episodes, Observations
from tca_sb3.estimators.base import AdvantageEstimator, Estimate
from tca_sb3.estimators.td_lambda import TDLambda


@dataclass(frozen=True)
class _Columns:
    """Where the columns of a batch stand in a rollout.

    :param env: the environment of each column, ``(B,)``.
    :param start: its first row, ``(B,)``.
    :param length: its number of steps, ``(B,)``.
    :param aligned: one column for each environment, as long as the rollout: the rollout *is* the batch.
    """

    env: np.ndarray
    start: np.ndarray
    length: np.ndarray
    aligned: bool

    @cached_property
    def horizon(self) -> int:
        """``T``."""
        return int(self.length.max())

    @property
    def end(self) -> np.ndarray:
        """The row of each column's last step."""
        return self.start + self.length - 1

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of every step, ``(T, B)``; in the padding, that of the last step."""
        return np.minimum(self.start + np.arange(self.horizon)[:, None], self.end)

    @cached_property
    def padding(self) -> np.ndarray:
        """Where there is no step, ``(T, B)``."""
        return np.arange(self.horizon)[:, None] >= self.length

    def take(self, array: np.ndarray) -> np.ndarray:
        """From ``(rows, n_envs, ...)`` to ``(T, B, ...)``; a view where nothing has to be rearranged."""
        return array[: self.horizon] if self.aligned else array[self.rows, self.env]

    def put(self, source: np.ndarray, target: np.ndarray) -> None:
        """The way back: the real steps of ``source``, ``(T, B)``, into ``target``, ``(rows, n_envs)``."""
        if self.aligned:
            target[: self.horizon] = source
        else:
            real = ~self.padding
            target[self.rows[real], np.broadcast_to(self.env, real.shape)[real]] = source[real]


class RolloutLength(int):
    """The ``n_rollout_steps`` of a rollout whose length is not known before.

    ``OnPolicyAlgorithm.collect_rollouts`` runs ``while n_steps < n_rollout_steps``. Python asks the right-hand
    side of ``<`` first when its class is a subclass, so this number can answer from what the buffer has seen,
    and SB3's loop stays SB3's.
    """

    buffer: _EpisodeStorage

    def __gt__(self, n_steps: int) -> bool:
        return not self.buffer.has_enough_episodes(n_steps, cap=int(self))


class _EpisodeStorage(RolloutBuffer):
    """What both buffers share. SB3 fills it, an estimator reads it as :class:`~tca_sb3.episodes.Episodes`.

    :param n_episodes: whole episodes a rollout trains on, for each environment; ``None`` for a fixed number of steps.
    """

    estimator: AdvantageEstimator
    # RolloutBuffer.__init__ calls reset() before this class has set anything.
    n_episodes: int | None = None
    deferred = False
    _shape: tuple[int, int] | None = None

    def __init__(self, *args: Any, n_episodes: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_episodes = n_episodes
        self.reset()

    def reset(self) -> None:
        if self._shape is not None:
            self.buffer_size, self.n_envs = self._shape
        self._shape = (self.buffer_size, self.n_envs)
        super().reset()
        self.discarded_steps = 0
        self.fit_stats: dict[str, float] = {}
        self._ended = np.zeros(self.n_envs, dtype=np.int64)
        self._raw_rewards: dict[tuple[int, int], float] = {}
        self._last_states: dict[tuple[int, int], Any] = {}
        self._next_obs: Any = None
        self._last_values: np.ndarray | None = None
        self._dones = np.zeros(self.n_envs, dtype=bool)
        self._columns: _Columns | None = None
        self._episodes: tuple[Episodes, Tensor] | None = None
        self._sampled: np.ndarray | None = None
        self._step_numbers: np.ndarray | None = None

    def note_step(self, rewards: np.ndarray, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Take down what SB3 is about to lose: called before :meth:`add`, before time-outs are folded into rewards.

        :param rewards: as the environment gave them, ``(n_envs,)``.
        :param new_obs: the next observations; for environments that are done, already of the next episode.
        :param dones: ``(n_envs,)``.
        :param infos: one a environment, with ``terminal_observation`` where done.
        """
        self._next_obs = new_obs
        if not dones.any():
            return
        for env in map(int, np.flatnonzero(dones)):
            self._ended[env] += 1
            self._last_states[self.pos, env] = infos[env]["terminal_observation"]
            if infos[env].get("TimeLimit.truncated", False):
                self._raw_rewards[self.pos, env] = float(rewards[env])

    def add(self, *args: Any, **kwargs: Any) -> None:
        if self.pos == self.buffer_size:
            self._grow()
        super().add(*args, **kwargs)

    def _grow(self) -> None:
        def doubled(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.zeros_like(array)])

        for name in ("actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, doubled(getattr(self, name)))
        self._map_observations(doubled)
        self.buffer_size *= 2
        self.full = False

    def _map_observations(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        observations: Any = self.observations
        if isinstance(observations, dict):
            self.observations = {key: function(array) for key, array in observations.items()}  # type: ignore[assignment]
        else:
            self.observations = function(observations)

    def has_enough_episodes(self, n_steps: int, cap: int) -> bool:
        """Whether every environment has finished ``n_episodes`` episodes.

        :param n_steps: steps taken in this rollout by each environment.
        :param cap: give up after so many.
        :raises ValueError: at the cap, if an environment has not finished its episodes.
        """
        assert self.n_episodes is not None
        if self._ended.min() >= self.n_episodes:
            return True
        if n_steps >= cap:
            raise ValueError(
                f"After {n_steps} steps an environment had finished {self._ended.min()} of the n_episodes="
                f"{self.n_episodes} episodes of this rollout. Give the environment a time limit, or raise "
                "max_rollout_steps."
            )
        return False

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """SB3's hook at the end of a rollout, called once for each; the estimator takes the place of its GAE.

        :param last_values: the critic's values of the observations after the last step, ``(n_envs, 1)``.
        :param dones: whether the last step ended an episode, ``(n_envs,)``.
        """
        self._last_values = last_values.detach().cpu().numpy().flatten()
        self._dones = np.asarray(dones, dtype=bool)
        self.full = True
        if type(self.estimator) is TDLambda and self.n_episodes is None and not self.deferred:
            # The very numbers that SB3 computes, which the tests hold together; its loop over rows is the faster one.
            if not np.isfinite(self.rewards[: self.pos]).all():
                self.episodes()  # refuses such rewards in words
            super().compute_returns_and_advantage(last_values, dones)
            return
        self.discarded_steps = int(self.pos * self.n_envs - self.columns.length.sum())
        episodes, values = self.episodes()
        self.fit_stats = self.estimator.fit(episodes)
        if self.deferred:
            return
        with torch.no_grad():
            self.fill(self.estimator(episodes, values))

    @property
    def columns(self) -> _Columns:
        """Where the columns of the batch stand in the finished rollout."""
        if self._columns is None:
            self._columns = self._find_columns()
        return self._columns

    def _find_columns(self) -> _Columns:
        """Cut the rollout at episode ends."""
        later_starts = self.episode_starts[1 : self.pos] > 0
        if self.n_episodes is None and not later_starts.any():
            each = np.arange(self.n_envs)
            return _Columns(each, np.zeros_like(each), np.full_like(each, self.pos), aligned=True)
        first = np.concatenate([np.ones((1, self.n_envs), dtype=bool), later_starts])
        env, start = np.nonzero(first.T)  # environment by environment, in time order
        following = np.append(start[1:], self.pos)
        following[np.append(env[1:] != env[:-1], True)] = self.pos
        length = following - start
        if self.n_episodes is not None:
            # The first n_episodes of every environment, whatever their length: taking all that happen to be
            # complete when the rollout stops would favour short ones.
            rank = np.arange(len(env)) - np.searchsorted(env, env)
            used = rank < self.n_episodes
            env, start, length = env[used], start[used], length[used]
        aligned = len(env) == self.n_envs and bool((length == self.pos).all())
        return _Columns(env, start, length, aligned)

    def episodes(self) -> tuple[Episodes, Tensor]:
        """The rollout as episodes (or pieces of them), and the critic's values of their states.

        :return: ``B`` columns of at most ``T`` steps, and ``v(S_0) … v(S_T)``, ``(T + 1, B)``, where ``v`` of a
            terminal state is 0. Both share memory with the buffer where nothing had to be rearranged.
        :raises ValueError: before the first rollout is finished, or after SB3 has taken it apart for training.
        """
        if self._episodes is None:
            if self._last_values is None:
                raise ValueError("The rollout buffer holds no finished rollout yet; call learn() first.")
            if self.generator_ready:
                raise ValueError(
                    "SB3 has taken this rollout apart for training; call episodes() before that, in on_rollout_end."
                )
            self._episodes = self._build_episodes()
        return self._episodes

    def _build_episodes(self) -> tuple[Episodes, Tensor]:
        assert self._last_values is not None
        columns = self.columns
        env, length = columns.env, columns.length
        done = self._dones if columns.aligned else np.where(columns.end == self.pos - 1, self._dones[env], True)
        rewards = columns.take(self.rewards)
        values = np.zeros((columns.horizon + 1, len(env)), dtype=np.float32)
        values[:-1] = columns.take(self.values)
        if not columns.aligned:
            rewards[columns.padding] = 0.0
            values[:-1][columns.padding] = 0.0
        truncated = np.zeros(len(env), dtype=bool)
        if self._raw_rewards:
            rewards = rewards.copy() if columns.aligned else rewards
            for column in np.flatnonzero(done):
                raw = self._raw_rewards.get((int(columns.end[column]), int(env[column])))
                if raw is not None:
                    truncated[column] = True
                    last = int(length[column]) - 1
                    # SB3 added γ v(S_T) to this reward; take it apart again.
                    if self.gamma > 0:
                        values[last + 1, column] = (rewards[last, column] - raw) / self.gamma
                    rewards[last, column] = raw
        cut = np.flatnonzero(~done)
        values[length[cut], cut] = self._last_values[env[cut]]
        last_states = {
            column: self._last_states[int(columns.end[column]), int(env[column])] for column in np.flatnonzero(done)
        }
        observations: Observations
        if isinstance(self.observations, dict):
            assert isinstance(self.observation_space, spaces.Dict)
            observations = {
                key: self._states(
                    array,
                    self._next_obs[key],
                    {column: state[key] for column, state in last_states.items()},
                    self.observation_space[key],
                )
                for key, array in self.observations.items()
            }
        else:
            observations = self._states(self.observations, self._next_obs, last_states, self.observation_space)
        episodes = Episodes(
            observations=observations,
            actions=self._tensor(columns.take(self.actions).astype(np.float32, copy=False)),
            rewards=self._tensor(rewards),
            lengths=self._tensor(length),
            terminated=self._tensor(done & ~truncated),
            truncated=self._tensor(truncated),
            started=self._tensor(self.episode_starts[columns.start, env] > 0),
        )
        return episodes, self._tensor(values)

    def _states(self, array: np.ndarray, next_obs: Any, last_states: dict[Any, Any], space: spaces.Space) -> Tensor:
        """``S_0 … S_T`` of every column, ``(T + 1, B, *shape)``; padding repeats the column's last state.

        :param array: the stored observations.
        :param next_obs: the observations after the rollout's last step, for columns that were cut there.
        :param last_states: the last state of every other column.
        """
        columns = self.columns
        shape = array.shape[2:]
        out = np.empty((columns.horizon + 1, len(columns.env), *shape), dtype=array.dtype)
        out[:-1] = columns.take(array)
        final = np.asarray(next_obs).reshape(-1, *shape)[columns.env]
        for column, state in last_states.items():
            final[column] = np.asarray(state).reshape(shape)
        if columns.aligned:
            out[-1] = final
        else:
            beyond = np.arange(columns.horizon + 1)[:, None] >= columns.length
            out[beyond] = np.broadcast_to(final, out.shape)[beyond]
        # SB3 stores a Discrete observation as an array of one; its own shape is ().
        return self._tensor(out[..., 0] if isinstance(space, spaces.Discrete) else out)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def fill(self, estimate: Estimate) -> None:
        """Write advantages and value targets where SB3's ``train()`` looks for them.

        :raises ValueError: if they are not finite or have the wrong shape.
        """
        columns = self.columns
        shape = columns.horizon, len(columns.env)
        parts = {"advantages": estimate.advantages, "value targets": estimate.value_targets}
        arrays = [part.detach().cpu().numpy() for part in parts.values()]
        for name, array in zip(parts, arrays, strict=True):
            if array.shape != shape:
                raise ValueError(
                    f"{type(self.estimator).__name__} returned {name} of shape {array.shape}; "
                    f"it needs (T, B) = {shape}."
                )
            if not np.isfinite(array if columns.aligned else array[~columns.padding]).all():
                raise ValueError(f"{type(self.estimator).__name__} returned {name} that are NaN or infinite.")
        for array, target in zip(arrays, (self.advantages, self.returns), strict=True):
            columns.put(array, target)

    def get(self, batch_size: int | None = None) -> Any:
        if not self.generator_ready:
            self._keep_used_steps()
        return super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        self._sampled = batch_inds
        return super()._get_samples(batch_inds, env)

    def sampled_steps(self) -> Tensor:
        """Which steps the newest sample of :meth:`get` holds, as rows of the episodes' flat steps."""
        assert self._sampled is not None
        if self._step_numbers is None:
            self._step_numbers = self._numbers_of_steps()
        return torch.from_numpy(self._step_numbers[self._sampled]).to(self.device)

    def _numbers_of_steps(self) -> np.ndarray:
        """Of the steps in the order of the buffer, the rows among the episodes' flat steps."""
        columns = self.columns
        real = ~columns.padding
        number = np.cumsum(real).reshape(real.shape) - 1  # time-major
        if self.n_episodes is not None:  # column by column, see _keep_used_steps
            return number.T[real.T]
        place = np.broadcast_to(columns.env, real.shape) * self.pos + columns.rows  # SB3: environment by environment
        order = np.empty(real.sum(), dtype=np.int64)
        order[place[real]] = number[real]
        return order

    def _keep_used_steps(self) -> None:
        """Drop the rows that no column uses, so that SB3 neither sees nor counts them."""
        assert self._shape is not None
        if self.n_episodes is None:
            return
        real = ~self.columns.padding.T  # column by column
        rows, envs = self.columns.rows.T[real], np.repeat(self.columns.env, self.columns.length)
        # The next rollout begins with room for as many steps as this one took.
        self._shape = (self.pos, self.n_envs)

        def used(array: np.ndarray) -> np.ndarray:
            return array[rows, envs][:, None]

        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, used(getattr(self, name)))
        self._map_observations(used)
        self.buffer_size, self.n_envs = len(rows), 1


class EpisodeBuffer(_EpisodeStorage):
    """Rollout buffer for array observations; see the module's first line."""


class DictEpisodeBuffer(_EpisodeStorage, DictRolloutBuffer):
    """Rollout buffer for dict observations."""

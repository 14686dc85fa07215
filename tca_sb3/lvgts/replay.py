"""Whole episodes: collected from environments that end at different times, stored, and sampled as padded batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from tca_sb3.episodes import Observations

ObservationArrays = dict[str, np.ndarray]
"""Array observations are kept as a dict with one entry, ``""``."""


class EpisodeBatch(NamedTuple):
    """``B`` episodes padded at the end to ``T`` steps; row ``t`` holds ``o_t``, ``a_t`` and the reward for ``a_t``."""

    observations: Observations
    """``(B, T, *observation shape)``, or a dict of such tensors."""
    actions: Tensor
    """``(B, T, action_dim)``, scaled to [-1, 1]."""
    rewards: Tensor
    """``(B, T)``, 0 in the padding."""
    mask: Tensor
    """True where a step is real, ``(B, T)``, bool."""


def as_arrays(observations: Any) -> ObservationArrays:
    """An observation, or a batch of them, as a dict of arrays."""
    return dict(observations) if isinstance(observations, dict) else {"": np.asarray(observations)}


def _spaces_of(space: spaces.Space) -> dict[str, spaces.Space]:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def _longer(array: np.ndarray, horizon: int) -> np.ndarray:
    """The array with zeros appended along its second axis, up to ``horizon``."""
    grown = np.zeros((len(array), horizon, *array.shape[2:]), array.dtype)
    grown[:, : array.shape[1]] = array
    return grown


class _Steps:
    """Observations, actions and rewards of ``n`` episodes side by side; the time axis, the second, grows."""

    def __init__(self, n: int, space: spaces.Space, action_dim: int) -> None:
        self.observations: ObservationArrays = {}
        for key, part in _spaces_of(space).items():
            assert part.shape is not None
            self.observations[key] = np.zeros((n, 1, *part.shape), part.dtype)
        self.actions = np.zeros((n, 1, action_dim), np.float32)
        self.rewards = np.zeros((n, 1), np.float32)

    @property
    def horizon(self) -> int:
        return self.rewards.shape[1]

    def grow(self, horizon: int) -> None:
        self.observations = {key: _longer(part, horizon) for key, part in self.observations.items()}
        self.actions = _longer(self.actions, horizon)
        self.rewards = _longer(self.rewards, horizon)


class EpisodeReplayBuffer:
    """The newest ``buffer_size`` episodes, of whatever lengths.

    :param buffer_size: capacity, in episodes.
    :param observation_space: of the environment; any space of SB3's but nested ones.
    :param action_dim: components of an action.
    :param device: where sampled tensors go.
    :raises ValueError: if ``buffer_size`` is below 1.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} episodes; the buffer must hold at least 1.")
        self.buffer_size = buffer_size
        self.observation_space = observation_space
        self.device = torch.device(device)
        self.n_added = 0
        self.lengths = np.zeros(buffer_size, np.int64)
        self._steps = _Steps(buffer_size, observation_space, action_dim)

    def __len__(self) -> int:
        """Episodes stored."""
        return min(self.n_added, self.buffer_size)

    def add(self, observations: ObservationArrays, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Store one episode in place of the oldest.

        :param observations: ``o_0 … o_{T-1}``, ``(T, *observation shape)`` by key, see :func:`as_arrays`.
        :param actions: ``(T, action_dim)``, scaled.
        :param rewards: ``(T,)``.
        :raises ValueError: if an observation or reward is not finite, or the episode has no step.
        """
        length = len(rewards)
        if length == 0:
            raise ValueError("An episode without a step cannot be stored.")
        for name, part in (("a reward", rewards), *(("an observation", part) for part in observations.values())):
            if not np.isfinite(part).all():
                raise ValueError(f"An episode has {name} that is NaN or infinite; check the environment.")
        if length > self._steps.horizon:
            self._steps.grow(length)
        place = self.n_added % self.buffer_size
        for key, part in observations.items():
            self._steps.observations[key][place, :length] = part
            self._steps.observations[key][place, length:] = 0
        self._steps.actions[place, :length] = actions
        self._steps.actions[place, length:] = 0
        self._steps.rewards[place, :length] = rewards
        self._steps.rewards[place, length:] = 0
        self.lengths[place] = length
        self.n_added += 1

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> EpisodeBatch:
        """Episodes drawn uniformly, with replacement, by torch's global generator.

        :param batch_size: ``B``.
        :param env: normalise observations and rewards as it does now.
        :raises ValueError: if nothing is stored.
        """
        if self.n_added == 0:
            raise ValueError("The replay buffer is empty: collect an episode before sampling.")
        return self.get(torch.randint(len(self), (batch_size,)).numpy(), env)

    def get(self, places: np.ndarray, env: VecNormalize | None = None) -> EpisodeBatch:
        """The episodes at these places, padded to the longest of them."""
        lengths = self.lengths[places]
        horizon = int(lengths.max())
        mask = np.arange(horizon) < lengths[:, None]
        observations: Any = {key: part[places, :horizon] for key, part in self._steps.observations.items()}
        rewards = self._steps.rewards[places, :horizon]
        if not isinstance(self.observation_space, spaces.Dict):
            observations = observations[""]
        if env is not None:
            observations = env.normalize_obs(observations)
            rewards = np.where(mask, env.normalize_reward(rewards), 0.0).astype(np.float32)
        if isinstance(observations, dict):
            tensors: Observations = {key: self._tensor(part) for key, part in observations.items()}
        else:
            tensors = self._tensor(observations)
        actions = self._steps.actions[places, :horizon]
        return EpisodeBatch(tensors, self._tensor(actions), self._tensor(rewards), self._tensor(mask))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)


class EpisodeCollector:
    """Gathers the steps of several environments until their episodes end, each in its own time.

    :param n_envs: number of environments.
    :param observation_space: theirs.
    :param action_dim: components of an action.
    :param max_episode_steps: the longest episode to expect.
    """

    def __init__(self, n_envs: int, observation_space: spaces.Space, action_dim: int, max_episode_steps: int) -> None:
        self.max_episode_steps = max_episode_steps
        self.lengths = np.zeros(n_envs, np.int64)
        self._envs = np.arange(n_envs)
        self._steps = _Steps(n_envs, observation_space, action_dim)

    def add(
        self,
        observations: ObservationArrays,
        actions: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        buffer: EpisodeReplayBuffer,
    ) -> int:
        """One step of all environments; episodes that it ended go to ``buffer``.

        :param observations: those acted on, ``(n_envs, *observation shape)`` by key.
        :param actions: ``(n_envs, action_dim)``, scaled.
        :param rewards: ``(n_envs,)``.
        :param dones: ``(n_envs,)``.
        :return: the number of episodes that ended.
        :raises ValueError: if an episode grows beyond ``max_episode_steps``.
        """
        steps = self._steps
        longest = int(self.lengths.max())
        if longest >= self.max_episode_steps:
            raise ValueError(
                f"An episode has not ended after max_episode_steps={self.max_episode_steps} steps, and this algorithm "
                "learns from whole episodes: wrap the environment in gymnasium.wrappers.TimeLimit, or raise "
                "max_episode_steps."
            )
        if longest == steps.horizon:
            steps.grow(2 * longest)
        for key, part in observations.items():
            steps.observations[key][self._envs, self.lengths] = part
        steps.actions[self._envs, self.lengths] = actions
        steps.rewards[self._envs, self.lengths] = rewards
        self.lengths += 1
        ended = np.flatnonzero(dones)
        for env in ended:
            length = self.lengths[env]
            episode = {key: part[env, :length] for key, part in steps.observations.items()}
            buffer.add(episode, steps.actions[env, :length], steps.rewards[env, :length])
        self.lengths[ended] = 0
        return len(ended)

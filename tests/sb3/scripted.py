"""Environments whose observations say who they are: which environment, which episode, which step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from tca_sb3.episodes import Episodes

MAX_CODE = 200
Identity = tuple[int, int, int]
"""Environment, episode, step."""

SPACES: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1000, (3,), np.float32),
    "discrete": spaces.Discrete(3 * MAX_CODE),
    "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "dict": spaces.Dict(image=spaces.Box(0, 255, (3, 36, 36), np.uint8), code=spaces.Discrete(3 * MAX_CODE)),
}
ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
}


def code_of(env: int, episode: int, step: int) -> int:
    return env * MAX_CODE + (episode * 10 + step) % MAX_CODE


def image_of(env: int, episode: int, step: int) -> np.ndarray:
    image = np.zeros((3, 36, 36), dtype=np.uint8)
    image[0], image[1], image[2] = env, episode, step
    return image


def observe(kind: str, env: int, episode: int, step: int) -> Any:
    if kind == "box":
        return np.array([env, episode, step], dtype=np.float32)
    if kind == "discrete":
        return code_of(env, episode, step)
    if kind == "image":
        return image_of(env, episode, step)
    return {"image": image_of(env, episode, step), "code": code_of(env, episode, step)}


def reward_of(env: int, episode: int, step: int) -> float:
    """Paid on arriving at ``step``; no two alike, all exact in single precision."""
    return 16.0 * env + 4.0 * episode + step / 8


class Scripted(gym.Env):
    """Episodes of given lengths and endings, over and over.

    :param index: the environment's own number.
    :param lengths: of the first episode, the second, and so on; the list is repeated.
    :param endings: ``"t"`` for terminated, ``"c"`` for cut by a time limit; repeated.
    """

    def __init__(
        self,
        index: int = 0,
        lengths: tuple[int, ...] = (4,),
        endings: str = "t",
        kind: str = "box",
        actions: str = "discrete",
        scale: float = 1.0,
    ) -> None:
        self.index, self.lengths, self.endings, self.kind, self.scale = index, lengths, endings, kind, scale
        self.observation_space = SPACES[kind]
        self.action_space = ACTIONS[actions]
        self.episode = -1
        self.t = 0
        self.taken: dict[Identity, Any] = {}

    @property
    def credit_matrix(self) -> np.ndarray:
        return np.triu(np.ones((max(self.lengths), max(self.lengths)), dtype=np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return observe(self.kind, self.index, self.episode, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken[self.index, self.episode, self.t] = np.array(action)
        self.t += 1
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        ending = self.endings[self.episode % len(self.endings)]
        reward = self.scale * reward_of(self.index, self.episode, self.t)
        observation = observe(self.kind, self.index, self.episode, self.t)
        return observation, reward, over and ending == "t", over and ending == "c", {}


def vec_env(lengths: list[tuple[int, ...]], endings: str = "t", kind: str = "box", **kwargs: Any) -> DummyVecEnv:
    """One environment for each entry of ``lengths``."""

    def maker(index: int, mine: tuple[int, ...]) -> Any:
        return lambda: Scripted(index, mine, endings, kind, **kwargs)

    return DummyVecEnv([maker(i, mine) for i, mine in enumerate(lengths)])


def identities(episodes: Episodes) -> list[list[Identity]]:
    """Column by column, who each observation says it is, from ``S_0`` to the last state of the column."""
    observations = episodes.observations
    if isinstance(observations, dict):
        assert torch.equal(observations["code"], codes(observations["image"]))
        observations = observations["image"]
    result = []
    for b, length in enumerate(episodes.lengths.tolist()):
        column = observations[: length + 1, b]
        if column.ndim == 4:
            column = column[:, :, 0, 0]
        elif column.ndim == 1:  # codes of Discrete observations
            column = torch.stack([column // MAX_CODE, column % MAX_CODE // 10, column % 10], dim=1)
        result.append([tuple(map(int, row)) for row in column.tolist()])
    return result  # type: ignore[return-value]


def codes(images: torch.Tensor) -> torch.Tensor:
    env, episode, step = images[..., 0, 0].long().unbind(-1)
    return env * MAX_CODE + (episode * 10 + step) % MAX_CODE


class Watch(BaseCallback):
    """Keeps what the buffer says at the end of every rollout, before ``train()``."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[tuple[Episodes, torch.Tensor]] = []
        self.discarded: list[int] = []
        self.advantages: list[np.ndarray] = []
        self.returns: list[np.ndarray] = []

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.rollouts.append(buffer.episodes())
        self.discarded.append(buffer.discarded_steps)
        self.advantages.append(buffer.advantages.copy())
        self.returns.append(buffer.returns.copy())

    def _on_step(self) -> bool:
        return True

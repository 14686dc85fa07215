"""Small double-precision models and episodes, and environments of known lengths."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from tca_sb3.lvgts.encoder import AttentionEncoder, Encoding
from tca_sb3.lvgts.world_model import WorldModel

INPUT_DIM, LATENT_DIM, ACTION_DIM, OBSERVATION_DIM = 5, 4, 2, 3
BATCH, HORIZON = 3, 15
FIRST_RECALL = 11  # of the memory tasks, whose remember phase is 0, 1, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def scaled_actions(seed: int = 0) -> Tensor:
    return torch.tanh(randn(BATCH, HORIZON, ACTION_DIM, seed=seed))


def make_world_model(seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(LATENT_DIM, ACTION_DIM, OBSERVATION_DIM, net_arch=(8, 8), activation_fn=torch.nn.Tanh).double()


def make_encoding(seed: int = 0) -> Encoding:
    torch.manual_seed(seed)
    encoder = AttentionEncoder(INPUT_DIM, LATENT_DIM, net_arch=(8,)).double()
    with torch.no_grad():
        return encoder(randn(BATCH, HORIZON, INPUT_DIM, seed=seed))


def remembering_weights() -> Tensor:
    """Every recall step attends to the three remember steps alike, all others to nothing."""
    weights = torch.zeros(BATCH, HORIZON, HORIZON, dtype=torch.float64)
    weights[:, FIRST_RECALL:, :3] = 1 / 3
    return weights


class LengthsEnv(gym.Env):
    """Observation ``(environment, episode, step)``; episodes of given lengths, over and over.

    Actions are kept, and an ending is ``"t"`` for terminated or ``"c"`` for cut by a time limit.
    """

    def __init__(self, index: int, lengths: tuple[int, ...], endings: str = "t", kind: str = "box") -> None:
        self.index, self.lengths, self.endings, self.kind = index, lengths, endings, kind
        box = spaces.Box(-1.0, 1000.0, (3,), np.float32)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict({"who": box, "step": spaces.Discrete(100)}),
            "discrete": spaces.Discrete(100),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        }[kind]
        self.action_space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, 1.0], np.float32))
        self.episode = -1
        self.taken: dict[tuple[int, int], np.ndarray] = {}

    def _observe(self) -> Any:
        who = np.array([self.index, self.episode, self.t], np.float32)
        if self.kind == "dict":
            return {"who": who, "step": self.t}
        if self.kind == "discrete":
            return self.t
        if self.kind == "image":
            return np.full((36, 36, 1), self.t, np.uint8)
        return who

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.taken[self.episode, self.t] = np.array(action)
        self.t += 1
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        ending = self.endings[self.episode % len(self.endings)]
        return self._observe(), reward_of(self.index, self.t - 1), over and ending == "t", over and ending == "c", {}


def reward_of(index: int, step: int) -> float:
    """Paid for the action at ``step``; no two alike, all exact in single precision."""
    return index + step / 16


def lengths_env(*lengths: tuple[int, ...], endings: str = "t", kind: str = "box") -> DummyVecEnv:
    """One environment for each argument."""

    def maker(index: int, mine: tuple[int, ...]) -> Any:
        return lambda: LengthsEnv(index, mine, endings, kind)

    return DummyVecEnv([maker(index, mine) for index, mine in enumerate(lengths)])

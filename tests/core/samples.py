"""Random episodes for the tests of the core."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes, Observations, map_observations

N_STATES = 6
SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(N_STATES),
    "box": spaces.Box(-10, 10, (3,)),
    "dict": spaces.Dict(a=spaces.Box(-10, 10, (2,)), b=spaces.Discrete(N_STATES)),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(lengths: list[int]) -> list[tuple[int, int, int]]:
    """``(b, t, k − 1)`` of every pair of real times."""
    return [(b, t, k) for b, length in enumerate(lengths) for t in range(length) for k in range(t, length)]


def random_observations(kind: str, horizon: int, batch: int, draw: torch.Generator, dtype: torch.dtype) -> Observations:
    """``(T + 1, B, ...)`` from the space of that name in ``SPACES``."""
    if kind == "discrete":
        return torch.randint(N_STATES, (horizon + 1, batch), generator=draw)
    if kind == "box":
        return torch.randn(horizon + 1, batch, 3, generator=draw, dtype=dtype)
    return {
        "a": torch.randn(horizon + 1, batch, 2, generator=draw, dtype=dtype),
        "b": torch.randint(N_STATES, (horizon + 1, batch), generator=draw),
    }


def random_episodes(
    lengths: list[int],
    kind: str = "discrete",
    *,
    horizon: int | None = None,
    terminated: list[bool] | bool = True,
    started: list[bool] | bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    n_actions: int = 2,
) -> Episodes:
    """Episodes of the given lengths with Gaussian rewards; not terminated means collection stopped there."""
    draw = generator(seed)
    batch = len(lengths)
    horizon = max(lengths) if horizon is None else horizon
    length = torch.tensor(lengths)
    rewards = torch.randn(horizon, batch, generator=draw, dtype=dtype)
    rewards[torch.arange(horizon)[:, None] >= length] = 0.0
    return Episodes(
        observations=random_observations(kind, horizon, batch, draw, dtype),
        actions=torch.randint(n_actions, (horizon, batch, 1), generator=draw).float(),
        rewards=rewards,
        lengths=length,
        terminated=torch.tensor(terminated).expand(batch).clone(),
        truncated=torch.zeros(batch, dtype=torch.bool),
        started=torch.tensor(started).expand(batch).clone(),
    )


def columns(episodes: Episodes, order: list[int], horizon: int | None = None) -> Episodes:
    """Some columns of a batch, in this order, and only their first ``horizon`` rows."""
    horizon = episodes.horizon if horizon is None else horizon
    return Episodes(
        observations=map_observations(lambda part: part[: horizon + 1, order], episodes.observations),
        actions=episodes.actions[:horizon, order],
        rewards=episodes.rewards[:horizon, order],
        lengths=episodes.lengths[order],
        terminated=episodes.terminated[order],
        truncated=episodes.truncated[order],
        started=episodes.started[order],
    )


def random_values(episodes: Episodes, seed: int = 1) -> Tensor:
    """``v(S_0) … v(S_T)``, 0 in terminal states and in the padding; shape ``(T + 1, B)``."""
    values = torch.randn(
        episodes.horizon + 1, episodes.batch_size, generator=generator(seed), dtype=episodes.rewards.dtype
    )
    times = torch.arange(episodes.horizon + 1)[:, None]
    return values * (times < episodes.lengths + (~episodes.terminated).long())


class FloatEncoder(nn.Module):
    """Any observation of ``SPACES`` to features, in double precision; nothing to learn."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.features_dim = {"discrete": N_STATES, "box": 3, "dict": 2 + N_STATES}[kind]

    def forward(self, observations: Observations) -> Tensor:
        if isinstance(observations, dict):
            one_hot = nn.functional.one_hot(observations["b"], N_STATES).double()
            return torch.cat([observations["a"].double(), one_hot], dim=1)
        if self.kind == "discrete":
            return nn.functional.one_hot(observations, N_STATES).double()
        return observations.double()

"""MiniGrid's DoorKey: pairwise weights on an environment that we did not write, no part of the paper.

An agent has to pick up a key, open a door with it and walk to a goal; the only reward is at the end, less the longer it
took. PWR's sums need episodes that end, and MiniGrid cuts its own at a time limit: a wrapper makes that an end.

Rollouts are whole episodes of each environment, of whatever length, and those of one end when the slowest is done; A2C
is shown with them and with rollouts of a fixed number of steps, as one would run it otherwise.

All numbers here are ours, chosen on seeds from 1000 up; policy, critic, optimiser and entropy bonus are the same for
all methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401 (registers the environments)
import numpy as np
import pandas as pd
import torch
from harness import Figure, Outcome, Results, Run, Task, main
from minigrid.wrappers import ImgObsWrapper, OneHotPartialObsWrapper
from plotting import drawing, plot_mean
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import tca_sb3

SHARED: dict[str, Any] = {
    "learning_rate": 3e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "normalize_advantage": True,
    "use_rms_prop": False,
    "critic_updates": 8,
}
META: dict[str, Any] = {"outer_rollouts": 16, "learning_rate": 1e-3}
EPISODES: dict[str, Any] = {"n_episodes": 1}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "A2C, 128 steps": ("A2C", {"n_steps": 128}),
    "A2C": ("A2C", EPISODES),
    "Meta-PWTD": ("MetaPWTD", {**EPISODES, "meta_kwargs": META}),
    "Meta-PWR": ("MetaPWR", {**EPISODES, "meta_kwargs": {**META, "shared_critic": True}}),
}


@dataclass(frozen=True)
class Settings:
    """What decides the outcome besides the constants above.

    :param seeds: runs of each method.
    :param frames: environment steps of a run, discarded ones included.
    :param env: id of the environment.
    :param n_envs: environments side by side.
    :param methods: which of ``METHODS``.
    :param points: points of a curve.
    :param first_seed: of the runs.
    """

    seeds: int
    frames: int
    env: str = "MiniGrid-DoorKey-5x5-v0"
    n_envs: int = 16
    methods: tuple[str, ...] = tuple(METHODS)
    points: int = 25
    first_seed: int = 0

    @property
    def all_seeds(self) -> range:
        """The seeds of the runs."""
        return range(self.first_seed, self.first_seed + self.seeds)


class TimeLimitEnds(gym.Wrapper[Any, Any, Any, Any]):
    """A time limit that ends the episode: what might have come later is worth nothing."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


def symbols(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The agent's view, one-hot, as one vector; the time limit ends the episode."""
    return gym.wrappers.FlattenObservation(ImgObsWrapper(OneHotPartialObsWrapper(TimeLimitEnds(env))))


class FinishedEpisodes(BaseCallback):
    """Return of every episode that ended, and the frames until then."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []
        self.frames: list[int] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(info["episode"]["r"])
                self.frames.append(self.num_timesteps)
        return True


def train(method: str, seed: int, frames: int, env: str, n_envs: int, points: int) -> Outcome:
    """One run; the arguments are those of :class:`Settings`."""
    name, own = METHODS[method]
    venv = make_vec_env(env, n_envs, seed=seed * n_envs, wrapper_class=symbols)
    policy_kwargs = {
        "optimizer_class": torch.optim.Adam,
        "optimizer_kwargs": {"betas": (0.0, 0.99), "eps": 1e-5},
    }
    torch.distributions.Distribution.set_default_validate_args(False)
    model = getattr(tca_sb3, name)(
        "MlpPolicy", venv, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **(SHARED | own)
    )
    finished = FinishedEpisodes()
    model.learn(frames, callback=finished)
    returns, ends = np.array(finished.returns), np.array(finished.frames)
    borders = np.linspace(0, frames, points + 1)
    # A point without an episode of its own, early on, keeps the one before it.
    part = np.searchsorted(borders, ends).clip(1, points) - 1
    curve = pd.Series([returns[part == index].mean() if (part == index).any() else np.nan for index in range(points)])
    curve = curve.ffill().fillna(0.0)
    metrics = {
        "return": float(curve.iloc[-max(1, points // 10) :].mean()),
        "return_overall": float(curve.mean()),
        "discarded": model.discarded_steps / model.num_timesteps,
    }
    arrays = {"frames": borders[1:], "returns": curve.to_numpy()}
    return Outcome([Run(method, {"env": env}, seed, metrics, model.num_timesteps)], arrays)


def run_name(settings: Settings, method: str, seed: int) -> str:
    """The name of a run's task."""
    return f"{method} {settings.env} seed={seed}"


def runs(settings: Settings, results: Results) -> list[Task]:
    """Every method; seed by seed."""
    return [
        Task(
            run_name(settings, method, seed),
            train,
            {
                "method": method,
                "seed": seed,
                "frames": settings.frames,
                "env": settings.env,
                "n_envs": settings.n_envs,
                "points": settings.points,
            },
        )
        for seed in settings.all_seeds
        for method in settings.methods
    ]


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """Return of finished episodes against frames: mean and standard error."""
    with drawing(folder / "minigrid_doorkey.png", 6.4, 3.8) as figure:
        axes = figure.subplots()
        for method in settings.methods:
            arrays = [results.arrays[run_name(settings, method, seed)] for seed in settings.all_seeds]
            values = np.stack([one["returns"] for one in arrays])
            plot_mean(axes, arrays[0]["frames"] / 1e3, values, label=method)
        axes.set_xlabel("thousand frames")
        axes.set_ylabel("return of an episode")
        axes.set_title(settings.env)
        axes.legend()


FIGURE = Figure(
    name="minigrid_doorkey",
    scales={
        "quick": Settings(seeds=1, frames=2_000, n_envs=4, points=4),
        "cpu": Settings(seeds=3, frames=300_000),
        "paper": Settings(seeds=10, frames=2_000_000, env="MiniGrid-DoorKey-6x6-v0"),
    },
    stages=[runs],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

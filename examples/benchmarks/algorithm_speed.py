"""What our algorithms cost beside stock Stable-Baselines3: ratios within one run.

    python examples/benchmarks/algorithm_speed.py --out runs/benchmarks

Every round runs all variants one after the other; a ratio is the median over rounds of a variant's processor time
by the baseline's in the same round, with quartiles. Processor time, because the wall clock of a shared machine
also measures its other users.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from tca_sb3 import A2C, MetaPWR, MetaPWTD
from tca_sb3.returns import pairwise_sum

torch.set_num_threads(1)


class Vector120(gym.Env[np.ndarray, int]):
    """Ten numbers to see, four actions, 120 steps: an environment that costs little beside the learner."""

    observation_space = gym.spaces.Box(-5.0, 5.0, (10,))
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self._see(), float(action == self.t % 4), self.t == 120, False, {}

    def _see(self) -> np.ndarray:
        return self.np_random.standard_normal(10, dtype=np.float32).clip(-5.0, 5.0)


Variants = dict[str, Callable[[], OnPolicyAlgorithm]]


def default_a2c() -> Variants:
    """SB3's defaults on CartPole: the smallest iteration there is, so overhead shows most."""

    def make(algorithm: type[sb3.A2C]) -> OnPolicyAlgorithm:
        return algorithm("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), seed=0, device="cpu")

    return {"stable_baselines3.A2C": lambda: make(sb3.A2C), "A2C": lambda: make(A2C)}


def long_a2c() -> Variants:
    """A whole iteration, rollout and update: T = 120, 16 DummyVecEnv environments, SB3's 64-64 MLP."""

    def make(algorithm: type[sb3.A2C], **kwargs: Any) -> OnPolicyAlgorithm:
        env = DummyVecEnv([Vector120] * 16)
        return algorithm("MlpPolicy", env, n_steps=120, ent_coef=0.01, seed=0, device="cpu", **kwargs)

    return {
        "stable_baselines3.A2C": lambda: make(sb3.A2C),
        "A2C": lambda: make(A2C),
        "MetaPWR": lambda: make(MetaPWR),
        "MetaPWTD": lambda: make(MetaPWTD),
    }


def compare(variants: Variants, timesteps: int, rounds: int) -> pd.DataFrame:
    """Time every variant in every round; ratios to the first."""
    models = {name: make() for name, make in variants.items()}
    for model in models.values():
        model.learn(timesteps)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.process_time()
            model.learn(timesteps, reset_num_timesteps=False)
            seconds[name].append(time.process_time() - start)
    return ratios(seconds, "µs/step", 1e6 / timesteps)


def ratios(seconds: Mapping[Any, Sequence[float]], unit: str, scale: float, key: str = "variant") -> pd.DataFrame:
    """A row for each variant: its median time, and quartiles over rounds of its ratio to the first variant's.

    :param seconds: of each variant, one entry for each round.
    :param unit: the name of the time's column, which holds ``scale`` times the seconds.
    :param key: the name of the variants' column.
    """
    base = np.array(next(iter(seconds.values())))
    rows = []
    for name, times in seconds.items():
        low, median, high = np.quantile(np.array(times) / base, (0.25, 0.5, 0.75))
        rows.append({key: name, unit: scale * np.median(times), "ratio": median, "q25": low, "q75": high})
    return pd.DataFrame(rows)


def pairwise_memory(horizon: int, batch: int = 16) -> float:
    """Megabytes that a pairwise sum and its gradient add to a fresh process, weights included."""
    weights = torch.rand(batch, horizon, horizon, requires_grad=True)
    signal = torch.randn(horizon, batch)
    return added_memory(lambda: pairwise_sum(weights, signal).sum().backward())


def added_memory(work: Callable[[], Any]) -> float:
    """Megabytes that ``work`` adds to the memory in use at its highest; 0 where it finds room left free before."""
    Path("/proc/self/clear_refs").write_text("5")  # start the peak afresh (Linux)
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    """A field of this process's memory record, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def in_fresh_process(script: str, *arguments: Any) -> list[float]:
    """The numbers that a script prints, run by itself with these arguments."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in done.stdout.split()]


def memory_table() -> pd.DataFrame:
    """Peak memory against the episode length, each in a process of its own."""
    rows = []
    for horizon in (60, 120, 240, 500, 1000):
        (added,) = in_fresh_process(__file__, "--memory-of", horizon)
        weights = 16 * horizon**2 * 4 / 2**20
        rows.append({"T": horizon, "weights (MB)": weights, "added by sum and gradient (MB)": added})
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """A table with numbers to three digits."""

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        print(pairwise_memory(options.memory_of))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [
        ("A2C as it comes (CartPole-v1, 8 environments, n_steps=5)", compare(default_a2c(), 4_000, options.rounds)),
        ("A whole iteration (T = 120, 16 environments, MLP 64-64)", compare(long_a2c(), 5 * 1920, options.rounds)),
        ("Memory of the pairwise sum and its gradient (B = 16)", memory_table()),
    ]
    text = "\n\n".join(f"### {title}\n\n{as_markdown(table)}" for title, table in parts)
    print(text)
    (options.out / "algorithm_speed.md").write_text(text + "\n")
    pd.concat([table.assign(part=title) for title, table in parts]).to_csv(
        options.out / "algorithm_speed.csv", index=False
    )


if __name__ == "__main__":
    main()

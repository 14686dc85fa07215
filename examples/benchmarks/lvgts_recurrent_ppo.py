"""LVGTS beside the model-free agent one would take instead: sb3-contrib's RecurrentPPO, on the paper's memory tasks.

    pip install sb3-contrib
    python examples/benchmarks/lvgts_recurrent_ppo.py --out runs/benchmarks

LVGTS trains for a number of episodes; RecurrentPPO then trains for as many processor seconds as LVGTS took in the same
round, however many episodes that is. Curves are the return of both policies without their noise, on episodes of their
own, whose time does not count. So one run answers both questions: return per episode and return per second.
Processor time, because the wall clock of a shared machine also measures its other users; seconds of two rounds
do not compare, ratios within one do.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from algorithm_speed import as_markdown
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

import tca_envs  # noqa: F401 (registers the tasks)
from tca_sb3.lvgts import LVGTS
from tca_sb3.vec_env import GymVecEnv, make_gym_vec_env

try:
    from sb3_contrib import RecurrentPPO
except ImportError:
    sys.exit("This comparison needs sb3-contrib, which nothing else here does: pip install sb3-contrib")

torch.set_num_threads(1)

TASKS = {"dummy-PMT": "tca/DummyPMT-v0", "dummy-AMT": "tca/DummyAMT-v0", "pendulum-AMT": "tca/PendulumAMT-v0"}
HORIZON = 15
LANES = 16
EVALUATION_EPISODES = 256
EVALUATION_SEEDS = 2_000_000
# Ours: whole episodes, no discount, one batch an epoch, one LSTM for actor and critic. Chosen by the return after 40
# processor seconds of dummy-PMT with seed 2010: two LSTMs and four batches an epoch at 1e-3 got -1.3, with rollouts of
# a quarter -2.4; two LSTMs and one batch at 3e-3 1.7, one LSTM and four batches at 3e-3 1.8, and these 1.9.
RECURRENT_PPO: dict[str, Any] = {
    "n_steps": 4 * HORIZON,
    "batch_size": 4 * LANES * HORIZON,
    "n_epochs": 10,
    "learning_rate": 3e-3,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "policy_kwargs": {
        "lstm_hidden_size": 64,
        "shared_lstm": True,
        "enable_critic_lstm": False,
        "log_std_init": -0.7,
    },
}


def play(model: BaseAlgorithm, env: GymVecEnv) -> float:
    """Mean return of the policy without noise, over one episode in each lane."""
    observation: Any = env.reset()
    state, begins = None, np.ones(env.num_envs, bool)
    total = np.zeros(env.num_envs)
    for _ in range(HORIZON):
        action, state = model.predict(observation, state, begins, deterministic=True)
        observation, rewards, begins, _ = env.step(action)
        total += rewards
    assert begins.all(), f"episodes last {HORIZON} steps"
    return float(total.mean())


class Curve(BaseCallback):
    """Returns by episodes and by processor seconds spent on training; stops after ``seconds`` of these."""

    def __init__(self, env: GymVecEnv, every: int, seconds: float = np.inf) -> None:
        super().__init__()
        self.env, self.every, self.seconds = env, every, seconds
        self.rows: list[dict[str, float]] = []
        self.paused = 0.0

    @property
    def spent(self) -> float:
        return time.process_time() - self.start - self.paused

    def _on_training_start(self) -> None:
        self.start = time.process_time()
        self.due = 0

    def _on_step(self) -> bool:
        return self.spent < self.seconds

    def _on_rollout_end(self) -> None:
        if self.num_timesteps // HORIZON >= self.due:
            self.due += self.every
            self.look()

    def look(self) -> None:
        """One more point."""
        spent, before = self.spent, time.process_time()
        value = play(self.model, self.env)
        self.paused += time.process_time() - before
        self.rows.append({"episodes": self.num_timesteps // HORIZON, "seconds": spent, "return": value})


def train(method: str, task: str, seed: int, episodes: int, seconds: float) -> pd.DataFrame:
    """The curve of one run, which ends after ``episodes`` or after ``seconds`` of processor time."""
    env = make_gym_vec_env(TASKS[task], LANES, seed=seed * LANES)
    own = make_gym_vec_env(TASKS[task], EVALUATION_EPISODES, seed=EVALUATION_SEEDS + seed * EVALUATION_EPISODES)
    model: BaseAlgorithm
    if method == "LVGTS":
        model = LVGTS("MlpPolicy", env, seed=seed, device="cpu")
    else:
        model = RecurrentPPO("MlpLstmPolicy", env, seed=seed, device="cpu", **RECURRENT_PPO)
    curve = Curve(own, every=200, seconds=seconds)
    model.learn(episodes * HORIZON, callback=curve)
    curve.look()
    return pd.DataFrame(curve.rows).assign(method=method, task=task, seed=seed)


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Last returns, and when the mean return of all runs first came up to 1.5, of 2."""
    rows = []
    for (task, method), runs in curves.groupby(["task", "method"], sort=False):
        last = runs.groupby("seed").last()
        # Curves of a method have their points at the same episodes, but for the last, and some are longer.
        points = runs[runs["seed"] == runs["seed"].shift(-1)].groupby("episodes")
        mean = points[["seconds", "return"]].mean()
        there = mean[(mean["return"] >= 1.5) & (points.size() == len(last))]
        rows.append(
            {
                "task": task,
                "method": method,
                "runs": len(last),
                "return at the end": last["return"].mean(),
                "its runs": " ".join(f"{value:.2f}" for value in last["return"]),
                "episodes": int(last["episodes"].mean()),
                "CPU seconds": last["seconds"].mean(),
                "episodes to 1.5": str(there.index[0]) if len(there) else "never",
                "CPU seconds to 1.5": f"{there['seconds'].iloc[0]:.0f}" if len(there) else "never",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=192)
    parser.add_argument("--passive-episodes", type=int, default=2000, help="of LVGTS, on dummy-PMT")
    parser.add_argument("--active-episodes", type=int, default=8000, help="of LVGTS, on both AMT")
    parser.add_argument("--resume", action="store_true", help="go on with the tasks and seeds that --out lacks")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    command = (
        f"python examples/benchmarks/lvgts_recurrent_ppo.py --seeds {options.seeds} --first-seed {options.first_seed} "
        f"--passive-episodes {options.passive_episodes} --active-episodes {options.active_episodes}"
    )
    table = options.out / "lvgts_recurrent_ppo.csv"
    everything = pd.read_csv(table) if options.resume else pd.DataFrame(columns=["task", "seed"])
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for task in TASKS:
            if ((everything["task"] == task) & (everything["seed"] == seed)).any():
                continue
            episodes = options.passive_episodes if "PMT" in task else options.active_episodes
            ours = train("LVGTS", task, seed, episodes, np.inf)
            theirs = train("RecurrentPPO", task, seed, 10**9, ours["seconds"].iloc[-1])
            everything = pd.concat([*([everything] if len(everything) else []), ours, theirs])
            everything.to_csv(table, index=False, float_format="%.6g")
            text = as_markdown(summary(everything))
            page = f"### LVGTS and sb3-contrib's RecurrentPPO\n\n{text}\n\n`{command}`, torch on one thread.\n"
            (options.out / "lvgts_recurrent_ppo.md").write_text(page)
            print(text, flush=True)


if __name__ == "__main__":
    main()

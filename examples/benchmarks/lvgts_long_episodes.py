"""LVGTS where episodes are long: a dummy memory task stretched by a longer distractor phase.

    python examples/benchmarks/lvgts_long_episodes.py --task dummy-AMT --length 100 --episodes 5000 --first-seed 78

Runs side by side (``learn_together``), default settings but for ``n_recalls`` and ``dense_updates``. The recall phase
stays as long as it is in 15 steps, so that the best return stays 2. Writes the return of the policy without noise,
over 128 episodes, along training and at its end.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import time
from pathlib import Path

import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

import tca_envs  # noqa: F401 (registers the tasks)
from tca_sb3.lvgts import LVGTS, learn_together
from tca_sb3.vec_env import GymVecEnv, make_gym_vec_env

torch.set_num_threads(1)

TASKS = {"dummy-PMT": "tca/DummyPMT-v0", "dummy-AMT": "tca/DummyAMT-v0"}
RECALL_STEPS = 4
LANES = 16
EVALUATION_EPISODES = 128
EVALUATION_SEEDS = 2_000_000


class Curve(BaseCallback):
    """The return without noise, every so many episodes."""

    def __init__(self, env: GymVecEnv, every: int) -> None:
        super().__init__()
        self.env, self.every, self.due = env, every, 0
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, LVGTS)
        if self.model.replay_buffer.n_added >= self.due:
            self.due += self.every
            self.look()

    def look(self) -> None:
        """One more point."""
        assert isinstance(self.model, LVGTS)
        value = evaluate_policy(self.model, self.env, n_eval_episodes=EVALUATION_EPISODES)[0]
        lost = self.model._n_lost_gradients
        self.rows.append({"episodes": self.model.replay_buffer.n_added, "return": float(value), "lost_gradients": lost})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--task", choices=TASKS, default="dummy-AMT")
    parser.add_argument("--length", type=int, default=50, help="steps in an episode")
    parser.add_argument("--n-recalls", type=int, default=10)
    parser.add_argument("--dense-updates", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=78)
    options = parser.parse_args()
    models, curves = [], []
    stretched = {"length": options.length, "t2": options.length - RECALL_STEPS - 1}
    start = time.process_time()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        env = make_gym_vec_env(TASKS[options.task], LANES, seed=seed * LANES, **stretched)
        own = make_gym_vec_env(
            TASKS[options.task],
            EVALUATION_EPISODES,
            seed=EVALUATION_SEEDS + seed * EVALUATION_EPISODES,
            **stretched,
        )
        models.append(
            LVGTS(
                "MlpPolicy",
                env,
                n_recalls=options.n_recalls,
                dense_updates=options.dense_updates,
                seed=seed,
                device="cpu",
            )
        )
        curves.append(Curve(own, every=250))
    learn_together(models, options.episodes * options.length, curves)
    frames = []
    for model, curve in zip(models, curves, strict=True):
        curve.look()
        frames.append(pd.DataFrame(curve.rows).assign(seed=model.seed))
    table = pd.concat(frames)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"lvgts_{options.task}_{options.length}_k{options.n_recalls}_dense{options.dense_updates}.csv"
    table.to_csv(options.out / name, index=False, float_format="%.6g")
    print(table.pivot_table(index="episodes", columns="seed", values="return", aggfunc="last").round(2).to_string())
    facts = curves[0].env.vector_env.unwrapped
    print("lost gradients:", [model._n_lost_gradients for model in models])
    print("myopic:", facts.myopic_return, "optimal:", facts.optimal_return)  # type: ignore[attr-defined]
    print(f"{(time.process_time() - start) / options.seeds:.0f} CPU seconds a run, looks included")


if __name__ == "__main__":
    main()

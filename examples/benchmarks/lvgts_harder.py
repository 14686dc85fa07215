"""LVGTS on memory tasks that are harder than Figure 2's: longer, noisier, or with a remember action farther away.

    python examples/benchmarks/lvgts_harder.py --task dummy-AMT --length 100 --n-recalls 10 --dense-updates 300

Runs side by side (``learn_together``), with the algorithm's own settings but for those given. A longer episode has a
longer distractor phase; the recall phase stays as it is in 15 steps, so that the best return stays 2. Writes the return
of the policy without noise, over 128 episodes, along training and at its end.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

import tca_envs  # noqa: F401 (registers the tasks)
from tca_sb3.lvgts import LVGTS, AttentionEncoder, RecurrentEncoder, learn_together
from tca_sb3.vec_env import GymVecEnv, make_gym_vec_env

torch.set_num_threads(1)

TASKS = {"dummy-PMT": "tca/DummyPMT-v0", "dummy-AMT": "tca/DummyAMT-v0", "pendulum-AMT": "tca/PendulumAMT-v0"}
ENVIRONMENT = [
    ("length", int, "steps in an episode"),
    ("a_m", float, "the remember action that shows the target without noise"),
    ("sigma", float, "standard deviation of the noise of the other remember actions"),
]
ENCODERS = {"attention": AttentionEncoder, "recurrent": RecurrentEncoder}
ALGORITHM = [("n_recalls", int), ("dense_updates", int), ("action_noise_std", float), ("alpha_decoder", float)]
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


def make_model(
    algorithm: type[LVGTS], task: str, seed: int, changes: dict[str, float] | None = None, **settings: Any
) -> LVGTS:
    """A fresh model with environments of its own; ``changes`` are arguments of these."""
    env = make_gym_vec_env(TASKS[task], LANES, seed=seed * LANES, **(changes or {}))
    return algorithm("MlpPolicy", env, seed=seed, device="cpu", **settings)


def evaluation_env(task: str, seed: int, **changes: float) -> GymVecEnv:
    """Environments for a look at the policy that was trained with this seed; a lane an episode."""
    first = EVALUATION_SEEDS + seed * EVALUATION_EPISODES
    return make_gym_vec_env(TASKS[task], EVALUATION_EPISODES, seed=first, **changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--task", choices=TASKS, default="dummy-AMT")
    for option, kind, meaning in ENVIRONMENT:
        parser.add_argument(f"--{option.replace('_', '-')}", type=kind, help=meaning)
    for option, kind in ALGORITHM:
        parser.add_argument(f"--{option.replace('_', '-')}", type=kind, help="LVGTS's, as is its default")
    parser.add_argument("--encoder", choices=ENCODERS, default="attention")
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=141)
    options = parser.parse_args()
    changes = {option: getattr(options, option) for option, *_ in ENVIRONMENT if getattr(options, option) is not None}
    settings = {option: getattr(options, option) for option, _ in ALGORITHM if getattr(options, option) is not None}
    names = [options.task, *(f"{option}={value:g}" for option, value in (changes | settings).items())]
    if options.encoder != "attention":
        names.append(f"encoder={options.encoder}")
    policy_kwargs = {"encoder_class": ENCODERS[options.encoder]}
    if "length" in changes:
        changes["t2"] = changes["length"] - RECALL_STEPS - 1
    models, curves = [], []
    start = time.process_time()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        models.append(make_model(LVGTS, options.task, seed, changes, policy_kwargs=policy_kwargs, **settings))
        curves.append(Curve(evaluation_env(options.task, seed, **changes), every=250))
    facts: Any = curves[0].env.vector_env.unwrapped
    learn_together(models, options.episodes * facts.rules.horizon, curves)
    frames = []
    for model, curve in zip(models, curves, strict=True):
        curve.look()
        frames.append(pd.DataFrame(curve.rows).assign(seed=model.seed))
    table = pd.concat(frames)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / f"lvgts_{'_'.join(names)}.csv", index=False, float_format="%.6g")
    print(table.pivot_table(index="episodes", columns="seed", values="return", aggfunc="last").round(2).to_string())
    print("lost gradients:", [model._n_lost_gradients for model in models])
    print("myopic:", facts.myopic_return, "optimal:", facts.optimal_return)
    print(f"{(time.process_time() - start) / options.seeds:.0f} CPU seconds a run, looks included")


if __name__ == "__main__":
    main()

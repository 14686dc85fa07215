"""What a run of LVGTS costs, alone and side by side with other seeds: ratios within one run.

    python examples/benchmarks/lvgts_speed.py --out runs/benchmarks

First one whole run of 8000 episodes, with default settings and by itself: its processor time, and what it learned. Then
every round trains one model by itself, then several together (``learn_together``), on dummy-AMT with default settings,
for as many episodes each. A ratio is the median over rounds of processor time per run by that of the lone run in
the same round. Seconds are the machine's, and the hour's: compare ratios.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import time
from pathlib import Path

import torch
from algorithm_speed import as_markdown, ratios
from stable_baselines3.common.evaluation import evaluate_policy

import tca_envs  # noqa: F401 (registers the tasks)
from tca_sb3.lvgts import LVGTS, learn_together
from tca_sb3.vec_env import make_gym_vec_env

torch.set_num_threads(1)

HORIZON = 15
LANES = 16


def make(seed: int) -> LVGTS:
    """A model that trains from its first episodes on, so that a short run costs what a long one does."""
    env = make_gym_vec_env("tca/DummyAMT-v0", LANES, seed=seed * LANES)
    return LVGTS("MlpPolicy", env, learning_starts=1, dense_updates=0, seed=seed, device="cpu")


def milliseconds(n_runs: int, episodes: int) -> float:
    """Processor time for one episode of one run, its updates included."""
    models = [make(seed) for seed in range(n_runs)]
    start = time.process_time()
    if n_runs == 1:
        models[0].learn(episodes * HORIZON)
    else:
        learn_together(models, episodes * HORIZON)
    return 1e3 * (time.process_time() - start) / episodes / n_runs


def whole_run(episodes: int, seed: int) -> str:
    """A run with default settings: its processor time, set-up included, and the return of its policy, as a sentence."""
    start = time.process_time()
    env = make_gym_vec_env("tca/DummyAMT-v0", LANES, seed=seed * LANES)
    model = LVGTS("MlpPolicy", env, seed=seed, device="cpu").learn(episodes * HORIZON)
    seconds = time.process_time() - start
    own = make_gym_vec_env("tca/DummyAMT-v0", 128, seed=2_000_000)
    value = evaluate_policy(model, own, n_eval_episodes=128)[0]
    return (
        f"A run of {episodes} episodes by itself, seed {seed}, took **{seconds:.1f} CPU seconds**; return without "
        f"noise over 128 episodes: {value:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=160)
    parser.add_argument("--whole", type=int, default=8000, help="episodes of the whole run")
    parser.add_argument("--seed", type=int, default=154, help="of the whole run")
    options = parser.parse_args()
    sizes = (1, 5, 10)
    milliseconds(1, 2 * LANES)  # the first steps of a process are slow
    whole = whole_run(options.whole, options.seed)
    print(whole, flush=True)
    times: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(options.rounds):
        for n in sizes:
            times[n].append(milliseconds(n, options.episodes))
    text = as_markdown(ratios(times, "CPU ms for an episode of a run", 1.0, key="runs side by side"))
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    command = (
        f"python examples/benchmarks/lvgts_speed.py --rounds {options.rounds} --episodes {options.episodes} "
        f"--whole {options.whole} --seed {options.seed}"
    )
    page = f"### LVGTS on dummy-AMT\n\n{whole}\n\n{text}\n\n`{command}`, torch on one thread.\n"
    (options.out / "lvgts_speed.md").write_text(page)


if __name__ == "__main__":
    main()

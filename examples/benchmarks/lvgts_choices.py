"""What the paper leaves open about LVGTS, one choice changed at a time: returns on dummy-AMT.

    python examples/benchmarks/lvgts_choices.py --out runs/benchmarks

Every row has the algorithm's defaults but for what it names, on the same seeds. The return is that of the policy
without noise over 128 episodes at the end of training, of at most 2. Runs are written after every row, and the same
command goes on with the rows that are not there.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from algorithm_speed import as_markdown
from lvgts_harder import EVALUATION_EPISODES, evaluation_env, make_model
from stable_baselines3.common.evaluation import evaluate_policy

from tca_sb3.lvgts import LMSVG, LVGTS, learn_together
from tca_sb3.lvgts.encoder import RecurrentEncoder

TASK = "dummy-AMT"
CHOICES: dict[str, tuple[type[LVGTS], dict[str, Any]]] = {
    "the defaults": (LVGTS, {}),
    "the gradient is cut behind a sliding window (A.1)": (LVGTS, {"truncation_mode": "window"}),
    "it is cut nowhere": (LVGTS, {"truncation": None}),
    "it is cut at every state, N = 1": (LVGTS, {"truncation": 1}),
    "replayed episodes without noise": (LVGTS, {"replay_noise_std": 0.0}),
    "a weak decoder, alpha_decoder = 0.3": (LVGTS, {"alpha_decoder": 0.3}),
    "the encoder sees and recalls latents (Eq. 3)": (LVGTS, {"policy_kwargs": {"encoder_class": RecurrentEncoder}}),
    "attention is sparse from the start": (LVGTS, {"dense_updates": 0}),
    "k = 1": (LVGTS, {"n_recalls": 1}),
    "attention stays dense, k = 15": (LVGTS, {"n_recalls": 15}),
    "no penalty on saturated actions": (LVGTS, {"saturation_coef": 0.0}),
    "half the action noise": (LVGTS, {"action_noise_std": 1 / 12}),
    "batches of 32, half the gradient steps": (
        LVGTS,
        {"batch_size": 32, "model_updates": 0.5, "policy_updates": 0.25, "dense_updates": 500},
    ),
    "LM-SVG": (LMSVG, {}),
    "LM-SVG, the gradient is cut nowhere": (LMSVG, {"truncation": None}),
}


def train(choice: str, seeds: range, episodes: int) -> list[float]:
    """Returns after training, one for each seed."""
    algorithm, settings = CHOICES[choice]
    models = [make_model(algorithm, TASK, seed, **settings) for seed in seeds]
    own = [evaluation_env(TASK, seed) for seed in seeds]
    horizon: int = own[0].vector_env.unwrapped.rules.horizon  # type: ignore[attr-defined]
    if models[0].truncation_mode == "window":  # differentiates inside its objective, which runs side by side cannot
        for model in models:
            torch.manual_seed(model.seed)  # as learn_together() does: no run depends on those before it
            model.learn(episodes * horizon)
    else:
        learn_together(models, episodes * horizon)
    return [
        float(evaluate_policy(model, env, n_eval_episodes=EVALUATION_EPISODES)[0])
        for model, env in zip(models, own, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--episodes", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=155)
    parser.add_argument("--choice", choices=CHOICES, action="append", help="only this row; several times for several")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    path = options.out / "lvgts_choices.csv"
    runs = pd.read_csv(path) if path.exists() else pd.DataFrame({"choice": [], "seed": [], "episodes": []})

    def asked_for() -> pd.Series:
        return runs["seed"].isin(seeds) & (runs["episodes"] == options.episodes)

    for choice in options.choice or CHOICES:
        here = asked_for() & (runs["choice"] == choice)
        if here.sum() == len(seeds):
            continue
        runs = runs[~here]
        new = pd.DataFrame({"seed": seeds, "return": train(choice, seeds, options.episodes)})
        runs = pd.concat([*([runs] if len(runs) else []), new.assign(choice=choice, episodes=options.episodes)])
        runs.to_csv(path, index=False, float_format="%.4g", columns=["choice", "seed", "episodes", "return"])
        print(f"{choice}: {np.round(new['return'], 2).tolist()}", flush=True)
    rows = [
        {
            "choice": choice,
            "mean": f"{of_choice['return'].mean():.2f}",
            "standard error": f"{of_choice['return'].sem():.2f}",
            "runs": " ".join(f"{value:.2f}" for value in of_choice["return"]),
        }
        for choice, of_choice in runs[asked_for()].groupby("choice", sort=False)
    ]
    command = (
        f"python examples/benchmarks/lvgts_choices.py --episodes {options.episodes} --seeds {options.seeds} "
        f"--first-seed {options.first_seed}"
    )
    text = as_markdown(pd.DataFrame(rows))
    print(text)
    (options.out / "lvgts_choices.md").write_text(f"### LVGTS's choices\n\n{text}\n\n`{command}`\n")


if __name__ == "__main__":
    main()

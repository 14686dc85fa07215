"""Look at learned weights pair by pair: one HTML page that shows both times of every pair, for any model."""

import argparse
from pathlib import Path

import numpy as np

import tca_envs  # noqa: F401  (registers tca/…)
from tca_sb3 import MetaPWR, make_gym_vec_env
from tca_sb3.explorer import write_credit_explorer


def main(timesteps: int, out: Path) -> Path:
    # Only the first action counts, and it is paid for at the very end, behind a long day of rewards that are noise.
    env = make_gym_vec_env("tca/Umbrella-v0", n_envs=64, seed=0)
    meta = {"learning_rate": 0.05}
    model = MetaPWR("TabularPolicy", env, meta_kwargs=meta, gamma=1.0, learning_rate=0.01, seed=0, device="cpu")
    model.learn(timesteps)

    weights = model.mean_weights()
    others = np.delete(weights[np.triu_indices(20)], 19)
    print(f"weight of the last reward for the first action: {weights[0, -1]:.2f}")
    print(f"all other weights: {others.mean():.2f} ± {others.std():.2f}")
    names = ["leave the umbrella", "take it"]
    page = write_credit_explorer(model, "tca/Umbrella-v0", out / "umbrella.html", action_names=names)
    print(f"Open {page}")
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=400_000)
    parser.add_argument("--out", type=Path, default=Path("runs/07_credit_explorer"))
    options = parser.parse_args()
    main(options.timesteps, options.out)

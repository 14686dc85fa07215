"""Meta-PWR on the depth-8 DAG, written as any SB3 script: make, learn, save, load, evaluate."""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import tca_envs  # noqa: F401  (registers tca/…)
from tca_sb3 import CreditHeatmap, MetaPWR


def main(timesteps: int, out: Path) -> float:
    env = make_vec_env("tca/DAG8-v0", n_envs=8, seed=0)
    model = MetaPWR("MlpPolicy", env, learning_rate=0.01, gamma=1.0, seed=0, device="cpu")
    model.learn(timesteps, callback=CreditHeatmap(every=50, folder=out / "weights"), progress_bar=True)

    model.save(out / "meta_pwr")
    loaded = MetaPWR.load(out / "meta_pwr", env=env)
    mean, deviation = evaluate_policy(loaded, env, n_eval_episodes=20)
    print(f"return {mean:.2f} ± {deviation:.2f}; the best is 4")
    return float(mean)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("runs/01_meta_pwr"))
    options = parser.parse_args()
    main(options.timesteps, options.out)

"""Do they learn what the paper says they learn? Returns are those of the policy without its noise."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

import tca_envs  # noqa: F401 (registers the tasks)
from tca_sb3.lvgts import LMSVG, LVGTS, learn_together
from tca_sb3.vec_env import make_gym_vec_env


def train(
    algorithm: type[LVGTS],
    task: str,
    seed: int,
    episodes: int,
    n_recalls: int = 3,
    length: int = 15,
) -> float:
    """Return after training, of at most 2; the recall phase is always four steps."""
    clock = {"length": length, "t2": length - 5}
    env = make_gym_vec_env(f"tca/{task}-v0", n_envs=16, seed=100 * seed, **clock)
    model = algorithm("MlpPolicy", env, n_recalls=n_recalls, seed=seed, device="cpu").learn(length * episodes)
    fresh = make_gym_vec_env(f"tca/{task}-v0", n_envs=128, seed=10_000 + seed, **clock)
    return float(evaluate_policy(model, fresh, n_eval_episodes=256, warn=False)[0])


@pytest.mark.ci
@pytest.mark.parametrize("algorithm", [LVGTS, LMSVG])
def test_both_remember(algorithm: type[LVGTS]) -> None:
    """Without memory the best return is -2."""
    assert train(algorithm, "DummyPMT", seed=0, episodes=1500) > 1.5


@pytest.mark.ci
def test_remember_actions_get_credit() -> None:
    """An ideal agent without credit for them has 1.01; this is after three eighths of Figure 2's training."""
    envs = [make_gym_vec_env("tca/DummyAMT-v0", n_envs=16, seed=100 * seed) for seed in range(3)]
    models = [LVGTS("MlpPolicy", env, seed=seed, device="cpu") for seed, env in enumerate(envs)]
    learn_together(models, 15 * 3000)
    fresh = make_gym_vec_env("tca/DummyAMT-v0", n_envs=128, seed=10_000)
    returns = [evaluate_policy(model, fresh, n_eval_episodes=256, warn=False)[0] for model in models]
    assert np.mean(returns) > 1.4, returns


@pytest.mark.slow
def test_remembers_over_a_long_distraction() -> None:
    assert train(LVGTS, "DummyPMT", seed=0, episodes=1500, n_recalls=10, length=50) > 1.5


@pytest.mark.slow
def test_only_shortcuts_assign_credit_to_the_distant_past() -> None:
    """On three seeds: single runs scatter (LM-SVG's remember action drifts, sometimes to where it should be)."""
    returns = {
        algorithm: np.mean([train(algorithm, "DummyAMT", seed, episodes=8000) for seed in range(3)])
        for algorithm in (LVGTS, LMSVG)
    }
    assert returns[LVGTS] > 1.8
    assert returns[LMSVG] < 1.4

"""Runs side by side against the same runs one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lvgts_samples import LATENT_DIM, lengths_env
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes

from tca_sb3.lvgts import LMSVG, LVGTS, RecurrentEncoder
from tca_sb3.lvgts.replicas import learn_together


def make(seed: int, algorithm: type[LVGTS] = LVGTS, lengths: tuple[int, ...] = (6,), **kwargs: Any) -> LVGTS:
    env = lengths_env(lengths, lengths)
    for index, one in enumerate(env.envs):
        one.unwrapped.index = 10 * seed + index  # rewards and observations of its own
    settings = {
        "n_episodes": 4,
        "learning_starts": 4,
        "batch_size": 5,
        "policy_kwargs": {"latent_dim": LATENT_DIM, "net_arch": [8]},
        "device": "cpu",
    }
    return algorithm("MlpPolicy", env, seed=seed, **{**settings, **kwargs})


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"algorithm": LMSVG, "max_grad_norm": 0.05},
        {"value_function": True, "model_updates": 0.75},
        {"truncation": None, "policy_kwargs": {"latent_dim": 4, "net_arch": [8], "encoder_class": RecurrentEncoder}},
    ],
)
def test_side_by_side_is_one_after_the_other(kwargs: dict[str, Any]) -> None:
    together, alone = ([make(seed, **kwargs) for seed in (0, 1, 2)] for _ in range(2))
    learn_together(together, 6 * 32)
    for model in alone:
        torch.manual_seed(model.seed)  # type: ignore[arg-type]
        model.learn(6 * 32)
    for one, other in zip(together, alone, strict=True):
        assert one.num_timesteps == other.num_timesteps and one._n_updates == other._n_updates > 10
        torch.testing.assert_close(dict(one.policy.state_dict()), dict(other.policy.state_dict()), rtol=1e-3, atol=1e-4)
        # The moments went back too: both go on alike.
        for model in (one, other):
            torch.manual_seed(7)
            model.learn(6 * 8, reset_num_timesteps=False)
        torch.testing.assert_close(dict(one.policy.state_dict()), dict(other.policy.state_dict()), rtol=1e-3, atol=1e-4)

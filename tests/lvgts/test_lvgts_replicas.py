"""Runs side by side against the same runs one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lvgts_samples import LATENT_DIM, lengths_env
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes

from tca_sb3.lvgts import LMSVG, LVGTS, RecurrentEncoder
from tca_sb3.lvgts.replicas import Replicas, learn_together

# With Adam's usual epsilon a gradient that is nothing but rounding moves a parameter as far as any other.
CALM = {"eps": 1e-3}
POLICY = {"latent_dim": LATENT_DIM, "net_arch": [8], "optimizer_kwargs": CALM}


def make(seed: int | None, algorithm: type[LVGTS] = LVGTS, lengths: tuple[int, ...] = (6,), **kwargs: Any) -> LVGTS:
    env = lengths_env(lengths, lengths)
    for index, one in enumerate(env.envs):
        one.unwrapped.index = 10 * (seed or 0) + index  # rewards and observations of its own
    settings = {
        "n_episodes": 4,
        "learning_starts": 4,
        "batch_size": 5,
        "dense_updates": 9,
        "policy_kwargs": POLICY,
        "device": "cpu",
    }
    return algorithm("MlpPolicy", env, seed=seed, **{**settings, **kwargs})


def assert_alike(one: LVGTS, other: LVGTS) -> None:
    torch.testing.assert_close(dict(one.policy.state_dict()), dict(other.policy.state_dict()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"model_updates": 0.75},
        # A fused step reads a gradient's memory in the order of its parameter's, whatever the gradient's strides say.
        {"policy_kwargs": {**POLICY, "optimizer_kwargs": {**CALM, "fused": True}}},
        {"algorithm": LMSVG, "max_grad_norm": 0.05, "policy_kwargs": {**POLICY, "optimizer_class": torch.optim.SGD}},
        {"truncation": None, "policy_kwargs": {**POLICY, "encoder_class": RecurrentEncoder}},
    ],
)
def test_side_by_side_is_one_after_the_other(kwargs: dict[str, Any]) -> None:
    if kwargs.get("policy_kwargs", {}).get("optimizer_class") is torch.optim.SGD:
        kwargs["policy_kwargs"] = {**kwargs["policy_kwargs"], "optimizer_kwargs": {"momentum": 0.5}}
    together, alone = ([make(seed, **kwargs) for seed in (0, 1, 2)] for _ in range(2))
    learn_together(together, 6 * 24)
    for model in alone:
        torch.manual_seed(model.seed)  # type: ignore[arg-type]
        model.learn(6 * 24)
    for one, other in zip(together, alone, strict=True):
        assert one.num_timesteps == other.num_timesteps and one._n_updates == other._n_updates > 10
        assert_alike(one, other)
        # The optimisers' moments went back too: both go on alike.
        for model in (one, other):
            torch.manual_seed(7)
            model.learn(6 * 8, reset_num_timesteps=False)
        assert_alike(one, other)


def test_side_by_side_goes_on_from_the_optimisers_moments() -> None:
    together, alone = ([make(seed).learn(6 * 8) for seed in (0, 1)] for _ in range(2))
    replicas = Replicas(together)
    replicas.seed()
    replicas.model_step()
    replicas.policy_step()
    replicas.release()
    for one, other in zip(together, alone, strict=True):
        torch.manual_seed(other.seed)  # type: ignore[arg-type]
        other.model_step(other._sample())
        other.policy_step(other._sample())
        assert_alike(one, other)
        for optimizers in ("optimizer", "model_optimizer"):
            mine, theirs = (getattr(model.policy, optimizers).state_dict()["state"] for model in (one, other))
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_gradient_that_is_not_finite_is_lost_in_its_own_run_only() -> None:
    optimizer = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.0}}
    kwargs = {"policy_kwargs": {**POLICY, **optimizer}}
    together, alone = ([make(seed, **kwargs).learn(6 * 8) for seed in (0, 1)] for _ in range(2))
    actor = [parameter.detach().clone() for parameter in together[0].policy.actor_parameters]
    for model in (together[0], alone[0]):
        with torch.no_grad():  # rewards beyond what single precision holds
            for parameter in model.policy.world_model.parameters():
                parameter.mul_(1e30)
    replicas = Replicas(together)
    replicas.seed()
    replicas.policy_step()
    replicas.release()
    for model in alone:
        torch.manual_seed(model.seed)  # type: ignore[arg-type]
        model.policy_step(model._sample())
    assert [model._n_lost_gradients for model in together] == [model._n_lost_gradients for model in alone] == [1, 0]
    assert all(torch.equal(a, b) for a, b in zip(actor, together[0].policy.actor_parameters, strict=True))
    assert_alike(together[1], alone[1])


def test_released_models_are_independent() -> None:
    one, other = make(0), make(1)
    learn_together([one, other], 6 * 8)
    before = {name: value.clone() for name, value in other.policy.state_dict().items()}
    one.learn(6 * 8, reset_num_timesteps=False)
    assert all(torch.equal(value, before[name]) for name, value in other.policy.state_dict().items())


def test_models_without_a_seed_draw_different_numbers() -> None:
    models = [make(None) for _ in range(2)]
    learn_together(models, 6 * 4)
    actions = [model.replay_buffer.get(torch.arange(4).numpy()).actions for model in models]
    assert not torch.isclose(actions[0], actions[1]).any()


def test_what_cannot_be_trained_together_is_named() -> None:
    with pytest.raises(ValueError, match="pass at least one"):
        learn_together([], 10)
    with pytest.raises(ValueError, match="2 models and 1 callbacks"):
        learn_together([make(0), make(1)], 10, [None])
    with pytest.raises(ValueError, match="differ in class, device or networks"):
        learn_together([make(0), make(1, LMSVG)], 10)
    with pytest.raises(ValueError, match="differ in class, device or networks"):
        learn_together([make(0), make(1, policy_kwargs={**POLICY, "net_arch": [9]})], 10)
    with pytest.raises(ValueError, match="truncation_mode='window'"):
        learn_together([make(seed, truncation_mode="window") for seed in (0, 1)], 10)
    with pytest.raises(ValueError, match="begins with fresh ones"):
        learn_together([make(0), make(1).learn(6)], 10)
    with pytest.raises(ValueError, match=r"different lengths \(\[6, 7\]\)"):
        learn_together([make(0), make(1, lengths=(7,))], 100)
    with pytest.raises(ValueError, match="not equally far"):
        learn_together([make(0), make(1, model_updates=0.25)], 100)
    with pytest.raises(ValueError, match="wanted to stop"):
        learn_together([make(0), make(1)], 100, [None, StopTrainingOnMaxEpisodes(1)])

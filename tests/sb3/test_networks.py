"""The features extractor for images of one pixel a cell, against the same numbers put together by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn import functional as F

from tca_sb3 import A2C, MetaPWR
from tca_sb3.networks import CriticFeatures, CriticHead, TileExtractor, critic_parameters, same_in_training

IMAGE = spaces.Box(0, 255, (3, 5, 7), np.uint8)
SPACE = spaces.Dict({"image": IMAGE, "code": spaces.Discrete(4), "place": spaces.Box(-1, 1, (2, 2))})


def observations(n: int) -> dict[str, torch.Tensor]:
    """As SB3 hands them over: preprocessed."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(n, 3, 5, 7, generator=generator),
        "code": F.one_hot(torch.randint(4, (n,), generator=generator), 4).float(),
        "place": torch.rand(n, 2, 2, generator=generator),
    }


class Room(gym.Env[Any, Any]):
    """Four steps of noise, five by seven pixels."""

    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (5, 7, 3), np.uint8), "code": spaces.Discrete(4)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observation_space.sample(), float(action), self.t == 4, False, {}


class Normalised(TileExtractor):
    """With a layer that looks at its batch."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, channels=())
        self.batch_norm = torch.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: Any) -> torch.Tensor:
        return self.batch_norm(super().forward(observations))


def test_without_convolutions_it_is_everything_flattened() -> None:
    extractor = TileExtractor(SPACE, channels=())
    seen = observations(6)
    assert extractor.features_dim == 3 * 5 * 7 + 4 + 4
    # A Dict space keeps its keys sorted.
    wanted = torch.cat([seen["code"], seen["image"].flatten(1), seen["place"].flatten(1)], dim=1)
    assert torch.equal(extractor(seen), wanted)
    alone = TileExtractor(IMAGE, channels=())
    assert torch.equal(alone(seen["image"]), seen["image"].flatten(1))
    assert not list(alone.parameters())


def test_convolutions_keep_every_cell() -> None:
    torch.manual_seed(0)
    extractor = TileExtractor(SPACE, channels=(4, 6), image_dim=9)
    seen = observations(6)
    layers: Any = dict(zip(extractor.keys, extractor.branches, strict=True))["image"]
    first, second, linear = layers[0], layers[2], layers[5]
    hidden = F.relu(F.conv2d(seen["image"], first.weight, first.bias, padding=1))
    hidden = F.relu(F.conv2d(hidden, second.weight, second.bias, padding=1))
    assert hidden.shape == (6, 6, 5, 7)
    image = F.relu(F.linear(hidden.flatten(1), linear.weight, linear.bias))
    wanted = torch.cat([seen["code"], image, seen["place"].flatten(1)], dim=1)
    assert torch.allclose(extractor(seen), wanted)
    assert extractor.features_dim == wanted.shape[1] == 4 + 9 + 4


@pytest.mark.parametrize("wrong", [{"channels": (4, 0)}, {"image_dim": 0}])
def test_sizes_must_be_positive(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        TileExtractor(SPACE, **wrong)  # type: ignore[arg-type]


def test_a_policy_and_the_weights_train_on_small_images() -> None:
    """SB3's own network refuses this image."""
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        MetaPWR("MultiInputPolicy", Room())
    model = MetaPWR(
        "MultiInputPolicy",
        Room(),
        policy_kwargs={
            "features_extractor_class": TileExtractor,
            "features_extractor_kwargs": {"channels": (4,), "image_dim": 8},
        },
        seed=0,
        device="cpu",
    )
    before = [parameter.clone() for parameter in model.estimator.parameters()]
    model.learn(12)
    after = list(model.estimator.parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_is_known_to_be_the_same_in_training_mode() -> None:
    """Whatever somebody else wrote may look at its mode."""
    policy = MetaPWR("MultiInputPolicy", Room(), policy_kwargs={"features_extractor_class": TileExtractor}).policy
    assert same_in_training(policy)
    net = policy.mlp_extractor.policy_net

    class Mine(torch.nn.Tanh):
        pass

    for module in (torch.nn.Dropout(), torch.nn.BatchNorm1d(64), torch.nn.RReLU(), Mine()):
        net.append(module)
        assert not same_in_training(policy)
        del net[-1]
    assert same_in_training(policy)
    hook = net[0].register_forward_hook(lambda *_: None)
    assert not same_in_training(policy)
    hook.remove()
    assert same_in_training(policy)


@pytest.mark.parametrize("share", [True, False], ids=["one extractor", "two extractors"])
def test_a_second_head_reads_what_the_critic_reads(share: bool) -> None:
    env = DummyVecEnv([Room])
    policy_kwargs = {
        "features_extractor_class": TileExtractor,
        "features_extractor_kwargs": {"channels": (2,), "image_dim": 3},
        "share_features_extractor": share,
        "net_arch": {"pi": [4], "vf": [5]},
    }
    model = A2C("MultiInputPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    policy = model.policy
    second = CriticHead(policy)
    assert [name for name, _ in second.named_parameters()] == ["head.weight", "head.bias"]
    seen, _ = policy.obs_to_tensor(env.reset())
    values, regular = second.both(seen)
    assert torch.equal(values, policy.predict_values(seen))
    features = BasePolicy.extract_features(policy, seen, policy.vf_features_extractor)
    hidden = policy.mlp_extractor.value_net(features)
    assert torch.equal(regular, hidden @ second.head.weight.T + second.head.bias)
    assert torch.equal(second(seen), regular)
    assert not policy.value_net._forward_pre_hooks, "no hook is left behind"
    constants = CriticFeatures(policy)
    assert not list(constants.parameters()) and constants.features_dim == 5
    assert torch.equal(constants(seen), hidden) and not constants(seen).requires_grad


def test_a_look_at_the_critic_moves_no_running_statistics() -> None:
    env = DummyVecEnv([Room])
    model = A2C("MultiInputPolicy", env, policy_kwargs={"features_extractor_class": Normalised}, seed=0, device="cpu")
    model.policy.set_training_mode(True)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    assert any("running_mean" in name for name in before)
    found = critic_parameters(model.policy, env.reset())
    assert [id(p) for p in found] == [id(p) for name, p in model.policy.named_parameters() if "value_net." in name]
    assert all(torch.equal(before[name], value) for name, value in model.policy.state_dict().items())
    assert model.policy.training

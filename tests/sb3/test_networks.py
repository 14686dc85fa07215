"""Networks beside the policy, and the tabular policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from scripted import SPACES, vec_env
from stable_baselines3.common.preprocessing import preprocess_obs

from tca_sb3 import A2C
from tca_sb3.networks import ObservationEncoder, RegularValue
from tca_sb3.policies import TabularPolicy

POLICIES = {"box": "MlpPolicy", "discrete": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}


def model_of(kind: str, **policy_kwargs: Any) -> A2C:
    extractor = {"image": {"features_dim": 5}, "dict": {"cnn_output_dim": 5}}.get(kind)
    if extractor:
        policy_kwargs["features_extractor_kwargs"] = extractor
    return A2C(POLICIES[kind], vec_env([(3,)], kind=kind), policy_kwargs=policy_kwargs, seed=0)


def observations_of(kind: str, n: int = 3) -> Any:
    space = SPACES[kind]
    space.seed(0)
    rows = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: torch.as_tensor([row[key].tolist() for row in rows]) for key in rows[0]}
    return torch.as_tensor([row.tolist() for row in rows])


@pytest.mark.parametrize("kind", POLICIES)
def test_the_encoder_sees_what_the_policy_sees_with_weights_of_its_own(kind: str) -> None:
    policy = model_of(kind).policy
    encoder = ObservationEncoder(policy)
    observations = observations_of(kind)
    if kind == "image":
        observations = observations.to(torch.uint8)
    elif kind == "dict":
        observations["image"] = observations["image"].to(torch.uint8)
    features = encoder(observations)
    assert features.shape == (3, encoder.features_dim) == (3, policy.features_dim)
    assert not {id(p) for p in encoder.parameters()} & {id(p) for p in policy.parameters()}
    encoder.extractor.load_state_dict(policy.features_extractor.state_dict())
    processed = preprocess_obs(observations, policy.observation_space, normalize_images=True)
    assert torch.allclose(encoder(observations), policy.features_extractor(processed))


@pytest.mark.parametrize("net_arch", [[7], [], {"pi": [3], "vf": [6, 5]}, {"pi": [3]}])
def test_v_phi_has_the_architecture_of_the_critic(net_arch: Any) -> None:
    policy = model_of("box", net_arch=net_arch, activation_fn=torch.nn.ReLU).policy
    value = RegularValue(policy)
    assert value(observations_of("box")).shape == (3, 1)
    theirs = [p.shape for p in policy.mlp_extractor.value_net.parameters()] + [
        p.shape for p in policy.value_net.parameters()
    ]
    assert [p.shape for p in value.parameters()] == theirs
    assert not {id(p) for p in value.parameters()} & {id(p) for p in policy.parameters()}
    if net_arch == [7]:
        value.hidden.value_net.load_state_dict(policy.mlp_extractor.value_net.state_dict())
        value.head.load_state_dict(policy.value_net.state_dict())
        assert torch.allclose(value(observations_of("box")), policy.predict_values(observations_of("box")))


def test_the_tabular_policy_ties_no_states_together() -> None:
    model = A2C("TabularPolicy", vec_env([(3,)], kind="discrete"), seed=0, n_steps=3)
    policy = model.policy
    assert sum(p.numel() for p in policy.parameters()) == model.observation_space.n * (3 + 1)  # type: ignore[attr-defined]
    assert not any(p.any() for p in policy.parameters())
    model.learn(3)
    visited = {0, 1, 2}  # environment 0, episode 0, steps before the end
    for table in (policy.action_net.weight, policy.value_net.weight):
        assert set(table.detach().any(0).nonzero()[:, 0].tolist()) == visited
    again = TabularPolicy(**policy._get_constructor_parameters())
    again.load_state_dict(policy.state_dict())
    for bad in ("box", "dict"):
        with pytest.raises(TypeError, match=r"^TabularPolicy .*Discrete"):
            TabularPolicy(SPACES[bad], spaces.Discrete(2), lambda _: 0.1)
    with pytest.raises(TypeError, match=r"^TabularPolicy got the action space Box.*Discrete\(n\)\.$"):
        TabularPolicy(SPACES["discrete"], spaces.Box(-1, 1), lambda _: 0.1)

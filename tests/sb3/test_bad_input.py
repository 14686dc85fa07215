"""What cannot work is refused in one sentence, at the constructor, before anything has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scripted import vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from tca_sb3 import (
    A2C,
    A2CRR,
    HPWR,
    PPO,
    PWR,
    PWTD,
    RGM,
    Episodes,
    Exponential,
    Fixed,
    InnerLoopReset,
    MetaLambda,
    MetaPWR,
    MetaPWTD,
    Tabular,
)
from tca_sb3.buffers import EpisodeBuffer
from tca_sb3.estimators import MonteCarlo
from tca_sb3.networks import CriticFeatures
from tca_sb3.weights import PairwiseWeights

ALGORITHMS = [A2C, PPO, HPWR, MetaPWR, MetaPWTD, MetaLambda, RGM, A2CRR]
AN_OBJECT = PWR(spaces.Discrete(2), gamma=1, gae_lambda=1, weights_class=Tabular)


class Unbounded(PairwiseWeights):
    """Weights of 3 for every pair."""

    def forward(self, episodes: Episodes) -> torch.Tensor:
        return torch.full((episodes.batch_size, episodes.horizon, episodes.horizon), 3.0)


class Transposed(PairwiseWeights):
    """Time first."""

    def forward(self, episodes: Episodes) -> torch.Tensor:
        return torch.full((episodes.horizon, episodes.horizon, episodes.batch_size), 0.5)


class Headless(ActorCriticPolicy):
    """A value of two layers."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_net = torch.nn.Sequential(self.value_net, torch.nn.Identity())  # type: ignore[assignment]


def build(cls: Any, kind: str = "box", **kwargs: Any) -> Any:
    return cls("MlpPolicy", vec_env([(4,), (4,)], kind=kind), policy_kwargs={"net_arch": [4]}, **kwargs)


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize(
    "wrong", ["PWR", PWR(spaces.Discrete(2), gamma=1, gae_lambda=1, weights_class=Tabular), Tabular, None, int]
)
def test_unknown_estimators(cls: type, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"(?s)^{cls.__name__} got estimator_class=.*AdvantageEstimator.*\.$"):
        build(cls, estimator_class=wrong)


NUMBERS: list[dict[str, Any]] = [
    {"n_episodes": 0},
    {"n_episodes": -1},
    {"n_episodes": 1.5},
    {"n_episodes": True},
    {"max_rollout_steps": 0},
    {"max_rollout_steps": 2.5},
    {"critic_updates": -1},
    {"critic_updates": 1.5},
    {"critic_updates": True},
]


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("wrong", NUMBERS, ids=str)
def test_numbers(cls: type, wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises((ValueError, TypeError), match=rf"^{cls.__name__} got {name}={value}; .*\.$"):
        build(cls, **wrong)


CASES: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "weights that are an object": (
        TypeError,
        "PWR got weights_class=.*subclass of PairwiseWeights",
        lambda: build(A2C, estimator_class=PWR, estimator_kwargs={"weights_class": Exponential(spaces.Discrete(2))}),
    ),
    "weights that are no weights": (
        TypeError,
        "PWTD got weights_class=.*subclass of PairwiseWeights",
        lambda: build(A2C, estimator_class=PWTD, estimator_kwargs={"weights_class": MonteCarlo}),
    ),
    "a table over vectors": (
        TypeError,
        "Tabular indexes states.*weights_class=Product",
        lambda: build(A2C, estimator_class=PWR, estimator_kwargs={"weights_class": Tabular}),
    ),
    "gamma": (ValueError, r"gamma=1\.5", lambda: build(A2C, gamma=1.5)),
    "lambda": (ValueError, r"gae_lambda=-0\.5", lambda: build(A2C, gae_lambda=-0.5)),
    "gamma of the outer loop": (ValueError, r"gamma=1\.5", lambda: build(MetaPWR, meta_kwargs={"gamma": 1.5})),
    "an unknown setting of the outer loop": (
        TypeError,
        "lerning_rate",
        lambda: build(MetaPWR, meta_kwargs={"lerning_rate": 0.1}),
    ),
    "a shared critic that nobody fits": (
        ValueError,
        "MetaPWR got shared_critic=True.*write for instance critic_updates=8",
        lambda: build(MetaPWR, meta_kwargs={"shared_critic": True}),
    ),
    "a shared critic that is shared anyway": (
        ValueError,
        "MetaPWTD got shared_critic=True, but the critic of PWTD is v_φ already",
        lambda: build(MetaPWTD, critic_updates=2, meta_kwargs={"shared_critic": True}),
    ),
    "a shared critic with steps of its own": (
        ValueError,
        "value_updates=4 but v_φ is a head of the policy's critic",
        lambda: build(MetaPWR, critic_updates=2, meta_kwargs={"shared_critic": True, "value_updates": 4}),
    ),
    "a shared critic of a policy without one": (
        ValueError,
        "shared_critic=True needs a policy whose value is the linear layer value_net",
        lambda: MetaPWR(
            Headless, vec_env([(4,), (4,)], kind="box"), critic_updates=2, meta_kwargs={"shared_critic": True}
        ),
    ),
    "an encoder that is an object": (
        TypeError,
        "MetaPWR got encoder_class=Identity.*the class, not an object",
        lambda: build(MetaPWR, estimator_kwargs={"encoder_class": torch.nn.Identity()}),
    ),
    "an encoder for nobody": (
        ValueError,
        "A2C got encoder_class=CriticFeatures, but Exponential has no network that looks at observations",
        lambda: build(
            A2C,
            estimator_class=PWR,
            estimator_kwargs={"weights_class": Exponential, "encoder_class": CriticFeatures},
        ),
    ),
    "features of a critic that has none": (
        ValueError,
        "encoder_class=CriticFeatures needs a policy whose value is the linear layer value_net",
        lambda: MetaPWR(
            Headless, vec_env([(4,), (4,)], kind="box"), estimator_kwargs={"encoder_class": CriticFeatures}
        ),
    ),
    "features of the critic over a lifetime": (
        ValueError,
        "InnerLoopReset takes all of a lifetime's rollouts through the weights at its end",
        lambda: build(A2C, n_episodes=1, estimator_class=PWR, estimator_kwargs={"encoder_class": CriticFeatures}).learn(
            10, callback=InnerLoopReset(2)
        ),
    ),
    "a lifetime judged by later rollouts": (
        ValueError,
        "InnerLoopReset got outer_rollouts=4, update_interval=1, center_scores=False; it goes through all inner steps",
        lambda: build(A2C, n_episodes=1, estimator_class=PWR).learn(10, callback=InnerLoopReset(2, outer_rollouts=4)),
    ),
    "an outer loop without weights": (
        ValueError,
        "MonteCarlo has no parameters for the metagradient",
        lambda: build(A2C, estimator_class=MonteCarlo, meta_kwargs={}),
    ),
    "an outer loop beside an estimator that trains itself": (
        ValueError,
        "RewardRedistribution has no parameters for the metagradient",
        lambda: build(A2CRR, meta_kwargs={}),
    ),
    "a lambda that is no sigmoid": (
        ValueError,
        r"StateLambda got initial_lambda=1\.0",
        lambda: build(MetaLambda, estimator_kwargs={"initial_lambda": 1.0}),
    ),
    "an outer loop with nothing to learn": (
        ValueError,
        "PWTD has no parameters",
        lambda: build(MetaPWTD, estimator_kwargs={"weights_class": Exponential}),
    ),
    "a matrix outside [0, 1]": (
        ValueError,
        "Fixed got a matrix with entries outside",
        lambda: build(HPWR, estimator_kwargs={"weights_kwargs": {"matrix": 2 * np.ones((4, 4))}}),
    ),
    "a matrix that is not square": (
        ValueError,
        "Fixed got a matrix of shape",
        lambda: build(HPWR, estimator_kwargs={"weights_kwargs": {"matrix": np.ones((3, 4))}}),
    ),
    "a matrix of text": (
        TypeError,
        "Fixed got a matrix of",
        lambda: build(HPWR, estimator_kwargs={"weights_kwargs": {"matrix": [["a"]]}}),
    ),
    "no episode in the buffer": (
        ValueError,
        "learn",
        lambda: EpisodeBuffer(4, spaces.Box(0, 1, (2,)), spaces.Discrete(2)).episodes(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_constructors(case: str) -> None:
    kind, words, make = CASES[case]
    with pytest.raises(kind, match=words) as caught:
        make()
    if "unexpected keyword" not in str(caught.value):  # Python's own sentence has no full stop
        assert str(caught.value).endswith(".")


LEARNING: dict[str, tuple[str, Callable[[], Any]]] = {
    "weights above 1": (
        r"Unbounded returned weights from .* to 3;.*\[0, 1\]",
        lambda: build(A2C, estimator_class=PWR, estimator_kwargs={"weights_class": Unbounded}, n_episodes=1),
    ),
    "weights of the wrong shape": (
        r"Transposed returned weights of shape \(4, 4, 2\).*\(B, T, T\) = \(2, 4, 4\)",
        lambda: build(A2C, estimator_class=PWTD, estimator_kwargs={"weights_class": Transposed}, n_episodes=1),
    ),
    "a matrix that is too short": (
        "Fixed holds weights for 3 steps but an episode has 4",
        lambda: build(HPWR, estimator_kwargs={"weights_kwargs": {"matrix": np.ones((3, 3))}}),
    ),
    "a time-indexed matrix and pieces of episodes": (
        r"Fixed\(index='time'\) got a piece of an episode",
        lambda: A2C(
            "MlpPolicy",
            vec_env([(4,), (4,)]),
            n_steps=3,
            estimator_class=PWTD,
            estimator_kwargs={"weights_class": Fixed, "weights_kwargs": {"matrix": np.ones((4, 4))}},
        ),
    ),
    "time-outs": (
        "PWR got an episode cut by a time limit",
        lambda: HPWR("MlpPolicy", vec_env([(4,), (4,)], "c"), policy_kwargs={"net_arch": [4]}),
    ),
    "NaN rewards": (
        "reward that is NaN or infinite",
        lambda: HPWR("MlpPolicy", vec_env([(4,), (4,)], scale=float("nan")), policy_kwargs={"net_arch": [4]}),
    ),
}


@pytest.mark.parametrize("case", LEARNING)
def test_learning(case: str) -> None:
    """Found out with the first rollout (or fragment) that shows it, and the update that would use it never happens."""
    words, make = LEARNING[case]
    model = make()
    updates: list[dict[str, torch.Tensor]] = []
    inside = model.train
    model.train = lambda: (inside(), updates.append({k: v.clone() for k, v in model.policy.state_dict().items()}))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        model.learn(100)
    assert str(caught.value).endswith(".")
    expected = updates[-1] if updates else before
    assert all(torch.equal(expected[name], value) for name, value in model.policy.state_dict().items())
    # The model is still of use: an environment that suits it can be set, and learning goes on.
    if case == "time-outs":
        model.set_env(vec_env([(4,), (4,)]))
        model.learn(8)
        assert any(not torch.equal(before[name], value) for name, value in model.policy.state_dict().items())

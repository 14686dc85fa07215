"""Our algorithms beside stock SB3, update for update; and what the named ones are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from scripted import Watch, vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor

import tca_sb3
from tca_sb3 import (
    A2C,
    A2CRR,
    HPWR,
    PPO,
    PWR,
    PWTD,
    RGM,
    Fixed,
    MetaLambda,
    MetaPWR,
    MetaPWTD,
    MonteCarlo,
    Product,
    ReturnGeneratingModel,
    RewardRedistribution,
    StateLambda,
    Tabular,
    TDLambda,
)
from tca_sb3.networks import CriticHead

TINY: dict[str, Any] = {"net_arch": [8]}


def timed(make: Callable[[], gym.Env], limit: int, n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([lambda: TimeLimit(make(), limit) for _ in range(n_envs)])


def dict_env() -> VecEnv:
    return vec_env([(3, 5), (4,)], "tc", "dict", scale=0.01)


# name -> (policy, environment, arguments)
SETUPS: dict[str, tuple[str, Callable[[], VecEnv], dict[str, Any]]] = {
    "terminations": ("MlpPolicy", lambda: timed(CartPoleEnv, 500), {}),
    "time-outs": ("MlpPolicy", lambda: timed(CartPoleEnv, 6), {}),
    "time-outs and gamma 1": ("MlpPolicy", lambda: timed(CartPoleEnv, 6), {"gamma": 1.0, "gae_lambda": 0.9}),
    "lambda 0": ("MlpPolicy", lambda: timed(CartPoleEnv, 6), {"gae_lambda": 0.0}),
    "continuous": ("MlpPolicy", lambda: timed(PendulumEnv, 7), {}),
    "state-dependent exploration": ("MlpPolicy", lambda: timed(PendulumEnv, 7), {"use_sde": True}),
    "dict": ("MultiInputPolicy", dict_env, {}),
    "discrete observations": ("MlpPolicy", lambda: vec_env([(3, 5), (4,)], "tc", "discrete", scale=0.01), {}),
    "normalised": ("MlpPolicy", lambda: VecNormalize(timed(PendulumEnv, 7)), {}),
    "normalised advantages": ("MlpPolicy", lambda: timed(CartPoleEnv, 500), {"normalize_advantage": True}),
}


def parameters_after(cls: type, setup: str, **kwargs: Any) -> list[Tensor]:
    policy, make, arguments = SETUPS[setup]
    small = {"n_steps": 10} if issubclass(cls, sb3.A2C) else {"n_steps": 12, "batch_size": 12, "n_epochs": 2}
    policy_kwargs = {**TINY, **({"features_extractor_kwargs": {"cnn_output_dim": 8}} if setup == "dict" else {})}
    model = cls(policy, make(), seed=3, policy_kwargs=policy_kwargs, **{**small, **arguments, **kwargs})
    start = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(4 * model.n_steps * model.n_envs)
    after = [p.detach() for p in model.policy.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(start, after, strict=True))
    return after


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize(("ours", "theirs"), [(A2C, sb3.A2C), (PPO, sb3.PPO)], ids=["A2C", "PPO"])
def test_with_the_defaults_we_follow_stock_sb3(ours: type, theirs: type, setup: str) -> None:
    for one, other in zip(parameters_after(ours, setup), parameters_after(theirs, setup), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


def test_following_is_no_accident() -> None:
    """Another λ is another run, by far more than the tolerance."""
    for setup in ("terminations", "time-outs"):
        one, other = parameters_after(A2C, setup), parameters_after(sb3.A2C, setup, gae_lambda=0.5)
        assert max((a - b).abs().max().item() for a, b in zip(one, other, strict=True)) > 1e-4


def test_whole_episodes_of_one_length_train_as_n_steps_do() -> None:
    runs = []
    for kwargs in ({"n_steps": 4}, {"n_episodes": 1}, {"n_episodes": 1, "n_steps": 1}):
        model = A2C("MlpPolicy", vec_env([(4,), (4,)], scale=0.1), seed=1, policy_kwargs=dict(TINY), **kwargs)  # type: ignore[arg-type]
        runs.append(list(model.learn(5 * 8).policy.parameters()))
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert torch.equal(one, two)


def test_stock_buffers_still_plug_in() -> None:
    """With the λ-estimator a user's own rollout buffer class is left alone, as in SB3."""

    class Mine(sb3.common.buffers.RolloutBuffer):  # type: ignore[name-defined, misc]
        pass

    model = A2C("MlpPolicy", timed(CartPoleEnv, 6), rollout_buffer_class=Mine, policy_kwargs=dict(TINY)).learn(30)
    assert type(model.rollout_buffer) is Mine
    with pytest.raises(ValueError, match=r"rollout_buffer_class=Mine, which computes its own.*EpisodeBuffer"):
        A2C("MlpPolicy", timed(CartPoleEnv, 6), rollout_buffer_class=Mine, estimator_class=MonteCarlo)


# -- the named algorithms -------------------------------------------------------------------------------------------


def made_of(model: Any) -> tuple[type, type | None, int | None, bool]:
    weights = type(model.estimator.weights) if hasattr(model.estimator, "weights") else None
    return type(model.estimator), weights, model.n_episodes, model.meta is not None


def test_what_the_named_algorithms_are_made_of() -> None:
    box, discrete = vec_env([(4,), (4,)]), vec_env([(4,), (4,)], kind="discrete")
    assert made_of(A2C("MlpPolicy", box)) == (TDLambda, None, None, False)
    assert made_of(PPO("MlpPolicy", box)) == (TDLambda, None, None, False)
    assert made_of(MetaPWR("MlpPolicy", box)) == (PWR, Product, 1, True)
    assert made_of(MetaPWR("MlpPolicy", discrete)) == (PWR, Tabular, 1, True)
    assert made_of(MetaPWTD("MlpPolicy", discrete)) == (PWTD, Tabular, 1, True)
    assert made_of(MetaPWTD("MlpPolicy", box, n_episodes=None)) == (PWTD, Product, None, True)
    assert made_of(HPWR("MlpPolicy", box)) == (PWR, Fixed, 1, False)
    assert made_of(A2C("MlpPolicy", discrete, estimator_class=PWR)) == (PWR, Tabular, None, False)
    assert made_of(MetaLambda("MlpPolicy", box)) == (StateLambda, None, 1, True)
    assert made_of(MetaLambda("MlpPolicy", discrete, n_episodes=None)) == (StateLambda, None, None, True)
    assert made_of(RGM("MlpPolicy", box)) == (ReturnGeneratingModel, None, 1, True)
    assert made_of(A2CRR("MlpPolicy", box)) == (RewardRedistribution, None, 1, False)
    # PWR's critic predicts weighted sums, so the outer loop has a value function of its own; PWTD's is v_φ itself.
    for cls, own in ((MetaPWR, True), (RGM, True), (MetaPWTD, False), (MetaLambda, False)):
        meta = cls("MlpPolicy", box).meta
        assert meta is not None
        assert (meta.value_net is not None) == own


def test_discounts_and_rates_arrive_where_they_are_used() -> None:
    model = MetaPWR(
        "MlpPolicy",
        vec_env([(4,)]),
        gamma=0.8,
        gae_lambda=0.7,
        meta_kwargs={
            "learning_rate": 0.03,
            "optimizer_kwargs": {"betas": (0.5, 0.6)},
            "value_learning_rate": 0.02,
            "gamma": 0.9,
            "outer_rollouts": 3,
        },
        estimator_kwargs={"weights_class": Product, "weights_kwargs": {"embedding_dim": 5}},
    )
    assert (model.estimator.gamma, model.estimator.gae_lambda) == (0.8, 0.7)
    meta = model.meta
    assert meta is not None
    assert (meta.gamma, meta.gae_lambda, meta.outer_rollouts) == (0.9, 0.7, 3)
    assert meta.optimizer.param_groups[0]["lr"] == 0.03
    assert meta.optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert meta.value_optimizer is not None
    assert meta.value_optimizer.param_groups[0]["lr"] == 0.02
    assert model.estimator.weights.reward_head.out_features == 5


def test_hpwr_takes_the_environments_matrix_or_ours() -> None:
    env = vec_env([(4,), (4,)])
    assert torch.equal(HPWR("MlpPolicy", env).estimator.weights.matrix, torch.ones(4, 4).triu())
    mine = np.full((4, 4), 0.25)
    kwargs: dict[str, Any] = {"estimator_kwargs": {"weights_kwargs": {"matrix": mine}}}
    assert torch.equal(HPWR("MlpPolicy", env, **kwargs).estimator.weights.matrix, torch.full((4, 4), 0.25))
    with pytest.raises(ValueError, match=r"HPWR found no hand-written weights.*matrix"):
        HPWR("MlpPolicy", timed(CartPoleEnv, 6))
    assert HPWR("MlpPolicy", timed(CartPoleEnv, 6), **kwargs).estimator_class is PWR


def test_hpwr_credits_what_its_matrix_says() -> None:
    watch = Watch()
    matrix = np.zeros((4, 4), dtype=np.float32)
    matrix[0, 3] = matrix[1, 1] = 1.0
    kwargs: dict[str, Any] = {"estimator_kwargs": {"weights_kwargs": {"matrix": matrix}}}
    model = HPWR("MlpPolicy", vec_env([(4,), (4,)]), policy_kwargs=dict(TINY), **kwargs).learn(8, callback=watch)
    episodes, _ = watch.rollouts[0]
    rewards = episodes.rewards.numpy()
    wanted = np.stack([rewards[3], rewards[1], 0 * rewards[0], 0 * rewards[0]])
    assert np.array_equal(watch.returns[0][:4], wanted)
    assert np.array_equal(model.pair_weights().numpy(), np.stack([matrix, matrix]))


LEARNED = [MetaPWR, MetaPWTD, MetaLambda, RGM, A2CRR]


@pytest.mark.parametrize("cls", LEARNED)
@pytest.mark.parametrize("kind", ["box", "discrete", "image", "dict"])
def test_estimators_learn_on_every_observation_space(cls: type, kind: str) -> None:
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}.get(kind, "MlpPolicy")
    extractor = {"image": {"features_dim": 4}, "dict": {"cnn_output_dim": 4}}.get(kind)
    policy_kwargs = {**TINY, **({"features_extractor_kwargs": extractor} if extractor else {})}
    model = cls(policy, vec_env([(2, 4), (3,)], kind=kind, scale=0.1), policy_kwargs=policy_kwargs, seed=0)
    before = [p.detach().clone() for p in model.estimator.parameters()]
    model.learn(40)
    after = list(model.estimator.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a gradient reaches the estimator"
    observation = model.observation_space.sample()
    action, _ = model.predict(observation, deterministic=True)
    assert model.action_space.contains(int(action))


@pytest.mark.parametrize("actions", ["box", "multi_discrete"])
@pytest.mark.parametrize("cls", LEARNED)
def test_estimators_learn_on_other_actions(cls: type, actions: str) -> None:
    model = cls("MlpPolicy", vec_env([(2, 4), (3,)], actions=actions, scale=0.1), policy_kwargs=dict(TINY), seed=0)
    before = [p.detach().clone() for p in model.estimator.parameters()]
    model.learn(40)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.estimator.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_ppo_with_an_outer_loop() -> None:
    kwargs: dict[str, Any] = {
        "estimator_class": PWR,
        "n_episodes": 2,
        "n_epochs": 1,
        "batch_size": 100,
        "meta_kwargs": {},
    }
    model = PPO("MlpPolicy", vec_env([(2, 4), (3,)], scale=0.1), policy_kwargs=dict(TINY), seed=0, n_steps=8, **kwargs)
    before = [p.detach().clone() for p in model.estimator.parameters()]
    model.learn(60)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.estimator.parameters(), strict=True))


CRITICS: dict[str, tuple[str, str, dict[str, Any], set[str]]] = {
    "separate layers": ("MlpPolicy", "box", {"net_arch": [8]}, {"mlp_extractor.value_net", "value_net"}),
    "shared extractor": ("CnnPolicy", "image", {"net_arch": []}, {"value_net"}),
    "own extractor": (
        "CnnPolicy",
        "image",
        {"net_arch": [], "share_features_extractor": False},
        {"vf_features_extractor", "value_net"},
    ),
}


@pytest.mark.parametrize("lengths", [[(4,), (4,)], [(2, 4), (3,)]], ids=["one length", "lengths"])
@pytest.mark.parametrize("case", CRITICS)
def test_critic_updates_are_a_loop_over_the_value_loss(case: str, lengths: list[tuple[int, ...]]) -> None:
    policy, kind, policy_kwargs, own = CRITICS[case]
    if kind == "image":
        policy_kwargs = {**policy_kwargs, "features_extractor_kwargs": {"features_dim": 4}}
    adam = {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"betas": (0.0, 0.99)}}
    plain, fitted = (
        A2C(
            policy,
            vec_env(lengths, kind=kind, scale=0.1),
            policy_kwargs={**policy_kwargs, **adam},
            seed=0,
            n_episodes=1,
            learning_rate=0.01,
            use_rms_prop=False,
            critic_updates=critic_updates,
        )
        for critic_updates in (0, 3)
    )
    fit = fitted._fit_critic
    fitted._fit_critic = lambda: (set_random_seed(7), fit())  # type: ignore[func-returns-value, method-assign]
    for model in (plain, fitted):
        set_random_seed(0)
        model.learn(1)  # one rollout
    # The same by hand, on what SB3's own step left behind.
    policy_after, buffer = plain.policy, plain.rollout_buffer
    observations, returns = buffer.observations, torch.as_tensor(buffer.returns.flatten())
    set_random_seed(7)
    order = np.random.permutation(len(returns))  # noqa: NPY002 (SB3's buffer draws so)
    size = -(-len(returns) // 3)
    critic = {
        name: p for name, p in policy_after.named_parameters() if any(name.startswith(f"{part}.") for part in own)
    }
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        values = policy_after.predict_values(torch.as_tensor(observations[rows])).flatten()
        loss = 0.5 * ((values - returns[rows]) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(critic.values()))
        policy_after.optimizer.zero_grad()
        for parameter, gradient in zip(critic.values(), gradients, strict=True):
            parameter.grad = gradient
        policy_after.optimizer.step()
    for (name, mine), theirs in zip(fitted.policy.named_parameters(), policy_after.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


def test_a_shared_critic_is_fitted_to_both_targets_at_once() -> None:
    """Against two losses, a loop over shares and two optimisers, written out."""
    rate, gamma, lam = 0.02, 0.9, 0.8
    model = MetaPWR(
        "MlpPolicy",
        vec_env([(2, 4), (3,)], kind="box", scale=0.1),
        policy_kwargs={**TINY, "optimizer_class": torch.optim.SGD},
        seed=0,
        learning_rate=0.01,
        critic_updates=3,
        gamma=gamma,
        gae_lambda=lam,
        meta_kwargs={"shared_critic": True, "value_learning_rate": rate},
    )
    assert model.meta is not None and isinstance(model.meta.value_net, CriticHead)
    head = model.meta.value_net.head
    twin, found = torch.nn.Linear(8, 1), []
    adam = torch.optim.Adam(twin.parameters(), lr=rate)
    twin.load_state_dict(head.state_dict())
    fit = model._fit_critic

    def by_hand() -> None:
        model.policy.action_dist.distribution = None  # holds a graph, which cannot be copied
        policy, (episodes, _) = copy.deepcopy(model.policy), model.rollout_buffer.episodes()
        # The outer targets are of the critic as it was when the rollout was judged: before the inner step.
        targets = []
        for b in range(episodes.batch_size):
            length = int(episodes.lengths[b])
            values = [*judged[b], torch.zeros(())]
            advantage = torch.zeros(())
            column = []
            for t in reversed(range(length)):
                error = episodes.rewards[t, b] + gamma * values[t + 1] - values[t]
                advantage = error + gamma * lam * advantage
                column.append(advantage + values[t])
            targets += column[::-1]
        set_random_seed(7)
        buffer = model.rollout_buffer
        observations, returns = torch.as_tensor(buffer.observations), torch.as_tensor(buffer.returns.flatten())
        order = np.random.permutation(len(returns))  # noqa: NPY002 (SB3's buffer draws so)
        size = -(-len(returns) // 3)
        layers = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            hidden = policy.mlp_extractor.forward_critic(observations[rows])
            inner = (policy.value_net(hidden).flatten() - returns[rows]).square().mean()
            outer = (twin(hidden).flatten() - torch.stack(targets)[rows]).square().mean()
            gradients = torch.autograd.grad(0.5 * (inner + outer), [*layers, *twin.parameters()])
            with torch.no_grad():
                for parameter, gradient in zip(layers, gradients, strict=False):
                    parameter -= 0.01 * gradient
            for parameter, gradient in zip(twin.parameters(), gradients[len(layers) :], strict=True):
                parameter.grad = gradient
            adam.step()
        set_random_seed(7)
        fit()
        found.append(1)
        for (name, mine), theirs in zip(model.policy.named_parameters(), policy.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, msg=name)
        for mine, theirs in zip(head.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)

    judged: list[Tensor] = []
    judge = model.meta.judge

    def listening(episodes: Any, values: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            judged[:] = [
                head(model.policy.mlp_extractor.forward_critic(episodes.observations[: int(n), b])).flatten()
                for b, n in enumerate(episodes.lengths)
            ]
        before = copy.deepcopy(head.state_dict())
        assert known is not None
        for b, column in enumerate(judged):  # the pass that was made already
            torch.testing.assert_close(episodes.unflatten(known)[: len(column), b], column)
        found = judge(episodes, values, known)
        assert all(torch.equal(before[key], value) for key, value in head.state_dict().items()), "fitted later"
        return found

    model.meta.judge = listening  # type: ignore[method-assign]
    model._fit_critic = by_hand  # type: ignore[method-assign]
    model.learn(30)
    assert len(found) > 2
    assert model.meta.take_head_targets() is None


def test_a_shared_critic_starts_afresh_with_the_policy() -> None:
    kwargs: dict[str, Any] = {"critic_updates": 2, "meta_kwargs": {"shared_critic": True}}
    model = MetaPWR("MlpPolicy", vec_env([(3,), (3,)], scale=0.1), policy_kwargs=dict(TINY), seed=0, **kwargs)
    model.learn(20)
    assert model.meta is not None and model.meta.value_net is not None and model.meta.value_optimizer is not None
    before = copy.deepcopy(model.meta.value_net.state_dict())
    model.reset_policy()
    assert not model.meta.value_optimizer.state
    assert not any(torch.equal(before[key], value) for key, value in model.meta.value_net.state_dict().items())
    model.learn(20, reset_num_timesteps=False)
    assert model.meta.value_optimizer.state


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"optimizer_class": torch.optim.SGD},
        {"optimizer_class": torch.optim.Adam},
        {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}},
        {"activation_fn": torch.nn.ReLU},
        {"net_arch": []},
        {"net_arch": {"pi": [4], "vf": [5, 3]}},
        {"ortho_init": False, "share_features_extractor": False},
    ],
)
def test_the_outer_loop_under_other_policy_settings(policy_kwargs: dict[str, Any]) -> None:
    model = MetaPWR("MlpPolicy", vec_env([(3,), (3,)], scale=0.1), policy_kwargs=policy_kwargs, seed=0)
    before = [p.detach().clone() for p in model.estimator.parameters()]
    model.learn(24)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.estimator.parameters(), strict=True))


@pytest.mark.parametrize("cls", [A2C, HPWR, *LEARNED])
def test_one_seed_one_run(cls: type) -> None:
    runs = [
        cls("MlpPolicy", vec_env([(2, 4), (3,)], scale=0.1), policy_kwargs=dict(TINY), seed=5).learn(40)
        for _ in range(2)
    ]
    for part in ("policy", "estimator"):
        one, other = ([*getattr(run, part).parameters(), *getattr(run, part).buffers()] for run in runs)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_evaluate_policy_and_a_second_learn() -> None:
    model = MetaPWTD("MlpPolicy", vec_env([(4,), (4,)]), policy_kwargs=dict(TINY), seed=0).learn(16)
    mean, _ = evaluate_policy(model, vec_env([(4,)]), n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == 32


def test_gymnasium_vector_envs_are_welcome() -> None:
    env = gym.make_vec("tca_envs:tca/DAG4-v0", num_envs=3, autoreset_mode=AutoresetMode.SAME_STEP)
    model = MetaPWR("MlpPolicy", env, policy_kwargs=dict(TINY), seed=0).learn(24)
    assert model.n_envs == 3
    assert model.mean_weights().shape == (4, 4)


def test_what_is_refused_and_what_may_bootstrap() -> None:
    """Meta-λ(s) as PWTD; the two others need every reward up to the end."""
    MetaLambda("MlpPolicy", vec_env([(9,), (9,)], "c"), n_episodes=None, n_steps=5, policy_kwargs=dict(TINY)).learn(40)
    for cls, name in ((RGM, "ReturnGeneratingModel"), (A2CRR, "RewardRedistribution")):
        for kwargs, words in (
            ({"endings": "c"}, "got an episode cut by a time limit"),
            ({"n_episodes": None, "n_steps": 5}, "got a piece of an episode"),
        ):
            kwargs = dict(kwargs)
            env = vec_env([(9,), (9,)], str(kwargs.pop("endings", "t")))
            model = cls("MlpPolicy", env, policy_kwargs=dict(TINY), **kwargs)
            before = [p.detach().clone() for part in (model.policy, model.estimator) for p in part.parameters()]
            with pytest.raises(ValueError, match=f"^{name} {words}"):
                model.learn(40)
            after = [p for part in (model.policy, model.estimator) for p in part.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            if isinstance(model.estimator, RewardRedistribution):
                assert not model.estimator.optimizer.state


class Counting(RewardRedistribution):
    """Notes the episodes of every fit, and how often advantages were computed by then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fits: list[tuple[Any, int]] = []
        self.calls = 0

    def fit(self, episodes: Any) -> dict[str, float]:
        self.fits.append((episodes, self.calls))
        return super().fit(episodes)

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return super().forward(*args)


def test_fit_comes_once_a_rollout_before_its_advantages(tmp_path: Any) -> None:
    watch = Watch()
    env = vec_env([(2, 4), (3,)], scale=0.1)
    model = A2C("MlpPolicy", env, estimator_class=Counting, n_episodes=1, policy_kwargs=dict(TINY))
    model.learn(40, callback=watch)
    assert [episodes for episodes, _ in model.estimator.fits] == [episodes for episodes, _ in watch.rollouts]
    assert [calls for _, calls in model.estimator.fits] == list(range(len(watch.rollouts)))
    assert len(watch.rollouts) > 2
    model.save(tmp_path / "model")
    assert A2C.load(tmp_path / "model").estimator.fits == []


@pytest.mark.parametrize("outer", ["MetaGradientCallback", "InnerLoopReset"])
def test_fit_comes_once_a_rollout_whatever_the_outer_loop_recomputes(outer: str) -> None:
    class CountingToo(StateLambda):
        fits = 0

        def fit(self, episodes: Any) -> dict[str, float]:
            type(self).fits += 1
            return super().fit(episodes)

    watch = Watch()
    callback = getattr(tca_sb3, outer)()
    A2C("MlpPolicy", vec_env([(4,), (3,)]), estimator_class=CountingToo, n_episodes=1, policy_kwargs=dict(TINY)).learn(
        200, callback=[callback, watch]
    )
    assert CountingToo.fits == len(watch.rollouts) > 20


def test_a2crr_trains_the_policy_on_redistributed_rewards() -> None:
    """What SB3's train() finds are the estimator's advantages, after its fit; in every episode as much is paid."""
    watch = Watch()
    model = A2CRR("MlpPolicy", vec_env([(2, 4), (3,)], scale=0.1), policy_kwargs=dict(TINY), seed=0)
    model.learn(2 * 4, callback=watch)
    episodes, values = watch.rollouts[-1]
    wanted = model.estimator(episodes, values)
    for b, length in enumerate(episodes.lengths.tolist()):
        found = watch.advantages[-1][:length, b]
        assert np.allclose(found, wanted.advantages[:length, b].numpy(), rtol=0, atol=1e-6)
        assert np.allclose(watch.returns[-1][:length, b], wanted.value_targets[:length, b].numpy(), rtol=0, atol=1e-6)
    new = model.estimator.redistribute(episodes)
    assert torch.allclose(new.sum(0), episodes.rewards.sum(0), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(new, episodes.rewards, rtol=0, atol=0.1)


@pytest.mark.parametrize("cls", [MetaPWR, HPWR])
def test_the_dag_is_learned(cls: type) -> None:
    """The main job in miniature: the best return of the depth-4 DAG is 2, a random policy gets 0."""
    env = DummyVecEnv([lambda: gym.make("tca_envs:tca/DAG4-v0") for _ in range(8)])
    model = cls("MlpPolicy", env, policy_kwargs={"net_arch": []}, learning_rate=0.02, seed=0)
    model.learn(3000)
    assert evaluate_policy(model, env, n_eval_episodes=8, warn=False)[0] == 2.0


def test_public_names() -> None:
    algorithms = {"A2C", "PPO", "HPWR", "MetaPWR", "MetaPWTD", "MetaLambda", "RGM", "A2CRR"}
    estimators = {"PWR", "PWTD", "MonteCarlo", "TDLambda", "StateLambda", "ReturnGeneratingModel"}
    parts = {"Episodes", "RewardRedistribution", "Exponential", "Fixed", "Product", "Tabular"}
    callbacks = {"MetaGradientCallback", "InnerLoopReset", "CreditHeatmap"}
    assert algorithms | estimators | parts | callbacks <= set(dir(tca_sb3))

"""The outer loop inside SB3: real policies, SB3's own ``train()``, and the order in which things happen."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scripted import Watch, vec_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from tca_sb3 import (
    A2C,
    A2CRR,
    PPO,
    PWR,
    PWTD,
    RGM,
    Episodes,
    InnerLoopReset,
    MetaGradientCallback,
    MetaLambda,
    MetaPWR,
    MetaPWTD,
    ReturnGeneratingModel,
    StateLambda,
    TDLambda,
    algorithms,
)
from tca_sb3.directional import Linearization, evaluate_with
from tca_sb3.inner import flatten, unflatten
from tca_sb3.meta import policy_actions
from tca_sb3.networks import CriticFeatures
from tca_sb3.objectives import inner_loss

TINY: dict[str, Any] = {"net_arch": [6]}  # copied where it is used: SB3's A2C writes into policy_kwargs
POLICIES = {"box": "MlpPolicy", "discrete": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}


def make(kind: str = "box", cls: type = MetaPWTD, actions: str = "discrete", endings: str = "t", **kwargs: Any) -> Any:
    extractor = {"image": {"features_dim": 8}, "dict": {"cnn_output_dim": 8}}.get(kind)
    policy_kwargs = {**TINY, **({"features_extractor_kwargs": extractor} if extractor else {})}
    policy_kwargs.update(kwargs.pop("policy_kwargs", {}))
    env = vec_env([(3, 2), (4,)], endings, kind, actions=actions, scale=0.05)
    return cls(POLICIES[kind], env, seed=1, policy_kwargs=policy_kwargs, **kwargs)


class Witness:
    """Wraps a model's ``train`` and notes what is true at that moment."""

    def __init__(self, model: Any) -> None:
        self.before: list[dict[str, Any]] = []
        self.after: list[Tensor] = []
        inside = model.train

        def train() -> None:
            self.before.append(
                {
                    "theta": theta_of(model),
                    "eta": eta_of(model),
                    "rollout": model.rollout_buffer.episodes(),
                    "advantages": model.rollout_buffer.advantages.copy(),
                    "returns": model.rollout_buffer.returns.copy(),
                    "optimizer": copy.deepcopy(model.policy.optimizer.state_dict()),
                }
            )
            inside()
            self.after.append(theta_of(model))

        model.train = train


def theta_of(model: Any) -> Tensor:
    return flatten(p.detach().clone() for p in model.policy.parameters())


def eta_of(model: Any) -> Tensor:
    return flatten(p.detach().clone() for p in model.estimator.parameters())


def with_eta(model: Any, eta: Tensor) -> Any:
    """A copy of the estimator at another ``η``."""
    estimator = copy.deepcopy(model.estimator)
    with torch.no_grad():
        pieces = eta.split([p.numel() for p in estimator.parameters()])
        for parameter, value in zip(estimator.parameters(), pieces, strict=True):
            parameter.copy_(value.view_as(parameter))
    return estimator


def test_a_step_judged_late_is_judged_with_the_critic_of_its_time() -> None:
    """Weights that look at the critic's features see those that the step was made with; the critic has moved since."""
    model = make(
        cls=MetaPWR,
        estimator_kwargs={"encoder_class": CriticFeatures},
        critic_updates=2,
        meta_kwargs={"outer_rollouts": 2},
    )
    seen: list[tuple[Tensor, Tensor]] = []
    inside = model.estimator.forward

    def forward(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append((theta_of(model), model.meta._steps[0].parameters))
        return inside(*arguments)

    model.estimator.forward = forward
    model.learn(60)
    assert len(seen) > 2
    assert all(torch.equal(now, then) for now, then in seen)
    assert not torch.equal(theta_of(model), seen[-1][0])


# -- the inner step -------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SB3's own": {},
    "Adam": {"optimizer_class": torch.optim.Adam},
    "SGD": {"optimizer_class": torch.optim.SGD},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [0.05, 1e3])
def test_the_recorded_step_is_what_sb3_did(optimizer: str, max_grad_norm: float) -> None:
    model = make(
        policy_kwargs=OPTIMIZERS[optimizer], max_grad_norm=max_grad_norm, learning_rate=lambda left: 0.01 * left
    )
    witness = Witness(model)
    model.learn(40)
    assert len(witness.after) > 2
    last = model.meta._steps[-1]
    assert torch.equal(last.parameters, witness.before[-1]["theta"])
    norm = last.gradient.norm().item()
    assert (norm > max_grad_norm) == (max_grad_norm == 0.05), "one clip is active, the other is not"
    decrement, _ = last.optimizer.update(last.gradient, last.optimizer_state)
    assert torch.allclose(last.parameters - decrement, witness.after[-1], rtol=0, atol=1e-7)
    assert last.optimizer.lr == model.policy.optimizer.param_groups[0]["lr"] < 0.01


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("cls", [A2C, PPO])
@pytest.mark.parametrize("estimator", [PWR, PWTD])
def test_sb3s_gradient_is_that_of_the_inner_loss(cls: type, normalize: bool, estimator: type) -> None:
    """What the metagradient differentiates, ``g(η) = ∇_θ L(θ; η)``, is what ``train()`` computed; PPO's ratio is 1."""
    one_step = {"n_steps": 8, "n_epochs": 1, "batch_size": 1000} if cls is PPO else {}
    shared = {"estimator_class": estimator, "n_episodes": 1, "meta_kwargs": {}, "normalize_advantage": normalize}
    model = make(cls=cls, ent_coef=0.02, **shared, **one_step)
    witness = Witness(model)
    model.learn(30)
    last, moment = model.meta._steps[-1], witness.before[-1]
    assert model.normalizes_advantage == normalize
    episodes, values = moment["rollout"]
    estimate = with_eta(model, moment["eta"])(episodes, values)
    advantages, targets = (episodes.flatten(part).detach() for part in estimate[:2])
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    point = unflatten(last.parameters.clone().requires_grad_(), dict(model.policy.named_parameters()))
    inputs = (episodes.flat_observations, policy_actions(model.policy, episodes))
    v, log_prob, entropy = evaluate_with(model.policy, point, *inputs)
    assert entropy is not None
    loss = inner_loss(advantages, targets, log_prob, v.flatten(), entropy, 0.02, model.vf_coef)
    wanted = flatten(torch.autograd.grad(loss, list(point.values())))
    assert torch.allclose(last.gradient, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    "case",
    [
        {"cls": MetaPWR, "policy_kwargs": {"share_features_extractor": False}},
        {"cls": MetaPWTD, "n_episodes": None, "n_steps": 6, "ent_coef": 0.02},
        {"cls": PPO, "estimator_class": PWR, "n_episodes": 2, "meta_kwargs": {}, "n_epochs": 1, "batch_size": 1000},
    ],
    ids=["MetaPWR", "MetaPWTD", "PPO"],
)
def test_the_inner_step_computes_nothing_twice(
    kind: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``train()`` is answered with what the outer step computed at the same θ; with dropout about, it would not be."""
    found = []
    for answered in (True, False):
        monkeypatch.setattr(algorithms, "same_in_training", lambda policy, answered=answered: answered)
        model = make(kind, **copy.deepcopy(case))
        evaluate, calls = model.policy_class.evaluate_actions, []
        monkeypatch.setattr(
            model.policy_class,
            "evaluate_actions",
            lambda *args, evaluate=evaluate, calls=calls: calls.append(1) or evaluate(*args),
        )
        witness = Witness(model)
        model.learn(40)
        monkeypatch.undo()
        assert len(calls) == (1 if answered else 2) * len(witness.after)
        assert "evaluate_actions" not in vars(model.policy)
        found.append((model.meta._steps[-1].gradient, witness.after[-1], eta_of(model)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


def test_a_policy_that_moved_after_the_outer_step_is_evaluated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    inside, evaluate, calls = model.train, model.policy_class.evaluate_actions, []
    monkeypatch.setattr(
        model.policy_class, "evaluate_actions", lambda *args: calls.append("evaluated") or evaluate(*args)
    )

    def train() -> None:
        with torch.no_grad():
            model.policy.action_net.bias.add_(0.5)
        calls.append("train")
        inside()

    model.train = train
    model.learn(20)
    assert calls[:3] == ["evaluated", "train", "evaluated"]


# -- the order of things --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "endings"),
    [(MetaPWR, "t"), (MetaPWTD, "t"), (MetaPWTD, "c"), (MetaLambda, "t"), (MetaLambda, "c"), (RGM, "t")],
)
def test_theta_learns_from_the_new_weights(cls: type, endings: str) -> None:
    """SB3 fills the buffer before callbacks run. What ``train()`` finds there must come from the η of after them."""
    model = make(cls=cls, endings=endings, meta_kwargs={"learning_rate": 0.005})
    witness = Witness(model)
    initial = eta_of(model)
    model.learn(40)
    for i, moment in enumerate(witness.before):
        episodes, values = moment["rollout"]
        previous = initial if i == 0 else witness.before[i - 1]["eta"]

        def filled(eta: Tensor, episodes: Episodes = episodes, values: Tensor = values) -> np.ndarray:
            with torch.no_grad():
                return with_eta(model, eta)(episodes, values).advantages[episodes.mask].numpy()

        found = advantages_by_step(moment, episodes)
        assert np.allclose(found, filled(moment["eta"]), rtol=0, atol=1e-6)
        if i == 0:
            assert torch.equal(moment["eta"], previous), "η waits for the first inner step"
        else:
            assert not torch.equal(moment["eta"], previous), "the gradient reaches η"
            assert np.abs(found - filled(previous)).max() > 1e-4


def advantages_by_step(moment: dict[str, Any], episodes: Episodes) -> np.ndarray:
    """The buffer's advantages in the order of ``episodes``, found by the observation that goes with each."""
    buffer = moment["advantages"]
    # One episode for each environment, from the first row on.
    result = np.zeros(tuple(episodes.rewards.shape), dtype=np.float32)
    for b, length in enumerate(episodes.lengths.tolist()):
        result[:length, b] = buffer[:length, b]
    return result[episodes.mask.numpy()]


def test_each_trajectory_is_used_twice() -> None:
    """τ′ of one turn is τ of the next, and the outer step sees θ′, the parameters that collected τ′."""
    model = make()
    witness = Witness(model)
    seen: list[tuple[Any, Any, Tensor]] = []
    metagradient = model.meta.metagradient

    def watched(policy: nn.Module, *rest: Any) -> Any:
        seen.append((model.meta._steps[-1].episodes, model.rollout_buffer.episodes()[0], theta_of(model)))
        return metagradient(policy, *rest)

    model.meta.metagradient = watched
    model.learn(60)
    rollouts = [moment["rollout"][0] for moment in witness.before]
    assert len(seen) == len(rollouts) - 1 > 2
    for i, (tau, tau_prime, theta) in enumerate(seen):
        assert tau is rollouts[i]
        assert tau_prime is rollouts[i + 1]
        assert torch.equal(theta, witness.after[i])


# -- the metagradient on SB3's policies -----------------------------------------------------------------------------


def naive_metagradient(model: Any, first: dict[str, Any], second: Any, estimator: Any, theta_state: Any) -> list[Any]:
    """Double backward through SB3's loss, clipping and RMSprop, written out, on SB3's policy."""
    policy = model.policy
    named = dict(policy.named_parameters())
    theta = first["theta"].clone().requires_grad_()

    class Evaluate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = policy

        def forward(self, *args: Any) -> Any:
            return self.inside.evaluate_actions(*args)

    def evaluate(vector: Tensor, episodes: Episodes) -> Any:
        parameters = {f"inside.{name}": value for name, value in unflatten(vector, named).items()}
        inputs = (episodes.flat_observations, policy_actions(policy, episodes))
        return torch.func.functional_call(Evaluate(), parameters, inputs, tie_weights=False)

    episodes, values = first["rollout"]
    estimate = estimator(episodes, values)
    advantages, targets = (episodes.flatten(x) for x in estimate[:2])
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    v, log_prob, entropy = evaluate(theta, episodes)
    loss = -(advantages * log_prob).mean() - model.ent_coef * entropy.mean()
    loss = loss + model.vf_coef * nn.functional.mse_loss(targets, v.flatten())
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    # Where SB3's parameter gets no gradient at all, the root has no derivative; the step there is 0.
    norm = (gradient**2).sum().sqrt()
    clipped = gradient * (model.max_grad_norm / (norm + 1e-6)) if norm + 1e-6 > model.max_grad_norm else gradient
    group = theta_state["param_groups"][0]
    square = flatten(entry["square_avg"] for entry in theta_state["state"].values())
    mean_square = group["alpha"] * square + (1 - group["alpha"]) * clipped**2
    live = mean_square > 0
    root = torch.where(live, torch.where(live, mean_square, 1.0).sqrt(), 0.0)
    moved = theta - group["lr"] * clipped / (root + group["eps"])
    outer_episodes, outer_values = second
    regular = TDLambda(model.observation_space, gamma=model.meta.gamma, gae_lambda=model.meta.gae_lambda)
    psi = outer_episodes.flatten(regular(outer_episodes, outer_values).advantages)
    outer = -(psi * evaluate(moved, outer_episodes)[1]).mean()
    return list(torch.autograd.grad(outer, list(estimator.parameters()), allow_unused=True))


REAL: list[dict[str, Any]] = [
    {"kind": "box"},
    {"kind": "box", "normalize_advantage": True, "ent_coef": 0.01},
    {"kind": "box", "max_grad_norm": 0.05},
    {"kind": "box", "cls": PWR, "max_grad_norm": 0.05},
    {"kind": "discrete"},
    {"kind": "image", "max_grad_norm": 0.05},
    {"kind": "image", "cls": PWR},
    {"kind": "dict"},
    {"kind": "dict", "cls": StateLambda},
    {"kind": "box", "cls": StateLambda, "max_grad_norm": 0.05},
    {"kind": "box", "cls": ReturnGeneratingModel, "max_grad_norm": 0.05},
    {"kind": "box", "cls": ReturnGeneratingModel, "actions": "box", "normalize_advantage": True},
    {"kind": "box", "actions": "box"},
    {"kind": "box", "actions": "multi_discrete"},
]


@pytest.mark.parametrize("case", REAL, ids=lambda case: "-".join(str(getattr(v, "__name__", v)) for v in case.values()))
def test_metagradient_on_real_policies(case: dict[str, Any]) -> None:
    """Single precision: to 1e-5 of the largest entry (3e-5 through a convolutional network)."""
    settings = dict(case)
    estimator = settings.pop("cls", PWTD)
    settings.setdefault("max_grad_norm", 1e3)
    model = make(cls=A2C, estimator_class=estimator, n_episodes=1, meta_kwargs={}, gamma=0.9, **settings)
    model.meta.value_net = model.meta.value_optimizer = None  # the critic judges: fewer parts to write out
    applied: list[list[Tensor]] = []
    apply = model.meta.apply

    def watched(gradient: Any) -> float:
        applied.append([g.clone() for g in gradient])
        return apply(gradient)

    model.meta.apply = watched
    witness = Witness(model)
    model.learn(28)
    assert len(witness.before) >= 3
    first, second = witness.before[-2:]
    wanted = naive_metagradient(model, first, second["rollout"], with_eta(model, first["eta"]), first["optimizer"])
    scale = max(g.abs().max().item() for g in wanted)
    assert scale > 0
    tolerance = 3e-5 if case["kind"] in ("image", "dict") else 1e-5
    for one, other in zip(applied[-1], wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=tolerance * scale)


# -- directional derivatives on SB3's policies ----------------------------------------------------------------------


def sample(model: Any, n: int = 5) -> tuple[Any, Tensor]:
    rng = np.random.default_rng(0)
    space: Any = copy.deepcopy(model.observation_space)
    space.seed(0)
    if isinstance(space, spaces.Dict):
        rows = [space.sample() for _ in range(n)]
        observations: Any = {key: torch.as_tensor(np.stack([row[key] for row in rows])) for key in rows[0]}
    else:
        observations = torch.as_tensor(np.stack([space.sample() for _ in range(n)]))
    if isinstance(model.action_space, spaces.Discrete):
        return observations, torch.as_tensor(rng.integers(model.action_space.n, size=n))
    return observations, torch.as_tensor(rng.normal(size=(n, *model.action_space.shape)).astype(np.float32))


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("shared", [True, False])
def test_tape_on_real_policies(kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind, A2C, policy_kwargs={"share_features_extractor": shared})
    observations, actions = sample(model)
    torch.manual_seed(0)
    u = {name: torch.randn_like(p) / 10 for name, p in model.policy.named_parameters()}
    forward = Linearization(model.policy, observations, actions, forward_mode=True)
    forward.freeze()
    wanted = forward.along(u)
    monkeypatch.setattr(torch.func, "jvp", None)  # SB3's own policies must not need it
    tape = Linearization(model.policy, observations, actions)
    tape.freeze()
    for one, other in zip(tape.along(u), wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    values, log_prob, _ = model.policy.evaluate_actions(observations, actions)
    for numbers, found in ((log_prob, wanted[0]), (values.flatten(), wanted[1])):
        for t, number in enumerate(numbers):
            grads = torch.autograd.grad(number, list(model.policy.parameters()), retain_graph=True, allow_unused=True)
            along = sum((g * d).sum() for g, d in zip(grads, u.values(), strict=True) if g is not None)
            assert found[t].item() == pytest.approx(along.item(), rel=1e-3, abs=1e-4 * found.abs().max().item())  # type: ignore[union-attr]


@pytest.mark.parametrize("actions", ["box", "multi_discrete"])
def test_other_action_spaces_fall_back_where_they_must(actions: str) -> None:
    model = make("box", A2C, actions)
    observations, _ = sample(model)
    taken = torch.as_tensor(np.stack([model.action_space.sample() for _ in range(5)])).float()
    torch.manual_seed(0)
    u = {name: torch.randn_like(p) / 10 for name, p in model.policy.named_parameters()}
    found = []
    for forward_mode in (True, False):
        linearization = Linearization(model.policy, observations, taken, forward_mode=forward_mode)
        linearization.freeze()
        found.append(linearization.along(u))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    if actions == "box":
        u["log_std"] = torch.ones_like(u["log_std"])
        only = {name: value if name == "log_std" else torch.zeros_like(value) for name, value in u.items()}
        linearization = Linearization(model.policy, observations, taken)
        linearization.freeze()
        # d/d log σ of log N(a; μ, σ) = ((a − μ)/σ)² − 1, summed over the action's axes.
        mean = model.policy.get_distribution(observations).distribution.mean
        wanted = (((taken - mean) / model.policy.log_std.exp()) ** 2 - 1).sum(1)
        assert torch.allclose(linearization.along(only)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "dict"])
def test_evaluating_elsewhere_leaves_a_shared_extractor_alone(kind: str) -> None:
    """SB3 registers one features extractor under three names; torch's default would write into all of them."""
    model = make(kind, A2C)
    policy = model.policy
    assert policy.features_extractor is policy.pi_features_extractor is policy.vf_features_extractor
    observations, actions = sample(model)
    live = copy.deepcopy(policy.state_dict())
    elsewhere = {name: p.detach() + 0.1 for name, p in policy.named_parameters()}
    values, _, _ = evaluate_with(policy, elsewhere, observations, actions)
    after = policy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in live.items())
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert torch.allclose(values, other.evaluate_actions(observations, actions)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [MetaPWR, MetaPWTD])
def test_frozen_parameters_stay_and_the_rest_learns(cls: type) -> None:
    model = make(cls=cls)
    frozen = list(model.policy.mlp_extractor.policy_net.parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    before, theta, eta = [p.clone() for p in frozen], theta_of(model), eta_of(model)
    model.learn(40)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert not torch.equal(theta, theta_of(model))
    assert not torch.equal(eta, eta_of(model))


def test_state_dependent_exploration() -> None:
    model = make(actions="box", use_sde=True)
    eta = eta_of(model)
    model.learn(40)
    assert torch.isfinite(eta_of(model)).all()
    assert not torch.equal(eta, eta_of(model))


class Normalized(BaseFeaturesExtractor):
    """Features that depend on the other members of the batch, in training mode."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 4)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(observations)


def test_weights_of_an_episode_do_not_depend_on_the_others() -> None:
    model = make(policy_kwargs={"features_extractor_class": Normalized}).learn(20)
    episodes, _ = model.rollout_buffer.episodes()
    before = copy.deepcopy(model.estimator.state_dict())
    together = model.pair_weights()
    for b, length in enumerate(episodes.lengths.tolist()):
        alone = Episodes(
            episodes.observations[: length + 1, [b]],
            episodes.actions[:length, [b]],
            episodes.rewards[:length, [b]],
            *(getattr(episodes, name)[[b]] for name in ("lengths", "terminated", "truncated", "started")),
        )
        with torch.no_grad():
            assert torch.allclose(model.estimator.pair_weights(alone)[0], together[b, :length, :length], atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.estimator.state_dict().items())


# -- callbacks around it --------------------------------------------------------------------------------------------


def n_outer_steps(model: Any) -> int:
    state = model.meta.optimizer.state
    return int(max((entry["step"] for entry in state.values()), default=0))


def test_callback_and_argument_are_the_same_run() -> None:
    one = make(cls=A2C, estimator_class=PWTD, n_episodes=1, meta_kwargs={"learning_rate": 0.02}).learn(40)
    other = make(cls=A2C, estimator_class=PWTD, n_episodes=1)
    other.learn(40, callback=MetaGradientCallback(learning_rate=0.02))
    named = make(meta_kwargs={"learning_rate": 0.02}).learn(40)
    for model in (other, named):
        assert torch.equal(theta_of(model), theta_of(one))
        assert torch.equal(eta_of(model), eta_of(one))


@pytest.mark.parametrize("wrap", ["alone", "list", "CallbackList", "nested"])
def test_one_outer_step_a_rollout_however_the_callback_is_passed(wrap: str) -> None:
    callback: Any = MetaGradientCallback()
    watch = Watch()
    given: Any = {
        "alone": callback,
        "list": [watch, callback],
        "CallbackList": CallbackList([callback, watch]),
        "nested": CallbackList([CallbackList([callback]), watch]),
    }[wrap]
    model = make(cls=A2C, estimator_class=PWTD, n_episodes=1)
    witness = Witness(model)
    model.learn(40, callback=given)
    assert n_outer_steps(model) == len(witness.before) - 1
    model.learn(40, callback=given, reset_num_timesteps=False)
    assert n_outer_steps(model) == len(witness.before) - 1


def test_the_outer_loop_goes_on_without_the_callback() -> None:
    model = make(cls=A2C, estimator_class=PWTD, n_episodes=1).learn(20, callback=MetaGradientCallback())
    done = n_outer_steps(model)
    model.learn(40, callback=lambda *_: True, reset_num_timesteps=False)
    assert n_outer_steps(model) > done


def test_callbacks_of_the_user_see_the_new_advantages() -> None:
    model = make(meta_kwargs={"learning_rate": 0.05})
    witness, watch = Witness(model), Watch()
    model.learn(40, callback=[watch])
    for moment, advantages in zip(witness.before, watch.advantages, strict=True):
        assert np.array_equal(moment["advantages"], advantages)
        assert advantages.any()


class Recorded(BaseCallback):
    """The logger's entries at the end of every rollout; goes last."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, Any]] = []

    def _on_rollout_end(self) -> None:
        self.entries.append(dict(self.logger.name_to_value))

    def _on_step(self) -> bool:
        return True


def test_what_is_logged() -> None:
    model = make(cls=MetaPWR)
    recorded, witness = Recorded(), Witness(model)
    assert isinstance(model.learn(40, callback=[recorded]).logger, Logger)
    first, later = recorded.entries[0], recorded.entries[1:]
    assert {"meta/outer_loss", "meta/mean_weight", "meta/saturation"} <= set(first)
    assert "meta/grad_norm" not in first, "nothing to differentiate before the first inner step"
    for entry, moment in zip(later, witness.before[1:], strict=True):
        assert entry["meta/grad_norm"] > 0
        episodes, _ = moment["rollout"]
        weights = with_eta(model, moment["eta"]).pair_weights(episodes)
        pairs = [
            weights[b, t, k].item()
            for b, length in enumerate(episodes.lengths.tolist())
            for t in range(length)
            for k in range(t, length)
        ]
        assert entry["meta/mean_weight"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
        assert entry["meta/saturation"] == sum(w < 0.02 or w > 0.98 for w in pairs) / len(pairs)


@pytest.mark.parametrize(("cls", "name"), [(MetaLambda, "lambda"), (RGM, "beta")])
def test_weights_of_steps_are_logged_under_their_name(cls: type, name: str) -> None:
    model = make(cls=cls, meta_kwargs={"learning_rate": 0.05})
    recorded, witness = Recorded(), Witness(model)
    model.learn(60, callback=[recorded])
    seen = []
    for entry, moment in zip(recorded.entries, witness.before, strict=True):
        episodes, _ = moment["rollout"]
        estimator = with_eta(model, moment["eta"])
        with torch.no_grad():
            weights = estimator.lambdas(episodes) if cls is MetaLambda else estimator.betas(episodes)
        steps = [weights[t, b].item() for b, length in enumerate(episodes.lengths.tolist()) for t in range(length)]
        assert entry[f"meta/mean_{name}"] == pytest.approx(sum(steps) / len(steps), abs=1e-6)
        assert entry["meta/saturation"] == pytest.approx(sum(w < 0.02 or w > 0.98 for w in steps) / len(steps))
        assert "meta/mean_weight" not in entry
        seen.append(entry[f"meta/mean_{name}"])
    assert abs(seen[-1] - seen[0]) > 1e-3, "the weights have moved"


def test_what_an_estimator_reports_of_its_own_training_is_logged() -> None:
    model = make(cls=A2CRR)
    reported: list[dict[str, float]] = []
    fit = model.estimator.fit
    model.estimator.fit = lambda episodes: reported.append(fit(episodes)) or reported[-1]
    recorded = Recorded()
    model.learn(20, callback=[recorded])
    assert len(reported) > 2
    # SB3 writes its log out (and forgets it) after a hundred rollouts only.
    assert model.logger.name_to_value["estimator/prediction_loss"] == reported[-1]["prediction_loss"] > 0
    assert "meta/outer_loss" not in model.logger.name_to_value


def test_saturation_is_the_share_of_weights_near_either_end() -> None:
    model = make("discrete", MetaPWR, meta_kwargs={"learning_rate": 1e-12})
    logits = model.estimator.weights.logits
    with torch.no_grad():
        logits.copy_(torch.tensor([-5.0, 0.0, 5.0])[torch.arange(logits.numel()).view_as(logits) % 7 % 3])
    recorded, watch = Recorded(), Watch()
    model.learn(20, callback=[recorded, watch])
    low = high = 0
    for entry, (episodes, _) in zip(recorded.entries, watch.rollouts, strict=True):
        pairs = [
            logits[episodes.observations[t, b], episodes.observations[k, b]].sigmoid().item()
            for b, length in enumerate(episodes.lengths.tolist())
            for t in range(length)
            for k in range(t + 1, length + 1)
        ]
        near = sum(w < 0.02 for w in pairs), sum(w > 0.98 for w in pairs)
        assert entry["meta/saturation"] == pytest.approx(sum(near) / len(pairs))
        low, high = low + near[0], high + near[1]
    assert min(low, high) > 0


def test_discarded_steps_are_logged_and_counted() -> None:
    model = make()
    watch, recorded = Watch(), Recorded()
    model.learn(40, callback=[watch, recorded])
    assert model.discarded_steps == sum(watch.discarded) > 0
    assert model.logger.name_to_value.get("rollout/discarded_steps", model.discarded_steps) == model.discarded_steps


# -- inner-loop reset -----------------------------------------------------------------------------------------------


class AtStart(BaseCallback):
    """``v_φ``, and whether its optimiser remembers anything, at the start of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.phi: list[Tensor] = []
        self.remembers: list[bool] = []

    def _on_rollout_start(self) -> None:
        meta: Any = self.model.meta  # type: ignore[attr-defined]
        self.phi.append(flatten(p.detach().clone() for p in meta.value_net.parameters()))
        self.remembers.append(bool(meta.value_optimizer.state))

    def _on_step(self) -> bool:
        return True


def test_inner_loop_reset_starts_lives_afresh() -> None:
    model = make(cls=A2C, estimator_class=PWR, n_episodes=1)
    witness = Witness(model)
    start = AtStart()
    n_inner, lives = 3, 3
    reset = InnerLoopReset(n_inner_updates=n_inner, learning_rate=0.05)
    recorded = Recorded()
    while len(witness.before) < lives * (n_inner + 1):
        model.learn(1, callback=[reset, start, recorded], reset_num_timesteps=False)
    eta = [moment["eta"] for moment in witness.before]
    theta = [moment["theta"] for moment in witness.before]
    assert n_outer_steps(model) == lives
    for i in range(1, len(eta)):
        # η moves at the last rollout of a life, and nowhere else.
        assert torch.equal(eta[i], eta[i - 1]) == ((i + 1) % (n_inner + 1) != 0), i
        # θ goes on from update to update, except from one life to the next.
        assert torch.equal(theta[i], witness.after[i - 1]) == (i % (n_inner + 1) != 0), i
    starts = theta[:: n_inner + 1]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])
    for i in range(0, len(theta), n_inner + 1):
        state = witness.before[i]["optimizer"]["state"]
        assert not state, "the optimiser forgets as well"
    for i in range(1, len(start.phi)):
        new_life = i % (n_inner + 1) == 0
        # One fit moves v_φ by a thousandth; a fresh draw moves it far, and its optimiser forgets.
        assert ((start.phi[i] - start.phi[i - 1]).abs().max().item() > 0.05) == new_life
        assert start.remembers[i] == (not new_life)
    for i, entry in enumerate(recorded.entries):
        assert ("meta/grad_norm" in entry) == ((i + 1) % (n_inner + 1) == 0)


def test_a_policy_that_was_reset_has_no_inner_step_behind_it() -> None:
    model = make().learn(20)
    theta, done = theta_of(model), n_outer_steps(model)
    model.reset_policy()
    assert not torch.equal(theta_of(model), theta)
    assert not model.policy.optimizer.state
    recorded = Recorded()
    model.learn(20, callback=[recorded], reset_num_timesteps=False)
    assert ["meta/grad_norm" in entry for entry in recorded.entries][:2] == [False, True]
    assert n_outer_steps(model) == done + len(recorded.entries) - 1


@pytest.mark.parametrize("cls", [MetaPWR, MetaPWTD, MetaLambda, RGM])
def test_the_weight_function_runs_once_a_rollout(cls: type) -> None:
    """The graph of the advantages that train θ serves the next metagradient; nothing is computed twice."""
    model = make(cls=cls)
    calls: list[int] = []
    model.estimator.register_forward_hook(lambda *_: calls.append(1))
    witness = Witness(model)
    model.learn(40)
    assert len(calls) == len(witness.before) > 2


def test_inner_loop_reset_trains_on_the_estimators_advantages() -> None:
    model = make(cls=A2C, estimator_class=PWR, n_episodes=1)
    witness = Witness(model)
    model.learn(60, callback=InnerLoopReset(n_inner_updates=2, learning_rate=0.05))
    for moment in witness.before:
        episodes, values = moment["rollout"]
        with torch.no_grad():
            wanted = with_eta(model, moment["eta"])(episodes, values).advantages[episodes.mask].numpy()
        assert np.allclose(advantages_by_step(moment, episodes), wanted, rtol=0, atol=1e-6)


MOMENTUM = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}


# -- refusals that must come before anything moves ------------------------------------------------------------------


def everything(model: Any) -> dict[str, Tensor]:
    state = {f"policy.{k}": v.clone() for k, v in model.policy.state_dict().items()}
    state.update({f"estimator.{k}": v.clone() for k, v in model.estimator.state_dict().items()})
    if model.meta is not None and model.meta.value_net is not None:
        state.update({f"phi.{k}": v.clone() for k, v in model.meta.value_net.state_dict().items()})
    return state


@pytest.mark.parametrize("good_rollouts", [0, 2])
def test_meta_pwr_refuses_a_time_out_before_anything_moves(good_rollouts: int) -> None:
    env = vec_env([(3,)], "t" * good_rollouts + "c")
    model = MetaPWR("MlpPolicy", env, policy_kwargs=dict(TINY), seed=0)
    if good_rollouts:
        model.learn(3 * good_rollouts)
    before, steps = everything(model), n_outer_steps(model)
    with pytest.raises(ValueError, match=r"^PWR got an episode cut by a time limit.*PWTD"):
        model.learn(3, reset_num_timesteps=False)
    after = everything(model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert n_outer_steps(model) == steps


def test_nan_rewards_are_refused_before_anything_moves() -> None:
    for cls in (MetaPWR, MetaPWTD, A2C):
        model = cls("MlpPolicy", vec_env([(3,)], scale=float("nan")), policy_kwargs=dict(TINY), seed=0)
        before = everything(model)
        with pytest.raises(ValueError, match="reward that is NaN or infinite"):
            model.learn(10)
        after = everything(model)
        assert all(torch.equal(before[name], after[name]) for name in before), cls


def test_n_steps_that_cannot_hold_an_episode() -> None:
    env = vec_env([(9,), (9,)])
    model = A2C("MlpPolicy", env, estimator_class=PWR, n_steps=5, policy_kwargs=dict(TINY))
    before = everything(model)
    with pytest.raises(ValueError, match=r"^PWR got a piece of an episode.*n_episodes=1"):
        model.learn(20)
    assert all(torch.equal(value, before[name]) for name, value in everything(model).items())
    # Whole episodes that do fit are fine.
    A2C("MlpPolicy", vec_env([(5,), (5,)]), estimator_class=PWR, n_steps=10, policy_kwargs=dict(TINY)).learn(40)


def test_ppo_that_makes_several_steps_is_refused_before_anything_moves() -> None:
    kwargs: dict[str, Any] = {"estimator_class": PWTD, "policy_kwargs": dict(TINY), "n_steps": 8, "batch_size": 16}
    with pytest.raises(ValueError, match=r"one gradient step per rollout.*n_epochs=10"):
        PPO("MlpPolicy", vec_env([(4,), (4,)]), meta_kwargs={}, **kwargs)
    kwargs["batch_size"] = 8
    model = PPO("MlpPolicy", vec_env([(4,), (4,)]), meta_kwargs={}, n_epochs=1, **kwargs)
    before = everything(model)
    with pytest.raises(ValueError, match=r"batch_size=8 cuts a rollout of 16 steps"):
        model.learn(16)
    assert all(torch.equal(value, before[name]) for name, value in everything(model).items())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make(cls=A2C, meta_kwargs={}), "TDLambda has no parameters"),
        (lambda: make(policy_kwargs={"optimizer_class": torch.optim.AdamW}), "AdamW"),
        (
            lambda: make(policy_kwargs={"optimizer_kwargs": {"momentum": 0.9}, "optimizer_class": torch.optim.SGD}),
            "momentum",
        ),
        (lambda: make(meta_kwargs={"learning_rate": -1.0}), "learning_rate=-1.0"),
        (lambda: InnerLoopReset(n_inner_updates=0), "n_inner_updates=0"),
    ],
)
def test_outer_loops_that_cannot_work_are_refused_at_once(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert str(caught.value).endswith(".")


def test_a_callback_with_other_settings_than_the_models_is_refused() -> None:
    model = make(meta_kwargs={"learning_rate": 0.1})
    with pytest.raises(ValueError, match=r"MetaGradientCallback got .*0\.2.* runs with .*0\.1"):
        model.learn(10, callback=MetaGradientCallback(learning_rate=0.2))
    model.learn(10, callback=MetaGradientCallback(learning_rate=0.1))


def test_other_callbacks_still_nest() -> None:
    watch = Watch()
    make().learn(30, callback=EveryNTimesteps(10, watch))


class OneStep(gym.Env[Any, Any]):
    """Every episode ends with its first step."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(2, np.float32), float(action), True, False, {}


@pytest.mark.parametrize("cls", [MetaPWR, MetaPWTD, MetaLambda, RGM])
def test_episodes_of_one_step_are_no_trouble(cls: Any) -> None:
    """There λ(s) has no say in anything, and stays what it is."""
    model = cls("MlpPolicy", OneStep(), seed=0, device="cpu")
    before = [parameter.clone() for parameter in model.estimator.meta_parameters()]
    model.learn(4)
    same = all(map(torch.equal, before, model.estimator.meta_parameters()))
    assert same == (cls is MetaLambda)

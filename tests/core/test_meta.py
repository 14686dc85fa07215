"""The outer loop against naive double backward through everything, and against finite differences."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import oracles
import policies
import pytest
import torch
from gymnasium import spaces
from samples import FloatEncoder, generator, random_episodes, random_values
from torch import Tensor, nn

from tca_sb3 import meta as meta_module
from tca_sb3.episodes import Episodes, map_observations
from tca_sb3.estimators import (
    PWR,
    PWTD,
    AdvantageEstimator,
    MonteCarlo,
    ReturnGeneratingModel,
    RewardRedistribution,
    StateLambda,
    TDLambda,
    WeightedEstimator,
)
from tca_sb3.inner import InnerOptimizer, flatten, unflatten
from tca_sb3.meta import (
    Lifetime,
    MetaLearner,
    episode_values,
    policy_actions,
    regular_advantages,
    unroll,
)
from tca_sb3.weights import Exponential, Product

GAMMA, LAMBDA, ENT_COEF, VF_COEF = 0.9, 0.8, 0.05, 0.5
SETTINGS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.3},
    "rmsprop": {"lr": 0.05, "alpha": 0.9, "eps": 1e-5},
    "rmsprop_tf": {"lr": 0.05, "alpha": 0.9, "eps": 1e-3},
    "adam": {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-5},
}


def optimizer_of(name: str, parameters: Any) -> torch.optim.Optimizer:
    s = SETTINGS[name]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=s["lr"])
    if name == "adam":
        return torch.optim.Adam(parameters, lr=s["lr"], betas=(s["beta1"], s["beta2"]), eps=s["eps"])
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=s["lr"], alpha=s["alpha"], eps=s["eps"])
    sb3 = pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like")
    return sb3.RMSpropTFLike(parameters, lr=s["lr"], alpha=s["alpha"], eps=s["eps"])


class Encoder(FloatEncoder):
    """Six numbers of any policy's observations."""

    def __init__(self) -> None:
        super().__init__("box")
        self.features_dim = 6

    def forward(self, observations: Any) -> Tensor:
        if isinstance(observations, dict):
            return torch.cat([observations["a"], observations["a"] ** 2, observations["a"].sin()], dim=1)
        return observations.flatten(1)[:, :6]


PRODUCT: dict[str, Any] = {"weights_class": Product, "weights_kwargs": {"embedding_dim": 2, "hidden_dim": 3}}
ARGUMENTS: dict[type[AdvantageEstimator], dict[str, Any]] = {
    PWR: PRODUCT,
    PWTD: PRODUCT,
    StateLambda: {"hidden_dim": 3},
    ReturnGeneratingModel: {"embedding_dim": 4, "n_heads": 1},
}


def make_estimator(cls: type[AdvantageEstimator] = PWR, kind: str = "mlp") -> AdvantageEstimator:
    torch.manual_seed(11)
    estimator = cls(
        spaces.Box(-10, 10, (6,)),
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        make_encoder=Encoder,
        action_space=spaces.Box(-10, 10, (3,)) if kind == "gaussian" else spaces.Discrete(policies.N_ACTIONS),
        **ARGUMENTS[cls],
    ).double()
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    return estimator


def make_rollout(kind: str, seed: int, lengths: tuple[int, ...] = (3, 4, 2)) -> tuple[Episodes, Tensor]:
    plain = random_episodes(list(lengths), "box", seed=seed, n_actions=policies.N_ACTIONS)
    observations, _ = policies.batch(kind, (plain.horizon + 1) * plain.batch_size, seed)
    shaped = map_observations(lambda part: part.unflatten(0, (plain.horizon + 1, plain.batch_size)), observations)
    actions = plain.actions
    if kind == "gaussian":
        actions = torch.randn(plain.horizon, plain.batch_size, 3, generator=generator(seed), dtype=torch.float64)
    episodes = Episodes(shaped, actions, plain.rewards, plain.lengths, plain.terminated, plain.truncated, plain.started)
    return episodes, random_values(episodes, seed + 100)


# -- the naive way --------------------------------------------------------------------------------------------------


def evaluate(policy: nn.Module, theta: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Values, log-probabilities and entropies under ``θ``, with a graph of any order."""

    class Evaluate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = policy

        def forward(self, observations: Any, actions: Tensor) -> Any:
            return self.inside.evaluate_actions(observations, actions)

    mask = episodes.mask
    observations = map_observations(lambda part: part[:-1][mask], episodes.observations)
    actions = episodes.actions[mask]
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions[:, 0].long()
    named = unflatten(theta, dict(policy.named_parameters()))
    return torch.func.functional_call(
        Evaluate(), {f"inside.{name}": value for name, value in named.items()}, (observations, actions)
    )


def sb3_loss(
    policy: nn.Module, theta: Tensor, episodes: Episodes, advantages: Tensor, targets: Tensor, normalize: bool
) -> Tensor:
    """The loss of ``stable_baselines3.A2C.train``, as it stands there."""
    values, log_prob, entropy = evaluate(policy, theta, episodes)
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy_loss = -(advantages * log_prob).mean()
    value_loss = nn.functional.mse_loss(targets, values.flatten())
    return policy_loss + ENT_COEF * -entropy.mean() + VF_COEF * value_loss


def outer_advantages(episodes: Episodes, values: Tensor) -> Tensor:
    """Eq. 8 by the double loop, real steps in the order of the mask."""
    result = torch.zeros_like(episodes.rewards)
    for b in range(episodes.batch_size):
        length = int(episodes.lengths[b])
        deltas = oracles.td_errors(episodes.rewards[:length, b].tolist(), values[: length + 1, b].tolist(), GAMMA)
        column = oracles.pairwise_sum(deltas, lambda t, k: (GAMMA * LAMBDA) ** (k - t - 1))
        result[:length, b] = torch.tensor(column, dtype=torch.float64)
    return result[episodes.mask]


def naive_gradient(
    policy: nn.Module, estimator: AdvantageEstimator, theta: Tensor, inner: tuple[Episodes, Tensor], normalize: bool
) -> Tensor:
    """The inner loss's gradient as a function of ``η``."""
    episodes, values = inner
    estimate = estimator(episodes, values)
    theta = theta.detach().clone().requires_grad_()
    mask = episodes.mask
    loss = sb3_loss(policy, theta, episodes, estimate.advantages[mask], estimate.value_targets[mask], normalize)
    return torch.autograd.grad(loss, theta, create_graph=True)[0]


def naive_step(
    policy: nn.Module,
    theta: Tensor,
    memory: dict[str, Tensor],
    gradient: Tensor,
    optimizer: str,
    max_norm: float | None,
) -> Tensor:
    """``θ`` after one inner step, as a function of the gradient."""
    # Frozen parameters are not the optimiser's business.
    free = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in policy.parameters()]).nonzero()[:, 0]
    stepped, _ = oracles.optimizer_step(
        optimizer, theta[free], oracles.clipped(gradient[free], max_norm), memory, SETTINGS[optimizer]
    )
    return theta.scatter(0, free, stepped)


def naive_outer_loss(
    policy: nn.Module,
    estimator: AdvantageEstimator,
    theta: Tensor,
    memory: dict[str, Tensor],
    inner: tuple[Episodes, Tensor],
    outer: tuple[Episodes, Tensor],
    optimizer: str,
    max_norm: float | None,
    normalize: bool,
) -> Tensor:
    """The outer loss after one inner step, as a function of ``η`` through every operation in between."""
    gradient = naive_gradient(policy, estimator, theta, inner, normalize)
    moved = naive_step(policy, theta, memory, gradient, optimizer, max_norm)
    _, log_prob, _ = evaluate(policy, moved, outer[0])
    return -(outer_advantages(*outer) * log_prob).mean()


class Run:
    """A policy that makes inner steps as SB3 does, under a learner that watches."""

    def __init__(
        self,
        kind: str = "mlp",
        estimator: type[AdvantageEstimator] = PWR,
        optimizer: str = "rmsprop",
        max_norm: float | None = 0.5,
        normalize: bool = False,
        value_net: nn.Module | None = None,
        **meta_kwargs: Any,
    ) -> None:
        self.kind, self.optimizer_name, self.max_norm, self.normalize = kind, optimizer, max_norm, normalize
        self.policy = policies.make(kind)
        self.optimizer = optimizer_of(optimizer, self.policy.parameters())
        self.estimator = make_estimator(estimator, kind)
        self.meta = MetaLearner(self.estimator, value_net, gamma=GAMMA, gae_lambda=LAMBDA, **meta_kwargs)
        self.applied: list[Any] = []
        apply = self.meta.apply

        def watched(gradient: Any) -> float:
            self.applied.append([torch.zeros(()) if g is None else g.clone() for g in gradient])
            return apply(gradient)

        self.meta.apply = watched  # type: ignore[method-assign]

    @property
    def theta(self) -> Tensor:
        return flatten(p.detach().clone() for p in self.policy.parameters())

    def train(self, rollout: tuple[Episodes, Tensor]) -> None:
        """One gradient step as SB3's A2C makes it, with the advantages of the present ``η``."""
        episodes, values = rollout
        with torch.no_grad():
            estimate = self.estimator(episodes, values)
        v, log_prob, entropy = self.policy.evaluate_actions(episodes.flat_observations, self.actions(episodes))
        advantages = episodes.flatten(estimate.advantages)
        if self.normalize:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        loss = -(advantages * log_prob).mean() - ENT_COEF * entropy.mean()
        loss = loss + VF_COEF * nn.functional.mse_loss(episodes.flatten(estimate.value_targets), v.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_norm)
        self.optimizer.step()

    def actions(self, episodes: Episodes) -> Tensor:
        actions = episodes.flat_actions
        return actions[:, 0].long() if isinstance(self.policy.action_space, spaces.Discrete) else actions

    def turn(self, rollout: tuple[Episodes, Tensor]) -> dict[str, float]:
        """What happens at the end of a rollout: outer step, advantages under the new ``η``, inner step."""
        stats = self.meta.outer_step(self.policy, *rollout, VF_COEF, self.normalize)
        self.meta.estimate(*rollout)
        with self.meta.recording(self.policy, self.optimizer, self.max_norm):  # type: ignore[arg-type]
            self.train(rollout)
        return stats


def memory_of(run: Run) -> dict[str, Tensor]:
    """What the live optimiser remembers, in the oracle's words."""
    states = [run.optimizer.state[p] for p in run.policy.parameters() if p.requires_grad]
    if run.optimizer_name == "sgd" or not states[0]:
        return {}
    if run.optimizer_name == "adam":
        return {
            "t": torch.tensor(int(states[0]["step"])),
            "m": flatten(s["exp_avg"].clone() for s in states),
            "v": flatten(s["exp_avg_sq"].clone() for s in states),
        }
    return {"v": flatten(s["square_avg"].clone() for s in states)}


CASES: list[dict[str, Any]] = [
    {"optimizer": optimizer, "max_norm": max_norm, "normalize": normalize}
    for optimizer in SETTINGS
    for max_norm in (None, 0.05, 1e3)
    for normalize in (False, True)
]
CASES += [{"kind": kind} for kind in ("shared trunk", "gaussian", "conv", "layer norm", "dict", "frozen layer")]
CASES += [
    {"estimator": estimator, "optimizer": name, "max_norm": 0.05}
    for estimator in (PWTD, StateLambda, ReturnGeneratingModel)
    for name in SETTINGS
]
# On a shared trunk the value targets' own dependence on η counts.
CASES += [
    {"estimator": estimator, "kind": kind, "normalize": True}
    for estimator in (StateLambda, ReturnGeneratingModel)
    for kind in ("shared trunk", "gaussian", "dict")
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(str(getattr(v, "__name__", v)) for v in case.values())
)
def test_metagradient_is_naive_double_backward(case: dict[str, Any]) -> None:
    kind = case.get("kind", "mlp")
    run = Run(**case)
    first, second, third = (make_rollout(kind, seed) for seed in (20, 30, 40))
    run.turn(first)  # gives the optimiser something to remember
    before, memory = run.theta, memory_of(run)
    assert run.applied == []
    run.turn(second)
    stats = run.meta.outer_step(run.policy, *third, VF_COEF, run.normalize)
    assert set(stats) == {"outer_loss", "grad_norm"}
    found = run.applied[-1]
    assert len(run.applied) == 2

    # η has moved since; the inner step was made under its value between the first and the second outer step.
    replay = Run(**case)
    replay.turn(first)
    replay.turn(second)
    naive = naive_outer_loss(
        replay.policy,
        replay.estimator,
        before,
        memory,
        second,
        third,
        run.optimizer_name,
        run.max_norm,
        run.normalize,
    )
    wanted = torch.autograd.grad(naive, list(replay.estimator.parameters()), allow_unused=True)
    assert stats["outer_loss"] == pytest.approx(naive.item(), abs=1e-12)
    scale = max(g.abs().max().item() for g in wanted)
    assert scale > 1e-7
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * scale)
    assert stats["grad_norm"] == pytest.approx(flatten(wanted).norm().item(), rel=1e-9)


@pytest.mark.parametrize(("optimizer", "max_norm"), [("rmsprop", 0.05), ("adam", 1e3)])
def test_metagradient_is_what_a_small_change_of_eta_does(optimizer: str, max_norm: float) -> None:
    run = Run(optimizer=optimizer, max_norm=max_norm, normalize=True)
    first, second = make_rollout("mlp", 20), make_rollout("mlp", 30)
    before = run.theta
    run.turn(first)
    run.meta.outer_step(run.policy, *second, VF_COEF, True)
    replay = Run(optimizer=optimizer, max_norm=max_norm, normalize=True)
    eta = list(replay.estimator.parameters())

    def outer_loss(vector: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter, value in zip(eta, vector.split([p.numel() for p in eta]), strict=True):
                parameter.copy_(value.view_as(parameter))
        return naive_outer_loss(
            replay.policy, replay.estimator, before, {}, first, second, optimizer, max_norm, True
        ).detach()

    point = flatten(p.detach() for p in eta)
    numeric = oracles.central_difference(outer_loss, point, 2e-7)
    found = flatten(run.applied[-1])
    assert torch.allclose(found, numeric, rtol=1e-5, atol=1e-6 * numeric.abs().max().item())


def test_the_recorded_step_is_the_step_that_was_made() -> None:
    """Parameters, gradient and optimiser state, through our step, give the parameters after."""
    for optimizer in SETTINGS:
        for max_norm in (0.05, 1e3):
            run = Run(optimizer=optimizer, max_norm=max_norm)
            for seed in (20, 30, 40):
                before = run.theta
                run.turn(make_rollout("mlp", seed))
                last = run.meta._steps[-1]
                assert torch.equal(last.parameters, before)
                decrement, _ = last.optimizer.update(last.gradient, last.optimizer_state)
                assert torch.allclose(last.parameters - decrement, run.theta, rtol=0, atol=1e-12)
                assert not torch.equal(run.theta, before)


def test_the_second_trajectory_is_reused_as_the_first_of_the_next_turn() -> None:
    run = Run()
    rollouts = [make_rollout("mlp", seed) for seed in (20, 30, 40)]
    for i, rollout in enumerate(rollouts):
        stats = run.turn(rollout)
        assert ("grad_norm" in stats) == (i > 0)
        last = run.meta._steps[-1]
        assert last is not None and last.episodes is rollout[0]
        assert last.values is rollout[1]


def test_eta_moves_by_an_adam_step_along_the_metagradient() -> None:
    run = Run(learning_rate=0.02)
    run.turn(make_rollout("mlp", 20))
    expected = copy.deepcopy(list(run.estimator.parameters()))
    adam = torch.optim.Adam(expected, lr=0.02)
    for seed in (30, 40):
        run.turn(make_rollout("mlp", seed))
        for parameter, gradient in zip(expected, run.applied[-1], strict=True):
            parameter.grad = gradient
        adam.step()
    for one, other in zip(run.estimator.parameters(), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [{}, {"optimizer": "adam", "normalize": True}, {"estimator": StateLambda}])
@pytest.mark.parametrize(("count", "interval"), [(3, 1), (3, 2), (2, 4), (1, 2)])
def test_several_rollouts_judge_the_oldest_inner_step(case: dict[str, Any], count: int, interval: int) -> None:
    """Their outer gradients, each at its own ``θ``, are averaged; through the step goes naive double backward: the
    optimiser's part where the step was made, the advantages' part at the present ``η``. Of the inner steps only every
    ``interval``-th is judged."""
    run = Run(outer_rollouts=count, update_interval=interval, learning_rate=0.02, **case)
    rollouts = [make_rollout("mlp", seed) for seed in range(20, 28)]
    judged = range(0, len(rollouts) - count, interval)
    outer, pulls = [], []
    for index, rollout in enumerate(rollouts):
        theta, memory = run.theta.requires_grad_(), memory_of(run)
        _, log_prob, _ = evaluate(run.policy, theta, rollout[0])
        outer.append(torch.autograd.grad(-(outer_advantages(*rollout) * log_prob).mean(), theta)[0])
        eta = copy.deepcopy(run.estimator)
        stats = run.turn(rollout)
        made = naive_gradient(run.policy, run.estimator, theta, rollout, run.normalize).detach().requires_grad_()
        moved = naive_step(run.policy, theta.detach(), memory, made, run.optimizer_name, run.max_norm)
        assert torch.allclose(moved, run.theta, rtol=0, atol=1e-12)
        pulls.append((theta, made, moved))
        oldest = index - count
        assert ("grad_norm" in stats) == (oldest in judged)
        if oldest in judged:
            theta, made, moved = pulls[oldest]
            (along,) = torch.autograd.grad(moved, made, torch.stack(outer[oldest + 1 : index + 1]).mean(0))
            gradient = naive_gradient(run.policy, eta, theta, rollouts[oldest], run.normalize)
            wanted = torch.autograd.grad(gradient @ along, list(eta.parameters()), allow_unused=True)
            scale = max(part.abs().max().item() for part in wanted)
            for one, other in zip(run.applied[-1], wanted, strict=True):
                assert torch.allclose(one, other, rtol=0, atol=1e-9 * scale)
    assert len(run.applied) == len(judged) > 1


def test_waiting_steps_keep_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made anew to judge a step is gone at once, without the garbage collector: a tape a rollout is a leak."""
    made: list[weakref.ref[Any]] = []

    class Watched(meta_module.Linearization):
        def __init__(self, *arguments: Any, **kwargs: Any) -> None:
            super().__init__(*arguments, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(meta_module, "Linearization", Watched)
    run = Run(outer_rollouts=2)
    gc.disable()
    try:
        for seed in range(20, 25):
            run.turn(make_rollout("mlp", seed))
        alive = sum(one() is not None for one in made)
    finally:
        gc.enable()
    assert len(made) == 5 + 3
    assert alive == 0


def value_net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, states: Tensor, targets: Tensor) -> None:
    loss = nn.functional.mse_loss(net(states).flatten(), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def require_same_value_net(run: Run, net: nn.Module) -> None:
    assert run.meta.value_net is not None
    for one, other in zip(run.meta.value_net.parameters(), net.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_v_phi_judges_first_and_is_fitted_then() -> None:
    run = Run(value_net=value_net(), value_learning_rate=0.05)
    theirs = value_net()
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05)
    for seed in (20, 30, 40):
        episodes, values = make_rollout("mlp", seed)
        judged = torch.zeros_like(values)
        for b in range(episodes.batch_size):
            for t in range(int(episodes.lengths[b])):
                judged[t, b] = theirs(episodes.observations[t, b]).item()
        theta = run.theta
        stats = run.turn((episodes, values))
        _, log_prob, _ = evaluate(run.policy, theta, episodes)
        advantages = outer_advantages(episodes, judged)
        assert stats["outer_loss"] == pytest.approx(-(advantages * log_prob).mean().item(), abs=1e-10)
        targets = advantages + judged[:-1][episodes.mask]
        fit(theirs, adam, episodes.observations[:-1][episodes.mask], targets)
        require_same_value_net(run, theirs)


def test_v_phi_takes_several_steps_on_shares_of_the_rollout() -> None:
    run = Run(value_net=value_net(), value_learning_rate=0.05, value_updates=3)
    theirs = value_net()
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05)
    for seed in (20, 30):
        episodes, values = make_rollout("mlp", seed)
        with torch.no_grad():
            judged = episode_values(theirs, episodes)
        targets = outer_advantages(episodes, judged) + judged[:-1][episodes.mask]
        states = episodes.observations[:-1][episodes.mask]
        torch.manual_seed(seed)
        order = torch.randperm(len(states)).tolist()
        torch.manual_seed(seed)
        run.turn((episodes, values))
        shares = [order[:3], order[3:6], order[6:]]  # nine steps
        for share in shares:
            fit(theirs, adam, states[share], targets[share])
        require_same_value_net(run, theirs)


def test_more_value_updates_than_steps_make_one_a_step() -> None:
    run = Run(value_net=value_net(), value_updates=50)
    run.turn(make_rollout("mlp", 20))
    assert run.meta.value_optimizer is not None
    assert {int(state["step"]) for state in run.meta.value_optimizer.state.values()} == {9}


def test_centred_scores_reach_the_metagradient() -> None:
    """It differs where other episodes have the time, and is the same to the bit where none has."""
    run = Run(center_scores=True, learning_rate=1e-12)
    plain = Run(learning_rate=1e-12)
    seen: list[Tensor] = []
    for one in (run, plain):
        for seed in (20, 30):
            one.turn(make_rollout("mlp", seed))
        seen.append(flatten(torch.zeros(1, dtype=torch.float64) if g is None else g for g in one.applied[-1]))
    assert not torch.allclose(seen[0], seen[1])
    # Where a time has one episode there is nothing to take away.
    single = [Run(center_scores=centred, learning_rate=1e-12) for centred in (True, False)]
    for one in single:
        for seed in (20, 30):
            one.turn(make_rollout("mlp", seed, lengths=(4,)))
    for with_centre, without in zip(single[0].applied[-1], single[1].applied[-1], strict=True):
        assert torch.equal(with_centre, without)


def test_centred_scores_are_those_of_the_inner_step_s_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the adjoint loss gets, against a loop over times and other episodes; columns differ in length."""
    seen: list[Tensor] = []
    inside = meta_module.adjoint_loss

    def watched(advantages: Tensor, targets: Tensor, along: Tensor, *rest: Any) -> Tensor:
        seen.append(along.clone())
        return inside(advantages, targets, along, *rest)

    monkeypatch.setattr(meta_module, "adjoint_loss", watched)
    for centred in (False, True):
        run = Run(center_scores=centred, learning_rate=1e-12)
        for seed in (20, 30):
            run.turn(make_rollout("mlp", seed))
    mask = make_rollout("mlp", 20)[0].mask
    plain = torch.zeros(mask.shape, dtype=torch.float64)
    plain[mask] = seen[0]
    wanted = []
    for t, b in mask.nonzero().tolist():
        others = [plain[t, c].item() for c in range(mask.shape[1]) if c != b and mask[t, c]]
        wanted.append(plain[t, b].item() - (sum(others) / len(others) if others else 0.0))
    assert torch.allclose(seen[1], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-9)


def make_full_run() -> Run:
    run = Run(value_net=value_net(), outer_rollouts=3, update_interval=2, learning_rate=0.02)
    for seed in range(10, 15):
        run.turn(make_rollout("mlp", seed))
    return run


def continued(run: Run) -> dict[str, Tensor]:
    stats: dict[str, float] = {}
    for seed in range(40, 44):
        stats = run.turn(make_rollout("mlp", seed))
    assert run.meta.value_net is not None
    return {
        "eta": flatten(p.detach() for p in run.estimator.parameters()),
        "phi": flatten(p.detach() for p in run.meta.value_net.parameters()),
        "theta": run.theta,
        "outer_loss": torch.tensor(stats["outer_loss"], dtype=torch.float64),
    }


def resumed(state: dict[str, Any], source: Run) -> Run:
    """A fresh learner beside a policy at the same point, with this state."""
    run = Run(value_net=value_net(), outer_rollouts=3, update_interval=2, learning_rate=0.02)
    run.policy.load_state_dict(source.policy.state_dict())
    run.optimizer.load_state_dict(copy.deepcopy(source.optimizer.state_dict()))
    run.estimator.load_state_dict(source.estimator.state_dict())
    run.meta.load_state_dict(copy.deepcopy(state))
    return run


def test_state_dict_resumes_bit_for_bit() -> None:
    source = make_full_run()
    run = resumed(source.meta.state_dict(), source)
    wanted = continued(source)
    for name, value in continued(run).items():
        assert torch.equal(value, wanted[name]), name


def test_no_entry_of_the_state_can_be_lost() -> None:
    """Each entry replaced by that of a fresh learner changes the run that follows."""
    source = make_full_run()
    state = copy.deepcopy(source.meta.state_dict())
    fresh = Run(value_net=value_net(), outer_rollouts=3, update_interval=2, learning_rate=0.02).meta.state_dict()
    runs = {entry: resumed({**state, entry: fresh[entry]}, source) for entry in state}
    wanted = continued(source)
    assert set(state) == {"optimizer", "value_net", "value_optimizer", "outer_gradients", "steps", "n_steps"}
    for entry, run in runs.items():
        found = continued(run)
        assert any(not torch.equal(found[name], wanted[name]) for name in wanted), entry


def test_state_survives_torch_save_with_weights_only(tmp_path: Any) -> None:
    source = make_full_run()
    torch.save(source.meta.state_dict(), tmp_path / "state.pt")
    run = resumed(torch.load(tmp_path / "state.pt", weights_only=True), source)
    wanted = continued(source)
    assert torch.equal(continued(run)["eta"], wanted["eta"])


def test_forget_leaves_no_inner_step() -> None:
    run = make_full_run()
    run.meta.forget()
    assert "grad_norm" not in run.meta.outer_step(run.policy, *make_rollout("mlp", 40), VF_COEF, False)


def test_after_forgetting_the_next_inner_step_is_judged_again() -> None:
    run = Run(update_interval=3)
    run.turn(make_rollout("mlp", 20))
    run.meta.forget()
    assert "grad_norm" not in run.turn(make_rollout("mlp", 30))
    assert "grad_norm" in run.turn(make_rollout("mlp", 40))


def test_a_step_that_nobody_judges_leaves_no_graph() -> None:
    run = Run(update_interval=2)
    for index in range(4):
        run.turn(make_rollout("mlp", 20 + index))
        kept = run.meta._linearization, run.meta._estimate
        assert all((part is not None) == (index % 2 == 0) for part in kept)


def test_a_second_gradient_step_is_refused() -> None:
    run = Run()
    rollout = make_rollout("mlp", 20)
    run.meta.outer_step(run.policy, *rollout, VF_COEF, False)
    run.meta.estimate(*rollout)

    def train_twice() -> None:
        with run.meta.recording(run.policy, run.optimizer, 0.5):
            run.train(rollout)
            run.train(rollout)

    with pytest.raises(ValueError, match="one gradient step per rollout"):
        train_twice()
    assert not any(p._post_accumulate_grad_hooks for p in run.policy.parameters())


# -- values, advantages, actions ------------------------------------------------------------------------------------


def test_episode_values_are_those_of_real_states() -> None:
    net = value_net()
    episodes = random_episodes([3, 5, 2], "box", terminated=[True, False, False])
    wide = Episodes(
        torch.cat([episodes.observations] * 2, dim=2),  # type: ignore[list-item]
        episodes.actions,
        episodes.rewards,
        episodes.lengths,
        episodes.terminated,
        episodes.truncated,
        episodes.started,
    )
    values = episode_values(net, wide)
    for b, (length, terminated) in enumerate(zip([3, 5, 2], [True, False, False], strict=True)):
        for t in range(6):
            real = t < length or (t == length and not terminated)
            wanted = net(wide.observations[t, b]).item() if real else 0.0
            assert values[t, b].item() == pytest.approx(wanted, abs=1e-12)
    known = net(wide.flat_observations).flatten()
    assert torch.allclose(episode_values(net, wide, known), values, rtol=0, atol=1e-12)


def test_regular_advantages_by_the_double_loop() -> None:
    episodes = random_episodes([3, 5, 2], "box", terminated=[True, False, False])
    values = random_values(episodes)
    advantages, targets = regular_advantages(episodes, values, GAMMA, LAMBDA)
    wanted = outer_advantages(episodes, values)
    assert torch.allclose(advantages[episodes.mask], wanted, rtol=0, atol=1e-12)
    assert torch.allclose(targets[episodes.mask], wanted + values[:-1][episodes.mask], rtol=0, atol=1e-12)
    space = spaces.Box(-1, 1, (3,))
    regular = TDLambda(space, gamma=GAMMA, gae_lambda=LAMBDA)(episodes, values)
    assert torch.allclose(advantages[episodes.mask], regular.advantages[episodes.mask], rtol=0, atol=1e-12)


def test_policy_actions() -> None:
    episodes = random_episodes([3, 2], "box")
    discrete = policy_actions(policies.make("mlp"), episodes)
    assert discrete.dtype == torch.int64
    assert discrete.tolist() == [int(episodes.actions[t, b, 0]) for t, b in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]]
    rollout, _ = make_rollout("gaussian", 1)
    continuous = policy_actions(policies.make("gaussian"), rollout)
    assert torch.equal(continuous, rollout.actions[rollout.mask])


# -- several inner steps --------------------------------------------------------------------------------------------

STEPS = 4


def inner_loss_of(eta: Tensor, i: int) -> Callable[[Tensor], Tensor]:
    target = torch.randn(3, generator=generator(i), dtype=torch.float64)
    return lambda theta: (torch.sin(theta * eta[:3] + target) + eta[3] * theta**2 + 0.3 * theta).sum()


def outer_loss_of(i: int) -> Callable[[Tensor], Tensor]:
    target = torch.randn(3, generator=generator(50 + i), dtype=torch.float64)
    return lambda theta: ((theta - target) ** 4).sum()


def by_hand(eta: Tensor, start: Tensor, optimizer: str, max_norm: float | None) -> tuple[Tensor, Tensor]:
    theta, memory, total = start.clone().requires_grad_(), {}, torch.zeros((), dtype=torch.float64)
    for i in range(STEPS):
        (gradient,) = torch.autograd.grad(inner_loss_of(eta, i)(theta), theta, create_graph=True)
        gradient = oracles.clipped(gradient, max_norm)
        theta, memory = oracles.optimizer_step(optimizer, theta, gradient, memory, SETTINGS[optimizer])
        total = total + outer_loss_of(i)(theta)
    return total, theta


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e3], ids=["unclipped", "clipped", "clip inactive"])
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_unroll(optimizer: str, max_norm: float | None) -> None:
    start = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    eta = torch.tensor([0.9, 1.3, -0.4, 0.2], dtype=torch.float64, requires_grad=True)
    settings = InnerOptimizer.of(optimizer_of(optimizer, [nn.Parameter(start.clone())]), max_norm)

    def ours(eta: Tensor) -> tuple[Tensor, Tensor]:
        inner = [inner_loss_of(eta, i) for i in range(STEPS)]
        return unroll(start, settings, inner, [outer_loss_of(i) for i in range(STEPS)])

    total, theta = ours(eta)
    wanted, last = by_hand(eta, start, optimizer, max_norm)
    assert total.item() == pytest.approx(wanted.item(), abs=1e-12)
    assert torch.allclose(theta, last, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(total, eta)
    assert torch.allclose(gradient, torch.autograd.grad(wanted, eta)[0], rtol=1e-11, atol=1e-11)
    numeric = oracles.central_difference(lambda e: ours(e)[0].detach(), eta)
    assert torch.allclose(gradient, numeric, rtol=1e-6, atol=1e-7)
    assert not start.requires_grad


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_unroll_of_several_lifetimes_is_each_alone(optimizer: str) -> None:
    starts = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    eta = torch.tensor([0.9, 1.3, -0.4, 0.2], dtype=torch.float64)
    settings = InnerOptimizer.of(optimizer_of(optimizer, [nn.Parameter(starts.clone())]), 0.5)
    losses = [inner_loss_of(eta, i) for i in range(STEPS)], [outer_loss_of(i) for i in range(STEPS)]
    total, theta = unroll(starts, settings, *losses)
    alone = [unroll(start, settings, *losses) for start in starts]
    assert total.item() == pytest.approx(sum(t.item() for t, _ in alone), abs=1e-10)
    for i in range(2):
        assert torch.allclose(theta[i], alone[i][1], rtol=0, atol=1e-12)


def test_unroll_continues_from_a_state() -> None:
    start = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    eta = torch.tensor([0.9, 1.3, -0.4, 0.2], dtype=torch.float64)
    for optimizer in SETTINGS:
        parameter = nn.Parameter(start.clone())
        live = optimizer_of(optimizer, [parameter])
        for i in range(2):
            live.zero_grad()
            inner_loss_of(eta, i)(parameter).backward()
            live.step()
        settings = InnerOptimizer.of(live)
        state = settings.state_of(live)
        _, theta = unroll(parameter.detach(), settings, [inner_loss_of(eta, 2)], [outer_loss_of(2)], state)
        live.zero_grad()
        inner_loss_of(eta, 2)(parameter).backward()
        live.step()
        assert torch.allclose(theta, parameter.detach(), rtol=0, atol=1e-12), optimizer


@pytest.mark.parametrize("estimator", ARGUMENTS)
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_a_lifetime_goes_back_through_all_its_updates(estimator: type[AdvantageEstimator], optimizer: str) -> None:
    """Inner-loop reset: the live policy is trained step by step; the gradient is that of the naive chain."""
    max_norm = 0.3
    net = None if estimator.regular_critic else value_net()
    run = Run(estimator=estimator, optimizer=optimizer, max_norm=max_norm, normalize=True, value_net=net)
    rollouts = [make_rollout("mlp", seed) for seed in (20, 30, 40, 50)]
    start = run.theta
    lifetime = Lifetime(run.meta, run.policy, ENT_COEF, VF_COEF, True)
    judged = []
    for rollout in rollouts:
        values = rollout[1] if net is None else episode_values(net, rollout[0]).detach()
        judged.append(outer_advantages(rollout[0], values))
        lifetime.add(*rollout)
        if rollout is not rollouts[-1]:
            run.train(rollout)
    assert lifetime.n_rollouts == 4

    eta = list(run.estimator.parameters())
    theta, memory = start.clone().requires_grad_(), {}
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        episodes, values = rollouts[i]
        estimate = run.estimator(episodes, values)
        mask = episodes.mask
        loss = sb3_loss(run.policy, theta, episodes, estimate.advantages[mask], estimate.value_targets[mask], True)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        gradient = oracles.clipped(gradient, max_norm)
        theta, memory = oracles.optimizer_step(optimizer, theta, gradient, memory, SETTINGS[optimizer])
        total = total - (judged[i + 1] * evaluate(run.policy, theta, rollouts[i + 1][0])[1]).mean()
    assert torch.allclose(theta, run.theta, rtol=0, atol=1e-10), "the chain follows the live policy"
    wanted = torch.autograd.grad(total, eta, allow_unused=True)

    stats = lifetime.outer_step(InnerOptimizer.of(run.optimizer, max_norm))
    assert stats["outer_loss"] == pytest.approx(total.item(), abs=1e-10)
    scale = max(g.abs().max().item() for g in wanted)
    for one, other in zip(run.applied[-1], wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * scale)


# -- bad input ------------------------------------------------------------------------------------------------------


def fixed_weights() -> WeightedEstimator:
    return PWTD(spaces.Discrete(3), gamma=0.9, gae_lambda=0.9, weights_class=Exponential)


BAD: dict[str, tuple[str, Callable[[], MetaLearner]]] = {
    "nothing to learn": (
        "PWTD has no parameters.*Tabular or Product",
        lambda: MetaLearner(fixed_weights(), None, gamma=0.9, gae_lambda=0.9),
    ),
    "a rate in two places": (
        "lr in optimizer_kwargs; write learning_rate",
        lambda: MetaLearner(make_estimator(), None, gamma=0.9, gae_lambda=0.9, optimizer_kwargs={"lr": 0.1}),
    ),
    **{
        f"{name}={value}": (
            f"MetaLearner got .*{name}={value}",
            lambda name=name, value=value: MetaLearner(  # type: ignore[misc]
                make_estimator(), None, **{"gamma": 0.9, "gae_lambda": 0.9, name: value}
            ),
        )
        for name, value in [
            ("learning_rate", 0.0),
            ("learning_rate", -1.0),
            ("learning_rate", float("nan")),
            ("value_learning_rate", 0.0),
            ("outer_rollouts", 0),
            ("outer_rollouts", 2.0),
            ("outer_rollouts", True),
            ("update_interval", 0),
            ("update_interval", 1.5),
            ("gamma", 1.5),
            ("gamma", float("nan")),
            ("gae_lambda", -0.1),
            ("value_updates", 0),
            ("value_updates", 1.5),
            ("value_updates", 2),  # without a v_φ of its own
        ]
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case: str) -> None:
    words, build = BAD[case]
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert str(caught.value).endswith(".")


def test_an_estimator_without_weights_is_refused() -> None:
    plain = MonteCarlo(spaces.Discrete(3), gamma=0.9, gae_lambda=0.9)
    with pytest.raises(ValueError, match="MonteCarlo has no parameters"):
        MetaLearner(plain, None, gamma=0.9, gae_lambda=0.9)


def test_an_estimator_that_trains_itself_is_refused() -> None:
    """It has parameters, and keeps them to itself."""
    own = RewardRedistribution(
        spaces.Box(-10, 10, (6,)),
        gamma=0.9,
        gae_lambda=0.9,
        make_encoder=Encoder,
        action_space=spaces.Discrete(2),
    )
    assert list(own.parameters())
    with pytest.raises(ValueError, match="RewardRedistribution has no parameters for the metagradient"):
        MetaLearner(own, None, gamma=0.9, gae_lambda=0.9)

"""Estimators: every file in ``tca_sb3/estimators`` is held to the laws of ``AdvantageEstimator``, each class to its
equation."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
from gymnasium import spaces
from samples import N_STATES, SPACES, FloatEncoder, columns, generator, random_episodes, random_values
from torch import Tensor, nn

import tca_sb3.estimators
from tca_sb3.episodes import Episodes
from tca_sb3.estimators import (
    PWR,
    PWTD,
    AdvantageEstimator,
    Estimate,
    MonteCarlo,
    PairwiseEstimator,
    ReturnGeneratingModel,
    RewardRedistribution,
    StateLambda,
    TDLambda,
    WeightedEstimator,
)
from tca_sb3.estimators.return_generating import _Block
from tca_sb3.estimators.steps import ActionEncoder, StateEncoder
from tca_sb3.weights import Exponential, PairwiseWeights, Tabular

GAMMA, LAMBDA = 0.9, 0.7
LENGTHS = [4, 7, 1, 5]


def found_classes() -> list[type[AdvantageEstimator]]:
    """Every concrete estimator that lives in the folder."""
    classes = []
    for module in pkgutil.iter_modules(tca_sb3.estimators.__path__):
        name = f"tca_sb3.estimators.{module.name}"
        for _, thing in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            here = thing.__module__ == name
            if here and issubclass(thing, AdvantageEstimator) and not inspect.isabstract(thing):
                classes.append(thing)
    return classes


ARGUMENTS: dict[type[AdvantageEstimator], dict[str, Any]] = {
    PWR: {"weights_class": Tabular},
    PWTD: {"weights_class": Tabular},
    ReturnGeneratingModel: {"embedding_dim": 4, "n_heads": 1},
    RewardRedistribution: {"hidden_dim": 3},
}


def make(
    cls: type[AdvantageEstimator],
    gamma: float = GAMMA,
    gae_lambda: float = LAMBDA,
    kind: str = "discrete",
    action_space: spaces.Space = spaces.Discrete(2),  # noqa: B008
    **kwargs: Any,
) -> Any:
    """The estimator with random parameters; if it takes weights, a table over the states."""
    estimator = cls(
        SPACES[kind],
        gamma=gamma,
        gae_lambda=gae_lambda,
        make_encoder=lambda: FloatEncoder(kind),
        action_space=action_space,
        **{**ARGUMENTS.get(cls, {}), **kwargs},
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(estimator.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(5 + i), dtype=torch.float64))
    return estimator


@pytest.fixture(params=found_classes(), ids=lambda cls: cls.__name__)
def estimator(request: pytest.FixtureRequest) -> AdvantageEstimator:
    return make(request.param)


def needs_whole_episodes(estimator: AdvantageEstimator) -> bool:
    cut = random_episodes([2], terminated=False)
    try:
        estimator(cut, random_values(cut))
    except ValueError as refusal:
        assert str(refusal).startswith(type(estimator).__name__)  # noqa: PT017
        return True
    return False


def suitable_episodes(estimator: AdvantageEstimator) -> Episodes:
    whole = needs_whole_episodes(estimator)
    return random_episodes(LENGTHS, terminated=True if whole else [True, False, True, False])


def real(episodes: Episodes, estimate: Estimate) -> tuple[Tensor, Tensor]:
    return estimate.advantages[episodes.mask], estimate.value_targets[episodes.mask]


def pairs(episodes: Episodes) -> Tensor:
    """Which entries of ``(B, T, T)`` stand for a pair of real times."""
    result = torch.zeros(episodes.batch_size, episodes.horizon, episodes.horizon, dtype=torch.bool)
    for b, length in enumerate(episodes.lengths.tolist()):
        for t in range(length):
            for k in range(t + 1, length + 1):
                result[b, t, k - 1] = True
    return result


def test_the_folder_is_not_empty_and_every_class_is_public() -> None:
    classes = found_classes()
    assert {MonteCarlo, TDLambda, PWTD, PWR, StateLambda, ReturnGeneratingModel, RewardRedistribution} <= set(classes)
    for cls in classes:
        assert getattr(tca_sb3.estimators, cls.__name__) is cls


def test_law_shapes_and_types(estimator: AdvantageEstimator) -> None:
    episodes = suitable_episodes(estimator)
    estimate = estimator(episodes, random_values(episodes))
    for result in (estimate.advantages, estimate.value_targets):
        assert result.shape == (7, 4)
        assert result.dtype == torch.float64
        assert torch.isfinite(result[episodes.mask]).all()
    assert (estimate.weights is None) == (not isinstance(estimator, PairwiseEstimator))
    if estimate.weights is not None:
        assert estimate.weights.shape in ((4, 7, 7), (7, 4))
        used = episodes.mask if estimate.weights.ndim == 2 else pairs(episodes)
        assert ((estimate.weights[used] >= 0) & (estimate.weights[used] <= 1)).all()


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_law_padding_is_inert(estimator: AdvantageEstimator, garbage: float) -> None:
    """``values`` may hold anything after a column's last state, and observations any other observation."""
    episodes = suitable_episodes(estimator)
    values = random_values(episodes)
    beyond = torch.arange(8)[:, None] > episodes.lengths
    observations = torch.where(beyond, N_STATES - 1 - episodes.observations, episodes.observations)
    actions = episodes.actions.masked_fill(~episodes.mask.unsqueeze(2), 9.0)
    changed = replace(episodes, observations=observations, actions=actions)
    before = real(episodes, estimator(episodes, values))
    after = real(changed, estimator(changed, values.masked_fill(beyond, garbage)))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


def test_law_each_column_alone_gives_the_same(estimator: AdvantageEstimator) -> None:
    episodes = suitable_episodes(estimator)
    values = random_values(episodes)
    together = estimator(episodes, values)
    for b, length in enumerate(LENGTHS):
        alone = columns(episodes, [b], length)
        estimate = estimator(alone, values[: length + 1, b : b + 1])
        assert torch.allclose(estimate.advantages[:, 0], together.advantages[:length, b], rtol=0, atol=1e-12)
        assert torch.allclose(estimate.value_targets[:, 0], together.value_targets[:length, b], rtol=0, atol=1e-12)


def test_law_batch_permutation_equivariance(estimator: AdvantageEstimator) -> None:
    episodes = suitable_episodes(estimator)
    values = random_values(episodes)
    order = [2, 0, 3, 1]
    permuted = columns(episodes, order)
    before, after = estimator(episodes, values), estimator(permuted, values[:, order])
    mask = permuted.mask
    for one, other in zip(before[:2], after[:2], strict=True):
        assert torch.allclose(one[:, order][mask], other[mask], rtol=0, atol=1e-12)


def test_law_inputs_are_left_as_they_were(estimator: AdvantageEstimator) -> None:
    episodes = suitable_episodes(estimator)
    values = random_values(episodes)
    rewards, before = episodes.rewards.clone(), values.clone()
    estimator(episodes, values)
    assert torch.equal(episodes.rewards, rewards)
    assert torch.equal(values, before)


def test_law_a_regular_critic_predicts_the_regular_return(estimator: AdvantageEstimator) -> None:
    """What ``regular_critic`` promises to the outer loop: with exact values the targets are unbiased for ``G_t``.

    On one deterministic episode that means: fed with ``v(S_t) = G_t``, the targets are ``G_t``.
    """
    episodes = random_episodes([6])
    returns = torch.tensor([*oracles.returns(episodes.rewards[:, 0].tolist(), GAMMA), 0.0], dtype=torch.float64)
    targets = estimator(episodes, returns[:, None]).value_targets[:, 0]
    assert torch.allclose(targets, returns[:-1], rtol=0, atol=1e-12) == estimator.regular_critic


def test_law_pair_weights_are_what_the_advantages_sum_with(estimator: AdvantageEstimator) -> None:
    """Eq. 9 or Eqs. 10, 11 with these weights, by the double loop: TD errors where the critic predicts the regular
    return, rewards and a baseline where it does not."""
    if not isinstance(estimator, PairwiseEstimator):
        return
    episodes = suitable_episodes(estimator)
    values = random_values(episodes)
    weights = estimator.pair_weights(episodes)
    assert weights.shape == (4, 7, 7)
    assert ((weights >= 0) & (weights <= 1))[pairs(episodes)].all()
    advantages = estimator(episodes, values).advantages
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        signal = oracles.td_errors(rewards, v, GAMMA) if estimator.regular_critic else rewards
        sums = oracles.pairwise_sum(signal, lambda t, k, w=weights[b]: w[t, k - 1].item())
        for t, wanted in enumerate(sums):
            baseline = 0.0 if estimator.regular_critic else v[t]
            assert advantages[t, b].item() == pytest.approx(wanted - baseline, abs=1e-12)


def test_law_what_can_be_trained_is_trained_by_one(estimator: AdvantageEstimator) -> None:
    """By the metagradient or by ``fit``: every parameter by one of them, none by both."""
    episodes = suitable_episodes(estimator)
    before = {name: parameter.detach().clone() for name, parameter in estimator.named_parameters()}
    stats = estimator.fit(episodes)
    assert all(isinstance(value, float) for value in stats.values())
    learned = {id(parameter) for parameter in estimator.meta_parameters()}
    for name, parameter in estimator.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in learned), name
        assert parameter.grad is None, "nothing is left behind"


def test_law_gradients_end_in_eta(estimator: AdvantageEstimator) -> None:
    """Critic values enter as data: backpropagation ends in what the metagradient learns, all of it, and is right."""
    eta = estimator.meta_parameters()
    episodes = random_episodes([4, 2])
    values = random_values(episodes)
    estimate = estimator(episodes, values)
    assert estimate.advantages.requires_grad == bool(eta)
    if not eta:
        assert not estimate.value_targets.requires_grad
        return
    draw = generator(2)
    for index in range(2):
        result = estimator(episodes, values)[index]
        if not result.requires_grad:
            assert isinstance(estimator, PWTD), "its critic regresses on the regular λ-return"
            continue
        coefficients = torch.randn(4, 2, generator=draw, dtype=torch.float64) * episodes.mask

        def score(vector: Tensor, index: int = index, coefficients: Tensor = coefficients) -> Tensor:
            parts = vector.split([parameter.numel() for parameter in eta])
            kept = [parameter.detach().clone() for parameter in eta]
            with torch.no_grad():
                for parameter, part in zip(eta, parts, strict=True):
                    parameter.copy_(part.view_as(parameter))
                total = (estimator(episodes, values)[index] * coefficients).sum()
                for parameter, old in zip(eta, kept, strict=True):
                    parameter.copy_(old)
            return total

        found = torch.autograd.grad((result * coefficients).sum(), eta)
        flat = torch.cat([part.reshape(-1) for part in found])
        numeric = oracles.central_difference(score, torch.cat([p.detach().reshape(-1) for p in eta]))
        assert flat.any()
        assert torch.allclose(flat, numeric, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_law_discounts_outside_the_unit_interval_are_refused(
    estimator: AdvantageEstimator, name: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"^{type(estimator).__name__} got {name}=.*\[0, 1\]\."):
        make(type(estimator), **{"gamma": 0.9, "gae_lambda": 0.9, name: value})


@pytest.mark.parametrize("change", ["rows", "columns", "axes"])
def test_law_values_of_the_wrong_shape_are_refused(estimator: AdvantageEstimator, change: str) -> None:
    episodes = random_episodes([4, 3, 2])
    values = random_values(episodes)
    wrong = {"rows": values[:-1], "columns": values[:, :1], "axes": values.unsqueeze(2)}[change]
    with pytest.raises(ValueError, match=r"got values of shape .*\(T \+ 1, B\)"):
        estimator(episodes, wrong)


# -- each class against its equation --------------------------------------------------------------------------------

SETTINGS = [(gamma, gae_lambda) for gamma in (0.0, 0.9, 1.0) for gae_lambda in (0.0, 0.7, 1.0)]


def column_of(episodes: Episodes, values: Tensor, b: int) -> tuple[list[float], list[float]]:
    length = int(episodes.lengths[b])
    return episodes.rewards[:length, b].tolist(), values[: length + 1, b].tolist()


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_monte_carlo(gamma: float, gae_lambda: float) -> None:
    episodes = random_episodes(LENGTHS, terminated=[True, False, True, False])
    values = random_values(episodes)
    estimate = make(MonteCarlo, gamma, gae_lambda)(episodes, values)
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        # A column that was cut goes on with what the critic promises for its last state (0 if terminal).
        returns = oracles.returns([*rewards, v[-1]], gamma)[:-1]
        for t, wanted in enumerate(returns):
            assert estimate.value_targets[t, b].item() == pytest.approx(wanted, abs=1e-12)
            assert estimate.advantages[t, b].item() == pytest.approx(wanted - v[t], abs=1e-12)


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_td_lambda(gamma: float, gae_lambda: float) -> None:
    episodes = random_episodes(LENGTHS, terminated=[True, False, True, False])
    values = random_values(episodes)
    estimate = make(TDLambda, gamma, gae_lambda)(episodes, values)
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        deltas = oracles.td_errors(rewards, v, gamma)
        wanted = oracles.pairwise_sum(deltas, lambda t, k: (gamma * gae_lambda) ** (k - t - 1))
        for t, advantage in enumerate(wanted):
            assert estimate.advantages[t, b].item() == pytest.approx(advantage, abs=1e-12)
            assert estimate.value_targets[t, b].item() == pytest.approx(advantage + v[t], abs=1e-12)


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_pwtd(gamma: float, gae_lambda: float) -> None:
    episodes = random_episodes(LENGTHS, terminated=[True, False, True, False])
    values = random_values(episodes)
    estimator = make(PWTD, gamma, gae_lambda)
    estimate = estimator(episodes, values)
    regular = make(TDLambda, gamma, gae_lambda)(episodes, values)
    table = torch.sigmoid(estimator.weights.logits).tolist()
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        states = episodes.observations[:, b].tolist()
        deltas = oracles.td_errors(rewards, v, gamma)
        for t, wanted in enumerate(oracles.pairwise_sum(deltas, lambda t, k, s=states: table[s[t]][s[k]])):
            assert estimate.advantages[t, b].item() == pytest.approx(wanted, abs=1e-12)
            assert estimate.value_targets[t, b].item() == pytest.approx(regular.value_targets[t, b].item(), abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_pwr_whose_weights_take_the_place_of_the_discount(gamma: float) -> None:
    episodes = random_episodes(LENGTHS)
    values = random_values(episodes)
    estimator = make(PWR, gamma)
    estimate = estimator(episodes, values)
    table = torch.sigmoid(estimator.weights.logits).tolist()
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        states = episodes.observations[:, b].tolist()
        for t, wanted in enumerate(oracles.pairwise_sum(rewards, lambda t, k, s=states: table[s[t]][s[k]])):
            assert estimate.value_targets[t, b].item() == pytest.approx(wanted, abs=1e-12)
            assert estimate.advantages[t, b].item() == pytest.approx(wanted - v[t], abs=1e-12)


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_exponential_weights_recover_the_regular_estimators(gamma: float, gae_lambda: float) -> None:
    """ "It recovers the usual λ-estimator" (below Eq. 9), "we can recover the MC estimator" (below Eq. 11)."""
    whole = random_episodes(LENGTHS)
    values = random_values(whole)
    space = SPACES["discrete"]

    def weighted(cls: type[WeightedEstimator], rate: float) -> WeightedEstimator:
        return cls(space, gamma=gamma, gae_lambda=gae_lambda, weights_class=Exponential, weights_kwargs={"rate": rate})

    for general, special in (
        (weighted(PWTD, gamma * gae_lambda), make(TDLambda, gamma, gae_lambda)),
        (weighted(PWR, gamma), make(MonteCarlo, gamma, gae_lambda)),
    ):
        for one, other in zip(real(whole, general(whole, values)), real(whole, special(whole, values)), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)
    cut = random_episodes(LENGTHS, terminated=False)
    values = random_values(cut)
    one, other = weighted(PWTD, gamma * gae_lambda)(cut, values), make(TDLambda, gamma, gae_lambda)(cut, values)
    assert torch.allclose(one.advantages[cut.mask], other.advantages[cut.mask], rtol=0, atol=1e-12)


def test_which_estimators_refuse_what_is_not_whole() -> None:
    whole = {PWR, ReturnGeneratingModel, RewardRedistribution}
    assert {cls for cls in found_classes() if needs_whole_episodes(make(cls))} >= whole
    for cls in (MonteCarlo, TDLambda, PWTD, StateLambda):
        assert not needs_whole_episodes(make(cls))
    pieces = random_episodes([3], started=False)
    timed_out = replace(random_episodes([3], terminated=False), truncated=torch.tensor([True]))
    for cls in whole:
        with pytest.raises(ValueError, match=f"{cls.__name__} got a piece of an episode"):
            make(cls)(pieces, random_values(pieces))
        with pytest.raises(ValueError, match=f"{cls.__name__} got an episode cut by a time limit"):
            make(cls)(timed_out, random_values(timed_out))


class OutOfRange(PairwiseWeights):
    """Weights of 2."""

    def forward(self, episodes: Episodes) -> Tensor:
        return torch.full((episodes.batch_size, episodes.horizon, episodes.horizon), 2.0, dtype=torch.float64)


@pytest.mark.parametrize("cls", [PWR, PWTD])
def test_weighted_estimators_check_their_weights(cls: type[WeightedEstimator]) -> None:
    episodes = random_episodes([3])
    estimator = cls(SPACES["discrete"], gamma=0.9, gae_lambda=0.9, weights_class=OutOfRange)
    with pytest.raises(ValueError, match=r"OutOfRange returned weights from .*\[0, 1\]"):
        estimator(episodes, random_values(episodes))
    for wrong in (Tabular(SPACES["discrete"]), MonteCarlo, "Tabular", None):
        with pytest.raises(TypeError, match=rf"{cls.__name__} got weights_class=.*subclass of PairwiseWeights"):
            cls(SPACES["discrete"], gamma=0.9, gae_lambda=0.9, weights_class=wrong)  # type: ignore[arg-type]


# -- λ of the state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_state_lambda(gamma: float, gae_lambda: float) -> None:
    """Meta-λ(s): products of ``γ λ(S_j)`` over the states between action and reward, from the table."""
    episodes = random_episodes(LENGTHS, terminated=[True, False, True, False])
    values = random_values(episodes)
    estimator = make(StateLambda, gamma, gae_lambda)
    estimate = estimator(episodes, values)
    table = torch.sigmoid(estimator.logits).tolist()
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        states = episodes.observations[:, b].tolist()

        def weight(t: int, k: int, s: list[int] = states) -> float:
            product = 1.0
            for j in range(t + 1, k):
                product *= gamma * table[s[j]]
            return product

        for t, wanted in enumerate(oracles.pairwise_sum(oracles.td_errors(rewards, v, gamma), weight)):
            assert estimate.advantages[t, b].item() == pytest.approx(wanted, abs=1e-12)
            assert estimate.value_targets[t, b].item() == pytest.approx(wanted + v[t], abs=1e-12)
            assert estimate.weights[t, b].item() == pytest.approx(table[states[t]], abs=1e-12)


class ProductOfLambdas(PairwiseWeights):
    """``f(S_t, S_k, k − t) = Π γ λ(S_j)``, spelled out as a weight function, with another's table."""

    table: list[float]
    gamma: float

    def forward(self, episodes: Episodes) -> Tensor:
        weights = torch.zeros(episodes.batch_size, episodes.horizon, episodes.horizon, dtype=torch.float64)
        for b in range(episodes.batch_size):
            for t in range(episodes.horizon):
                product = 1.0
                for k in range(t + 1, episodes.horizon + 1):
                    weights[b, t, k - 1] = product
                    product *= self.gamma * self.table[int(episodes.observations[k, b])]
        return weights


def test_state_lambda_is_pwtd_with_product_weights() -> None:
    episodes = random_episodes(LENGTHS, terminated=[True, False, True, False])
    values = random_values(episodes)
    estimator = make(StateLambda)
    general = make(PWTD, weights_class=ProductOfLambdas)
    general.weights.table = torch.sigmoid(estimator.logits).tolist()
    general.weights.gamma = GAMMA
    one, other = estimator(episodes, values).advantages, general(episodes, values).advantages
    assert torch.allclose(one[episodes.mask], other[episodes.mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("start", [0.3, 0.9])
def test_every_state_starts_with_the_same_lambda_which_makes_td_lambda(kind: str, start: float) -> None:
    episodes = random_episodes(LENGTHS, kind, terminated=[True, False, True, False])
    values = random_values(episodes)
    estimator = StateLambda(
        SPACES[kind], gamma=GAMMA, gae_lambda=LAMBDA, make_encoder=lambda: FloatEncoder(kind), initial_lambda=start
    ).double()
    regular = TDLambda(SPACES[kind], gamma=GAMMA, gae_lambda=start)
    for one, other in zip(
        real(episodes, estimator(episodes, values)), real(episodes, regular(episodes, values)), strict=True
    ):
        assert torch.allclose(one, other, rtol=0, atol=1e-7)  # the logit is stored in single precision at first


def test_lambda_of_a_state_is_the_networks() -> None:
    episodes = random_episodes(LENGTHS, "dict")
    estimator = make(StateLambda, kind="dict")
    lambdas = estimator.lambdas(episodes)
    assert lambdas.shape == (7, 4)
    hidden, _, last = estimator.head
    for t, b in ((0, 0), (3, 1), (6, 1)):
        state = {name: part[t : t + 1, b] for name, part in episodes.observations.items()}
        logit = last.weight @ torch.tanh(hidden.weight @ FloatEncoder("dict")(state)[0] + hidden.bias) + last.bias
        assert lambdas[t, b].item() == pytest.approx(torch.sigmoid(logit).item(), abs=1e-12)


def test_states_may_be_counted_from_elsewhere() -> None:
    """``Discrete(n, start=s)``, which a table of pairs refuses."""
    episodes = random_episodes(LENGTHS)
    moved = replace(episodes, observations=episodes.observations - 3)
    space = spaces.Discrete(N_STATES, start=-3)
    estimator, other = make(StateLambda), StateLambda(space, gamma=GAMMA, gae_lambda=LAMBDA).double()
    other.load_state_dict(estimator.state_dict())
    assert torch.equal(estimator.lambdas(episodes), other.lambdas(moved))


# -- a weight for each reward ---------------------------------------------------------------------------------------


class Betas(PairwiseWeights):
    """``f = β_k`` with the weights of another estimator."""

    model: list[Any]

    def forward(self, episodes: Episodes) -> Tensor:
        betas = self.model[0].betas(episodes)
        weights = torch.zeros(episodes.batch_size, episodes.horizon, episodes.horizon, dtype=torch.float64)
        for b in range(episodes.batch_size):
            for t in range(episodes.horizon):
                for k in range(t + 1, episodes.horizon + 1):
                    weights[b, t, k - 1] = betas[k - 1, b]
        return weights


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kind", SPACES)
def test_return_generating_model_is_pwr_with_one_weight_for_each_reward(kind: str, output: str) -> None:
    episodes = random_episodes(LENGTHS, kind)
    values = random_values(episodes)
    estimator = make(ReturnGeneratingModel, kind=kind, output=output)
    general = make(PWR, kind=kind, weights_class=Betas)
    general.weights.model = [estimator]
    estimate = estimator(episodes, values)
    for one, other in zip(real(episodes, estimate), real(episodes, general(episodes, values)), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    betas = estimate.weights[episodes.mask]
    assert betas.std() > 0.01, "not all the same"
    if output == "softmax":
        assert torch.allclose((estimate.weights * episodes.mask).sum(0), torch.ones(4).double(), rtol=0, atol=1e-12)


def test_return_generating_model_with_weights_of_one_is_undiscounted_monte_carlo() -> None:
    episodes = random_episodes(LENGTHS)
    values = random_values(episodes)
    estimator = make(ReturnGeneratingModel)
    with torch.no_grad():
        estimator.head.weight.zero_()
        estimator.head.bias.fill_(100.0)
    wanted = make(MonteCarlo, gamma=1.0)(episodes, values)
    for one, other in zip(real(episodes, estimator(episodes, values)), real(episodes, wanted), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("output", "start"), [("sigmoid", 0.5), ("softmax", 0.2)])
def test_betas_start_equal(output: str, start: float) -> None:
    estimator = ReturnGeneratingModel(
        SPACES["box"],
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        make_encoder=lambda: FloatEncoder("box"),
        action_space=spaces.Discrete(2),
        output=output,  # type: ignore[arg-type]
    ).double()
    betas = estimator.betas(random_episodes([5, 5], "box"))
    assert betas.tolist() == [pytest.approx([start, start], abs=1e-12)] * 5


def last_changed(episodes: Episodes, what: str) -> Episodes:
    """The same episodes but for one thing at their end."""
    if what == "last state":
        observations = episodes.observations.clone()
        observations[-1] += 1.0
        return replace(episodes, observations=observations)
    if what == "last action":
        actions = episodes.actions.clone()
        actions[-1] = 1.0 - actions[-1]
        return replace(episodes, actions=actions)
    rewards = episodes.rewards.clone()
    rewards[-1] += 1.0
    return replace(episodes, rewards=rewards)


@pytest.mark.parametrize("what", ["last state", "last action", "last reward"])
def test_betas_look_at_the_whole_episode(what: str) -> None:
    episodes = random_episodes([5, 5], "box")
    estimator = make(ReturnGeneratingModel, kind="box")
    change = estimator.betas(last_changed(episodes, what)) - estimator.betas(episodes)
    assert (change.abs() > 1e-9).all()


def test_betas_know_the_time() -> None:
    """Two steps that are alike in all that happens still differ by when they happen."""
    episodes = random_episodes([5], "box")
    assert isinstance(episodes.observations, Tensor)
    same = replace(
        episodes,
        observations=episodes.observations[:1].expand(6, 1, 3),
        actions=torch.zeros(5, 1, 1),
        rewards=torch.ones(5, 1, dtype=torch.float64),
    )
    betas = make(ReturnGeneratingModel, kind="box").betas(same)[:, 0]
    assert betas.unique().numel() == 5


@pytest.mark.parametrize("lengths", [[5, 5], [5, 3]])
def test_a_block_is_that_of_a_transformer(lengths: list[int]) -> None:
    """torch's own encoder layer with the same parameters."""
    torch.manual_seed(0)
    block = _Block(8, 2).double()
    theirs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, nn.functional.gelu, batch_first=True, norm_first=True).double()
    norm, hidden, _, out = block.hidden
    pairs_of_modules = [
        (theirs.norm1, block.attention_norm),
        (theirs.self_attn.out_proj, block.attended),
        (theirs.norm2, norm),
        (theirs.linear1, hidden),
        (theirs.linear2, out),
    ]
    with torch.no_grad():
        for to, source in pairs_of_modules:
            to.weight.copy_(source.weight)  # type: ignore[operator]
            to.bias.copy_(source.bias)  # type: ignore[operator]
        theirs.self_attn.in_proj_weight.copy_(block.query_key_value.weight)
        theirs.self_attn.in_proj_bias.copy_(block.query_key_value.bias)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    real_steps = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    found = block(x, real_steps[:, None, None])
    wanted = theirs(x, src_key_padding_mask=~real_steps)
    assert torch.allclose(found[real_steps], wanted[real_steps], rtol=0, atol=1e-12)
    assert (lengths == [5, 5]) == torch.allclose(found[real_steps], block(x, None)[real_steps], rtol=0, atol=1e-6)


# -- redistributed rewards ------------------------------------------------------------------------------------------


def predict(estimator: RewardRedistribution, episodes: Episodes, b: int) -> list[Tensor]:
    """``g_0 … g_{T-1}`` of one episode, step by step with the LSTM's equations, in standardised units."""
    lstm = estimator.lstm
    size = lstm.hidden_size
    h, c = torch.zeros(size).double(), torch.zeros(size).double()
    result = []
    for t in range(int(episodes.lengths[b])):
        state = FloatEncoder("discrete")(episodes.observations[t, b])
        if estimator.states.calibrated:
            state = ((state - estimator.states.mean) / estimator.states.scale).clamp(-5, 5)
        action = torch.zeros(2).double()
        action[int(episodes.actions[t, b, 0])] = 1.0
        gates = lstm.weight_ih_l0 @ torch.cat([state, action]) + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h
        i, f, g, o = (gates + lstm.bias_hh_l0).split(size)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        result.append((estimator.head.weight @ h + estimator.head.bias)[0])
    return result


def moments(returns: list[float]) -> tuple[float, float]:
    """Mean and scale: the deviation, but at least a tenth of the root mean square."""
    mean = sum(returns) / len(returns)
    square = sum(g * g for g in returns) / len(returns)
    return mean, max(square - mean**2, 0.01 * square) ** 0.5


def test_predictions_read_states_and_actions_up_to_now() -> None:
    episodes = random_episodes(LENGTHS)
    estimator = make(RewardRedistribution)
    estimator.return_mean.fill_(3.0)
    estimator.return_square.fill_(25.0)
    found = estimator.predictions(episodes)
    for b in range(4):
        for t, wanted in enumerate(predict(estimator, episodes, b)):
            assert found[t, b].item() == pytest.approx(3.0 + 4.0 * wanted.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("seen", "scale"), [([2.0, 4.0], 1.0), ([4.0, 4.0], 0.4), ([0.0, 0.0], 1.0), ([-100.0, 100.0], 100.0)]
)
def test_returns_are_standardised(seen: list[float], scale: float) -> None:
    assert moments(seen)[1] == pytest.approx(scale) or seen == [0.0, 0.0]
    estimator = make(RewardRedistribution)
    episodes = random_episodes([1, 1])
    estimator.fit(replace(episodes, rewards=torch.tensor([seen], dtype=torch.float64)))
    assert estimator.return_mean.item() == pytest.approx(sum(seen) / 2)
    with torch.no_grad():
        standardised = torch.stack([predict(estimator, episodes, b)[0] for b in range(2)])
    found = estimator.predictions(episodes)[0]
    assert torch.allclose(found, sum(seen) / 2 + scale * standardised, rtol=1e-12, atol=1e-12)


def test_moments_are_those_of_all_rollouts_and_forget_the_oldest_after_a_hundred() -> None:
    estimator = make(RewardRedistribution)
    mean = square = 0.0
    for i in range(1, 130):
        episodes = random_episodes([1, 1], seed=i)
        estimator.fit(episodes)
        share = max(1 / i, 0.01)
        returns = episodes.rewards[0].tolist()
        mean += share * (sum(returns) / 2 - mean)
        square += share * ((returns[0] ** 2 + returns[1] ** 2) / 2 - square)
        assert estimator.return_mean.item() == pytest.approx(mean, abs=1e-12)
        assert estimator.return_square.item() == pytest.approx(square, abs=1e-12)


def by_hand_loss(estimator: RewardRedistribution, episodes: Episodes, mean: float, scale: float) -> Tensor:
    total = torch.zeros(()).double()
    for b in range(episodes.batch_size):
        length = int(episodes.lengths[b])
        target = (sum(episodes.rewards[:length, b].tolist()) - mean) / scale
        errors = [(g - target) ** 2 for g in predict(estimator, episodes, b)]
        total = total + errors[-1] + 0.5 * sum(errors) / length  # type: ignore[operator]
    return total / episodes.batch_size


@pytest.mark.parametrize("n_past_rollouts", [0, 1, 2])
@pytest.mark.parametrize("n_epochs", [1, 2])
def test_fit_is_adam_on_the_loss(n_epochs: int, n_past_rollouts: int) -> None:
    """One step for each rollout and pass: the earlier ones in their order, the new one last."""
    estimator = make(RewardRedistribution, learning_rate=0.02, n_epochs=n_epochs, n_past_rollouts=n_past_rollouts)
    theirs = copy.deepcopy(estimator)
    theirs.states.calibrate(random_episodes(LENGTHS, seed=1))
    adam = torch.optim.Adam(theirs.parameters(), lr=0.02)
    rollouts = [random_episodes(LENGTHS, seed=seed) for seed in (1, 2, 3)]
    returns: list[list[float]] = []
    for i, rollout in enumerate(rollouts):
        stats = estimator.fit(rollout)
        returns.append(rollout.rewards.sum(0).tolist())
        mean, scale = moments([g for some in returns for g in some])
        for _ in range(n_epochs):
            for one in rollouts[max(0, i - n_past_rollouts) : i + 1]:
                loss = by_hand_loss(theirs, one, mean, scale)
                adam.zero_grad()
                loss.backward()
                adam.step()
        assert stats == {"prediction_loss": pytest.approx(loss.item(), abs=1e-10)}
        for mine, other in zip(estimator.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(mine, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("gamma", "gae_lambda"), SETTINGS)
def test_reward_redistribution(gamma: float, gae_lambda: float, mix: float) -> None:
    """λ-advantages of ``(1 − mix) (g_t − g_{t-1} + missing / T) + mix R``, by the loops."""
    episodes = random_episodes(LENGTHS)
    values = random_values(episodes)
    estimator = make(RewardRedistribution, gamma, gae_lambda, reward_mix=mix)
    estimate = estimator(episodes, values)
    # As they stand before the first fit: mean 0, mean square 1.
    for b in range(4):
        rewards, v = column_of(episodes, values, b)
        g = [one.item() for one in predict(estimator, episodes, b)]
        missing = (sum(rewards) - g[-1]) / len(g)
        new = [g[t] - (g[t - 1] if t else 0.0) + missing for t in range(len(g))]
        new = [(1 - mix) * one + mix * other for one, other in zip(new, rewards, strict=True)]
        assert sum(new) == pytest.approx(sum(rewards), abs=1e-12)
        deltas = oracles.td_errors(new, v, gamma)
        for t, wanted in enumerate(oracles.pairwise_sum(deltas, lambda t, k: (gamma * gae_lambda) ** (k - t - 1))):
            assert estimate.advantages[t, b].item() == pytest.approx(wanted, abs=1e-11)
            assert estimate.value_targets[t, b].item() == pytest.approx(wanted + v[t], abs=1e-11)
    if mix == 1.0:
        regular = make(TDLambda, gamma, gae_lambda)(episodes, values)
        for one, other in zip(real(episodes, estimate), real(episodes, regular), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_episodes_of_one_dtype_and_an_lstm_of_another() -> None:
    episodes = random_episodes(LENGTHS, dtype=torch.float32)
    estimator = make(RewardRedistribution).float()
    estimator.states.encoder.forward = lambda states: nn.functional.one_hot(states, N_STATES).float()
    wide = replace(episodes, rewards=episodes.rewards.double())
    assert estimator.redistribute(wide).dtype == torch.float64
    error = (estimator.redistribute(wide).sum(0) - wide.rewards.sum(0)).abs()
    assert (error < 1e-12).all(), "the sum is exact in the rewards' own precision"


def decided_at_once(seed: int, batch: int = 32) -> Episodes:
    """The first of six actions decides what the last step pays: 5 or -5."""
    draw = generator(seed)
    actions = torch.randint(2, (6, batch, 1), generator=draw).float()
    rewards = torch.zeros(6, batch, dtype=torch.float64)
    rewards[-1] = 10.0 * actions[0, :, 0] - 5.0
    ones = torch.ones(batch, dtype=torch.bool)
    states = torch.arange(7).clamp(max=N_STATES - 1)[:, None].expand(7, batch)
    return Episodes(states, actions, rewards, torch.full((batch,), 6), ones, ~ones, ones)


def test_credit_moves_to_where_the_return_was_decided() -> None:
    torch.manual_seed(1)
    estimator = RewardRedistribution(
        SPACES["discrete"],
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        make_encoder=lambda: FloatEncoder("discrete"),
        action_space=spaces.Discrete(2),
        learning_rate=0.02,
    ).double()
    losses = [estimator.fit(decided_at_once(seed))["prediction_loss"] for seed in range(120)]
    assert losses[-1] < 0.02 * losses[0]
    episodes = decided_at_once(1000)
    rewards = estimator.redistribute(episodes)
    assert torch.allclose(rewards[0], episodes.rewards[-1], rtol=0, atol=1.5)
    assert (rewards[1:].abs() < 1.5).all()


def fitted(n_past_rollouts: int = 1) -> Any:
    estimator = make(RewardRedistribution, n_past_rollouts=n_past_rollouts, learning_rate=0.05)
    for seed in (1, 2):
        estimator.fit(random_episodes(LENGTHS, seed=seed))
    return estimator


def test_the_state_of_the_lstm_and_its_optimiser_resumes_bit_for_bit(tmp_path: Any) -> None:
    source = fitted()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    other = make(RewardRedistribution, n_past_rollouts=1, learning_rate=0.05)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    new = random_episodes(LENGTHS, seed=3)
    assert source.fit(new) == other.fit(new)
    assert torch.equal(source.redistribute(new), other.redistribute(new))


def test_no_entry_of_that_state_can_be_lost() -> None:
    new = random_episodes(LENGTHS, seed=3)
    source = fitted()
    wanted = source.redistribute(new) if source.fit(new) else None
    full = fitted().state_dict()
    fresh = make(RewardRedistribution, n_past_rollouts=1, learning_rate=0.05)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    entries = [name for name in full if name != "_extra_state"]
    assert {"return_mean", "return_square", "n_fits", "states.mean", "lstm.weight_hh_l0"} <= set(entries)
    for lost in [*entries, "optimizer", "past"]:
        state = copy.deepcopy(full)
        if lost in entries:
            state[lost] = copy.deepcopy(fresh.state_dict()[lost])
        else:
            state["_extra_state"][lost] = copy.deepcopy(fresh.get_extra_state()[lost])
        other = make(RewardRedistribution, n_past_rollouts=1, learning_rate=0.05)
        other.load_state_dict(state)
        other.fit(new)
        assert wanted is not None
        assert not torch.equal(other.redistribute(new), wanted), lost


def test_what_is_not_whole_is_refused_before_anything_moves() -> None:
    estimator = fitted()
    before = copy.deepcopy(estimator.state_dict())
    for wrong in (random_episodes([3], started=False), random_episodes([3], terminated=False)):
        with pytest.raises(ValueError, match="RewardRedistribution got a piece of an episode"):
            estimator.fit(wrong)
    after = estimator.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if isinstance(value, Tensor))
    assert len(after["_extra_state"]["past"]) == len(before["_extra_state"]["past"]) == 1


# -- what networks read ---------------------------------------------------------------------------------------------


def test_features_are_standardised_by_the_first_rollout() -> None:
    encoder = StateEncoder("Test", lambda: FloatEncoder("box")).double()
    first, second = random_episodes(LENGTHS, "box", seed=1), random_episodes(LENGTHS, "box", seed=2)
    assert isinstance(first.observations, Tensor)
    first.observations[..., 1] *= 100.0
    first.observations[..., 2] = 7.0  # does not vary, and keeps its unit
    assert torch.equal(encoder(first), first.observations.clamp(-5, 5)), "as they are, before the first rollout"
    encoder.calibrate(first)
    encoder.calibrate(second)  # leaves no trace
    seen = [first.observations[t, b] for b, length in enumerate(LENGTHS) for t in range(length)]
    for entry in range(3):
        numbers = [state[entry].item() for state in seen]
        mean = sum(numbers) / len(numbers)
        deviation = (sum((number - mean) ** 2 for number in numbers) / len(numbers)) ** 0.5 or 1.0
        found = encoder(second)
        assert isinstance(second.observations, Tensor)
        wanted = ((second.observations[..., entry] - mean) / deviation).clamp(-5, 5)
        assert torch.allclose(found[..., entry], wanted, rtol=0, atol=1e-12)
    far = replace(second, observations=1e6 * torch.ones(8, 4, 3, dtype=torch.float64))
    assert (encoder(far) == 5.0).all()


@pytest.mark.parametrize("cls", [StateLambda, ReturnGeneratingModel, RewardRedistribution])
def test_fit_calibrates_the_networks_input(cls: type[AdvantageEstimator]) -> None:
    estimator, rollout = make(cls, kind="box"), random_episodes(LENGTHS, "box")
    assert not estimator.states.calibrated
    estimator.fit(rollout)
    encoder = StateEncoder("Test", lambda: FloatEncoder("box")).double()
    encoder.calibrate(rollout)
    assert estimator.states.calibrated
    assert torch.equal(estimator.states(rollout), encoder(rollout))


def test_actions_of_every_kind() -> None:
    def features(space: spaces.Space, actions: list[list[float]]) -> tuple[int, list[list[float]]]:
        episodes = random_episodes([len(actions)])
        episodes = replace(episodes, actions=torch.tensor(actions).unsqueeze(1))
        encoder = ActionEncoder("Test", space)
        return encoder.features_dim, encoder(episodes)[:, 0].double().tolist()

    assert features(spaces.Discrete(3), [[2.0], [0.0], [9.0]]) == (3, [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert features(spaces.MultiDiscrete([2, 3]), [[1.0, 2.0]]) == (6, [[0, 1, 0, 0, 0, 1]])
    assert features(spaces.MultiBinary(2), [[1.0, 0.0]]) == (2, [[1, 0]])
    assert features(spaces.Box(-1, 1, (2, 1)), [[0.5, -2.0]]) == (2, [[0.5, -2.0]])


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "a lambda of 1": (r"StateLambda got initial_lambda=1\.0", {"cls": StateLambda, "initial_lambda": 1.0}),
    "a lambda of 0": (r"StateLambda got initial_lambda=0", {"cls": StateLambda, "initial_lambda": 0}),
    "no hidden units": ("StateLambda got hidden_dim=0", {"cls": StateLambda, "hidden_dim": 0}),
    "another output": ("output='tanh'; write 'sigmoid'", {"cls": ReturnGeneratingModel, "output": "tanh"}),
    "no layers": ("n_layers=0", {"cls": ReturnGeneratingModel, "n_layers": 0}),
    "heads that do not fit": ("multiple of 2", {"cls": ReturnGeneratingModel, "embedding_dim": 6, "n_heads": 2}),
    "no width": ("RewardRedistribution got hidden_dim=0", {"cls": RewardRedistribution, "hidden_dim": 0}),
    "no epochs": ("n_epochs=0", {"cls": RewardRedistribution, "n_epochs": 0}),
    "a negative past": ("n_past_rollouts=-1", {"cls": RewardRedistribution, "n_past_rollouts": -1}),
    "no rate": ("learning_rate=0", {"cls": RewardRedistribution, "learning_rate": 0}),
    "too much of it": (r"reward_mix=1\.5", {"cls": RewardRedistribution, "reward_mix": 1.5}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_get_a_sentence(case: str) -> None:
    words, arguments = BAD[case]
    arguments = dict(arguments)
    cls = arguments.pop("cls")
    with pytest.raises(ValueError, match=words) as caught:
        make(cls, kind="box", **arguments)
    assert str(caught.value).startswith(cls.__name__)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("cls", [StateLambda, ReturnGeneratingModel, RewardRedistribution])
@pytest.mark.parametrize("missing", ["make_encoder", "action_space"])
def test_networks_ask_for_what_they_read(cls: type[AdvantageEstimator], missing: str) -> None:
    given: dict[str, Any] = {"make_encoder": lambda: FloatEncoder("box"), "action_space": spaces.Discrete(2)}
    del given[missing]
    if cls is StateLambda and missing == "action_space":
        cls(SPACES["box"], gamma=0.9, gae_lambda=0.9, **given)  # it looks at states only
        return
    with pytest.raises(ValueError, match=rf"^{cls.__name__} .*{missing}.*\.$"):
        cls(SPACES["box"], gamma=0.9, gae_lambda=0.9, **given)

"""Estimators: every file in ``tca_sb3/estimators`` is held to the laws of ``AdvantageEstimator``, each class to its
equation."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
from samples import N_STATES, SPACES, columns, generator, random_episodes, random_values
from torch import Tensor

import tca_sb3.estimators
from tca_sb3.episodes import Episodes
from tca_sb3.estimators import (
    PWR,
    PWTD,
    AdvantageEstimator,
    Estimate,
    MonteCarlo,
    TDLambda,
    WeightedEstimator,
)
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


def make(cls: type[AdvantageEstimator], gamma: float = GAMMA, gae_lambda: float = LAMBDA) -> AdvantageEstimator:
    """The estimator; if it takes weights, with a random table over the states."""
    arguments: dict[str, Any] = {"weights_class": Tabular} if issubclass(cls, WeightedEstimator) else {}
    estimator = cls(SPACES["discrete"], gamma=gamma, gae_lambda=gae_lambda, **arguments).double()
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(5), dtype=torch.float64))
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


def test_the_folder_is_not_empty_and_every_class_is_public() -> None:
    classes = found_classes()
    assert {MonteCarlo, TDLambda, PWTD, PWR} <= set(classes)
    for cls in classes:
        assert getattr(tca_sb3.estimators, cls.__name__) is cls


def test_law_shapes_and_types(estimator: AdvantageEstimator) -> None:
    episodes = suitable_episodes(estimator)
    estimate = estimator(episodes, random_values(episodes))
    for result in (estimate.advantages, estimate.value_targets):
        assert result.shape == (7, 4)
        assert result.dtype == torch.float64
        assert torch.isfinite(result[episodes.mask]).all()
    assert (estimate.weights is None) == (not isinstance(estimator, WeightedEstimator))
    assert estimate.weights is None or estimate.weights.shape == (4, 7, 7)


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
    assert {cls for cls in found_classes() if needs_whole_episodes(make(cls))} >= {PWR}
    for cls in (MonteCarlo, TDLambda, PWTD):
        assert not needs_whole_episodes(make(cls))
    pieces = random_episodes([3], started=False)
    timed_out = replace(random_episodes([3], terminated=False), truncated=torch.tensor([True]))
    with pytest.raises(ValueError, match="PWR got a piece of an episode"):
        make(PWR)(pieces, random_values(pieces))
    with pytest.raises(ValueError, match="PWR got an episode cut by a time limit"):
        make(PWR)(timed_out, random_values(timed_out))


def test_gradients_reach_the_weights_and_only_there() -> None:
    """Critic values enter as data: backpropagation from advantages and targets ends in ``η``."""
    episodes = random_episodes([3, 2])
    values = random_values(episodes)
    for cls, targets_depend in ((PWTD, False), (PWR, True)):
        estimator = make(cls)
        logits = estimator.weights.logits
        estimate = estimator(episodes, values)
        assert estimate.value_targets.requires_grad == targets_depend
        coefficients = torch.randn(3, 2, generator=generator(2), dtype=torch.float64) * episodes.mask

        def score(table: Tensor, estimator: AdvantageEstimator = estimator, weight: Tensor = coefficients) -> Tensor:
            with torch.no_grad():
                kept = estimator.weights.logits.clone()
                estimator.weights.logits.copy_(table)
                result = (estimator(episodes, values).advantages * weight).sum()
                estimator.weights.logits.copy_(kept)
            return result

        (gradient,) = torch.autograd.grad((estimate.advantages * coefficients).sum(), logits)
        assert gradient.any()
        assert torch.allclose(gradient, oracles.central_difference(score, logits.detach()), rtol=0, atol=1e-8)


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

"""Weight functions: every file in ``tca_sb3/weights`` is held to the laws of ``PairwiseWeights``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from samples import N_STATES, SPACES, FloatEncoder, columns, pairs, random_episodes
from torch import Tensor

import tca_sb3.weights
from tca_sb3.episodes import Episodes, map_observations
from tca_sb3.weights import Exponential, Fixed, PairwiseWeights, Product, Tabular
from tca_sb3.weights.base import checked_weights

LENGTHS = [4, 7, 1, 5]


def found_classes() -> list[type[PairwiseWeights]]:
    """Every concrete weight function that lives in the folder."""
    classes = []
    for module in pkgutil.iter_modules(tca_sb3.weights.__path__):
        for _, thing in inspect.getmembers(importlib.import_module(f"tca_sb3.weights.{module.name}"), inspect.isclass):
            here = thing.__module__ == f"tca_sb3.weights.{module.name}"
            if here and issubclass(thing, PairwiseWeights) and not inspect.isabstract(thing):
                classes.append(thing)
    return classes


# What a class needs besides the space and the encoder. A class that is not named here needs nothing.
ARGUMENTS: dict[type[PairwiseWeights], list[dict[str, Any]]] = {
    Exponential: [{"rate": 0.9}, {"rate": 0.0}, {"rate": 1.0}],
    Fixed: [
        {"matrix": np.random.default_rng(0).uniform(size=(9, 9))},
        {"matrix": np.random.default_rng(0).uniform(size=(N_STATES, N_STATES)), "index": "state"},
    ],
    Product: [{"lag_scales": (1.0, 9.0)}, {"lag_scales": ()}],
}


def make(cls: type[PairwiseWeights], kind: str, arguments: dict[str, Any]) -> PairwiseWeights | None:
    """The weight function with random parameters, or ``None`` if it refuses the observations."""
    torch.manual_seed(7)
    try:
        function = cls(SPACES[kind], lambda: FloatEncoder(kind), **arguments).double()
    except TypeError as refusal:
        assert "Discrete" in str(refusal)  # noqa: PT017 - only tables of states may refuse a space
        return None
    with torch.no_grad():
        for parameter in function.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype))
    return function


CASES = [
    pytest.param((cls, kind, arguments), id=f"{cls.__name__}-{kind}-{i}")
    for cls in found_classes()
    for kind in SPACES
    for i, arguments in enumerate(ARGUMENTS.get(cls, [{}]))
    if make(cls, kind, arguments) is not None
]


@pytest.fixture(params=CASES)
def subject(request: pytest.FixtureRequest) -> tuple[PairwiseWeights, str]:
    cls, kind, arguments = request.param
    function = make(cls, kind, arguments)
    assert function is not None
    return function, kind


def test_the_folder_is_not_empty_and_every_class_is_public() -> None:
    classes = found_classes()
    assert {Exponential, Fixed, Product, Tabular} <= set(classes)
    for cls in classes:
        assert getattr(tca_sb3.weights, cls.__name__) is cls


def at(weights: Tensor, lengths: list[int]) -> Tensor:
    return torch.stack([weights[index] for index in pairs(lengths)])


def test_law_shape_range_and_determinism(subject: tuple[PairwiseWeights, str]) -> None:
    function, kind = subject
    episodes = random_episodes(LENGTHS, kind)
    weights = checked_weights(function, episodes)
    assert weights.shape == (4, 7, 7)
    assert weights.dtype == torch.float64
    assert torch.isfinite(weights).all()
    used = at(weights, LENGTHS)
    assert used.min() >= 0
    assert used.max() <= 1
    assert torch.equal(weights, function(episodes))


def test_law_each_column_alone_gives_the_same_weights(subject: tuple[PairwiseWeights, str]) -> None:
    """Neither the other columns nor the number of rows matter: no leak through the batch or the padding."""
    function, kind = subject
    episodes = random_episodes(LENGTHS, kind)
    weights = function(episodes)
    for b, length in enumerate(LENGTHS):
        alone = columns(episodes, [b], length)
        wanted = at(function(alone), [length])
        assert torch.allclose(at(weights[b : b + 1], [length]), wanted, rtol=0, atol=1e-12)


def test_law_batch_permutation_equivariance(subject: tuple[PairwiseWeights, str]) -> None:
    function, kind = subject
    episodes = random_episodes(LENGTHS, kind)
    order = [2, 0, 3, 1]
    permuted = columns(episodes, order)
    assert torch.allclose(function(permuted), function(episodes)[order], rtol=0, atol=1e-12)


def test_law_padding_is_inert(subject: tuple[PairwiseWeights, str]) -> None:
    function, kind = subject
    episodes = random_episodes(LENGTHS, kind)
    beyond = torch.arange(8)[:, None] > episodes.lengths

    def scramble(part: Tensor) -> Tensor:
        changed = part.clone()
        changed[beyond] = changed[beyond].flip(0)
        return changed

    other = replace(episodes, observations=map_observations(scramble, episodes.observations))
    assert torch.equal(at(function(other), LENGTHS), at(function(episodes), LENGTHS))


def test_law_weights_see_neither_rewards_nor_actions(subject: tuple[PairwiseWeights, str]) -> None:
    """``f_η(S_t, S_k, k − t)`` has three arguments."""
    function, kind = subject
    episodes = random_episodes(LENGTHS, kind)
    other = replace(episodes, rewards=episodes.rewards * 2, actions=1 - episodes.actions)
    assert torch.equal(function(other), function(episodes))


def test_law_gradients_reach_every_parameter_and_are_right(subject: tuple[PairwiseWeights, str]) -> None:
    function, kind = subject
    parameters = dict(function.named_parameters())
    if not parameters:
        assert type(function) in (Exponential, Fixed)  # hand-written weights, with nothing to learn
        return
    episodes = random_episodes([3, 2], kind)
    direction = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu()

    def loss() -> Tensor:
        return (function(episodes) * direction).sum()

    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.any(), name
        with torch.no_grad():
            flat = parameter.view(-1)
            for i in range(0, len(flat), max(1, len(flat) // 5)):
                before = flat[i].item()
                flat[i] = before + 1e-6
                above = loss().item()
                flat[i] = before - 1e-6
                below = loss().item()
                flat[i] = before
                assert gradient.reshape(-1)[i].item() == pytest.approx((above - below) / 2e-6, abs=1e-8), name


def test_law_state_dict_round_trip(subject: tuple[PairwiseWeights, str], request: pytest.FixtureRequest) -> None:
    function, kind = subject
    _, _, arguments = request.node.callspec.params["subject"]
    other = type(function)(SPACES[kind], lambda: FloatEncoder(kind), **arguments).double()
    other.load_state_dict(function.state_dict())
    episodes = random_episodes(LENGTHS, kind)
    assert torch.equal(other(episodes), function(episodes))


# -- each class against its formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.37, 1.0])
def test_exponential_is_its_power(rate: float) -> None:
    weights = Exponential(SPACES["box"], rate=rate)(random_episodes(LENGTHS, "box"))
    for b, t, k in pairs(LENGTHS):
        assert weights[b, t, k].item() == pytest.approx(rate ** (k + 1 - t - 1), abs=1e-15)


def test_exponential_in_single_precision_is_the_rounded_power() -> None:
    weights = Exponential(SPACES["box"], rate=0.95)(random_episodes([7], "box", dtype=torch.float32))
    assert weights.dtype == torch.float32
    assert weights[0, 0, 6].item() == pytest.approx(0.95**6, rel=1e-6)


def test_fixed_by_time_is_the_matrix() -> None:
    matrix = np.random.default_rng(1).uniform(size=(8, 8)).astype(np.float32)
    weights = Fixed(SPACES["box"], matrix=matrix)(random_episodes(LENGTHS, "box"))
    for b, t, k in pairs(LENGTHS):
        assert weights[b, t, k].item() == matrix[t, k]


def test_tables_are_read_at_the_state_left_and_the_state_entered() -> None:
    episodes = random_episodes(LENGTHS, "discrete")
    matrix = np.random.default_rng(1).uniform(size=(N_STATES, N_STATES)).astype(np.float32)
    fixed = Fixed(SPACES["discrete"], matrix=matrix, index="state")(episodes)
    tabular = Tabular(SPACES["discrete"]).double()
    assert torch.equal(tabular(episodes), torch.full((4, 7, 7), 0.5, dtype=torch.float64))
    with torch.no_grad():
        tabular.logits.copy_(torch.logit(torch.from_numpy(matrix).double()))
    learned = tabular(episodes)
    states = episodes.observations
    assert isinstance(states, Tensor)
    for b, t, k in pairs(LENGTHS):
        wanted = matrix[states[t, b], states[k + 1, b]]
        assert fixed[b, t, k].item() == wanted
        assert learned[b, t, k].item() == pytest.approx(wanted, abs=1e-7)
    assert torch.allclose(tabular.table(), torch.from_numpy(matrix).double(), atol=1e-7)


# -- the contract ---------------------------------------------------------------------------------------------------


class Returns(PairwiseWeights):
    """Whatever it is given."""

    def __init__(self, result: Any) -> None:
        super().__init__(SPACES["discrete"])
        self.result = result

    def forward(self, episodes: Episodes) -> Any:
        return self.result


def test_a_broken_weight_function_is_told_so() -> None:
    episodes = random_episodes([3, 2])
    good = torch.full((2, 3, 3), 0.5)
    assert checked_weights(Returns(good), episodes) is good
    for shape in ((3, 3, 2), (2, 3), (1, 3, 3), (2, 4, 4)):
        with pytest.raises(ValueError, match=r"^Returns returned weights of shape .*\(B, T, T\) = \(2, 3, 3\)"):
            checked_weights(Returns(torch.full(shape, 0.5)), episodes)
    for value in (-0.01, 1.01, float("nan"), float("inf")):
        broken = good.clone()
        broken[1, 0, 1] = value
        with pytest.raises(ValueError, match=r"^Returns returned weights from .*\[0, 1\]"):
            checked_weights(Returns(broken), episodes)
    for other in (good.long(), good.numpy(), None):
        with pytest.raises(TypeError, match=r"^Returns returned .*floating-point tensor"):
            checked_weights(Returns(other), episodes)


def test_entries_without_a_meaning_may_hold_anything_finite() -> None:
    """As ``PairwiseWeights.forward`` promises: below the diagonal, and in the padding."""
    episodes = random_episodes([3, 2])
    weights = torch.full((2, 3, 3), 0.5)
    weights[0, 2, 0] = -7.0
    assert checked_weights(Returns(weights), episodes) is weights
    weights[1, 0, 2] = 7.0
    assert checked_weights(Returns(weights), episodes) is weights


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "rate above 1": (ValueError, "rate=1.1", lambda: Exponential(SPACES["box"], rate=1.1)),
    "negative rate": (ValueError, "rate=-0.1", lambda: Exponential(SPACES["box"], rate=-0.1)),
    "NaN rate": (ValueError, "rate=nan", lambda: Exponential(SPACES["box"], rate=float("nan"))),
    "oblong": (ValueError, "square", lambda: Fixed(SPACES["box"], matrix=np.zeros((3, 4)))),
    "a row": (ValueError, "square", lambda: Fixed(SPACES["box"], matrix=np.zeros(3))),
    "above 1": (ValueError, "outside", lambda: Fixed(SPACES["box"], matrix=np.full((3, 3), 1.5))),
    "below 0": (ValueError, "outside", lambda: Fixed(SPACES["box"], matrix=np.full((3, 3), -0.5))),
    "NaN": (ValueError, "NaN", lambda: Fixed(SPACES["box"], matrix=np.full((3, 3), np.nan))),
    "an index of another kind": (
        ValueError,
        "index='place'",
        lambda: Fixed(SPACES["box"], matrix=np.eye(3), index="place"),  # type: ignore[arg-type]
    ),
    "states that are no numbers": (
        TypeError,
        "Discrete",
        lambda: Fixed(SPACES["box"], matrix=np.eye(3), index="state"),
    ),
    "another number of states": (
        ValueError,
        "3 states",
        lambda: Fixed(SPACES["discrete"], matrix=np.eye(3), index="state"),
    ),
    "a table over vectors": (TypeError, "weights_class=Product", lambda: Tabular(SPACES["box"])),
    "states from 1": (TypeError, "starting at 0", lambda: Tabular(spaces.Discrete(3, start=1))),
    "no encoder": (ValueError, "make_encoder", lambda: Product(SPACES["box"])),
    "no width": (ValueError, "hidden_dim=0", lambda: Product(SPACES["box"], lambda: FloatEncoder("box"), hidden_dim=0)),
    "a scale under one step": (
        ValueError,
        r"lag_scales=\(4.0, 0.5\)",
        lambda: Product(SPACES["box"], lambda: FloatEncoder("box"), lag_scales=(4.0, 0.5)),
    ),
    "embeddings of no size": (
        ValueError,
        r"embedding_scale=0\.0",
        lambda: Product(SPACES["box"], lambda: FloatEncoder("box"), embedding_scale=0.0),
    ),
    "no floor": (
        ValueError,
        r"initial_floor=0\.0",
        lambda: Product(SPACES["box"], lambda: FloatEncoder("box"), initial_floor=0.0),
    ),
    "a discount above 1": (
        ValueError,
        r"initial_discount=1\.1",
        lambda: Product(SPACES["box"], lambda: FloatEncoder("box"), initial_discount=1.1),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case: str) -> None:
    kind, words, build = BAD[case]
    with pytest.raises(kind, match=words) as caught:
        build()
    assert str(caught.value).endswith(".")


def test_fixed_refuses_what_its_matrix_does_not_cover() -> None:
    fixed = Fixed(SPACES["box"], matrix=np.eye(4))
    assert fixed(random_episodes([4, 2], "box")).shape == (2, 4, 4)
    with pytest.raises(ValueError, match=r"4 steps but an episode has 5"):
        fixed(random_episodes([5], "box"))
    with pytest.raises(ValueError, match=r"Fixed\(index='time'\) got a piece of an episode"):
        fixed(random_episodes([3, 3], "box", started=[True, False]))

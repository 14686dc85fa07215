"""The product of embeddings against sums over pairs, and its gradients against autograd's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import SPACES, FloatEncoder, pairs, random_episodes
from torch import Tensor, nn

from tca_sb3.episodes import map_observations
from tca_sb3.weights import Product
from tca_sb3.weights import product as module

LENGTHS = [4, 7, 1, 5]


def randomised(function: Product) -> Product:
    """The same function with random parameters, in double precision."""
    torch.manual_seed(7)
    function = function.double()
    with torch.no_grad():
        for parameter in function.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype))
    return function


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("lag_scales", [(), (2.0, 8.0)])
def test_it_is_the_sum_over_embedding_dimensions(kind: str, lag_scales: tuple[float, ...]) -> None:
    """``σ(c_0(k − t) + Σ_d a_d(S_t) b_d(S_k) c_d(k − t))``, pair by pair, one observation at a time."""
    encoder = lambda: FloatEncoder(kind)  # noqa: E731
    function = randomised(Product(SPACES[kind], encoder, embedding_dim=3, hidden_dim=4, lag_scales=lag_scales))
    episodes = random_episodes(LENGTHS, kind)
    weights = function(episodes)

    def embed(head: nn.Module, time: int, b: int) -> Tensor:
        one = map_observations(lambda part: part[time, b].unsqueeze(0), episodes.observations)
        return head(function.trunk(function.encoder(one)))[0]

    for b, t, k in pairs(LENGTHS):
        lag = torch.tensor(float(k + 1 - t))  # column k holds arrival time k + 1
        features = torch.stack([torch.ones(()), *(torch.exp(-lag / scale) for scale in lag_scales)]).double()
        c = features @ function.lag_coefficients
        a, arrival = embed(function.action_head, t, b), embed(function.reward_head, k + 1, b)
        logit = features @ function.lag_bias + sum(a[d] * arrival[d] * c[d] for d in range(3))
        assert weights[b, t, k].item() == pytest.approx(torch.sigmoid(logit).item(), abs=1e-6)


@pytest.mark.parametrize("lengths", [[1], [33, 33], [70, 32, 3]])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(("side", "together"), [(module._SIDE, module._BLOCK_PAIRS), (20, 900)])
def test_gradients_are_those_of_the_materialised_form(
    lengths: list[int], started: bool, side: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several blocks, of times and of episodes, with padding, every gradient: ``(B, T, T, d)`` written out is the
    oracle."""
    monkeypatch.setattr(module, "_SIDE", side)
    monkeypatch.setattr(module, "_BLOCK_PAIRS", together)
    generator = torch.Generator().manual_seed(0)
    horizon, batch = max(lengths), len(lengths)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = credit, arrival, coefficients = leaf(batch, horizon, 3), leaf(batch, horizon, 3), leaf(4, 3)
    rates = torch.tensor([0.0, 1.0, 0.25, 0.01], dtype=torch.float64)
    steps = torch.tensor(lengths)
    start = leaf(horizon, horizon).detach() if started else None
    weights = module._Fusion.apply(credit, arrival, coefficients, rates, start)

    times = torch.arange(horizon)
    lags = (times + 1 - times.unsqueeze(1)).clamp(min=0)
    real = (times < steps.unsqueeze(1)).unsqueeze(1).expand(-1, horizon, -1).triu()
    decays = torch.exp(-rates.view(-1, 1, 1) * lags)
    logits = torch.einsum("btd,bkd,md,mtk->btk", credit, arrival, coefficients, decays)
    logits = logits if start is None else logits + start
    wanted = torch.sigmoid(logits)
    assert torch.allclose(weights[real], wanted[real], rtol=0, atol=1e-14)
    cotangent = torch.randn(int(real.sum()), generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((weights[real] * cotangent).sum(), leaves)
    theirs = torch.autograd.grad((wanted[real] * cotangent).sum(), leaves)
    for name, one, other in zip(("credit", "arrival", "coefficients"), ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12), name


def test_short_scales_and_long_episodes_stay_finite() -> None:
    """In single precision, where ``exp(1000)`` is infinite."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((1, 1000, 4), (1, 1000, 4), (2, 4))
    ]
    weights = module._Fusion.apply(*leaves, torch.tensor([1.0, 0.001]), None)
    weights.sum().backward()
    assert torch.isfinite(weights).all()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.any()


@pytest.mark.parametrize("embedding_dim", [1, 6, 7])
def test_it_starts_at_one_half_with_something_to_learn_from(embedding_dim: int) -> None:
    """Pairs of dimensions cancel; every parameter that can reach a weight does, but through an odd one only its
    coefficient."""
    torch.manual_seed(0)
    function = Product(SPACES["box"], lambda: FloatEncoder("box"), embedding_dim=embedding_dim).double()
    weights = function(random_episodes([20, 20], "box"))
    used = torch.stack([weights[pair] for pair in pairs([20, 20])])
    assert used.detach().numpy() == pytest.approx(0.5, abs=1e-12)
    (used * torch.randn(used.shape, dtype=used.dtype)).sum().backward()
    paired = embedding_dim // 2 * 2
    for head in (function.action_head, function.reward_head):
        assert head.weight.grad is not None
        assert head.weight.grad[:paired].any(1).all() and not head.weight.grad[paired:].any()
    for coefficients in (function.lag_coefficients, function.lag_bias):
        assert coefficients.grad is not None and coefficients.grad.all()


def test_near_and_far_pairs_start_with_dimensions_of_their_own() -> None:
    """What an action embedding's dimension is worth to a pair falls with the lag in one half of them, as
    ``exp(−l / τ)`` with the middle ``τ``, and rises in the other."""
    torch.manual_seed(0)
    function = Product(
        SPACES["box"], lambda: FloatEncoder("box"), embedding_dim=8, lag_scales=(2.0, 5.0, 11.0)
    ).double()
    episodes = random_episodes([30], "box")
    for t, k in ((3, 3), (3, 12), (0, 29)):
        lag = k + 1 - t
        function.zero_grad()
        torch.logit(function(episodes)[0, t, k]).backward()
        arrival = function.reward_head(function.trunk(function.encoder(episodes.observations[k + 1])))[0]
        assert function.action_head.bias.grad is not None
        near = math.exp(-lag / 5.0)
        share = torch.tensor([near, near, 1 - near, 1 - near, -near, -near, near - 1, near - 1], dtype=torch.float64)
        wanted = share * arrival / 8**0.5
        assert torch.allclose(function.action_head.bias.grad, wanted, rtol=0, atol=1e-6)


def test_it_can_start_as_a_discount() -> None:
    """And what is learned then comes on top, the same as from ½."""
    kwargs: dict[str, Any] = {"lag_scales": (2.0, 5.0)}
    torch.manual_seed(0)
    plain = Product(SPACES["box"], lambda: FloatEncoder("box"), **kwargs).double()
    warm = Product(
        SPACES["box"], lambda: FloatEncoder("box"), initial_discount=0.9, initial_floor=0.2, **kwargs
    ).double()
    episodes = random_episodes([60, 7], "box")
    start = {(b, t, k): min(max(0.9 ** (k - t), 0.2), 0.8) for b, t, k in pairs([60, 7])}  # column k is R_{k+1}
    for pair, weight in start.items():
        assert warm(episodes)[pair].item() == pytest.approx(weight, abs=1e-9)
    plain = randomised(plain)
    with torch.no_grad():
        plain.lag_coefficients.mul_(0.01)
    warm.load_state_dict(plain.state_dict())
    logits, from_half = torch.logit(warm(episodes)), torch.logit(plain(episodes))
    for pair, weight in start.items():
        assert (logits - from_half)[pair].item() == pytest.approx(math.log(weight / (1 - weight)), abs=1e-6)


def test_what_is_learned_of_one_state_hardly_reaches_another() -> None:
    """Raise the weight of A → C alone: in the mean of five networks the logit of B → C goes less than a quarter of the
    way with it."""
    a, b, c = 4 * torch.eye(3, dtype=torch.float64)
    observations = torch.stack([torch.stack([a, b]), torch.stack([c, c])])
    episodes = replace(random_episodes([1, 1], "box"), observations=observations)
    followed = []
    for seed in range(5):
        torch.manual_seed(seed)
        function = Product(SPACES["box"], lambda: FloatEncoder("box")).double()
        optimizer = torch.optim.Adam(function.parameters(), lr=1e-3)
        while (weights := function(episodes)[:, 0, 0])[0] < 0.8:
            optimizer.zero_grad()
            (-weights[0]).backward()
            optimizer.step()
        of_a, of_b = torch.logit(weights.detach())
        followed.append((of_b / of_a).item())
    assert sum(followed) / 5 < 0.25


def test_it_embeds_each_observation_once() -> None:
    seen: list[int] = []

    class Counting(FloatEncoder):
        def forward(self, observations: Any) -> Tensor:
            seen.append(len(observations))
            return super().forward(observations)

    function = Product(SPACES["box"], lambda: Counting("box")).double()
    function(random_episodes([9, 9], "box"))
    assert sum(seen) == 10 * 2

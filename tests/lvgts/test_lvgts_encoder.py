"""The sparse attention against a loop, and both encoders against their definitions, step by step."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from lvgts_samples import INPUT_DIM, LATENT_DIM, randn
from torch import Tensor, nn

from tca_sb3.lvgts.encoder import AttentionEncoder, Encoder, Memory, RecurrentEncoder, earlier, mlp, top_k_attention

ENCODERS = [AttentionEncoder, RecurrentEncoder]


def literal_attention(scores: list[float], n_recalls: int) -> list[float]:
    """Algorithm 2 for one step, in plain Python."""
    ranked = sorted(scores, reverse=True)
    threshold = ranked[n_recalls] if len(ranked) > n_recalls else min(ranked, default=0.0) - 1
    excess = [max(score - threshold, 0.0) for score in scores]
    return [one / sum(excess) if sum(excess) > 0 else 0.0 for one in excess]


def make(encoder_class: type[Encoder], seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return encoder_class(INPUT_DIM, LATENT_DIM, n_recalls=3, net_arch=(8,))  # type: ignore[call-arg]


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 3, 4)])
def test_a_perceptron_is_its_layers_one_after_the_other(leading: tuple[int, ...]) -> None:
    net = mlp(INPUT_DIM, (8, 7), 2, nn.Tanh)
    inputs = randn(*leading, INPUT_DIM).float()
    expected = inputs
    for layer in list(net):
        expected = layer(expected)
    got = net(inputs)
    assert got.shape == (*leading, 2)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("scores", "weights"),
    [
        ([3.0, 2.0, 2.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ([4.0, 3.0, 2.0, 1.0], [3 / 6, 2 / 6, 1 / 6, 0.0]),
        ([1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]),  # a tie of k + 1 at the top
        ([2.0, 0.0], [0.75, 0.25]),  # fewer candidates than k: the smallest less 1 is the threshold
        ([-5.0], [1.0]),
    ],
)
def test_attention_by_hand(scores: list[float], weights: list[float]) -> None:
    for candidates in (torch.ones(len(scores), dtype=torch.bool), None):
        got = top_k_attention(torch.tensor(scores), candidates, 3)
        assert got.tolist() == pytest.approx(weights)


@pytest.mark.parametrize("n_recalls", [1, 3, 20])
def test_attention_is_the_literal_loop_on_every_causal_row(n_recalls: int) -> None:
    scores = randn(20, 15, 15)
    scores[0].round_()  # with ties
    weights = top_k_attention(scores, earlier(15), n_recalls)
    for rows, expected in zip(scores, weights, strict=True):
        for t in range(15):
            past = literal_attention(rows[t, :t].tolist(), n_recalls)
            assert expected[t, :t].tolist() == pytest.approx(past)
            assert not expected[t, t:].any()


def test_at_most_k_weights_that_sum_to_one_or_all_zero_on_ties() -> None:
    scores = randn(1000, 15, 15)
    scores[::2] = (2 * scores[::2]).round()
    weights = top_k_attention(scores, earlier(15), 3)
    assert (weights > 0).sum(-1).max() == 3
    assert (weights >= 0).all()
    sums = weights.sum(-1)
    assert ((sums - 1).abs().lt(1e-12) | sums.eq(0)).all()
    tied = sums[:, 1:].eq(0)
    assert tied[::2].any() and not tied[1::2].any()


def test_attention_gradient_is_exact_and_finite_without_candidates() -> None:
    scores = randn(4, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: top_k_attention(s, earlier(6), 2), scores)
    for length in (2, 6):
        assert torch.autograd.gradcheck(lambda s: top_k_attention(s, None, 2), scores[..., :length])
    top_k_attention(scores, torch.zeros(6, 6, dtype=torch.bool), 2).sum().backward()
    assert scores.grad is not None and not scores.grad.any()


def test_attention_encoder_is_algorithm_2() -> None:
    encoder = make(AttentionEncoder)
    assert isinstance(encoder, AttentionEncoder)
    inputs = randn(2, 9, INPUT_DIM).float()
    with torch.no_grad():
        encoding = encoder(inputs)
    for b in range(2):
        embeddings = [encoder.embedding(x) for x in inputs[b]]
        for t in range(9):
            keys = [encoder.key(x) for x in inputs[b, :t]]
            weights = literal_attention([(embeddings[t] @ key).item() / sqrt(LATENT_DIM) for key in keys], 3)
            latent = embeddings[t] + sum((w * z for w, z in zip(weights, embeddings[:t], strict=True)), torch.zeros(1))
            assert encoding.weights[b, t, :t].tolist() == pytest.approx(weights, abs=1e-5)
            torch.testing.assert_close(encoding.latents[b, t], latent, atol=1e-5, rtol=0)


def test_recurrent_encoder_is_equation_3() -> None:
    encoder = make(RecurrentEncoder)
    assert isinstance(encoder, RecurrentEncoder)
    inputs = randn(2, 9, INPUT_DIM).float()
    encoding = encoder(inputs)
    for b in range(2):
        latents: list[Tensor] = []
        for t in range(9):
            previous = latents[-1] if latents else torch.zeros(LATENT_DIM)
            embedding = encoder.embedding(torch.cat([inputs[b, t], previous.tanh()]))
            scores = [(embedding @ encoder.key(h)).item() / sqrt(LATENT_DIM) for h in latents]
            weights = literal_attention(scores, 3)
            latents.append(embedding + sum((w * h for w, h in zip(weights, latents, strict=True)), torch.zeros(1)))
            assert encoding.weights[b, t, :t].tolist() == pytest.approx(weights, abs=1e-4)
            torch.testing.assert_close(encoding.latents[b, t], latents[t], atol=1e-5, rtol=0)


def test_recurrent_latents_cannot_overflow_in_long_episodes() -> None:
    """Each is an embedding, of bounded inputs, and a mean of those before it: they grow linearly at most."""
    encoder = make(RecurrentEncoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(10.0)
        latents = encoder(randn(2, 200, INPUT_DIM).float()).latents
    size = latents.abs().amax((0, 2))
    assert 1 < size[0] < 1e4 and size.max() < 200 * 1e4


@pytest.mark.parametrize("encoder_class", ENCODERS)
def test_past_does_not_depend_on_future(encoder_class: type[Encoder]) -> None:
    encoder = make(encoder_class)
    inputs = randn(2, 12, INPUT_DIM).float()
    whole = encoder(inputs)
    changed = inputs.clone()
    changed[:, 7:] = 100.0
    part = encoder(changed)
    torch.testing.assert_close(part.latents[:, :7], whole.latents[:, :7])
    torch.testing.assert_close(part.weights[:, :7], whole.weights[:, :7])
    assert not whole.weights.triu().any()


@pytest.mark.parametrize("encoder_class", ENCODERS)
def test_step_by_step_equals_whole_episodes(encoder_class: type[Encoder]) -> None:
    """In lanes that begin at different times, and beyond the memory's first capacity."""
    encoder = make(encoder_class).double()
    inputs = randn(3, 40, INPUT_DIM)
    begins = [[0], [0, 5], [0, 17, 18]]
    empty = Memory.empty(3, LATENT_DIM)
    memory = Memory(empty.keys.double(), empty.values.double(), empty.lengths)
    with torch.no_grad():
        stepped = []
        for t in range(40):
            memory.forget(torch.tensor([t in mine for mine in begins]))
            stepped.append(encoder.step(inputs[:, t], memory))
        got = torch.stack(stepped, dim=1)
        for lane, mine in enumerate(begins):
            for begin, end in zip(mine, [*mine[1:], 40], strict=True):
                expected = encoder(inputs[lane : lane + 1, begin:end]).latents[0]
                torch.testing.assert_close(got[lane, begin:end], expected)


@pytest.mark.parametrize("encoder_class", ENCODERS)
def test_refuses_to_recall_nothing(encoder_class: type[Encoder]) -> None:
    with pytest.raises(ValueError, match="n_recalls=0; it must be at least 1"):
        encoder_class(3, 4, 0)

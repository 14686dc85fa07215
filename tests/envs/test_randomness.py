"""Counter-based randomness against published numbers, a literal loop, and its distributions."""

from __future__ import annotations

import numpy as np
import pytest

from tca_envs.randomness import (
    GAMMA,
    MASK,
    batch_words,
    below,
    mix,
    noise_slot,
    noise_table,
    stream_of,
    words_of,
)


def test_mix_is_splitmix64():
    """The first outputs of splitmix64 from state 1234567, as its reference implementation prints them."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix((1234567 + k * GAMMA) & MASK) for k in range(1, 6)] == expected


def test_batches_are_singles():
    streams = [stream_of(seed) for seed in (0, 1, 2, 10**30, 2**64 - 1)]
    deals = [0, 5, 1, 3, 2**40]
    batch = batch_words(np.array(streams, np.uint64), np.array(deals), 7)
    assert batch.dtype == np.int64
    assert batch.T.tolist() == [words_of(s, d, 7) for s, d in zip(streams, deals, strict=True)]
    part = batch_words(np.array(streams[2:3], np.uint64), np.array(deals[2:3]), 4)
    assert (part[:, 0] == batch[:4, 2]).all()


def test_seeds_and_deals_have_words_of_their_own():
    words = {tuple(words_of(stream_of(seed), deal, 2)) for seed in range(60) for deal in range(60)}
    assert len(words) == 3600
    assert len({word for pair in words for word in pair}) == 7200
    assert stream_of(7) != stream_of(7 + 2**64)


def test_below_is_uniform_and_fits_arrays():
    words = batch_words(np.arange(2000, dtype=np.uint64), np.zeros(2000, np.int64), 22)
    for bound in (2, 7, 22):
        drawn = below(words, bound)
        counts = np.bincount(drawn.ravel(), minlength=bound)
        assert len(counts) == bound
        expected = drawn.size / bound
        assert ((counts - expected) ** 2 / expected).sum() < bound + 5 * np.sqrt(2 * bound)
        assert drawn[0, :9].tolist() == [below(int(word), bound) for word in words[0, :9]]
    assert below((1 << 63) - 1, 22) == 21
    assert below(0, 22) == 0


def test_low_and_high_bits_are_independent():
    words = batch_words(np.arange(4000, dtype=np.uint64), np.zeros(4000, np.int64), 20).ravel()
    table = np.histogram2d(below(words, 4), noise_slot(words) % 4, bins=4)[0]
    assert ((table - words.size / 16) ** 2 / (words.size / 16)).sum() < 45  # chi-square, 15 d.o.f., p < 1e-4


@pytest.mark.parametrize("kind", ["normal", "two-point"])
def test_noise_has_mean_zero_and_variance_one(kind):
    table = noise_table(kind)
    assert table.shape == (1 << 16,)
    assert abs(table.mean()) < 1e-12
    assert abs(table.var() - 1.0) < 1e-7
    assert (table == table.astype(np.float32)).all()
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0.0


def test_normal_noise_is_normal():
    scipy_stats = pytest.importorskip("scipy.stats")
    table = noise_table("normal")
    assert scipy_stats.kstest(table, "norm").statistic < 1e-4
    assert abs((table**4).mean() - 3.0) < 0.01
    assert (np.diff(table) >= 0).all()


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="'normal', 'two-point'"):
        noise_table("cauchy")

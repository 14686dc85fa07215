"""Counter-based randomness: every random word is a pure function of (seed, episode, position).

A generator object hands out its numbers in the order in which it is asked, so an environment's episodes
would depend on how many neighbours share the batch. Here the `d`-th word of episode `e` under seed `s` is
splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) evaluated at
a counter: the same seed gives the same episode at any batch size, in any position, with any backend, and in
the single environment.

The functions marked *kernel-safe* hold only integer arithmetic and indexing, and run alike on Python ints, on
numpy integer arrays and under numba.
"""

from __future__ import annotations

from functools import cache
from math import fsum, sqrt
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tca_envs.checks import check_choice

NoiseKind = Literal["normal", "two-point"]

GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, splitmix64's increment
MASK = 0xFFFFFFFFFFFFFFFF
NOISE_BITS = 16


def mix(word: Any) -> Any:
    """splitmix64's finaliser, a bijection of the 64-bit words (Python ints or uint64 arrays)."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def stream_of(seed: int) -> int:
    """The 64-bit stream of a non-negative seed of any size. Seeds below 2^64 never share a stream."""
    stream = mix((seed + 1) & MASK)
    while seed := seed >> 64:
        stream = mix((stream + seed) & MASK)
    return stream


def key_of(stream: Any, deal: Any) -> Any:
    """The 64-bit key of deal number `deal` (an episode, or a lifetime) of a stream. Kernel-safe, for uint64."""
    return mix((stream + deal * GAMMA) & MASK)


def word_of(key: Any, d: Any) -> Any:
    """The d-th word, d = 1, 2, ..., of the deal with this key: uniform in [0, 2^63). Kernel-safe, for uint64."""
    return mix((key + d * GAMMA) & MASK) >> 1


def words_of(stream: int, deal: int, count: int) -> list[int]:
    """The first `count` words of deal number `deal` of a stream, as Python ints in [0, 2^63)."""
    key = key_of(stream, deal)
    return [word_of(key, d) for d in range(1, count + 1)]


def batch_words(streams: NDArray[np.uint64], deals: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`words_of` for many streams at once.

    Args:
        streams: Streams, shape (n,).
        deals: Deal numbers, shape (n,).
        count: Words per stream.

    Returns:
        Array (count, n) of integers in [0, 2^63); column `j` is `words_of(streams[j], deals[j], count)`.
    """
    keys = key_of(streams, deals.astype(np.uint64))
    return word_of(keys, np.arange(1, count + 1, dtype=np.uint64)[:, None]).view(np.int64)


def below(word: Any, bound: Any) -> Any:
    """An integer in [0, bound) from the high bits of a word, `bound` < 2^31. Kernel-safe.

    The probabilities of two values differ by at most 2^-32 (no rejection, so that the number of words an
    episode uses never varies).
    """
    return ((word >> 31) * bound) >> 32


def noise_slot(word: Any) -> Any:
    """The entry of a `noise_table` that a word selects by its low 16 bits. Kernel-safe.

    `below` reads the high 32 bits, so one word may serve both.
    """
    return word & 0xFFFF


@cache
def noise_table(kind: NoiseKind) -> NDArray[np.float64]:
    """65,536 equally likely values of a distribution with mean 0 and variance 1.

    Args:
        kind: "normal": the mid-quantiles of the normal distribution, |z| <= 4.33, scaled to variance 1;
            "two-point": -1 or +1 with probability one half each.

    Returns:
        Read-only array (65536,). Values are rounded to float32, so that differences in the last bit of
        a platform's mathematical library cannot change an episode.

    Raises:
        ValueError: If the kind is unknown.
    """
    check_choice("noise", kind, get_args(NoiseKind))
    size = 1 << NOISE_BITS
    if kind == "two-point":
        table = np.repeat([-1.0, 1.0], size // 2)
    else:
        normal = NormalDist()
        upper = [normal.inv_cdf((i + 0.5) / size) for i in range(size // 2, size)]
        scale = 1.0 / sqrt(fsum(z * z for z in upper) * 2 / size)
        half = np.array(upper) * scale
        table = np.concatenate([-half[::-1], half])
    table = table.astype(np.float32).astype(np.float64)
    table.setflags(write=False)
    return table

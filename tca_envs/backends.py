"""How the kernels of `Rules` run on a batch: directly on numpy arrays, or compiled by numba lane by lane."""

from __future__ import annotations

from functools import cache, cached_property
from importlib.util import find_spec
from math import gcd
from types import FunctionType
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from tca_envs.checks import check_choice
from tca_envs.randomness import batch_words, key_of, word_of
from tca_envs.rules import Columns, Lanes, Rules

BackendName = Literal["numpy", "numba"]

# Kernels allocate nothing. Told so, numba counts no references to the columns, which in a loop over lanes costs as much
# as the step itself.
NO_ALLOCATION: dict[str, Any] = {"_nrt": False}


class Batch(Protocol):
    """The kernels of some rules, bound to the state of a batch."""

    @property
    def all(self) -> Lanes:
        """The quickest way to say "every lane" as `i`."""

    def any_outside(self, actions: NDArray[Any]) -> bool:
        """`Rules.any_outside`."""

    def deal(self, i: Lanes, streams: NDArray[np.uint64], deals: NDArray[np.int64]) -> None:
        """Deal to the lanes `i` from the streams and deal numbers given for them."""

    def begin(self, i: Lanes) -> None:
        """Put the lanes `i` at time 0."""

    def step(self, i: Lanes, t: int, actions: NDArray[Any]) -> NDArray[np.float64]:
        """Move the lanes `i` from time t to t + 1; the rewards, in an array of their own."""


def make_batch(backend: BackendName, rules: Rules, state: Any, lanes: int) -> Batch:
    """The kernels of `rules` on `state`, which holds `lanes` lanes.

    Raises:
        ValueError: If the backend is unknown.
        ImportError: If it is "numba" and numba is not installed.
    """
    check_choice("backend", backend, get_args(BackendName))
    if backend == "numpy":
        return NumpyBatch(rules, state)
    if find_spec("numba") is None:
        raise ImportError('backend="numba" needs numba; install it with: pip install "tca-envs[fast]"')
    return NumbaBatch(rules, state, lanes)


class NumpyBatch:
    """The kernels as they are: on arrays they do every lane at once."""

    all = slice(None)

    def __init__(self, rules: Rules, state: Any) -> None:
        self._rules, self._step = rules, rules.step
        self._tables, self._state = Columns(rules.tables(), _as_words), Columns(state, _as_words)
        self.any_outside = rules.any_outside

    def deal(self, i: Lanes, streams: NDArray[np.uint64], deals: NDArray[np.int64]) -> None:
        self._rules.deal(self._tables, self._state, i, batch_words(streams, deals, self._rules.words))

    def begin(self, i: Lanes) -> None:
        self._rules.begin(self._tables, self._state, i)

    def step(self, i: Lanes, t: int, actions: NDArray[Any]) -> NDArray[np.float64]:
        return self._step(self._tables, self._state, i, t, actions)


class Words:
    """A column of opaque entries as a few columns of machine words: numpy would index it byte by byte.

    What is read from one such column may be written into another with entries of the same size.
    """

    def __init__(self, column: NDArray[np.void]) -> None:
        words = column.view(f"u{_word(column)}")
        count = words.size // column.size
        self._parts = [words[part::count] for part in range(count)]

    def __getitem__(self, i: Any) -> list[Any]:
        return [part[i] for part in self._parts]

    def __setitem__(self, i: Any, entry: list[Any]) -> None:
        for part, word in zip(self._parts, entry):  # noqa: B905 (hot, equal by design)
            part[i] = word


def _word(column: NDArray[np.void]) -> int:
    """The most bytes that machine words can have which make up the entries of a column."""
    return gcd(column.dtype.itemsize, 8)


def _as_words(column: Any) -> Any:
    """The same memory, opaque entries of up to four words as `Words`; with more, numpy's own way is no slower."""
    return Words(column) if _is_opaque(column) and column.dtype.itemsize <= 4 * _word(column) else column


def _is_opaque(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind == "V"


class NumbaBatch:
    """The kernels compiled, in a loop over lanes.

    Compilation takes some seconds at the first use of each kernel in a process. Loops are called by their
    compiled entry, for numba would take longer to look up the types of all columns than a step takes. So
    arguments must have exactly the types compiled for, which the methods see to.
    """

    def __init__(self, rules: Rules, state: Any, lanes: int) -> None:
        self.all = np.arange(lanes)
        self._words = np.zeros(rules.words, np.int64)  # of the lane at hand
        self._loops = _loops(rules.deal, rules.begin, rules.step)
        self._columns = (_as_records(rules.tables()), _as_records(state))
        self._actions = np.zeros(1, np.array(rules.limits[0]).dtype)
        self._limits = rules.limits

    def any_outside(self, actions: NDArray[Any]) -> bool:
        return self._any_outside(np.ascontiguousarray(actions), *self._limits)

    def deal(self, i: Any, streams: NDArray[np.uint64], deals: NDArray[np.int64]) -> None:
        self._deal(*self._columns, i, streams, deals.astype(np.uint64), self._words)

    def begin(self, i: Any) -> None:
        self._begin(*self._columns, i)

    def step(self, i: Any, t: int, actions: NDArray[Any]) -> NDArray[np.float64]:
        rewards = np.empty(i.size)
        self._step(*self._columns, i, t, np.ascontiguousarray(actions), rewards)
        return rewards

    @cached_property
    def _deal(self) -> Any:
        numbers = np.zeros(1, np.uint64)
        return self._compile(0, *self._columns, self.all, numbers, numbers, self._words)

    @cached_property
    def _begin(self) -> Any:
        return self._compile(1, *self._columns, self.all)

    @cached_property
    def _step(self) -> Any:
        return self._compile(2, *self._columns, self.all, 0, self._actions, np.zeros(1))

    @cached_property
    def _any_outside(self) -> Any:
        return self._compile(3, self._actions, *self._limits)

    def _compile(self, loop: int, *examples: Any) -> Any:
        import numba

        return self._loops[loop].compile(tuple(numba.typeof(value) for value in examples))


@cache
def _loops(deal: Any, begin: Any, step: Any) -> tuple[Any, Any, Any, Any]:
    """The loops over lanes of one family."""
    import numba

    deal, begin, step, key, word = (compiled(kernel) for kernel in (deal, begin, step, key_of, word_of))
    njit: Any = numba.njit(**NO_ALLOCATION)

    # Lanes are unsigned to kernels: for a signed index numba would look each time whether it counts from the end.

    @njit
    def deal_lanes(tables: Any, state: Any, lanes: Any, streams: Any, deals: Any, words: Any) -> None:
        for j in range(lanes.size):
            dealt = key(streams[j], deals[j])
            for d in range(words.size):
                words[d] = word(dealt, np.uint64(d + 1))
            deal(tables, state, np.uintp(lanes[j]), words)

    @njit
    def begin_lanes(tables: Any, state: Any, lanes: Any) -> None:
        for j in range(lanes.size):
            begin(tables, state, np.uintp(lanes[j]))

    @njit
    def step_lanes(tables: Any, state: Any, lanes: Any, t: int, actions: Any, rewards: Any) -> None:
        for j in range(lanes.size):
            rewards[j] = step(tables, state, np.uintp(lanes[j]), t, actions[j])

    @njit
    def any_outside(actions: Any, low: Any, high: Any) -> bool:
        outside = 0
        for action in actions:
            outside |= not low <= action <= high  # no early return: so it runs on several actions at once
        return outside != 0

    return deal_lanes, begin_lanes, step_lanes, any_outside


def _as_records(columns: Any) -> Any:
    """The same memory, with opaque entries as records of bytes: numba knows no void dtype."""
    return type(columns)(
        *(
            column.view(np.dtype([("bytes", np.uint8, (column.dtype.itemsize,))])) if _is_opaque(column) else column
            for column in columns
        )
    )


def compiled(kernel: Any) -> Any:
    """A kernel under numba, with the plain functions that it calls compiled as well."""
    import numba

    names = kernel.__code__.co_names
    helpers = {
        name: compiled(kernel.__globals__[name])
        for name in names
        if isinstance(kernel.__globals__.get(name), FunctionType)
    }
    copy = FunctionType(kernel.__code__, {**kernel.__globals__, **helpers}, kernel.__name__)
    return numba.njit(copy, inline="always", **NO_ALLOCATION)

"""How the kernels of `Rules` run on a batch: directly on numpy arrays, or compiled by numba lane by lane."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from tca_envs.checks import check_choice
from tca_envs.randomness import batch_words
from tca_envs.rules import Lanes, Rules

BackendName = Literal["numpy", "numba"]


class Backend(NamedTuple):
    """The kernels of one family, each over many lanes.

    Attributes:
        deal: `deal(tables, state, i, streams, deals, count)`, drawing `count` words a lane itself.
        begin: `begin(tables, state, i)`.
        step: `step(tables, state, i, t, actions)`, the rewards of lanes `i`, float64.
        all_lanes: The quickest `i` for every one of n lanes.
        prepare: Tables or state in the form that the kernels take, over the same memory.
    """

    deal: Callable[..., None]
    begin: Callable[..., None]
    step: Callable[..., NDArray[np.float64]]
    all_lanes: Callable[[int], Lanes]
    prepare: Callable[[Any], Any]


def make_backend(name: BackendName, rules: Rules) -> Backend:
    """The backend of that name for these rules.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If it is "numba" and numba is not installed.
    """
    check_choice("backend", name, get_args(BackendName))
    kernels = (rules.deal, rules.begin, rules.step)
    if name == "numpy":
        return _numpy_backend(*kernels)
    if find_spec("numba") is None:
        raise ImportError('backend="numba" needs numba; install it with: pip install "tca-envs[fast]"')
    return _numba_backend(*kernels)


def _numpy_backend(deal: Any, begin: Any, step: Any) -> Backend:
    def deal_all(tables: Any, state: Any, i: Lanes, streams: Any, deals: Any, count: int) -> None:
        deal(tables, state, i, batch_words(streams, deals, count))

    return Backend(deal_all, begin, step, lambda lanes: slice(None), lambda columns: columns)


@cache
def _numba_backend(deal: Any, begin: Any, step: Any) -> Backend:
    """Compiled loops over lanes; compiled once a process and family, at the first call."""
    import numba

    deal_one, begin_one, step_one = (compiled(kernel) for kernel in (deal, begin, step))

    @numba.njit
    def deal_lanes(tables: Any, state: Any, lanes: Any, words: Any) -> None:
        for j in range(lanes.size):
            deal_one(tables, state, lanes[j], words[:, j])

    @numba.njit
    def begin_lanes(tables: Any, state: Any, lanes: Any) -> None:
        for j in range(lanes.size):
            begin_one(tables, state, lanes[j])

    @numba.njit
    def step_lanes(tables: Any, state: Any, lanes: Any, t: int, actions: Any, rewards: Any) -> None:
        for j in range(lanes.size):
            rewards[j] = step_one(tables, state, lanes[j], t, actions[j])

    def deal_all(tables: Any, state: Any, lanes: Any, streams: Any, deals: Any, count: int) -> None:
        deal_lanes(tables, state, lanes, batch_words(streams, deals, count))

    def step_all(tables: Any, state: Any, lanes: Any, t: int, actions: Any) -> NDArray[np.float64]:
        rewards = np.empty(lanes.size)
        step_lanes(tables, state, lanes, t, actions, rewards)
        return rewards

    def all_lanes(lanes: int) -> NDArray[np.int64]:
        return np.arange(lanes)

    return Backend(deal_all, begin_lanes, step_all, all_lanes, _as_bytes)


def _as_bytes(columns: Any) -> Any:
    """The same memory, with opaque pixels as rows of bytes: numba knows no void dtype."""
    return type(columns)(
        *(
            column.view(np.uint8).reshape(*column.shape, column.dtype.itemsize)
            if isinstance(column, np.ndarray) and column.dtype.kind == "V"
            else column
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
    return numba.njit(copy)

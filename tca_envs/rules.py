"""The contract of an environment: its rules, written once for one episode or many.

A family subclasses `Rules` and writes three *kernels*, plain functions that hold only indexing and arithmetic:

    deal(tables, state, i, words)       write the random part of an episode from random words
    begin(tables, state, i)             put the episode at its start
    step(tables, state, i, t, action)   one transition at time t; returns the reward R_{t+1}

`tables` never change; `state` holds one entry (or one stretch) per lane, where a lane is one of the episodes
that run side by side. Both are named tuples of flat arrays. `i` says which lanes to work on, and the same
source runs three ways:

    single environment    i = 0            columns are Python lists, values Python numbers
    vector environment    i = slice(None)  or an index array; values are arrays, one entry a lane
    vector under numba    i = 0, 1, ...    in a compiled loop

So a kernel may branch on `t`, on `tables` and on nothing else; it writes `state.x[i] = ...`; and where a lane
owns a stretch of a longer column it adds the lane's first index, itself a column: `state.grid[state.first[i] + cell]`.
Helpers a kernel calls must be module-level functions of the same kind. Adding an environment is one file in
`tca_envs/envs/`, see `tca_envs/README.md`.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Lanes = slice | NDArray[np.int64]


class Trace(NamedTuple):
    """What has happened in the current episode of one lane, for drawing: entry j is of step j."""

    actions: list[float]
    rewards: list[float]

    @property
    def t(self) -> int:
        """The current time."""
        return len(self.rewards)


class Rules(ABC):
    """Dynamics, spaces, drawing and credit structure of one environment of fixed horizon.

    Subclasses check their arguments in `__init__` and set the four attributes below. Instances never change
    afterwards and may be shared.

    Attributes:
        horizon: Steps of every episode, T. The last transition terminates it.
        observation_space: Space of one observation.
        action_space: `Discrete`, or `Box` of shape (1,), which reaches the kernel as one float.
        words: Random words a deal needs.
    """

    horizon: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Discrete | spaces.Box
    words: int = 0

    deals_every: Literal["episode", "lifetime"] = "episode"
    """When `deal` runs: before every episode, or once a lifetime. A lifetime begins when the environment is
    seeded and when it is reset with `options={"new_lifetime": True}`."""

    render_fps: ClassVar[int] = 8

    # The kernels. `deal` and `begin` may stay as they are where there is nothing to do.

    @staticmethod  # noqa: B027
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        """Kernel: write the random part of an episode (or lifetime).

        `words[d]` is the d-th random word. They are the kernel's to overwrite.
        """

    @staticmethod  # noqa: B027
    def begin(tables: Any, state: Any, i: Any) -> None:
        """Kernel: put the episode at time 0. What was dealt stands."""

    @staticmethod
    @abstractmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        """Kernel: the transition from time t to t + 1; returns the reward that arrives at t + 1."""

    # What the kernels work on.

    @abstractmethod
    def tables(self) -> Any:
        """Constants of the kernels: a named tuple of numbers and flat arrays."""

    @abstractmethod
    def allocate(self, lanes: int) -> Any:
        """A state for `lanes` lanes: a named tuple of arrays that `begin` or `deal` will fill.

        Columns of one dimension become lists in the single environment; others stay arrays.
        """

    # What comes out.

    @abstractmethod
    def observe(self, state: Any, i: Lanes) -> Any:
        """Observations of the lanes `i`, batched as Gymnasium batches them, in arrays of their own."""

    def peek(self, state: Any, i: Lanes) -> Any:
        """Like `observe`, but free to give views of the state; override where copying costs time."""
        return self.observe(state, i)

    def observe_one(self, state: Any) -> Any:
        """The observation of the only lane; override where this can be quicker than `observe`."""
        observations = self.observe(state, slice(None))
        if isinstance(self.observation_space, spaces.Dict):
            return {name: values[0] for name, values in observations.items()}
        return observations[0]

    def info(self, t: int, reward: Any) -> dict[str, Any]:
        """The info dictionary of the step that arrived at time t (t = 0: of reset, with reward 0).

        Keys are the same at every t and begin with a letter. A value is a scalar that depends on t alone and
        holds for every lane, or it is `reward` or built from it (a float, or an array with one entry a lane).
        """
        return {}

    @abstractmethod
    def frame(self, state: Any, lane: int, trace: Trace) -> NDArray[np.uint8]:
        """An RGB picture of the current moment of one lane, shape (height, width, 3)."""

    def text(self, state: Any, lane: int, trace: Trace) -> str:
        """The same as text, for `render_mode="ansi"`; only where `render_modes` lists it."""
        raise NotImplementedError

    render_modes: ClassVar[tuple[str, ...]] = ("human", "rgb_array")

    # Credit structure.

    @cached_property
    @abstractmethod
    def credit_matrix(self) -> NDArray[np.float64]:
        """The handcrafted weights: which action gets credit for which reward; shape (T, T), read-only.

        Entry [t, k - 1] is 1 iff the action at time t can influence the reward that arrives at time k > t,
        else 0; see `influence_matrix` for what this means where it could mean two things.
        """

    @property
    def influence_matrix(self) -> NDArray[np.float64]:
        """What an intervention can find: shape (T, T), read-only; nowhere below `credit_matrix`.

        Entry [t, k - 1] is 1 iff, for some actions before and after, changing the action at time t *and no
        other* changes the reward that arrives at time k > t; else 0. The two matrices are equal unless an
        action also changes what later actions mean, as in the DAG.
        """
        return self.credit_matrix

    @property
    @abstractmethod
    def optimal_return(self) -> float | None:
        """Expected undiscounted return of the best policy; None where it is not known exactly."""

    @property
    @abstractmethod
    def random_return(self) -> float | None:
        """Expected undiscounted return of the uniformly random policy; None where not known exactly."""

    @property
    @abstractmethod
    def myopic_return(self) -> float | None:
        """Expected return of an agent without long-term credit; each family says what that means in it."""

    # Actions in.

    @cached_property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest action: integers, or the bounds of a `Box`."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return 0, int(space.n) - 1
        return float(space.low[0]), float(space.high[0])

    @cached_property
    def _discrete(self) -> bool:
        return isinstance(self.action_space, spaces.Discrete)

    def check_action(self, action: Any) -> int | float:
        """The action as the kernel takes it: an int, or for a `Box` a float.

        Raises:
            TypeError: If it is not an integer (or for a `Box` not a number).
            ValueError: If it is outside the action space, NaN included, or of the wrong shape.
        """
        low, high = self.limits
        if not self._discrete:
            value = float(self._numbers(action, (1,))[0])
            if not low <= value <= high:
                raise self.refusal(np.array([value]))
            return value
        try:
            index = operator.index(action)
        except TypeError:
            raise TypeError(
                f"An action must be an integer from 0 to {high}, got {action!r} of type {type(action).__name__}."
            ) from None
        if not 0 <= index <= high:
            raise ValueError(f"An action must be an integer from 0 to {high}, got {index}.")
        return index

    def read_actions(self, actions: Any, lanes: int) -> NDArray[Any]:
        """A batch of actions as the kernel takes it, (lanes,), int64, or for a `Box` float64; not yet checked.

        Raises:
            TypeError: If the entries are not integers (or for a `Box` not numbers).
            ValueError: If the shape is wrong.
        """
        if not self._discrete:
            return self._numbers(actions, (lanes, 1))[:, 0]
        actions = np.asarray(actions)
        if actions.shape != (lanes,):
            raise ValueError(f"{lanes} environments need actions of shape ({lanes},), got shape {actions.shape}.")
        if actions.dtype != np.int64:
            if actions.dtype.kind not in "iu":
                raise TypeError(f"Actions must be integers from 0 to {self.limits[1]}, got dtype {actions.dtype}.")
            actions = actions.astype(np.int64)
        return actions

    def _numbers(self, actions: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
        raw = np.asarray(actions)
        if raw.dtype.kind not in "iuf":
            raise TypeError(f"Actions must be numbers, got dtype {raw.dtype}.")
        if raw.shape != shape:
            raise ValueError(f"Actions must have shape {shape}, got {raw.shape}.")
        return raw.astype(np.float64)

    def any_outside(self, actions: NDArray[Any]) -> bool:
        """Whether an action of a batch is outside the action space."""
        if not self._discrete:
            low, high = self.limits
            return not ((actions >= low) & (actions <= high)).all()  # NaN is on neither side
        # A negative number is a huge one when read as unsigned, so one comparison serves both ends.
        # (Looking for a true byte takes a third of the time of `any`.)
        return 1 in np.greater(actions.view(np.uint64), self._largest).tobytes()

    @cached_property
    def _largest(self) -> NDArray[np.uint64]:
        return np.array(self.limits[1], np.uint64)

    def refusal(self, actions: NDArray[Any]) -> ValueError:
        """The error for a batch with an action outside the action space, which names the first."""
        low, high = self.limits
        lane = int(np.flatnonzero(~((actions >= low) & (actions <= high)))[0])
        if self._discrete:
            return ValueError(f"Actions must be integers from 0 to {high}, got {actions[lane]} for environment {lane}.")
        return ValueError(
            f"Actions must lie in [{low:g}, {high:g}], got {actions[lane]:g}; clip them first, for example "
            "with gymnasium.wrappers.ClipAction."
        )


class CreditStructure:
    """The public face of `Rules` that single and vector environments share."""

    rules: Rules

    @property
    def horizon(self) -> int:
        """Steps of every episode, T."""
        return self.rules.horizon

    @property
    def credit_matrix(self) -> NDArray[np.float64]:
        """The handcrafted weights: which action gets credit for which reward; shape (T, T), read-only.

        Entry [t, k - 1] is 1 iff the action at time t can influence the reward that arrives at time k > t,
        else 0; see `influence_matrix` for what this means where it could mean two things.
        """
        return self.rules.credit_matrix

    @property
    def influence_matrix(self) -> NDArray[np.float64]:
        """What an intervention can find: shape (T, T), read-only; nowhere below `credit_matrix`.

        Entry [t, k - 1] is 1 iff, for some actions before and after, changing the action at time t *and no
        other* changes the reward that arrives at time k > t; else 0. The two matrices are equal unless an
        action also changes what later actions mean, as in the DAG.
        """
        return self.rules.influence_matrix

    @property
    def optimal_return(self) -> float | None:
        """Expected undiscounted return of the best policy; None where it is not known exactly."""
        return self.rules.optimal_return

    @property
    def random_return(self) -> float | None:
        """Expected undiscounted return of the uniformly random policy; None where not known exactly."""
        return self.rules.random_return

    @property
    def myopic_return(self) -> float | None:
        """Expected return of an agent without long-term credit; the class docstring says what that means."""
        return self.rules.myopic_return


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, locked, so that a shared constant cannot be changed by mistake."""
    array.setflags(write=False)
    return array


class Columns:
    """The columns of a named tuple as attributes of an object, which Python code reads several times faster."""

    def __init__(self, columns: Any, form: Callable[[Any], Any]) -> None:
        for name, column in zip(columns._fields, columns, strict=True):
            setattr(self, name, form(column))

    def __iter__(self) -> Iterator[Any]:
        return iter(vars(self).values())


def as_lists(columns: Any) -> Columns:
    """A named tuple of columns in the form on which single steps are fastest.

    One-dimensional arrays become lists, and long constants memory views, which need no copy.
    """
    return Columns(columns, _as_list)


def _as_list(column: Any) -> Any:
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        return column
    if column.dtype.kind == "V":  # pixels: of constants a list of bytes, of states the memory itself
        return column if column.flags.writeable else column.tolist()
    return column.tolist() if column.flags.writeable or column.size < 4096 else column.data

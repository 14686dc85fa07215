"""The clock of a task that is cut into consecutive phases of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tca_envs.checks import check_count


@dataclass(frozen=True)
class Phases:
    """Consecutive phases: action times `starts[p] <= t < starts[p + 1]` belong to phase `p`.

    An action taken in phase `p` at time `t` earns the reward that arrives at `k = t + 1`, so the rewards of
    phase `p` are those with `starts[p] < k <= starts[p + 1]`.

    Attributes:
        names: One name a phase.
        lengths: Steps of each phase, each at least 1.

    Raises:
        ValueError: If a length is not a positive integer or the two fields disagree.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.lengths):
            raise ValueError(f"{len(self.names)} phases need as many lengths, got {self.lengths}.")
        for name, length in zip(self.names, self.lengths, strict=True):
            check_count(f"the length of the {name} phase", length, minimum=1)

    @property
    def starts(self) -> tuple[int, ...]:
        """First action time of each phase, and the horizon as the last entry."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        return tuple(starts)

    @property
    def horizon(self) -> int:
        """Total number of steps."""
        return sum(self.lengths)

    def schedule(self) -> Sequence[int]:
        """The phase of each time t = 0..T; the terminal observation at T shows the last phase."""
        phases = [phase for phase, length in enumerate(self.lengths) for _ in range(length)]
        return [*phases, phases[-1]]

"""An ``Episodes`` that exists is consistent, and says which of its steps are real."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from samples import random_episodes
from torch import Tensor

from tca_sb3.episodes import Episodes, map_observations

LENGTHS = [3, 5, 1, 4]


@pytest.fixture
def episodes() -> Episodes:
    return random_episodes(LENGTHS, "dict", terminated=[True, False, True, True])


def with_value(tensor: Tensor, index: Any, value: float) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


def test_real_steps_one_by_one(episodes: Episodes) -> None:
    real = [(t, b) for t in range(5) for b in range(4) if t < LENGTHS[b]]
    assert [(t, b) for t in range(5) for b in range(4) if episodes.mask[t, b]] == real
    assert episodes.n_steps == len(real) == 13
    assert not episodes.full
    assert (episodes.horizon, episodes.batch_size) == (5, 4)
    wanted = torch.stack([episodes.rewards[t, b] for t, b in real])
    assert torch.equal(episodes.flatten(episodes.rewards), wanted)
    assert torch.equal(episodes.flat_actions, torch.stack([episodes.actions[t, b] for t, b in real]))
    for key, flat in episodes.flat_observations.items():
        assert torch.equal(flat, torch.stack([episodes.observations[key][t, b] for t, b in real]))


def test_without_padding_flattening_keeps_the_same_order() -> None:
    full = random_episodes([4, 4, 4], "box")
    assert full.full
    real = [(t, b) for t in range(4) for b in range(3)]
    assert torch.equal(full.flat_actions, torch.stack([full.actions[t, b] for t, b in real]))
    assert torch.equal(full.flat_observations, torch.stack([full.observations[t, b] for t, b in real]))


def test_map_observations_reaches_every_entry(episodes: Episodes) -> None:
    doubled = map_observations(lambda part: part * 2, episodes.observations)
    assert set(doubled) == {"a", "b"}
    assert all(torch.equal(doubled[key], part * 2) for key, part in episodes.observations.items())
    assert torch.equal(map_observations(lambda part: part + 1, torch.zeros(2)), torch.ones(2))


def test_whole_means_from_an_initial_to_a_terminal_state() -> None:
    assert random_episodes([2, 3]).whole
    assert not random_episodes([2, 3], terminated=[True, False]).whole
    assert not random_episodes([2, 3], started=[True, False]).whole
    random_episodes([2, 3]).require_whole("Somebody")


def test_pieces_and_time_limits_are_refused_each_in_its_own_words() -> None:
    cut = random_episodes([2, 3], terminated=[True, False])
    for piece in (cut, random_episodes([2, 3], started=[False, True])):
        with pytest.raises(ValueError, match=r"^Somebody got a piece of an episode.*n_episodes=1"):
            piece.require_whole("Somebody")
    timed_out = replace(cut, truncated=torch.tensor([False, True]))
    with pytest.raises(ValueError, match=r"^Somebody got an episode cut by a time limit.*terminated=True"):
        timed_out.require_whole("Somebody")


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "rewards of one dimension": (ValueError, "rewards", lambda e: {"rewards": e.rewards[:, 0]}),
    "no column": (ValueError, "rewards", lambda e: {"rewards": e.rewards[:, :0]}),
    "no step": (ValueError, "rewards", lambda e: {"rewards": e.rewards[:0]}),
    "whole-number rewards": (TypeError, "rewards", lambda e: {"rewards": e.rewards.long()}),
    "rewards from numpy": (TypeError, "rewards", lambda e: {"rewards": e.rewards.numpy()}),
    "NaN reward": (ValueError, "NaN", lambda e: {"rewards": with_value(e.rewards, (0, 0), float("nan"))}),
    "infinite reward": (ValueError, "infinite", lambda e: {"rewards": with_value(e.rewards, (1, 3), float("inf"))}),
    "reward after the end": (ValueError, "after", lambda e: {"rewards": with_value(e.rewards, (3, 0), 1.0)}),
    "NaN reward after the end": (
        ValueError,
        "NaN|after",
        lambda e: {"rewards": with_value(e.rewards, (4, 0), float("nan"))},
    ),
    "the last state is missing": (
        ValueError,
        "S_T",
        lambda e: {"observations": map_observations(lambda part: part[:-1], e.observations)},
    ),
    "one entry without its last state": (
        ValueError,
        r"observations\['b'\]",
        lambda e: {"observations": {**e.observations, "b": e.observations["b"][:-1]}},
    ),
    "observations of other columns": (
        ValueError,
        "observations",
        lambda e: {"observations": map_observations(lambda part: part[:, :2], e.observations)},
    ),
    "observations from numpy": (TypeError, "observations", lambda e: {"observations": np.zeros((6, 4, 2))}),
    "an action too many": (ValueError, "actions", lambda e: {"actions": torch.zeros(6, 4, 1)}),
    "actions of other columns": (ValueError, "actions", lambda e: {"actions": torch.zeros(5, 3, 1)}),
    "lengths of other columns": (ValueError, "lengths", lambda e: {"lengths": e.lengths[:2]}),
    "lengths as a mask": (TypeError, "lengths", lambda e: {"lengths": e.lengths > 0}),
    "fractional lengths": (TypeError, "lengths", lambda e: {"lengths": e.lengths + 0.5}),
    "an empty column": (ValueError, "lengths", lambda e: {"lengths": with_value(e.lengths, 2, 0)}),
    "longer than the rows": (ValueError, "lengths", lambda e: {"lengths": with_value(e.lengths, 1, 6)}),
    "terminated of other columns": (ValueError, "terminated", lambda e: {"terminated": e.terminated[:1]}),
    "started as numbers": (TypeError, "started", lambda e: {"started": e.started.long()}),
    "truncated as numbers": (TypeError, "truncated", lambda e: {"truncated": e.truncated.float()}),
    "both ends at once": (ValueError, "both", lambda e: {"truncated": e.terminated}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(episodes: Episodes, case: str) -> None:
    kind, words, change = BAD[case]
    with pytest.raises(kind, match=words) as caught:
        replace(episodes, **change(episodes))
    message = str(caught.value)
    assert message.startswith("Episodes got ")
    assert message.endswith(".")


def test_frozen(episodes: Episodes) -> None:
    for field in fields(Episodes):
        with pytest.raises(AttributeError):
            setattr(episodes, field.name, None)

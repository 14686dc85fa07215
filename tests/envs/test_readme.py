"""The table of environments in the README is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import pytest
from test_conformance import IDS

README = Path(__file__).parents[2] / "tca_envs" / "README.md"
ROWS = [line.split("|")[1:-1] for line in README.read_text().splitlines() if line.startswith("| `tca/")]
STATED = {env_id: [cell.strip() for cell in row[1:5]] for row in ROWS for env_id in re.findall("`(.*?)`", row[0])}


def test_every_id_is_there():
    assert set(STATED) >= set(IDS)
    assert {name for name in gym.registry if name.startswith("tca/")} == set(STATED)


@pytest.mark.parametrize("env_id", IDS)
def test_numbers(env_id):
    env = gym.make(env_id).unwrapped
    values = (env.horizon, env.optimal_return, env.myopic_return, env.random_return)
    for text, value in zip(STATED[env_id], values, strict=True):
        digits = len(text.partition(".")[2])
        assert float(text) == pytest.approx(round(value, digits))


def test_pictures_are_there():
    pictures = re.findall(r"\]\((assets/.*?)\)", README.read_text())
    assert len(pictures) == 5
    for picture in pictures:
        assert (README.parent / picture).read_bytes().startswith(b"\x89PNG")

"""The table and the pictures of the README are what the code says and draws."""

from __future__ import annotations

import re
import runpy
import struct
import sys
import zlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
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


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """The rows of the one data chunk that our script writes."""
    start = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[start - 4 : start])
    return np.frombuffer(zlib.decompress(png[start + 4 : start + 4 + length]), np.uint8)


def test_pictures_are_those_of_the_script(tmp_path, monkeypatch):
    pictures = re.findall(r"\]\(assets/(.*?)\)", README.read_text())
    assert len(pictures) == 5
    script = README.parents[1] / "examples" / "make_env_pictures.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    for picture in pictures:
        if (tmp_path / picture).exists():  # bsuite's needs bsuite
            drawn, kept = (
                pixels_of((folder / picture).read_bytes()) for folder in (tmp_path, README.parent / "assets")
            )
            assert drawn.shape == kept.shape
            assert (drawn != kept).mean() < 1e-3  # a sine may move a pixel of the pendulum

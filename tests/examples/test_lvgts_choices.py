"""The table of LVGTS's choices runs, has a row for each, and goes on where it stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "lvgts_choices.py"


def test_rows_are_added_to_those_there(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--episodes", "16", "--seeds", "2", "--first-seed", "3"]
    choices = ["--choice", "k = 1", "--choice", "the gradient is cut behind a sliding window (A.1)"]
    for wanted, made in ((choices[:2], 1), (choices, 1)):
        done = subprocess.run([*command, *wanted, "--out", str(tmp_path)], check=True, capture_output=True, text=True)
        assert done.stdout.count(": [") == made
    runs = pd.read_csv(tmp_path / "lvgts_choices.csv")
    assert runs.groupby("choice")["seed"].apply(set).to_dict() == {choice: {3, 4} for choice in choices[1::2]}
    assert (runs["return"] <= 2.0).all()
    assert "| k = 1 |" in (tmp_path / "lvgts_choices.md").read_text()


def test_a_run_does_not_depend_on_the_others_asked_for(tmp_path: Path) -> None:
    """Of the row that trains its runs one after the other in one process."""
    command = [sys.executable, str(SCRIPT), "--choice", "the gradient is cut behind a sliding window (A.1)"]
    returns = []
    for first, seeds in ((3, 2), (4, 1)):
        out = tmp_path / str(seeds)
        asked = ["--episodes", "272", "--seeds", str(seeds), "--first-seed", str(first), "--out", str(out)]
        subprocess.run([*command, *asked], check=True, capture_output=True)
        runs = pd.read_csv(out / "lvgts_choices.csv").set_index("seed")
        returns.append(runs.loc[4, "return"])
    assert returns[0] == returns[1]

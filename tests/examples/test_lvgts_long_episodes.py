"""The benchmark of long episodes runs, and keeps a curve for every seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "lvgts_long_episodes.py"


def test_it_writes_a_curve_for_every_seed(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--length", "20", "--episodes", "16", "--seeds", "2", "--first-seed", "3"]
    done = subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True, text=True)
    table = pd.read_csv(tmp_path / "lvgts_dummy-AMT_20_k10_dense300.csv")
    assert set(table["seed"]) == {3, 4}
    assert table["episodes"].max() == 16
    assert (table["return"] <= 2.0).all()
    assert "lost gradients: [0, 0]" in done.stdout

"""The benchmark of harder memory tasks runs, and keeps a curve for every seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "lvgts_harder.py"


def test_it_writes_a_curve_for_every_seed(tmp_path: Path) -> None:
    changes = ["--task", "pendulum-AMT", "--length", "20", "--a-m", "2", "--n-recalls", "10", "--dense-updates", "5"]
    command = [sys.executable, str(SCRIPT), *changes, "--episodes", "16", "--seeds", "2", "--first-seed", "3"]
    done = subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True, text=True)
    table = pd.read_csv(tmp_path / "lvgts_pendulum-AMT_length=20_a_m=2_n_recalls=10_dense_updates=5.csv")
    assert set(table["seed"]) == {3, 4}
    assert table["episodes"].max() == 16
    assert (table["return"] <= 2.0).all()
    assert "lost gradients: [0, 0]" in done.stdout


def test_the_encoder_is_the_one_asked_for(tmp_path: Path) -> None:
    """Their first random actions are the same, what they make of them is not."""
    command = [sys.executable, str(SCRIPT), "--task", "dummy-PMT", "--episodes", "16", "--seeds", "1"]
    for encoder in ("attention", "recurrent"):
        subprocess.run([*command, "--encoder", encoder, "--out", str(tmp_path)], check=True, capture_output=True)
    attention = pd.read_csv(tmp_path / "lvgts_dummy-PMT.csv")
    recurrent = pd.read_csv(tmp_path / "lvgts_dummy-PMT_encoder=recurrent.csv")
    assert attention.columns.equals(recurrent.columns) and not attention["return"].equals(recurrent["return"])

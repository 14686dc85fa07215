"""LVGTS's Figure 2: the table that says whether remember actions got credit, and the figure of the other encoder."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
sys.path.insert(0, str(PAPER))

import lvgts_fig2_memory as figure  # noqa: E402
import lvgts_fig2_recurrent as recurrent  # noqa: E402
from harness import Results  # noqa: E402


def test_credit_is_the_mean_of_each_difference_over_the_active_tasks() -> None:
    about = {"method": "LVGTS", "remember_action": 0.5}
    rows = [
        {**about, "task": "dummy-AMT", "return": 1.0, "recall_return": 1.5, "recall_return_mirrored": 0.5},
        {**about, "task": "dummy-AMT", "return": 0.0, "recall_return": 0.5, "recall_return_mirrored": 0.1},
        {**about, "task": "dummy-PMT", "return": 9.0, "recall_return": 9.0, "recall_return_mirrored": 9.0},
    ]
    table = figure.credit(Results(pd.DataFrame(rows), {}))
    assert set(table["task"]) == {"dummy-AMT"} and set(table["n"]) == {2}
    assert dict(zip(table["measure"], table["mean"], strict=True)) == pytest.approx(
        {
            "return": 0.5,
            "remember_action": 0.5,
            "allowed": 1.0,
            "allowed, less with the other sign": 0.7,
            "allowed, mean of both signs": 0.65,
            "return less that mean": -0.15,
        }
    )
    by_measure = table.set_index("measure")
    # With two runs the bootstrap's ends are the runs themselves.
    assert by_measure.loc["allowed", ["low", "high"]].tolist() == pytest.approx([0.5, 1.5])


def test_the_recurrent_figure_trains_the_recurrent_encoder_on_other_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recurrent.FIGURE.scales["quick"]
    tasks = recurrent.training(settings, Results(pd.DataFrame(), {}))
    names = {task.name for task in figure.training(figure.FIGURE.scales["quick"], Results(pd.DataFrame(), {}))}
    assert len(tasks) == len(names) == 6 and not names & {task.name for task in tasks}
    made = []

    class Noticed(figure.LVGTS):
        def _setup_model(self) -> None:
            super()._setup_model()
            made.append(type(self.policy.encoder))

    monkeypatch.setitem(figure.ALGORITHMS, "LVGTS", Noticed)
    passive = next(task for task in tasks if task.name.startswith("LVGTS dummy-PMT"))
    passive.function(**passive.arguments)
    assert made == [figure.RecurrentEncoder] * 2

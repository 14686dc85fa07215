"""The comparison with RecurrentPPO runs, gives both the same time, and reads its curves rightly."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

pytest.importorskip("sb3_contrib")
SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "lvgts_recurrent_ppo.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("lvgts_recurrent_ppo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_it_writes_curves_and_a_table(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--seeds", "1", "--passive-episodes", "16", "--active-episodes", "16"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    curves = pd.read_csv(tmp_path / "lvgts_recurrent_ppo.csv")
    assert set(curves["method"]) == {"LVGTS", "RecurrentPPO"}
    assert set(curves["task"]) == {"dummy-PMT", "dummy-AMT", "pendulum-AMT"}
    last = curves.groupby(["task", "method"])["seconds"].last().unstack()
    assert (last["RecurrentPPO"] >= last["LVGTS"]).all()
    assert "--active-episodes 16" in (tmp_path / "lvgts_recurrent_ppo.md").read_text()
    before = (tmp_path / "lvgts_recurrent_ppo.csv").read_text()
    subprocess.run([*command, "--resume", "--out", str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "lvgts_recurrent_ppo.csv").read_text() == before  # nothing was missing


def test_a_level_is_reached_by_the_mean_of_all_runs(benchmark: ModuleType) -> None:
    def run(seed: int, returns: list[float]) -> pd.DataFrame:
        episodes = [200 * i for i in range(len(returns))]
        curve = {"episodes": episodes, "seconds": [float(i + seed) for i in range(len(returns))], "return": returns}
        return pd.DataFrame(curve).assign(task="a task", method="a method", seed=seed)

    (row,) = benchmark.summary(pd.concat([run(0, [0.0, 1.0, 1.9, 1.9]), run(1, [0.0, 1.2, 1.3, 2.0, 1.0])])).iloc
    # At 600 episodes only the second is still on its way, the first has ended.
    assert row["episodes to 1.5"] == "400" and row["CPU seconds to 1.5"] == "2"  # of 2 and 3, half to even
    assert row["its runs"] == "1.90 1.00" and row["return at the end"] == pytest.approx(1.45)
    (row,) = benchmark.summary(pd.concat([run(0, [0.0, 1.0, 1.9]), run(1, [0.0, 1.2, 1.3, 2.0, 1.0])])).iloc
    assert row["episodes to 1.5"] == "never"

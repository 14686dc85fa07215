"""The speed benchmark runs, says what it leaves out, and divides the right numbers."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "env_speed.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("env_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["env_speed"] = module
    spec.loader.exec_module(module)
    return module


def test_it_writes_tables(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--only", "catch", "--rounds", "2", "--seconds", "0.01"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    text = (tmp_path / "env_speed.md").read_text()
    assert "commit" in text
    with open(tmp_path / "env_speed.csv") as file:
        rows = list(csv.DictReader(file))
    names = {"catch (bsuite's dm_env)", "catch (tca/Bsuite)"}
    if importlib.util.find_spec("bsuite") is None:
        assert 'Left out: catch (tca/Bsuite), single, batch 1. It needs: pip install "tca-envs[bsuite]"' in text
    else:
        assert {row["environment"] for row in rows} == names
        assert len(rows) == 4
        assert all(float(row["steps_per_cpu_second"]) > 0 for row in rows)
        assert all(name in text for name in names)


def test_what_is_not_installed_is_left_out_with_the_command_that_installs_it(benchmark: ModuleType) -> None:
    def missing() -> None:
        raise ImportError

    def present() -> object:
        return lambda steps: sum(range(100 * steps))

    rows = [
        benchmark.Entrant("there", "single", 1, present),
        benchmark.Entrant("not there", "single", 1, missing, "pip install it"),
    ]
    ran, left_out = benchmark.measure(rows, rounds=3, seconds=0.01)
    assert [(row.name, len(row.rates)) for row in ran] == [("there", 3)]
    assert left_out == ["Left out: not there, single, batch 1. It needs: pip install it"]


def test_goals_divide_the_right_rates(benchmark: ModuleType) -> None:
    rates = {
        ("Key-to-Door, 231-byte image", "numpy", 256): 12e6,
        ("Key-to-Door, 231-byte image", "numba", 256): 36e6,
        ("Key-to-Door, 231-byte image", "SyncVectorEnv", 256): 3e5,
        ("Key-to-Door, 231-byte image", "single", 1): 5e5,
        ("Key-to-Door, 231-byte image", "copying its images alone", 256): 6e7,
        ("DAG-8", "numpy", 256): 50e6,
        ("DAG-8", "SyncVectorEnv", 256): 5e5,
        ("CartPole (Gymnasium)", "numpy", 256): 6e6,
        ("MemoryS7, RGB 56 x 56 (MiniGrid)", "single", 1): 2e3,
    }
    # Noise that a round has in common, and a round in which it has not.
    rows = [
        benchmark.Entrant(*key, lambda: None, rates=[rate, rate / 2, rate * (3 if "numpy" in key else 1)])
        for key, rate in rates.items()
    ]
    found = [(numpy, numba) for _, numpy, numba in benchmark.goals(rows)]
    expected = [(40.0, 120.0), (100.0, None), (None, None), (12.0, 36.0), (0.2, 0.6), (2.0, 6.0), (250.0, None)]
    assert found == [tuple(None if x is None else pytest.approx(x) for x in pair) for pair in expected]
    assert benchmark.readable(1234.0) == "1.23 k"
    assert benchmark.readable(None) == ""


def test_names_in_the_goals_are_those_of_the_rows(benchmark: ModuleType) -> None:
    keys = {(row.name, row.kind, row.batch) for row in benchmark.entrants()}
    assert len(keys) == len(list(benchmark.entrants()))
    rows = [benchmark.Entrant(*key, lambda: None, rates=[1.0]) for key in keys]
    for goal, numpy, numba in benchmark.goals(rows):
        yardstick = goal.numpy is None and goal.numba is None  # shown without a goal
        wanted = (False, False) if yardstick else (goal.numpy is None, goal.numba is None)
        assert (numpy is None, numba is None) == wanted

"""The runner of Stable-Baselines3's tests: what it swaps in, and what it lets pass."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import stable_baselines3

SCRIPT = Path(__file__).parents[1] / "sb3_suite" / "run.py"

SUITE = """
import pytest
from stable_baselines3 import A2C, PPO

@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_parametrised(algorithm):
    print("RAN", algorithm.__module__, algorithm.__name__)

def test_by_name():
    print("RAN", A2C.__module__)

def test_of_something_else():
    raise AssertionError("nothing here is ours")

def test_that_fails():
    assert A2C is None
"""

DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{folder!r}, {script!r}]
import run
run.fetch_suite = lambda: Path({folder!r})
for known in (
    {{}},
    {{"test_made_up.py::test_that_fails": "for good reasons"}},
    {{"test_made_up.py::test_that_fails": "for good reasons", "test_made_up.py::test_param*": "but it passes"}},
    {{"test_made_up.py::test_that_fails": "for good reasons", "test_made_up.py::test_gone": "is not there"}},
):
    sys.modules.pop("test_made_up", None)
    run.KNOWN_FAILURES = {{"ours.A2C": known}}
    print("EXIT", run.run_one("ours.A2C", []))
print("EXIT", run.run_one("ours.A2C", ["-s", "-k", "parametrised or by_name"]))
"""


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sb3_suite_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.ci
def test_the_run_fails_on_what_is_not_listed_and_on_what_is_listed_and_passes(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_made_up.py").write_text(SUITE)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "ours.py").write_text("import stable_baselines3\nclass A2C(stable_baselines3.A2C): pass\n")
    program = DRIVER.format(folder=str(tmp_path), script=str(SCRIPT.parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    exits = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("EXIT")]
    failed, fine, usage_error = "1", "0", "4"
    assert exits == [failed, fine, failed, usage_error, fine], done.stdout + done.stderr
    assert "has no such test" in done.stdout + done.stderr
    last = done.stdout.split("EXIT")[-2]
    ran = [line.split("RAN ")[1] for line in last.splitlines() if "RAN " in line]
    assert ran == ["ours A2C", "ours"]


def test_names_with_brackets_are_matched_as_they_stand(suite: ModuleType) -> None:
    nodeid = "tests/test_gae.py::test_gae[1-0.9-HPWR]"
    assert suite.matches("test_gae.py::test_gae[1-0.9-HPWR]", nodeid)
    assert suite.matches("test_gae.py::test_gae[*]", nodeid)
    assert suite.matches("test_gae.py::test_gae[1-*]", nodeid)
    assert not suite.matches("test_gae.py::test_gae[3-*]", nodeid)
    assert not suite.matches("test_gae.py::test_gae", nodeid)
    assert not suite.matches("test_gae.py::test_gae[1-0x9-HPWR]", nodeid)


def test_known_failures_are_of_classes_that_are_run_and_give_reasons(suite: ModuleType) -> None:
    assert set(suite.KNOWN_FAILURES) <= set(suite.CLASSES)
    assert all(len(reason.split()) > 5 for table in suite.KNOWN_FAILURES.values() for reason in table.values())


def test_only_what_derives_from_the_class_takes_its_place(suite: ModuleType) -> None:
    assert suite.swapped_name(type("Mine", (stable_baselines3.PPO,), {})) == "PPO"
    with pytest.raises(SystemExit, match="derives from neither A2C nor PPO"):
        suite.swapped_name(stable_baselines3.DQN)

"""Run the test-suite of the installed Stable-Baselines3 with our algorithms in the place of its own.

    python tests/sb3_suite/run.py                      # every class of CLASSES
    python tests/sb3_suite/run.py tca_sb3.A2C          # one class
    python tests/sb3_suite/run.py stable_baselines3.A2C    # the control: nothing is swapped
    python tests/sb3_suite/run.py tca_sb3.PPO -k save_load -x    # what follows the classes goes to pytest

SB3 keeps its tests in its source distribution. This script fetches that of the installed version once (into
``.sb3-suite/``, which git ignores), binds the name ``A2C`` or ``PPO`` of ``stable_baselines3`` to our class
and runs those tests that use the name. What a class cannot pass is listed in ``KNOWN_FAILURES`` with the
reason. The run fails on a failure that is not listed, on a listed test that passes, and on a listed test that
is no longer there.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CACHE = Path(__file__).resolve().parents[2] / ".sb3-suite"

CLASSES = (
    "tca_sb3.A2C",
    "tca_sb3.PPO",
    "tca_sb3.HPWR",
    "tca_sb3.MetaPWR",
    "tca_sb3.MetaPWTD",
    "tca_sb3.MetaLambda",
    "tca_sb3.RGM",
    "tca_sb3.A2CRR",
)

ROLLOUTS = "rollouts are whole episodes, so it runs on after the number of steps that the test counts on"
LEARNED_WEIGHTS = "checks GAE, and the weights of this class are learned"
WRITTEN_WEIGHTS = "checks GAE, and the weights of this class are written by hand"
OTHER_REWARDS = "checks GAE, and this class redistributes the rewards"
NO_BOOTSTRAP = "the estimator needs every reward up to a terminal state, and this test cuts the episode"
FEW_UPDATES = "the test's settings are for an update every 5 steps; whole episodes of 100 leave too few of them"
OWN_BUFFER = "sets SB3's RolloutBuffer, which computes GAE whatever the estimator; the class refuses it"
ADAMW = "sets AdamW, whose step the metagradient does not differentiate; the class refuses it"
NO_END = "an episode of its environment never ends, and rollouts are whole episodes"
NESTED_STATE = "draws random values for all that is saved, and our optimisers' states are no flat dict of tensors"

_WHOLE_EPISODES = {
    "test_buffers.py::test_custom_rollout_buffer": OWN_BUFFER,
    "test_callbacks.py::test_eval_friendly_error": ROLLOUTS,
    "test_identity.py::test_discrete[*]": FEW_UPDATES,
    "test_identity.py::test_continuous[*]": FEW_UPDATES,
    "test_save_load.py::test_set_env[*]": ROLLOUTS,
    "test_spaces.py::test_action_spaces[env2-*]": NO_END,
}
_META = {
    "test_custom_policy.py::test_custom_optimizer[*]": ADAMW,
    "test_gae.py::test_gae_computation[*]": LEARNED_WEIGHTS,
    "test_save_load.py::test_save_load[*]": NESTED_STATE,
}
_PWR = {"test_gae.py::test_infinite_horizon[True-*]": NO_BOOTSTRAP}

# Class -> test -> why it cannot pass. In a test's name * stands for anything; every test it means must fail.
KNOWN_FAILURES: dict[str, dict[str, str]] = {
    "tca_sb3.HPWR": {
        **_WHOLE_EPISODES,
        **_PWR,
        # With one environment and gamma = lambda = 1 the ones of `prepared` are GAE.
        "test_gae.py::test_gae_computation[1-1.0-0.9-*]": WRITTEN_WEIGHTS,
        "test_gae.py::test_gae_computation[1-0.99-*]": WRITTEN_WEIGHTS,
        "test_gae.py::test_gae_computation[3-*]": WRITTEN_WEIGHTS,
    },
    "tca_sb3.MetaPWR": {**_WHOLE_EPISODES, **_META, **_PWR},
    "tca_sb3.MetaPWTD": {**_WHOLE_EPISODES, **_META},
    "tca_sb3.MetaLambda": {
        **{test: reason for test, reason in _WHOLE_EPISODES.items() if "test_identity" not in test},
        # It learns the other identities in time.
        "test_identity.py::test_discrete[env2-*]": FEW_UPDATES,
        **{test: reason for test, reason in _META.items() if "test_gae" not in test},
        # Every lambda starts at 0.9: with one episode, gamma = 1 and gae_lambda = 0.9 that passes for GAE.
        "test_gae.py::test_gae_computation[1-1.0-1.0-*]": LEARNED_WEIGHTS,
        "test_gae.py::test_gae_computation[1-0.99-*]": LEARNED_WEIGHTS,
        "test_gae.py::test_gae_computation[3-*]": LEARNED_WEIGHTS,
    },
    "tca_sb3.RGM": {**_WHOLE_EPISODES, **_META, **_PWR},
    "tca_sb3.A2CRR": {
        **_WHOLE_EPISODES,
        **_PWR,
        "test_gae.py::test_gae_computation[*]": OTHER_REWARDS,
        "test_save_load.py::test_save_load[*]": NESTED_STATE,
    },
}

# Left out for every class.
NOT_RUN = {
    "test_logger.py::test_fps_logger[*]": "demands 100 steps a second by the clock of a machine that may be busy"
}

SECONDS_PER_TEST = 300  # ours; the slowest takes a tenth of it, and who waits for an endless episode is caught


class Swap:
    """A pytest plugin: ``algorithm`` stands where the tests write ``name``, and only tests that use it are
    run."""

    def __init__(self, algorithm: type, name: str, known_failures: dict[str, str], whole_suite: bool) -> None:
        self.algorithm = algorithm
        self.name = name
        self.known_failures = known_failures
        self.whole_suite = whole_suite
        # The two places from which the tests import. The module that defines SB3's class keeps it: ours
        # inherits it.
        for module in ("stable_baselines3", f"stable_baselines3.{name.lower()}"):
            setattr(importlib.import_module(module), name, algorithm)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [
            item
            for item in items
            if self.uses_algorithm(item) and not any(matches(pattern, item.nodeid) for pattern in NOT_RUN)
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
        for pattern, reason in self.known_failures.items():
            listed = [item for item in items if matches(pattern, item.nodeid)]
            if self.whole_suite and not listed:
                raise pytest.UsageError(
                    f"KNOWN_FAILURES lists {pattern!r}, but this version of Stable-Baselines3 has no such test "
                    f"for {self.name}: take the line out."
                )
            for item in listed:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    def uses_algorithm(self, item: pytest.Item) -> bool:
        """Whether the test is parametrised by the algorithm or, not being parametrised by any, writes its
        name."""
        from stable_baselines3.common.base_class import BaseAlgorithm

        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        algorithms = [
            value for value in leaves(parameters) if inspect.isclass(value) and issubclass(value, BaseAlgorithm)
        ]
        if algorithms:
            return self.algorithm in algorithms
        return re.search(rf"\b{self.name}\b", inspect.getsource(item.function)) is not None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        def give_up(*_: object) -> None:
            raise TimeoutError(f"{item.nodeid} took more than {SECONDS_PER_TEST} seconds")

        if not hasattr(signal, "SIGALRM"):
            return (yield)
        before = signal.signal(signal.SIGALRM, give_up)
        signal.alarm(SECONDS_PER_TEST)
        try:
            return (yield)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def leaves(value: Any) -> Iterator[Any]:
    """Everything inside nested dicts, lists and tuples."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def matches(pattern: str, nodeid: str) -> bool:
    """Whether a line of ``KNOWN_FAILURES`` means this test; not ``fnmatch``, since test ids have brackets."""
    regex = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(regex, nodeid.removeprefix("tests/")) is not None


def fetch_suite() -> Path:
    """The folder that holds ``tests/`` and the pytest settings of the installed Stable-Baselines3."""
    release = version("stable-baselines3")
    folder = CACHE / release
    if folder.exists():
        return folder
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        print(f"Fetching the source distribution of Stable-Baselines3 {release} ...", flush=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--no-binary", "stable-baselines3"),
                *("--dest", scratch, f"stable-baselines3=={release}"),
            ],
            check=True,
        )
        (archive,) = Path(scratch).glob("*.tar.gz")
        unpacked = Path(scratch) / "unpacked"
        with tarfile.open(archive) as tar:
            # Not the package itself: the tests are to find the installed one.
            wanted = [
                member
                for member in tar.getmembers()
                if re.fullmatch(r"[^/]+/(tests/.+|pyproject\.toml)", member.name) and member.isfile()
            ]
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(unpacked, wanted, **safely)  # type: ignore[arg-type]
        (top,) = unpacked.iterdir()
        top.rename(folder)
    return folder


def swapped_name(algorithm: type) -> str:
    """The SB3 algorithm that ``algorithm`` derives from and stands in for."""
    import stable_baselines3

    for name in ("A2C", "PPO"):
        if issubclass(algorithm, getattr(stable_baselines3, name)):
            return name
    raise SystemExit(f"{algorithm.__qualname__} derives from neither A2C nor PPO, so it cannot take their place.")


def prepared(algorithm: type) -> type:
    """The class with what SB3's tests, which know nothing of it, do not give it.

    Classes that need whole episodes refuse those that a time limit has cut, as it does in almost every
    environment of the tests: they are told that these episodes have ended. HPWR gets a matrix written by
    hand. And who collects whole episodes gives up sooner on one that does not end.
    """
    import tca_sb3

    bootstrapping = (tca_sb3.MetaPWTD, tca_sb3.MetaLambda)
    if not issubclass(algorithm, (tca_sb3.HPWR, tca_sb3.MetaPWR, tca_sb3.RGM, tca_sb3.A2CRR, *bootstrapping)):
        return algorithm
    base: Any = algorithm

    class Prepared(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("max_rollout_steps", 2000)
            if issubclass(algorithm, tca_sb3.HPWR):
                kwargs.setdefault("estimator_kwargs", {"weights_kwargs": {"matrix": np.ones((500, 500))}})
            super().__init__(*args, **kwargs)

        def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
            # Called by SB3's collect_rollouts before it or anything of ours looks at the infos.
            if not issubclass(algorithm, bootstrapping):
                for info in infos:
                    info["TimeLimit.truncated"] = False
            super()._update_info_buffer(infos, dones)

    Prepared.__name__ = Prepared.__qualname__ = algorithm.__name__
    return Prepared


def run_one(path: str, pytest_args: list[str]) -> int:
    """Run the suite with the class at ``path`` ("module.Class") in this process; returns pytest's exit
    code."""
    module, _, class_name = path.rpartition(".")
    algorithm = getattr(importlib.import_module(module), class_name)
    name = swapped_name(algorithm)
    suite = fetch_suite()
    plugin = Swap(prepared(algorithm), name, KNOWN_FAILURES.get(path, {}), whole_suite=not pytest_args)
    settings = ["-c", str(suite / "pyproject.toml"), "--rootdir", str(suite), "-p", "no:cacheprovider", "-q"]
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the tests write into the working directory
        try:
            return int(pytest.main([*settings, *pytest_args, str(suite / "tests")], plugins=[plugin]))
        finally:
            os.chdir(here)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run Stable-Baselines3's own tests with our algorithms in the place of its own.",
        usage="%(prog)s [CLASS ...] [arguments of pytest]",
    )
    parser.add_argument("classes", nargs="*", metavar="CLASS", help=f"e.g. tca_sb3.A2C; default: {CLASSES}")
    options, pytest_args = parser.parse_known_args()
    classes = options.classes or CLASSES
    if len(classes) == 1:
        return run_one(classes[0], pytest_args)
    fetch_suite()
    # One process for each class: the tests' modules keep the class that they imported.
    exit_codes = {}
    for path in classes:
        print(f"\n=== {path} ===", flush=True)
        command = [sys.executable, __file__, path, *pytest_args]
        exit_codes[path] = subprocess.run(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode
    print()
    for path, code in exit_codes.items():
        print(f"{path:24} {'passed' if code == 0 else f'FAILED (pytest exit code {code})'}")
    return max(exit_codes.values())


if __name__ == "__main__":
    sys.exit(main())

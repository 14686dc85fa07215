"""How fast the environments step, beside other packages' environments, on one core.

    python examples/benchmarks/env_speed.py                 # a few minutes; prints tables
    python examples/benchmarks/env_speed.py --out DIR       # also writes DIR/env_speed.md and DIR/env_speed.csv

A rate is steps per second of this process's CPU time, so that other work on the machine counts little; all
environments take turns in one run, round after round, and the median of the rounds counts. A ratio is the median
over rounds of the ratios within a round. Rates are one machine's, in its mood of the hour: what may be compared
between machines are the ratios, and only ratios of one run.

Actions are drawn beforehand. Resets are part of the work. Environments that a package would provide which is not
installed are left out, with a line that says what to install.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

import tca_envs  # noqa: F401 (registers tca/...)

N_ACTIONS = 64  # drawn beforehand, then repeated

Task = tuple[str, dict[str, Any]]

KEY_TO_DOOR: Task = ("tca/KeyToDoor-v0", {"tile_size": 1})
DAG8: Task = ("tca/DAG8-v0", {})
PENDULUM_AMT: Task = ("tca/PendulumAMT-v0", {})
DUMMY_PMT: Task = ("tca/DummyPMT-v0", {})
TASKS = (KEY_TO_DOOR, DAG8, PENDULUM_AMT, DUMMY_PMT)
LABELS = {
    "tca/KeyToDoor-v0": "Key-to-Door, 231-byte image",
    "tca/DAG8-v0": "DAG-8",
    "tca/PendulumAMT-v0": "pendulum-AMT",
    "tca/DummyPMT-v0": "dummy-PMT",
}


@dataclass
class Entrant:
    """One environment in one form.

    Attributes:
        name: The environment.
        kind: "single", "SyncVectorEnv", or the backend of a native vector environment.
        batch: Environments that step together.
        make: Makes a function of n that takes n steps (of the whole batch).
        needs: The command that installs what `make` misses, should it raise an ImportError.
        rates: Steps of one environment per CPU second, one entry a round.
    """

    name: str
    kind: str
    batch: int
    make: Callable[[], Callable[[int], None]]
    needs: str = ""
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def stepper_of_single(env: gym.Env[Any, Any]) -> Callable[[int], None]:
    """Step a Gymnasium environment, and reset it when an episode ends."""
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(N_ACTIONS)]
    env.reset(seed=0)

    def run(steps: int) -> None:
        step, reset = env.step, env.reset
        for t in range(steps):
            _, _, terminated, truncated, _ = step(actions[t % N_ACTIONS])
            if terminated or truncated:
                reset()

    return run


def stepper_of_vector(env: gym.vector.VectorEnv[Any, Any, Any]) -> Callable[[int], None]:
    """Step a Gymnasium vector environment, which resets itself."""
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(N_ACTIONS)]
    env.reset(seed=0)

    def run(steps: int) -> None:
        step = env.step
        for t in range(steps):
            step(actions[t % N_ACTIONS])

    return run


def stepper_of_dm_env(env: Any) -> Callable[[int], None]:
    """Step a `dm_env` environment of discrete actions; its step after the last one resets it."""
    actions = np.random.default_rng(0).integers(env.action_spec().num_values, size=N_ACTIONS).tolist()
    env.reset()

    def run(steps: int) -> None:
        step = env.step
        for t in range(steps):
            step(actions[t % N_ACTIONS])

    return run


def native(task: Task, batch: int, backend: str) -> Entrant:
    id_, kwargs = task
    return Entrant(
        LABELS[id_],
        backend,
        batch,
        lambda: stepper_of_vector(gym.make_vec(id_, num_envs=batch, backend=backend, **kwargs)),
        needs='pip install "tca-envs[fast]"',
    )


def sync(task: Task, batch: int) -> Entrant:
    id_, kwargs = task
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return Entrant(
        LABELS[id_],
        "SyncVectorEnv",
        batch,
        lambda: stepper_of_vector(
            gym.make_vec(id_, num_envs=batch, vectorization_mode="sync", vector_kwargs=same_step, **kwargs)
        ),
    )


def copying(task: Task, batch: int) -> Entrant:
    """What copied images cost at least: the same bytes copied over and over into one buffer."""
    id_, kwargs = task

    def make() -> Callable[[int], None]:
        env = gym.make_vec(id_, num_envs=batch, **kwargs)
        images = env.reset(seed=0)[0]["image"]
        target = images.copy()

        def run(steps: int) -> None:
            for _ in range(steps):
                np.copyto(target, images)

        return run

    return Entrant(LABELS[id_], "copying its images alone", batch, make)


def single(name: str, id_: str, needs: str = "", **kwargs: Any) -> Entrant:
    return Entrant(name, "single", 1, lambda: stepper_of_single(gym.make(id_, **kwargs)), needs)


def entrants() -> Iterator[Entrant]:
    """Every row of the table, ours first."""
    for task in TASKS:
        yield single(LABELS[task[0]], task[0], **task[1])
    yield single("Key-to-Door, 56 x 88 image", "tca/KeyToDoor-v0")
    for task in TASKS:
        yield sync(task, 256)
        for backend in ("numpy", "numba"):
            for batch in (1, 16, 256, 4096):
                yield native(task, batch, backend)
    yield copying(KEY_TO_DOOR, 256)

    yield single("CartPole (Gymnasium)", "CartPole-v1")
    yield Entrant(
        "CartPole (Gymnasium)",
        "SyncVectorEnv",
        256,
        lambda: stepper_of_vector(gym.make_vec("CartPole-v1", num_envs=256, vectorization_mode="sync")),
    )
    for batch in (16, 256, 4096):
        yield Entrant(
            "CartPole (Gymnasium)",
            "numpy",
            batch,
            lambda batch=batch: stepper_of_vector(  # type: ignore[misc]
                gym.make_vec("CartPole-v1", num_envs=batch, vectorization_mode="vector_entry_point")
            ),
        )
    yield Entrant("MemoryS7, RGB 56 x 56 (MiniGrid)", "single", 1, minigrid_rgb, "pip install minigrid")
    yield Entrant("MemoryS7, symbols (MiniGrid)", "single", 1, minigrid_symbols, "pip install minigrid")
    for name in ("RepeatPreviousEasy", "RepeatFirstEasy"):
        yield Entrant(
            f"{name} (POPGym)",
            "single",
            1,
            lambda name=name: popgym(name),  # type: ignore[misc]
            "pip install --no-deps popgym",
        )
    for bsuite_id in ("umbrella_length/10", "catch/0", "discounting_chain/0"):
        domain = bsuite_id.partition("/")[0]
        yield Entrant(
            f"{domain} (bsuite's dm_env)",
            "single",
            1,
            lambda bsuite_id=bsuite_id: bsuite(bsuite_id),  # type: ignore[misc]
            'pip install "tca-envs[bsuite]"',
        )
        yield single(f"{domain} (tca/Bsuite)", "tca/Bsuite-v0", 'pip install "tca-envs[bsuite]"', bsuite_id=bsuite_id)


def minigrid_rgb() -> Callable[[int], None]:
    from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper

    env = gym.make("minigrid:MiniGrid-MemoryS7-v0")
    return stepper_of_single(ImgObsWrapper(RGBImgObsWrapper(env, tile_size=8)))


def minigrid_symbols() -> Callable[[int], None]:
    import minigrid  # noqa: F401

    return stepper_of_single(gym.make("MiniGrid-MemoryS7-v0"))


def popgym(name: str) -> Callable[[int], None]:
    from popgym.envs import repeat_first, repeat_previous

    module = repeat_first if "First" in name else repeat_previous
    return stepper_of_single(getattr(module, name)())


def bsuite(bsuite_id: str) -> Callable[[int], None]:
    from bsuite import sweep
    from bsuite.bsuite import EXPERIMENT_NAME_TO_ENVIRONMENT

    make = EXPERIMENT_NAME_TO_ENVIRONMENT[bsuite_id.partition("/")[0]]
    return stepper_of_dm_env(make(**sweep.SETTINGS[bsuite_id]))


def measure(rows: list[Entrant], rounds: int, seconds: float) -> tuple[list[Entrant], list[str]]:
    """Let all environments take turns; returns those that ran, and why others did not."""
    ready: list[tuple[Entrant, Callable[[int], None], int]] = []
    left_out: list[str] = []
    for row in rows:
        try:
            run = row.make()
            run(N_ACTIONS)  # compiles, allocates, and sees at least one episode of most
        except (ImportError, gym.error.DependencyNotInstalled):
            left_out.append(f"Left out: {row.name}, {row.kind}, batch {row.batch}. It needs: {row.needs}")
            continue
        steps, spent = N_ACTIONS, 0.0
        while spent < seconds / 4:
            steps *= 2
            start = time.process_time()
            run(steps)
            spent = time.process_time() - start
        ready.append((row, run, max(1, round(steps * seconds / spent))))
        show_progress(f"{row.name}, {row.kind}, batch {row.batch}")
    for number in range(rounds):
        for row, run, steps in ready:
            start = time.process_time()
            run(steps)
            row.rates.append(steps * row.batch / (time.process_time() - start))
        show_progress(f"round {number + 1} of {rounds}")
    return [row for row, _, _ in ready], left_out


def show_progress(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Goal:
    """A ratio (or a rate in millions of steps per second) that the environments are to reach."""

    what: str
    numpy: float | None
    numba: float | None


def goals(rows: list[Entrant]) -> list[tuple[Goal, float | None, float | None]]:
    """What was to be reached, and what numpy and numba did reach."""
    rates = {(row.name, row.kind, row.batch): row.rates for row in rows}

    def over(name: str, kind: str, batch: int, base: tuple[str, str, int]) -> float | None:
        mine, theirs = rates.get((name, kind, batch)), rates.get(base)
        if not mine or not theirs:
            return None
        # Within a round both had the same company on the machine.
        return statistics.median(one / other for one, other in zip(mine, theirs, strict=True))

    found = []
    for id_, numpy_goal, numba_goal in (
        ("tca/KeyToDoor-v0", 30.0, 100.0),
        ("tca/DAG8-v0", 150.0, 250.0),
        ("tca/PendulumAMT-v0", 25.0, 60.0),
    ):
        name = LABELS[id_]
        goal = Goal(f"{name}, batch 256, over `SyncVectorEnv`", numpy_goal, numba_goal)
        base = (name, "SyncVectorEnv", 256)
        found.append((goal, over(name, "numpy", 256, base), over(name, "numba", 256, base)))
    door = LABELS["tca/KeyToDoor-v0"]
    millions = [
        statistics.median(found_rates) / 1e6 if (found_rates := rates.get((door, kind, 256))) else None
        for kind in ("numpy", "numba")
    ]
    found.append((Goal(f"{door}, batch 256, million steps/s", 10.0, 30.0), millions[0], millions[1]))
    memory = (door, "copying its images alone", 256)
    goal = Goal(f"{door}, batch 256, over copying its images alone", None, None)
    found.append((goal, over(door, "numpy", 256, memory), over(door, "numba", 256, memory)))
    cartpole = ("CartPole (Gymnasium)", "numpy", 256)
    goal = Goal(f"{door}, batch 256, over `CartPoleVectorEnv`", 1.5, 5.0)
    found.append((goal, over(door, "numpy", 256, cartpole), over(door, "numba", 256, cartpole)))
    grid = ("MemoryS7, RGB 56 x 56 (MiniGrid)", "single", 1)
    goal = Goal(f"{door}, single by `gym.make`, over MiniGrid MemoryS7 with RGB observation", 200.0, None)
    found.append((goal, over(door, "single", 1, grid), None))
    return found


def readable(number: float | None) -> str:
    """Two or three significant digits."""
    if number is None:
        return ""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def tables(rows: list[Entrant]) -> str:
    """Goals, then rates with their spread over rounds, in Markdown."""
    lines = ["| Ratio, both sides from one run on one core | numpy | goal | numba | goal |", "|---|---|---|---|---|"]
    for goal, numpy_found, numba_found in goals(rows):
        cells = [readable(numpy_found), readable(goal.numpy), readable(numba_found), readable(goal.numba)]
        lines.append(f"| {goal.what} | " + " | ".join(cells) + " |")
    lines += ["", "| Environment | form | batch | steps/s | lowest to highest round |", "|---|---|---|---|---|"]
    for row in rows:
        spread = f"{readable(min(row.rates))} to {readable(max(row.rates))}"
        lines.append(f"| {row.name} | {row.kind} | {row.batch} | {readable(row.rate)} | {spread} |")
    return "\n".join(lines)


def provenance() -> str:
    """The command, the commit and the versions behind the numbers."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    if git("status", "--porcelain", "--", ":/tca_envs"):
        commit += " with changes"
    versions = [f"Python {platform.python_version()}"]
    for package in ("gymnasium", "numpy", "numba", "minigrid", "popgym", "bsuite"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    command = shlex.join(["python", "examples/benchmarks/env_speed.py", *sys.argv[1:]])
    return f"`{command}`, commit {commit}, {', '.join(versions)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for env_speed.md and env_speed.csv")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each environment (default 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU seconds of a turn (default 0.3)")
    parser.add_argument("--only", default="", help="run only rows whose name contains this")
    options = parser.parse_args()
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds must be at least 1 and --seconds above 0")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measured = provenance()  # of the code as it is loaded now
    wanted = [row for row in entrants() if options.only.lower() in row.name.lower()]
    rows, left_out = measure(wanted, options.rounds, options.seconds)
    text = "\n\n".join([tables(rows), measured, *left_out])
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "env_speed.md").write_text(f"# Speed of environments\n\n{text}\n")
        with open(options.out / "env_speed.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["environment", "form", "batch", "round", "steps_per_cpu_second"])
            for row in rows:
                for number, rate in enumerate(row.rates):
                    writer.writerow([row.name, row.kind, row.batch, number, f"{rate:.6g}"])


if __name__ == "__main__":
    main()

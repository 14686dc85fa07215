"""The one interface of every script in this folder: settings in, runs out, and an interrupted run resumes.

A figure (or table) of the paper is one file. It names its settings at three scales, the work as *tasks* in one or
more *stages*, and how to draw what came out; everything else is here:

    FIGURE = Figure(name="fig9", scales={"quick": Settings(...), ...}, stages=[measure], plot=plot)

    if __name__ == "__main__":
        main(FIGURE)

A stage is a function of the settings and of all results so far that returns tasks. A second stage can therefore use
what the first one found: a tuned learning rate, a learned weight table. Tasks of one stage run side by side in
processes of their own, one torch thread each. A finished task is stored at once, so that the same command goes on
where an interrupted one stopped; nothing that was finished runs again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

SCALES = ("quick", "cpu", "paper")
BOOTSTRAP_RESAMPLES = 10_000
PACKAGES = ("gymnasium", "numpy", "stable-baselines3", "torch")
SOURCES = ("tca_envs", "tca_sb3", "examples/paper")  # what a result depends on, from the repository's root

STATISTICS = {"metric", "n", "mean", "standard_error", "ci_low", "ci_high", "median"}

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Run:
    """One run of one method: a row of ``runs.csv``.

    :param method: the method's name as the figure shows it.
    :param setting: what else tells this run from others besides its seed, for instance ``{"depth": 8, "lr": 0.3}``.
    :param seed: the run's seed.
    :param metrics: what was measured. Runs with the same method and setting are averaged in ``summary.csv``.
    :param frames: environment steps that the run took.
    """

    method: str
    setting: Mapping[str, Scalar]
    seed: int
    metrics: Mapping[str, float]
    frames: int


@dataclass(frozen=True)
class Outcome:
    """What a task gives back.

    :param runs: one or many; a task may run many seeds at once where that is faster.
    :param arrays: anything that later stages or the plot need, by name.
    """

    runs: Sequence[Run] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A piece of work that runs in one process.

    :param name: unique within the figure; results are kept under it.
    :param function: a module-level function, for it must reach other processes.
    :param arguments: its keyword arguments.
    """

    name: str
    function: Callable[..., Outcome]
    arguments: Mapping[str, Any]


@dataclass
class Results:
    """Everything finished so far.

    :param runs: the columns of ``runs.csv``; columns that a run has no value for hold NaN.
    :param arrays: ``arrays[task name][array name]``.
    """

    runs: pd.DataFrame
    arrays: dict[str, dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper.

    :param name: the folder of its results.
    :param scales: settings for ``quick`` (a smoke test, under a minute), ``cpu`` (the honest run on a small
        machine) and ``paper`` (the paper's own size): one frozen dataclass each, with a field ``seeds``.
    :param stages: functions ``(settings, results) -> tasks``, run one after the other.
    :param plot: ``(settings, results, summary, folder)``; writes PNGs into the folder.
    """

    name: str
    scales: Mapping[str, Any]
    stages: Sequence[Callable[[Any, Results], Sequence[Task]]]
    plot: Callable[[Any, Results, pd.DataFrame, Path], None]

    def __post_init__(self) -> None:
        if tuple(self.scales) != SCALES:
            raise ValueError(f"Figure {self.name!r} has scales {tuple(self.scales)}; it needs {SCALES}, in this order.")
        for scale, settings in self.scales.items():
            if not (is_dataclass(settings) and isinstance(getattr(settings, "seeds", None), int)):
                raise TypeError(f"Figure {self.name!r}, scale {scale!r}: settings must be a dataclass with seeds: int.")


class OtherSettings(ValueError):
    """The folder holds results of other settings."""


# -- statistics ----------------------------------------------------------------------------------------------------


def bootstrap_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    It has its own generator with a fixed seed: the interval depends on the values alone.

    :param values: shape ``(n,)``, finite.
    :param level: coverage.
    :return: its two ends; both are the value itself if there is only one.
    """
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(BOOTSTRAP_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Statistics over seeds: one row for every method, setting and metric.

    :param runs: as in :class:`Results`.
    :param metrics: the columns to summarise. Columns besides these, ``seed``, ``frames`` and ``seconds`` tell
        groups apart.
    :return: columns ``n``, ``mean``, ``standard_error`` (NaN for one run), ``ci_low`` and ``ci_high`` (95 %
        bootstrap interval of the mean), ``median``. ``n`` counts the runs that have the metric.
    :raises ValueError: if a setting has the name of one of these columns.
    """
    keys = [name for name in runs.columns if name not in {*metrics, "seed", "frames", "seconds"}]
    taken = sorted(STATISTICS.intersection(keys))
    if taken:
        raise ValueError(f"Runs have settings called {taken}, as statistics are; give them other names.")
    rows = []
    for group, members in runs.groupby(keys, dropna=False, sort=False):
        for metric in metrics:
            values = members[metric].dropna().to_numpy(np.float64)
            if len(values) == 0:
                continue
            low, high = bootstrap_interval(values)
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
            rows.append(
                {
                    **dict(zip(keys, group, strict=True)),
                    "metric": metric,
                    "n": len(values),
                    "mean": values.mean(),
                    "standard_error": error,
                    "ci_low": low,
                    "ci_high": high,
                    "median": np.median(values),
                }
            )
    return pd.DataFrame(rows)


# -- one folder of results -----------------------------------------------------------------------------------------


def current_commit() -> str:
    """The commit of this checkout, marked ``+`` where sources that results depend on were changed since."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *(f"{source}/**.py" for source in SOURCES))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def resolved_config(figure: Figure, scale: str, settings: Any) -> dict[str, Any]:
    """What must be equal for results to belong together."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    config = {
        "figure": figure.name,
        "scale": scale,
        "settings": asdict(settings),
        "versions": {"python": platform.python_version(), **versions},
    }
    # Through JSON and back, so that it compares with what was read from a file (tuples become lists).
    return json.loads(json.dumps(config))


def first_difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """Name the first entry in which two nested dicts differ, or ``None``."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            inner = first_difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
            if inner:
                return inner
        return None
    return None if ours == theirs else f"{path} = {theirs!r} there, {ours!r} here"


class Store:
    """The folder of one figure: finished tasks, and the files made from them.

    :param folder: made if it does not exist.
    :param config: as :func:`resolved_config` gives it.
    :raises OtherSettings: if the folder holds results of another configuration.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self._finished = folder / "finished"
        path = folder / "config.json"
        commits: list[str] = []
        if path.exists():
            found = json.loads(path.read_text())
            commits = found.pop("commits", [])
            difference = first_difference(config, found)
            if difference:
                raise OtherSettings(
                    f"{folder} holds runs of other settings ({difference}), and runs of two settings must not mix: "
                    "choose another --out, or delete that folder."
                )
        self._finished.mkdir(parents=True, exist_ok=True)
        commit = current_commit()
        if commit not in commits:
            commits.append(commit)
        self._replace(path, (json.dumps({**config, "commits": commits}, indent=2) + "\n").encode())

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        """Write a file whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        os.replace(partial, path)

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[\w.=,+ -]+", name):
            raise ValueError(f"Task name {name!r} cannot be a file name; use letters, digits and _.=,+- only.")
        return self._finished / f"{name}.npz"

    def has(self, name: str) -> bool:
        """Whether this task is finished."""
        return self._path(name).exists()

    def keep(self, name: str, outcome: Outcome, seconds: float) -> None:
        """Store a finished task; each of its runs is booked an equal share of ``seconds``."""
        share = round(seconds / max(1, len(outcome.runs)), 4)
        runs = [{**asdict(run), "seconds": share} for run in outcome.runs]
        path = self._path(name)
        partial = path.with_name(f"{name}.partial.npz")
        arrays: dict[str, Any] = {"__runs__": np.array(json.dumps(runs)), **outcome.arrays}
        np.savez_compressed(partial, **arrays)
        os.replace(partial, path)

    def results(self, names: Sequence[str]) -> tuple[Results, list[str]]:
        """Read finished tasks, in the order of ``names``, and the names of their metrics."""
        rows: list[dict[str, Any]] = []
        settings: dict[str, None] = {}
        metrics: dict[str, None] = {}
        arrays: dict[str, dict[str, NDArray[Any]]] = {}
        for name in names:
            with np.load(self._path(name)) as content:
                arrays[name] = {key: content[key] for key in content.files if key != "__runs__"}
                runs = json.loads(str(content["__runs__"]))
            for run in runs:
                settings |= dict.fromkeys(run["setting"])
                metrics |= dict.fromkeys(run["metrics"])
                fixed = {key: run[key] for key in ("method", "seed", "frames", "seconds")}
                rows.append({**fixed, **run["setting"], **run["metrics"]})
        columns = ["method", *settings, "seed", *metrics, "frames", "seconds"]
        return Results(pd.DataFrame(rows, columns=columns), arrays), list(metrics)

    def write(self, names: Sequence[str]) -> tuple[Results, pd.DataFrame]:
        """Write ``runs.csv`` and ``summary.csv`` from finished tasks."""
        results, metrics = self.results(names)
        summary = summarize(results.runs, metrics)
        for table, file in ((results.runs, "runs.csv"), (summary, "summary.csv")):
            self._replace(self.folder / file, table.to_csv(index=False, float_format="%.6g").encode())
        return results, summary


# -- running tasks -------------------------------------------------------------------------------------------------


def perform(task: Task) -> tuple[Outcome, float]:
    """Run one task on one thread; returns what it gave and the seconds it took."""
    if "torch" in sys.modules:  # a script that does without is not made to load it
        sys.modules["torch"].set_num_threads(1)
    start = time.perf_counter()
    outcome = task.function(**task.arguments)
    return outcome, time.perf_counter() - start


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block ends. Processes started inside never see it: the parent does, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that leaves no process behind, however the block ends."""
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    before = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()
        raise
    else:
        pool.shutdown()


def run_tasks(tasks: Sequence[Task], store: Store, jobs: int, label: str) -> None:
    """Run what is not finished yet, and store each task as it ends."""
    todo = [task for task in tasks if not store.has(task.name)]
    with tqdm(total=len(tasks), initial=len(tasks) - len(todo), desc=label, unit="task", disable=None) as bar:
        if jobs == 1:
            for task in todo:
                bar.set_postfix_str(task.name)
                store.keep(task.name, *perform(task))
                bar.update()
        elif todo:
            with worker_processes(min(jobs, len(todo))) as pool:
                with holding_interrupts():
                    futures = {pool.submit(perform, task): task for task in todo}
                for future in as_completed(futures):
                    store.keep(futures[future].name, *future.result())
                    bar.update()


def run_figure(figure: Figure, scale: str, settings: Any, folder: Path, jobs: int = 1) -> Path:
    """Run every stage, then write tables and pictures.

    :param figure: what to run.
    :param scale: the scale's name, for the record.
    :param settings: its settings, resolved.
    :param folder: where results go; made if it does not exist.
    :param jobs: number of processes; with 1 everything runs in this one. Results do not depend on it.
    :return: ``folder``.
    :raises OtherSettings: if the folder holds results of other settings.
    """
    store = Store(folder, resolved_config(figure, scale, settings))
    names: list[str] = []
    for stage in figure.stages:
        tasks = stage(settings, store.results(names)[0])
        names += [task.name for task in tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"Figure {figure.name!r} has two tasks of one name; name each by all that sets it apart.")
        run_tasks(tasks, store, jobs, f"{figure.name} {stage.__name__}")
    results, summary = store.write(names)
    figure.plot(settings, results, summary, folder)
    return folder


def at_least_one(text: str) -> int:
    """A whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def same_kind(value: Any, present: Any, default: Any) -> bool:
    """Whether ``value`` may stand where ``present`` does: of its type, whole where that is a fraction, or ``None``
    where that is the default. Nothing is known of what ``None`` stands for."""
    if value is None:
        return default is None
    if isinstance(value, bool) or isinstance(present, bool):
        return type(value) is type(present)
    return present is None or isinstance(value, (int, float) if isinstance(present, float) else type(present))


def changed(settings: Any, changes: Sequence[str]) -> Any:
    """Settings with other values in some fields.

    :param settings: a frozen dataclass.
    :param changes: ``"field=value"`` each, the value as JSON; lists become tuples.
    :raises ValueError: if there is no such field, the value is not JSON, or it is of another kind than the one there.
    """

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    known = {one.name: one.default for one in fields(settings)}
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise ValueError(f"--set got {change!r}, but there is no setting {name!r}; there are {', '.join(known)}.")
        try:
            values[name] = frozen(json.loads(text))
        except json.JSONDecodeError:
            raise ValueError(
                f"--set got {change!r}, and {text!r} is not JSON; write for instance --set '{name}=[\"A2C\"]' or "
                f"--set {name}=3."
            ) from None
        present = getattr(settings, name)
        if not same_kind(values[name], present, known[name]):
            raise ValueError(
                f"--set got {change!r}, but {name} is {present!r}: a value of another kind cannot take its place."
            )
    return replace(settings, **values)


def main(figure: Figure, arguments: Sequence[str] | None = None) -> None:
    """The command line of a figure's script.

    :param figure: what the script makes.
    :param arguments: the command line, ``sys.argv[1:]`` by default.
    """
    description = (sys.modules[figure.plot.__module__].__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", choices=SCALES, default="quick", help="size of the experiment (default: quick)")
    parser.add_argument("--seeds", type=at_least_one, help="number of seeds (default: the scale's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=JSON",
        help="another value for a field of the script's Settings; may be given several times",
    )
    parser.add_argument("--jobs", type=at_least_one, default=1, help="number of processes (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="results go to OUT/FIGURE")
    options = parser.parse_args(arguments)
    settings = figure.scales[options.scale]
    if options.seeds is not None:
        settings = replace(settings, seeds=options.seeds)
    try:
        settings = changed(settings, options.set)
    except ValueError as refusal:
        parser.error(str(refusal))
    folder = options.out / figure.name
    try:
        run_figure(figure, options.scale, settings, folder, options.jobs)
    except OtherSettings as refusal:
        parser.error(str(refusal))
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished tasks are in {folder}; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    print(f"Wrote {folder}/runs.csv, summary.csv, config.json and pictures.")

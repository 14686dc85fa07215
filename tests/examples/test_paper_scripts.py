"""The scripts in ``examples/paper/``: their harness, tabular lifetimes, and every figure at its quick scale."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
SCRIPTS = sorted(path.stem for path in PAPER.glob("*.py") if "\nFIGURE = Figure(" in path.read_text())
sys.path.insert(0, str(PAPER))

import fig2_3_dag as dag_figure  # noqa: E402
import harness  # noqa: E402
from tabular import Lifetimes, TreeModel, layers_of  # noqa: E402

from tca_envs.envs.dag import DAGEnv, DAGVectorEnv  # noqa: E402
from tca_sb3.estimators import PWR, PWTD, MonteCarlo  # noqa: E402
from tca_sb3.inner import InnerOptimizer  # noqa: E402
from tca_sb3.meta import unroll  # noqa: E402
from tca_sb3.weights import Fixed, Tabular  # noqa: E402


@pytest.fixture
def float64() -> Iterator[None]:
    """Tables in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# -- the harness ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    seeds: int
    noise: float = 1.0


def measure(seed: int, noise: float, log: str, stop_at: int | None = None) -> harness.Outcome:
    """A task that writes down that it ran."""
    if seed == stop_at:
        raise KeyboardInterrupt
    with open(log, "a") as file:
        file.write(f"{seed}\n")
    value = noise * float(np.random.default_rng(seed).normal())
    run = harness.Run("toy", {"noise": noise}, seed, {"score": value, "twice": 2 * value}, frames=10)
    return harness.Outcome([run], {"value": np.array(value)})


def toy_figure(log: Path, stop_at: int | None = None) -> harness.Figure:
    """Two stages: the second makes use of what the first found."""

    def first(settings: Toy, results: harness.Results) -> list[harness.Task]:
        arguments = {"noise": settings.noise, "log": str(log), "stop_at": stop_at}
        return [harness.Task(f"a{seed}", measure, {"seed": seed, **arguments}) for seed in range(settings.seeds)]

    def second(settings: Toy, results: harness.Results) -> list[harness.Task]:
        best = max(range(settings.seeds), key=lambda seed: results.arrays[f"a{seed}"]["value"])
        return [harness.Task("b", measure, {"seed": 1000 + best, "noise": settings.noise, "log": str(log)})]

    def plot(settings: Toy, results: harness.Results, summary: pd.DataFrame, folder: Path) -> None:
        (folder / "picture.png").write_text(f"{len(results.runs)} runs")

    return harness.Figure("toy", {scale: Toy(5) for scale in harness.SCALES}, [first, second], plot)


def without_seconds(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "runs.csv").drop(columns="seconds")


def test_interrupted_run_resumes_and_repeats_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    command = ["--out", str(tmp_path / "interrupted")]
    with pytest.raises(SystemExit) as stopped:
        harness.main(toy_figure(log, stop_at=3), command)
    assert stopped.value.code == 130
    assert "same command goes on" in capsys.readouterr().err
    assert log.read_text().split() == ["0", "1", "2"]
    assert not (tmp_path / "interrupted/toy/runs.csv").exists()

    harness.main(toy_figure(log), command)
    best = max(range(5), key=lambda seed: np.random.default_rng(seed).normal())
    everything = ["0", "1", "2", "3", "4", str(1000 + best)]
    assert log.read_text().split() == everything

    harness.main(toy_figure(log), ["--out", str(tmp_path / "straight")])
    pd.testing.assert_frame_equal(
        without_seconds(tmp_path / "interrupted/toy"), without_seconds(tmp_path / "straight/toy")
    )
    assert log.read_text().split() == everything * 2
    harness.main(toy_figure(log), command)  # all is finished: tables and pictures only
    assert log.read_text().split() == everything * 2


def test_failed_task_leaves_no_trace(tmp_path: Path) -> None:
    """A half-written result must not pass for a finished one."""
    store = harness.Store(tmp_path / "toy", {"settings": {}})
    outcome = harness.Outcome([harness.Run("m", {}, 0, {"x": 1.0}, 1)], {"bad": np.array([lambda: 0], dtype=object)})
    with pytest.raises(Exception, match="pickle"):
        store.keep("task", outcome, 1.0)
    assert not store.has("task")


def test_folder_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = toy_figure(tmp_path / "log")
    harness.main(figure, ["--out", str(tmp_path)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "toy").iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as refused:
        harness.main(figure, ["--out", str(tmp_path), "--seeds", "6"])
    assert refused.value.code == 2
    assert "settings.seeds = 5 there, 6 here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        harness.main(figure, ["--out", str(tmp_path), "--scale", "cpu"])
    assert "scale = 'quick' there, 'cpu' here" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "toy").iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--seeds", "0"],
        ["--jobs", "-1"],
        ["--scale", "huge"],
        ["--set", "nosie=1"],
        ["--set", "noise"],
        ["--set", "noise=a"],
        ["--set", 'noise="a"'],
        ["--set", "noise=true"],
        ["--set", "seeds=1.5"],
        ["--set", "seeds=null"],
    ],
)
def test_wrong_command_lines(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        harness.main(toy_figure(tmp_path / "log"), ["--out", str(tmp_path), *wrong])
    assert refused.value.code == 2
    assert not (tmp_path / "toy").exists()


def test_any_setting_can_be_set(tmp_path: Path) -> None:
    figure = toy_figure(tmp_path / "log")
    harness.main(figure, ["--out", str(tmp_path), "--set", "noise=2.5", "--set", "seeds=2"])
    runs = pd.read_csv(tmp_path / "toy/runs.csv")
    assert set(runs["noise"]) == {2.5} and len(runs) == 3
    assert json.loads((tmp_path / "toy/config.json").read_text())["settings"] == {"seeds": 2, "noise": 2.5}

    @dataclass(frozen=True)
    class Others:
        pairs: tuple[Any, ...] = ()
        updates: int | None = None

    assert harness.changed(Others(), ["pairs=[[1, 2], 3]", "updates=4"]) == Others(((1, 2), 3), 4)
    assert harness.changed(Others(updates=4), ["updates=null"]) == Others()
    assert harness.changed(Toy(1), ["noise=2"]) == Toy(1, 2)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    figure = toy_figure(tmp_path / "log")
    with pytest.raises(ValueError, match="two tasks of one name"):
        harness.run_figure(replace(figure, stages=[figure.stages[0]] * 2), "quick", Toy(1), tmp_path / "toy")
    with pytest.raises(ValueError, match="cannot be a file name"):
        harness.Store(tmp_path / "other", {}).has("../up")


def test_config_tells_what_was_run(tmp_path: Path) -> None:
    harness.main(toy_figure(tmp_path / "log"), ["--out", str(tmp_path), "--seeds", "2"])
    config = json.loads((tmp_path / "toy/config.json").read_text())
    assert config["settings"] == {"seeds": 2, "noise": 1.0}
    assert config["versions"]["torch"] == torch.__version__
    assert config["versions"]["gymnasium"] == gym.__version__
    assert len(config["commits"]) == 1


TOY_SCRIPT = """
import os, sys, time
sys.path.insert(0, {paper!r})
import harness

from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    seeds: int

def work(seed, log):
    while seed >= 2 and not os.path.exists(log + ".go"):
        time.sleep(0.02)
    with open(log, "a") as file:
        file.write(f"{{seed}}\\n")
    return harness.Outcome([harness.Run("toy", {{}}, seed, {{"score": seed}}, 1)])

def stage(settings, results):
    return [harness.Task(str(seed), work, {{"seed": seed, "log": {log!r}}}) for seed in range(settings.seeds)]

if __name__ == "__mp_main__":  # a worker that is still importing
    open(f"{log}.started.{{os.getpid()}}", "w").close()
    time.sleep(0.5)

FIGURE = harness.Figure("toy", {{s: Settings(6) for s in harness.SCALES}}, [stage], lambda *_: None)
if __name__ == "__main__":
    harness.main(FIGURE)
"""


def processes_mentioning(text: str) -> list[str]:
    """Environments of live processes that hold ``text``, from /proc."""
    found: list[str] = []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found.append((entry / "environ").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return [environment for environment in found if text in environment]


class ToyProcess:
    """A script of six tasks on two processes; tasks 2 to 5 wait for :meth:`go`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = folder / "out/toy/finished"
        self.log, script = folder / "log", folder / "toy_script.py"
        script.write_text(TOY_SCRIPT.format(paper=str(PAPER), log=str(self.log)))
        self.command = [sys.executable, str(script), "--jobs", "2", "--out", str(folder / "out")]
        self.mark = f"TCA_TEST_MARK_{os.getpid()}_{time.time_ns()}"
        self.environment = {**os.environ, "TCA_TEST_MARK": self.mark, "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # Tests that a shell runs in the background inherit an ignored Ctrl-C, and hand it on.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(self.command, **pipes, env=self.environment, start_new_session=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def wait_for(self, pattern: str, count: int) -> list[Path]:
        """Wait until so many files have a name like this."""
        while len(found := list(self.folder.glob(pattern))) < count:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        return found

    def go(self) -> None:
        Path(f"{self.log}.go").touch()


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_control_c_with_two_processes(tmp_path: Path) -> None:
    toy = ToyProcess(tmp_path)
    toy.wait_for("out/toy/finished/?.npz", 2)
    os.killpg(toy.process.pid, signal.SIGINT)  # what a terminal does: everyone in the group gets it
    _, errors = toy.process.communicate(timeout=60)
    assert toy.process.returncode == 130, errors
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert processes_mentioning(toy.mark) == []

    kept = {path.name: path.stat().st_mtime_ns for path in toy.finished.glob("?.npz")}
    assert sorted(kept) == ["0.npz", "1.npz"]
    toy.go()
    subprocess.run([*toy.command, "--jobs", "1"], check=True, capture_output=True, env=toy.environment)
    assert {name: (toy.finished / name).stat().st_mtime_ns for name in kept} == kept
    runs = pd.read_csv(tmp_path / "out/toy/runs.csv")
    assert runs["seed"].tolist() == [0, 1, 2, 3, 4, 5]
    assert runs["score"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="workers are shielded by signal masks")
def test_worker_processes_never_see_control_c(tmp_path: Path) -> None:
    """Not even while they import: it is the parent's to end them, without a traceback from each."""
    toy = ToyProcess(tmp_path)
    for started in toy.wait_for("log.started.*", 2):
        os.kill(int(started.suffix[1:]), signal.SIGINT)
    toy.go()
    _, errors = toy.process.communicate(timeout=60)
    assert toy.process.returncode == 0, errors
    assert len(list(toy.finished.glob("?.npz"))) == 6


def test_no_setting_has_the_name_of_a_statistic() -> None:
    runs = pd.DataFrame([{"method": "a", "mean": 5.0, "seed": 0, "score": 1.0, "frames": 1, "seconds": 0.5}])
    with pytest.raises(ValueError, match=r"settings called \['mean'\], as statistics are"):
        harness.summarize(runs, ["score"])
    renamed = runs.rename(columns={"mean": "apples"})
    assert set(harness.summarize(renamed, ["score"]).columns) >= harness.STATISTICS


def test_summary_against_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for method, depth in itertools.product(("a", "b"), (4, 8)):
        for seed in range(30):
            score = rng.normal(depth, 2.0)
            extra = rng.normal() if depth == 4 and seed % 2 else np.nan
            rows.append({"method": method, "depth": depth, "seed": seed, "score": score, "extra": extra, "frames": 1,
                         "seconds": 0.5})  # fmt: skip
    rows.append({"method": "c", "depth": np.nan, "seed": 0, "score": 3.0, "extra": np.nan, "frames": 1, "seconds": 0.5})
    summary = harness.summarize(pd.DataFrame(rows), ["score", "extra"])
    assert len(summary) == 4 + 2 + 1
    for line in summary.itertuples():
        chosen = [row for row in rows if row["method"] == line.method and row["depth"] == line.depth]
        if line.method == "c":
            chosen = rows[-1:]
        values = [row[line.metric] for row in chosen if not np.isnan(row[line.metric])]
        n, mean = len(values), sum(values) / len(values)
        assert line.n == n
        assert line.mean == pytest.approx(mean)
        if n == 1:
            assert np.isnan(line.standard_error)
            assert line.ci_low == line.ci_high == mean
            continue
        error = (sum((value - mean) ** 2 for value in values) / (n - 1) / n) ** 0.5
        assert line.standard_error == pytest.approx(error)
        assert line.median == pytest.approx(sorted(values)[n // 2] / 2 + sorted(values)[(n - 1) // 2] / 2)
        # Normal values: the bootstrap interval is close to the textbook's.
        assert mean - line.ci_low == pytest.approx(1.96 * error, rel=0.2)
        assert line.ci_high - mean == pytest.approx(1.96 * error, rel=0.2)


def test_bootstrap_covers_and_keeps_to_itself() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(80):
        low, high = harness.bootstrap_interval(rng.exponential(1.0, size=40))
        inside += low <= 1.0 <= high
    assert 0.85 <= inside / 80 <= 0.99
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = harness.bootstrap_interval(np.arange(9.0))
    assert np.random.random() == expected  # noqa: NPY002
    assert harness.bootstrap_interval(np.arange(9.0)) == first


# -- tabular lifetimes ---------------------------------------------------------------------------------------------


def walk(env: DAGEnv, actions: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """States and rewards of one episode of the environment itself."""
    state, _ = env.reset()
    states, rewards = [int(state)], []
    for t in range(env.horizon):
        state, reward, *_ = env.step(actions[t] if t < len(actions) else 0)
        states.append(int(state))
        rewards.append(float(reward))
    return states, rewards


@pytest.mark.parametrize("depth", [4, 8])
def test_exact_values_against_all_episodes(depth: int, float64: None) -> None:
    env = DAGEnv(depth=depth)
    model = TreeModel(DAGVectorEnv(2, depth=depth))
    policy = torch.rand(3, env.rules.n_decision_states, generator=torch.Generator().manual_seed(0))
    values = model.state_values(policy)
    assert values.shape == (3, env.n_states + 1)
    for lifetime in range(3):
        totals, reached = np.zeros(env.n_states + 1), np.zeros(env.n_states + 1)
        for actions in itertools.product((0, 1), repeat=depth // 2):
            states, rewards = walk(env, actions)
            chances = [float(policy[lifetime, s]) if a else 1 - float(policy[lifetime, s])
                       for s, a in zip(states, actions, strict=False)]  # fmt: skip
            for t, state in enumerate(states):
                reached[state] += np.prod(chances)
                totals[state] += np.prod(chances) * sum(rewards[t:])
        np.testing.assert_allclose(values[lifetime].numpy(), totals / reached, atol=1e-12)
        assert float(model.returns(policy)[lifetime]) == pytest.approx(totals[0])


def test_layers() -> None:
    env = DAGEnv(depth=6)
    seen: list[set[int]] = [set() for _ in range(6)]
    for actions in itertools.product((0, 1), repeat=3):
        for t, state in enumerate(walk(env, actions)[0][:-1]):
            seen[t].add(state)
    assert [set(layer.tolist()) for layer in layers_of(env.next_state)] == seen


def monte_carlo(depth: int) -> MonteCarlo:
    return MonteCarlo(dag_figure.state_space(depth), gamma=1.0, gae_lambda=1.0)


def train(agents: Lifetimes, n_updates: int, lr: float) -> torch.Tensor:
    theta = agents.initial()
    for _ in range(n_updates):
        (gradient,) = torch.autograd.grad(agents.inner_loss(theta), theta)
        theta = (theta - lr * gradient).detach().requires_grad_()
    return theta.detach()


def test_a_lifetime_does_not_depend_on_its_neighbours() -> None:
    together = train(Lifetimes([3, 4, 5, 6], 2, 8, monte_carlo(8)), 6, 0.5)
    alone = train(Lifetimes([4], 2, 8, monte_carlo(8)), 6, 0.5)
    torch.testing.assert_close(together[1], alone[0])
    assert not torch.allclose(together[0], together[1])


def test_training_against_a_plain_loop() -> None:
    """REINFORCE with a running baseline, state by state, on the episodes that the agents drew."""
    agents, drawn = Lifetimes([7, 8], 3, 6, monte_carlo(6)), []
    sample = agents.sample
    agents.sample = lambda theta: drawn.append(sample(theta)) or drawn[-1]  # type: ignore[method-assign,func-returns-value]
    theta = train(agents, 4, 0.5)
    for lifetime in range(2):
        logits, values = np.zeros((7, 2)), np.zeros(22)
        for episodes in drawn:
            step, errors = np.zeros((7, 2)), {}
            for column in range(3 * lifetime, 3 * lifetime + 3):
                states, rewards = episodes.observations[:, column].tolist(), episodes.rewards[:, column].tolist()
                for t in range(6):
                    advantage = sum(rewards[t:]) - values[states[t]]
                    errors.setdefault(states[t], []).append(advantage)
                    if t < 3:
                        action = int(episodes.actions[t, column])
                        odds = np.exp(logits[states[t]])
                        for other in (0, 1):
                            step[states[t], other] += advantage * ((other == action) - odds[other] / odds.sum()) / 3
            logits += 0.5 * step
            for state, found in errors.items():
                values[state] += 0.3 * np.mean(found)
        np.testing.assert_allclose(theta[lifetime].view(7, 2).numpy(), logits, atol=1e-5)


def test_actions_follow_the_policy() -> None:
    agents = Lifetimes([1, 2], 4000, 4, monte_carlo(4))
    theta = torch.tensor([[0.0, 1.0, 0.0, -2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0, 0.5]])
    episodes = agents.sample(theta)
    for lifetime in range(2):
        columns = slice(4000 * lifetime, 4000 * lifetime + 4000)
        states, actions = episodes.observations[:2, columns], episodes.actions[:2, columns]
        for state in range(3):
            taken = actions[states == state].double()
            difference = theta[lifetime, 2 * state + 1] - theta[lifetime, 2 * state]
            expected = float(torch.sigmoid(difference))
            tolerance = 5 * (expected * (1 - expected) / len(taken)) ** 0.5
            assert float(taken.mean()) == pytest.approx(expected, abs=tolerance)


def test_redrawn_signs_last_for_a_lifetime_and_are_shared_within_it() -> None:
    agents = Lifetimes(list(range(20)), 2, 6, monte_carlo(6), redraw_signs="lifetime")
    before = agents.env.reward.copy()
    train(agents, 3, 0.5)
    np.testing.assert_array_equal(agents.env.reward, before)
    pairs = before.reshape(20, 2, -1)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    assert len(np.unique(pairs[:, 0], axis=0)) > 15
    np.testing.assert_array_equal(
        Lifetimes([4], 1, 6, monte_carlo(6), redraw_signs="lifetime").env.reward[0], before[8]
    )


@pytest.mark.parametrize("kind", ["PWTD", "PWR"])
def test_reset_metagradient_against_finite_differences(kind: str, float64: None) -> None:
    """Through all updates, in double precision; a small change of η flips no action."""
    space = dag_figure.state_space(4)
    estimator = (PWTD if kind == "PWTD" else PWR)(space, gamma=1.0, gae_lambda=0.9, weights_class=Tabular)
    # PWR's critic is a function of η that the metagradient holds constant; a critic that stays 0 takes it out.
    rate = 0.3 if kind == "PWTD" else 0.0

    def outer_loss() -> torch.Tensor:
        agents = Lifetimes([1, 2, 3], 2, 4, estimator, value_rate=rate)
        losses = [agents.inner_loss] * 4, [agents.outer_loss] * 4
        return unroll(agents.initial(), InnerOptimizer("sgd", lr=0.7), *losses)[0]

    table = estimator.weights.logits
    with torch.no_grad():
        table += torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(outer_loss(), table)
    entries = gradient.abs().flatten().argsort(descending=True)[:6].tolist()
    assert abs(gradient.flatten()[entries[-1]]) > 1e-4
    for entry in entries:
        difference = 0.0
        for sign in (1, -1):
            with torch.no_grad():
                table.view(-1)[entry] += sign * 1e-5
            difference += sign * float(outer_loss().detach())
            with torch.no_grad():
                table.view(-1)[entry] -= sign * 1e-5
        assert float(gradient.view(-1)[entry]) == pytest.approx(difference / 2e-5, rel=1e-5)


def test_probe_critics_are_zero_and_exact() -> None:
    estimator = PWTD(
        dag_figure.state_space(6), gamma=1.0, gae_lambda=1.0, weights_class=Fixed,
        weights_kwargs={"matrix": np.ones((22, 22), np.float32), "index": "state"},
    )  # fmt: skip
    seen: list[tuple[Any, torch.Tensor]] = []
    forward = estimator.forward
    estimator.forward = lambda episodes, values: seen.append((episodes, values)) or forward(episodes, values)  # type: ignore[method-assign,assignment,func-returns-value]
    exact = Lifetimes([1, 2], 3, 6, estimator, critic="exact")
    train(exact, 3, 0.5)
    last, values = seen[-1]
    errors = last.rewards + values[1:] - values[:-1]
    # In the second phase everything is certain; an exact value leaves no error there.
    torch.testing.assert_close(errors[3:], torch.zeros(3, 6), atol=1e-5, rtol=0)
    assert float(errors[:3].abs().max()) > 0.1
    train(Lifetimes([1, 2], 3, 6, estimator, critic="zero"), 3, 0.5)
    assert float(seen[-1][1].abs().max()) == 0.0


# -- statistics of the DAG figure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "reachable"), [(4, 17), (6, 61), (8, 181)])
def test_pair_classes_against_a_stack(depth: int, reachable: int) -> None:
    """Decisions are pushed and paid last in, first out; every episode says what its pairs are."""
    env = DAGEnv(depth=depth)
    size, n = env.n_states + 1, depth // 2
    names = ("partner", "inner", "outer", "no_reward", "next_state", "later", "inner_good", "inner_bad")
    expected = {name: np.zeros((size, size), bool) for name in names}
    for actions in itertools.product((0, 1), repeat=n):
        states, rewards = walk(env, actions)
        stack, paid_by = list(range(n)), {}
        for k in range(n + 1, depth + 1):
            paid_by[k] = stack.pop()
        for t, k in itertools.product(range(n), range(1, depth + 1)):
            if k <= t:
                continue
            here = states[t], states[k]
            if k not in paid_by:
                expected["no_reward"][here] = True
                expected["next_state" if k == t + 1 else "later"][here] = True
            elif paid_by[k] == t:
                expected["partner"][here] = True
            elif paid_by[k] > t:
                expected["inner"][here] = True
                paid = rewards[next(late for late, decision in paid_by.items() if decision == t) - 1]
                expected["inner_good" if paid > 0 else "inner_bad"][here] = True
            else:
                expected["outer"][here] = True
    pairs = dag_figure.PairClasses(env)
    for name, mask in expected.items():
        np.testing.assert_array_equal(getattr(pairs, name), mask, err_msg=name)
    together = expected["partner"] | expected["inner"] | expected["outer"] | expected["no_reward"]
    np.testing.assert_array_equal(pairs.reachable, together)
    assert pairs.reachable.sum() == reachable
    assert pairs.partner.sum() == env.rules.n_decision_states


def test_weight_statistics_against_a_double_loop() -> None:
    env = DAGEnv(depth=6)
    pairs = dag_figure.PairClasses(env)
    table = np.random.default_rng(0).integers(0, 5, (22, 22)).astype(np.float32) / 4  # many ties
    metrics = dag_figure.weight_statistics(table, pairs, memorable=True)
    won, lowered, zeros = 0.0, 0, 0
    for partner in np.argwhere(pairs.partner):
        for zero in np.argwhere(pairs.inner | pairs.outer):
            difference = table[tuple(partner)] - table[tuple(zero)]
            won += 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
    for zero in np.argwhere(pairs.inner | pairs.outer):
        zeros += 1
        lowered += table[tuple(zero)] < 0.5
    assert metrics["auc"] == pytest.approx(won / pairs.partner.sum() / zeros)
    assert metrics["zeros_lowered"] == pytest.approx(lowered / zeros)
    assert metrics["weight_inner"] == pytest.approx(np.mean([table[tuple(pair)] for pair in np.argwhere(pairs.inner)]))
    handcrafted = dag_figure.weight_statistics(env.state_credit_matrix.astype(np.float32), pairs, memorable=False)
    assert handcrafted["auc"] == handcrafted["weight_partner"] == handcrafted["zeros_lowered"] == 1.0
    assert "weight_inner_good" not in handcrafted


@pytest.mark.parametrize("seed", range(8))
def test_milestones_against_a_plain_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, n_updates, hold = 6, 12, int(rng.integers(1, 5))
    milestones, history = dag_figure.Milestones(n, n_updates, hold), []
    while not milestones.finished:
        history.append(rng.random(n) < 0.6)
        milestones.add(torch.from_numpy(history[-1]))
    for lifetime in range(n):
        above = [bool(row[lifetime]) for row in history]
        hits = [update for update in range(1, n_updates) if update <= len(above) and above[update - 1]]
        stays = [
            update
            for update in range(1, n_updates)
            if len(above) >= update + hold - 1 and all(above[update - 1 : update + hold - 1])
        ]
        assert int(milestones.first_hit[lifetime]) == min(hits, default=n_updates)
        assert int(milestones.stays[lifetime]) == min(stays, default=n_updates)


def test_best_rate_prefers_rates_that_never_fail() -> None:
    rows = [
        {"experiment": "tuning", "method": "MC", "depth": 8, "lr": lr, "stays": episodes,
         "stays_reached": reached}
        for lr, episodes, reached in
        [(0.1, 90, 1), (0.1, 110, 1), (0.4, 5, 1), (0.4, 100, 0), (0.2, 60, 1), (0.2, 70, 1)]
    ]  # fmt: skip
    decoys = [{**row, "method": "H-PWR", "stays": 1, "lr": 9.0} for row in rows]
    decoys += [{**row, "experiment": "matched", "stays": 1, "lr": 9.0} for row in rows]
    results = harness.Results(pd.DataFrame(rows + decoys), {})
    assert dag_figure.best_rate(results, "MC", 8, "stays") == 0.2


def test_seeds_of_different_purposes_never_meet() -> None:
    for settings in dag_figure.FIGURE.scales.values():
        assert settings.seeds <= dag_figure.TUNING_SEEDS
        assert dag_figure.TUNING_SEEDS + settings.tuning_seeds <= dag_figure.META_SEEDS
        assert dag_figure.META_SEEDS + settings.meta_seeds <= dag_figure.LIFETIME_SEEDS[0]


# -- every figure ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every script of the folder at its quick scale; a new one is found by itself."""
    out = tmp_path_factory.mktemp("paper")
    for name in SCRIPTS:
        module = importlib.import_module(name)
        harness.main(module.FIGURE, ["--scale", "quick", "--out", str(out)])
    return {name: out / importlib.import_module(name).FIGURE.name for name in SCRIPTS}


def test_there_are_scripts() -> None:
    assert {"fig1_umbrella_variance", "fig2_3_dag"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_quick_run(script: str, quick_results: dict[str, Path]) -> None:
    folder, figure = quick_results[script], importlib.import_module(script).FIGURE
    assert figure.name == script
    runs, summary = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "summary.csv")
    assert {"method", "seed", "frames", "seconds"} <= set(runs.columns)
    assert len(runs) >= figure.scales["quick"].seeds
    assert (runs["frames"] > 0).all()
    assert not runs.drop(columns=["seconds"]).duplicated().any()
    assert (summary["ci_low"] <= summary["mean"] + 1e-9).all()
    assert (summary["mean"] <= summary["ci_high"] + 1e-9).all()
    assert (summary["n"] >= 1).all()
    assert json.loads((folder / "config.json").read_text())["scale"] == "quick"
    pictures = list(folder.glob("*.png"))
    assert pictures
    for picture in pictures:
        pixels = matplotlib.image.imread(picture)
        assert min(pixels.shape[:2]) >= 300
        assert pixels.std() > 0.02


def test_quick_umbrella_shows_the_claim(quick_results: dict[str, Path]) -> None:
    runs = pd.read_csv(quick_results["fig1_umbrella_variance"] / "runs.csv")
    regular, weighted = runs[runs["method"] == "MC"], runs[runs["method"] == "H-PWR"]
    assert len(regular) == len(weighted) > 0
    assert (weighted["variance"] == 0).all()
    assert (weighted["bias"] == 0).all()
    expected = (regular["length"] - 1) * regular["sigma"] ** 2
    n = regular["frames"] / regular["length"]
    # Normal noise: the variance estimate's own deviation is √(2/n) of it.
    assert (abs(regular["variance"] / expected - 1) < 5 * (2 / n) ** 0.5).all()
    assert (abs(regular["bias"]) < 5 * (expected / n) ** 0.5).all()


def test_quick_dag_is_complete(quick_results: dict[str, Path]) -> None:
    runs = pd.read_csv(quick_results["fig2_3_dag"] / "runs.csv")
    settings = dag_figure.FIGURE.scales["quick"]
    for depth, method in itertools.product(settings.depths, dag_figure.METHODS):
        mine = runs[(runs["depth"] == depth) & (runs["method"] == method)]
        assert sorted(mine[mine["experiment"] == "matched"]["seed"]) == list(range(settings.seeds))
        tuned = mine[mine["experiment"] == "tuned"]
        for criterion in dag_figure.CRITERIA:
            cell = tuned[tuned["tuned_for"] == criterion]
            assert sorted(cell["seed"]) == list(range(settings.seeds))
            assert cell["lr"].nunique() == 1
        tuning = mine[mine["experiment"] == "tuning"]
        assert len(tuning) == len(settings.rates) * settings.tuning_seeds
        assert not set(tuning["seed"]) & set(tuned["seed"])
    learned = runs[runs["experiment"] == "reset"]
    assert len(learned) == (2 * len(settings.depths) + 4 + 2) * settings.meta_seeds + 2
    assert (learned["weight_partner"] > 0.5).sum() >= len(learned) - 1  # all but PWTD's with an exact value
    exact = learned[learned["critic"] == "exact"]
    assert (exact[["weight_partner", "weight_inner", "weight_outer"]] == 0.5).all(axis=None)
    assert (exact["weight_next_state"] > 0.5).all()


@pytest.mark.slow
def test_jobs_do_not_change_results(quick_results: dict[str, Path], tmp_path: Path) -> None:
    script = PAPER / "fig2_3_dag.py"
    subprocess.run(
        [sys.executable, str(script), "--jobs", "2", "--out", str(tmp_path)], check=True, cwd=PAPER.parents[1]
    )
    pd.testing.assert_frame_equal(
        without_seconds(tmp_path / "fig2_3_dag"), without_seconds(quick_results["fig2_3_dag"])
    )


@pytest.mark.slow
def test_depth_8_weights_tell_partners_from_zeros() -> None:
    outcome = dag_figure.learn_weights(
        method="Meta-PWR", depth=8, seed=1, signs="redrawn", critic="learned", batch_size=1, lr=3.2, meta_rate=0.1,
        outer_steps=300, lifetimes=64,
    )  # fmt: skip
    metrics = outcome.runs[0].metrics
    assert metrics["auc"] > 0.99
    assert metrics["weight_partner"] > 0.9
    assert metrics["weight_outer"] < 0.45


def test_committed_results_belong_to_the_scripts() -> None:
    """Results in the repository were made with the settings that the scripts have now."""
    for name in SCRIPTS:
        figure = importlib.import_module(name).FIGURE
        folder = PAPER / "results" / figure.name
        if not folder.is_dir():
            continue
        config = json.loads((folder / "config.json").read_text())
        ours = harness.resolved_config(figure, config["scale"], figure.scales[config["scale"]])
        assert harness.first_difference(ours["settings"], config["settings"]) is None
        assert shutil.which("git") is None or all(len(commit) >= 40 for commit in config["commits"])
        for table in ("runs.csv", "summary.csv"):
            assert len(pd.read_csv(folder / table)) > 0

"""Table 1's script: regret is counted right, the search chooses right, and the scales are what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
import pytest

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
sys.path.insert(0, str(PAPER))

import table1_bsuite as table1  # noqa: E402

from tca_envs.envs.bsuite import DOMAINS, bsuite_ids  # noqa: E402
from tca_sb3 import make_gym_vec_env  # noqa: E402

SETTINGS = table1.FIGURE.scales


@pytest.mark.parametrize("bsuite_id", ["catch/0", "umbrella_length/2"])
def test_regret_is_what_the_environments_add_up(bsuite_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(make_gym_vec_env(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(table1, "make_gym_vec_env", make)
    outcome = table1.train("A2C", {"learning_rate": 0.001}, bsuite_id, 40, 0, 8, "report", 0)
    (run,) = outcome.runs
    (env,) = made
    total = sum(env.get_attr("total_regret"))
    assert 0 < total <= 80
    assert run.metrics["regret"] == pytest.approx(total)
    assert run.metrics["share"] == pytest.approx(total / 40 / (1.6 if bsuite_id == "catch/0" else 1.0))
    assert outcome.arrays["regret"].mean() == pytest.approx(total / 40)  # 20 bins of two episodes each
    assert run.frames == 40 * env.get_attr("horizon")[0]


def test_regret_of_the_first_episodes_only() -> None:
    """Eight environments end their episodes together; 12 is not a multiple of 8."""
    longer, shorter = (
        table1.train("A2C", {"learning_rate": 0.001}, "umbrella_length/2", n, 0, 8, "report", 0).runs[0]
        for n in (16, 12)
    )
    assert shorter.frames == longer.frames
    assert shorter.metrics["regret"] <= longer.metrics["regret"]
    assert shorter.metrics["share"] == shorter.metrics["regret"] / 12


def test_random_regret_is_what_the_environments_say() -> None:
    assert table1.DOMAINS == DOMAINS
    for domain in DOMAINS:
        env: Any = gym.make(table1.ENV_ID, bsuite_id=f"{domain}/0").unwrapped
        if env.random_return is None:
            assert table1.RANDOM_REGRET[domain] == 1000
            continue
        scale = env.optimal_return if domain == "catch_scale" else 1.0  # bsuite counts this regret unscaled
        assert (env.optimal_return - env.random_return) / scale == pytest.approx(table1.RANDOM_REGRET[domain])


def test_the_papers_scale_is_every_setting() -> None:
    settings = SETTINGS["paper"]
    assert [bsuite_id for bsuite_id, _ in settings.problems] == list(bsuite_ids())
    assert {episodes for bsuite_id, episodes in settings.problems if "cartpole" in bsuite_id} == {50_000}
    assert {episodes for bsuite_id, episodes in settings.problems if "cartpole" not in bsuite_id} == {100_000}
    assert settings.seeds == 3


@pytest.mark.parametrize("scale", SETTINGS)
def test_tuning_seeds_are_not_reporting_seeds(scale: str) -> None:
    settings = SETTINGS[scale]
    tasks = table1.tuning(settings, None)
    runs = pd.DataFrame([row("tuning", method, 0, 1.0) for method in table1.METHODS])
    reports = table1.reporting(settings, table1.Results(runs, {}))

    def streams(tasks: list[Any]) -> set[int]:
        return {t.arguments["seed"] * settings.n_envs + i for t in tasks for i in range(settings.n_envs)}

    assert len(streams(tasks)) == settings.tuning_seeds * settings.n_envs
    assert len(streams(reports)) == settings.seeds * settings.n_envs
    assert not streams(tasks) & streams(reports)
    effort = {method: sum(t.arguments["method"] == method for t in tasks) for method in table1.METHODS}
    assert len(set(effort.values())) == 1, "every method gets the same search"
    configurations = [settings.configuration(method, i) for method in table1.METHODS for i in range(4)]
    assert len({str(c) + str(i // 4) for i, c in enumerate(configurations)}) == len(configurations)


def test_by_hand_only_where_there_is_a_matrix() -> None:
    assert "H-PWR" in table1.methods_for("umbrella_length/2")
    assert "H-PWR" not in table1.methods_for("cartpole/0")


def row(experiment: str, method: str, configuration: int, share: float, problem: str = "catch/0") -> dict[str, Any]:
    return {
        "experiment": experiment,
        "method": method,
        "configuration": configuration,
        "problem": problem,
        "share": share,
    }


def test_the_search_chooses_the_lowest_mean_over_problems() -> None:
    runs = [
        row("tuning", "A2C", 0, 0.5),
        row("tuning", "A2C", 0, 0.5, "umbrella_length/3"),
        # Better on average, though there are two runs of its worse problem.
        row("tuning", "A2C", 1, 0.9),
        row("tuning", "A2C", 1, 0.7),
        row("tuning", "A2C", 1, 0.1, "umbrella_length/3"),
        row("report", "A2C", 0, 0.0),
        row("tuning", "RGM", 3, 0.2),
        row("tuning", "RGM", 2, 0.3),
    ]
    assert table1.chosen(pd.DataFrame(runs)) == {"A2C": 1, "RGM": 3}


def test_the_table_shows_ours_beside_the_papers() -> None:
    settings = table1.Settings(1, 1, (("catch/0", 100), ("cartpole/0", 100)), (("catch/0", 10),), 8)
    runs = pd.DataFrame([row("tuning", method, 2, 0.5) for method in table1.METHODS])
    summary = pd.DataFrame(
        [
            {**row("report", "A2C", 2, 0.0), "metric": metric, "mean": mean, "ci_low": 0.25, "ci_high": 0.75}
            for metric, mean in (("share", 0.5), ("regret", 80.0))
        ]
    )
    lines = [
        line.strip("| ").split(" | ") for line in table1.table(settings, runs, summary).splitlines() if "|" in line
    ]
    table = {line[0]: line[1:] for line in lines}
    head = next(line for line in lines if "catch/0, 100 ep." in line)
    assert head == ["method", "catch/0, 100 ep.", "cartpole/0, 100 ep.", "paper: catch", "paper: cartpole"]
    first = next(line for line in lines if line[0] == "A2C")
    assert first == ["A2C", "0.500 [0.250, 0.750]", "–", "0.037", "0.002"]  # 5975 / 160,000 and 76,874 / 50,000,000
    assert table["Meta-PWR"] == ["`learning_rate=0.0007`, `meta_kwargs={'learning_rate': 0.0002}`"]

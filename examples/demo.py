"""The main job: learn which action deserves credit for which reward, on the depth-8 DAG.

Trains A2C with the λ-estimator, H-PWR (weights written by hand) and Meta-PWR (weights learned by the metagradient)
through the public API, learns weights for a random policy by inner-loop reset (the paper's Figure 3), and writes
learning curves, heatmaps and one page that explains them.

    python examples/demo.py --out runs/demo

Learning rates were chosen for each method on seeds 100-107; the seeds here are others. All settings are ours.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from paper.harness import Figure, OtherSettings, Outcome, Results, Run, Task, at_least_one, run_figure
from paper.plotting import drawing, plot_mean
from stable_baselines3.common.callbacks import BaseCallback

import tca_envs  # noqa: F401  (registers tca/…)
from tca_sb3 import A2C, HPWR, PWR, InnerLoopReset, MetaPWR, make_gym_vec_env

ENV_ID = "tca_envs:tca/DAG8-v0"
GOAL = 0.95  # of the best return
METHODS: dict[str, tuple[type[A2C], dict[str, Any]]] = {
    "A2C(λ)": (A2C, {"n_steps": 8, "learning_rate": 1.2, "gae_lambda": 1.0}),
    "H-PWR": (HPWR, {"learning_rate": 15.0}),
    "Meta-PWR": (MetaPWR, {"learning_rate": 3.2, "meta_kwargs": {"learning_rate": 0.2, "value_learning_rate": 0.03}}),
}
COLOURS = {"A2C(λ)": "#000000", "H-PWR": "#E69F00", "Meta-PWR": "#0072B2"}
# One table for the policy, plain gradient descent, no clipping: the tabular setting of §5.1.
TABULAR: dict[str, Any] = {
    "policy": "TabularPolicy",
    "policy_kwargs": {"optimizer_class": torch.optim.SGD},
    "max_grad_norm": float("inf"),
    "gamma": 1.0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Settings:
    """How much of everything.

    :param seeds: runs of each method.
    :param episodes: episodes in each run.
    :param lifetimes: lifetimes of inner-loop reset.
    """

    seeds: int
    episodes: int
    lifetimes: int


class ExactReturn(BaseCallback):
    """Writes down the policy's expected return after every update, by dynamic programming on the DAG's tables."""

    def __init__(self) -> None:
        super().__init__()
        env = gym.make(ENV_ID).unwrapped
        self.next_state, self.reward = env.next_state, env.reward
        self.returns: list[float] = []

    def _on_rollout_start(self) -> None:
        with torch.no_grad():
            distribution = self.model.policy.get_distribution(torch.arange(len(self.next_state)))
        policy = distribution.distribution.probs.cpu().numpy()
        value = np.zeros(len(self.next_state) + 1)
        for state in reversed(range(len(self.next_state))):
            value[state] = policy[state] @ (self.reward[state] + value[self.next_state[state]])
        self.returns.append(float(value[0]))

    def _on_step(self) -> bool:
        return True


def first_and_last_reach(returns: NDArray[np.float64], goal: float) -> tuple[float, float]:
    """Episodes until the goal is met for the first time, and from when on it stays met; NaN if never."""
    above = returns >= goal
    first = float(np.argmax(above)) if above.any() else np.nan
    stays = float(len(above) - np.argmin(above[::-1])) if not above.all() else 0.0
    return first, stays if above[-1] else np.nan


def train(method: str, seed: int, episodes: int) -> Outcome:
    """One run: one episode for each update."""
    algorithm, settings = METHODS[method]
    env = make_gym_vec_env(ENV_ID, n_envs=1, seed=seed)
    curve = ExactReturn()
    model = algorithm(env=env, seed=seed, **TABULAR, **settings)
    horizon = int(env.get_attr("horizon")[0])
    model.learn(episodes * horizon, callback=curve)
    returns = np.array(curve.returns)
    first, stays = first_and_last_reach(returns, GOAL * env.get_attr("optimal_return")[0])
    metrics = {"first hit": first, "stays": stays, "final return": returns[-1]}
    run = Run(method, {"learning rate": settings["learning_rate"]}, seed, metrics, episodes * horizon)
    return Outcome([run], {"returns": returns})


def learn_weights(lifetimes: int, seed: int) -> Outcome:
    """Weights for a random policy: inner-loop reset, 16 updates of 8 episodes in each lifetime."""
    n_envs, updates = 8, 16
    env = make_gym_vec_env(ENV_ID, n_envs=n_envs, seed=seed)
    model = A2C(env=env, seed=seed, **TABULAR, learning_rate=4.0, estimator_class=PWR, n_episodes=1)
    steps = lifetimes * (updates + 1) * n_envs * int(env.get_attr("horizon")[0])
    model.learn(steps, callback=InnerLoopReset(updates, learning_rate=0.1, value_learning_rate=0.1))
    dag = gym.make(ENV_ID).unwrapped
    weights = model.estimator.weights.table().numpy()
    partner = dag.state_credit_matrix == 1
    # The other rewards that may follow a decision; rewards are paid on entering the states of the second half.
    paid = np.arange(len(weights)) > dag.n_states - len(dag.next_state) // 3
    others = reachable_pairs(dag.next_state) & partner.any(axis=1)[:, None] & paid & ~partner
    metrics = {
        "weight of the reward it decides": float(weights[partner].mean()),
        "weight of other rewards": float(weights[others].mean()),
        "AUC": float((weights[partner][:, None] > weights[others]).mean()),
    }
    return Outcome([Run("inner-loop reset", {"lifetimes": lifetimes}, seed, metrics, steps)], {"weights": weights})


def reachable_pairs(next_state: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which state can come after which: ``[i, j]``, terminal state included."""
    n = len(next_state)
    after = np.zeros((n + 1, n + 1), dtype=bool)
    for state in reversed(range(n)):
        for following in next_state[state]:
            after[state] |= after[following]
            after[state, following] = True
    return after


def work(settings: Settings, results: Results) -> Sequence[Task]:
    """The weights take longest, so they go first; then every method with every seed."""
    reset = Task("weights", learn_weights, {"lifetimes": settings.lifetimes, "seed": 0})
    return [reset] + [
        Task(f"{index}-seed{seed}", train, {"method": method, "seed": seed, "episodes": settings.episodes})
        for seed in range(settings.seeds)
        for index, method in enumerate(METHODS)
    ]


def curves(results: Results, method: str) -> NDArray[np.float64]:
    """Expected returns, ``(seeds, episodes)``."""
    prefix = f"{list(METHODS).index(method)}-seed"
    return np.stack([arrays["returns"] for name, arrays in results.arrays.items() if name.startswith(prefix)])


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """Learning curves, heatmaps and the page."""
    best = gym.make(ENV_ID).unwrapped.optimal_return
    with drawing(folder / "curves.png", 6.4, 3.4) as figure:
        axes = figure.subplots()
        for method in METHODS:
            of_seeds = curves(results, method)
            plot_mean(axes, np.arange(of_seeds.shape[1]), of_seeds, color=COLOURS[method], label=method)
        axes.axhline(GOAL * best, color="grey", lw=0.8, ls="--")
        beside = axes.get_yaxis_transform()
        axes.text(1.01, GOAL * best, "95 %", transform=beside, va="center", color="grey", fontsize=8)
        axes.set_xlabel("episodes")
        axes.set_ylabel("expected return of the policy")
        axes.set_title(f"Mean over {settings.seeds} seeds, band: standard error")
        axes.legend(loc="lower right")
    draw_weights(folder / "weights.png", results.arrays["weights"]["weights"])
    frame = dag_picture()
    with drawing(folder / "dag.png", 7.2, 7.2 * frame.shape[0] / frame.shape[1]) as figure:
        axes = figure.subplots()
        axes.imshow(frame)
        axes.axis("off")
    write_page(settings, results, folder)


def draw_weights(path: Path, learned: NDArray[np.float32]) -> None:
    """Handcrafted and learned weights side by side, decision states only; pairs that cannot occur stay white."""
    dag = gym.make(ENV_ID).unwrapped
    n_decisions = int(dag.state_credit_matrix.any(axis=1).sum())
    possible = reachable_pairs(dag.next_state)[:n_decisions]

    def heatmap(axes: Axes, weights: NDArray[Any], title: str) -> Any:
        axes.set_title(title, loc="left")
        axes.set_ylabel("state of the action")
        axes.set_yticks([0, 7, 14])
        return axes.imshow(
            np.where(possible, weights[:n_decisions], np.nan), vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
        )

    with drawing(path, 7.2, 5.2) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        heatmap(top, dag.state_credit_matrix, "written by hand: 1 where the action decides the reward")
        image = heatmap(bottom, learned, "learned by the metagradient (Meta-PWR, inner-loop reset)")
        bottom.set_xlabel("state in which the reward arrives (45: the end)")
        figure.colorbar(image, ax=[top, bottom], label="weight of the reward for the action", shrink=0.8)


def dag_picture() -> NDArray[np.uint8]:
    """The environment's own picture of an episode that has just ended."""
    env = gym.make(ENV_ID, render_mode="rgb_array")
    env.reset(seed=0)
    for action in (1, 0, 1, 1, 0, 0, 0, 0):
        env.step(action)
    return env.render()


def rows(settings: Settings, results: Results) -> list[list[str]]:
    """The table: episodes to 95 % of the best return. Medians, because a run that never arrives counts as infinite."""
    runs = results.runs
    generator = np.random.default_rng(0)
    table = []
    for method in METHODS:
        of_method = runs[runs["method"] == method]
        cells = [method, f"{METHODS[method][1]['learning_rate']:g}"]
        for metric in ("first hit", "stays"):
            values = of_method[metric].fillna(np.inf).to_numpy(dtype=float)
            medians = np.sort(np.median(generator.choice(values, (10_000, len(values))), axis=1))
            low, high = medians[249], medians[9749]
            cells.append(f"{_episodes(np.median(values))} [{_episodes(low)}, {_episodes(high)}]")
        values = of_method["stays"].fillna(np.inf).to_numpy(dtype=float)
        cells.append(f"{np.isinf(values).sum()} of {len(values)}")
        final = of_method["final return"].to_numpy(dtype=float)
        cells.append(f"{final.mean():.2f} ± {final.std(ddof=min(1, len(final) - 1)) / len(final) ** 0.5:.2f}")
        table.append(cells)
    return table


HEADER = ["method", "learning rate", "first hit", "stays there", "never (within budget)", "final return ± s.e."]


def _episodes(number: float) -> str:
    return "–" if np.isinf(number) else f"{number:.0f}"


def print_table(table: list[list[str]]) -> None:
    """The same table for the terminal."""
    widths = [max(len(row[i]) for row in [HEADER, *table]) for i in range(len(HEADER))]
    for row in [HEADER, *table]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def write_page(settings: Settings, results: Results, folder: Path) -> None:
    """One self-contained page: the pictures are inside."""

    def picture(name: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode()

    def cells(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    weights = results.runs[results.runs["method"] == "inner-loop reset"].iloc[0]
    config = json.loads((folder / "config.json").read_text())
    page = Template((Path(__file__).parent / "demo_page.html").read_text())
    table = "\n".join([cells(HEADER, "th")] + [cells(row, "td") for row in rows(settings, results)])
    text = page.substitute(
        dag=picture("dag.png"),
        curves=picture("curves.png"),
        weights=picture("weights.png"),
        table=table,
        seeds=settings.seeds,
        episodes=settings.episodes,
        lifetimes=settings.lifetimes,
        partner=f"{weights['weight of the reward it decides']:.2f}",
        others=f"{weights['weight of other rewards']:.2f}",
        auc=f"{weights['AUC']:.2f}",
        commit=html.escape(", ".join(commit[:12] for commit in config["commits"])),
    )
    (folder / "index.html").write_text(text)


FIGURE = Figure(
    name="demo",
    scales={
        "quick": Settings(seeds=2, episodes=12, lifetimes=1),
        "cpu": Settings(seeds=16, episodes=200, lifetimes=120),
        "paper": Settings(seeds=100, episodes=400, lifetimes=1000),
    },
    stages=[work],
    plot=plot,
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results")
    parser.add_argument("--scale", choices=list(FIGURE.scales), default="cpu", help="size of the experiment")
    parser.add_argument("--seeds", type=at_least_one, help="runs of each method (default: the scale's)")
    parser.add_argument("--jobs", type=at_least_one, default=2, help="number of processes")
    options = parser.parse_args(arguments)
    settings = FIGURE.scales[options.scale]
    if options.seeds is not None:
        settings = replace(settings, seeds=options.seeds)
    try:
        run_figure(FIGURE, options.scale, settings, options.out, options.jobs)
    except OtherSettings:
        # Another version's demo, or another size: nothing of it can be used.
        shutil.rmtree(options.out)
        run_figure(FIGURE, options.scale, settings, options.out, options.jobs)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    print(f"\nEpisodes to 95 % of the best return, median [95 % bootstrap interval], {settings.seeds} seeds")
    print_table(rows(settings, Results(pd.read_csv(options.out / "runs.csv"), {})))
    print(f"\nOpen {options.out / 'index.html'}")


if __name__ == "__main__":
    main()

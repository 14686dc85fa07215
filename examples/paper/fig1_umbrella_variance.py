"""Figure 1 and the analysis of §3: weighting pairs removes the variance of the umbrella problem, and adds no bias.

One choice in the morning, ``T − 1`` noisy rewards that it does not influence, and its consequence on the last step. The
paper derives that, with correct baselines, the Monte-Carlo advantage of the choice has variance ``(T − 1) σ²`` and the
pairwise-weighted one variance 0, and that both are unbiased. Measured here with ``tca_envs``' environment and
``tca_sb3``'s estimators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import Figure, Outcome, Results, Run, Task, main
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from plotting import COLOURS, MARKERS, drawing

from tca_envs.envs.umbrella import LEAVE, TAKE, UmbrellaVectorEnv
from tca_sb3.episodes import Episodes
from tca_sb3.estimators import PWR, AdvantageEstimator, MonteCarlo
from tca_sb3.weights import Fixed

FILLS = {"MC": "white", "H-PWR": COLOURS["H-PWR"]}
P_TAKE = 0.5  # the policy whose advantage is estimated: a fair coin in the morning


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome.

    :param seeds: independent estimates of each variance.
    :param lengths: ``T``.
    :param deviations: ``σ``, the root of the environment's variance.
    :param mean: ``μ``.
    :param lanes: episodes side by side.
    :param rounds: how often; an estimate rests on ``lanes · rounds`` episodes.
    """

    seeds: int
    lengths: tuple[int, ...]
    deviations: tuple[float, ...]
    rounds: int
    mean: float = 5.0
    lanes: int = 200


def collect(env: UmbrellaVectorEnv, first_action: int) -> Episodes:
    """One episode in each lane that begins with ``first_action``."""
    columns, horizon = env.num_envs, env.horizon
    actions = np.zeros((horizon, columns), np.int64)
    actions[0] = first_action
    observations, rewards = np.empty((horizon + 1, columns), np.int64), np.empty((horizon, columns))
    observations[0], _ = env.reset()
    for t in range(horizon):
        observations[t + 1], rewards[t], *_ = env.step(actions[t])
    everyone = torch.ones(columns, dtype=torch.bool)
    return Episodes(
        torch.from_numpy(observations),
        torch.from_numpy(actions),
        torch.from_numpy(rewards),
        lengths=torch.full((columns,), horizon),
        terminated=everyone,
        truncated=~everyone,
        started=everyone,
    )


def first_advantages(estimator: AdvantageEstimator, episodes: Episodes, baseline: float) -> NDArray[np.float64]:
    """The estimates ``Ψ̂(s_0, a_0)``, one an episode, with ``v(s_0) = baseline``."""
    values = torch.zeros(episodes.horizon + 1, episodes.batch_size, dtype=episodes.rewards.dtype)
    values[0] = baseline  # MC and PWR look at no other value for row 0
    return estimator(episodes, values).advantages[0].numpy()


def measure(length: int, deviation: float, mean: float, seeds: Sequence[int], lanes: int, rounds: int) -> Outcome:
    """Mean and variance of both estimators, for each seed and first action."""
    env = UmbrellaVectorEnv(lanes, autoreset_mode="Disabled", length=length, mean=mean, variance=deviation**2)
    space = env.single_observation_space
    undiscounted: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0}
    weights: dict[str, Any] = {
        "weights_class": Fixed,
        "weights_kwargs": {"matrix": env.credit_matrix.copy(), "index": "time"},
    }
    noise = (length - 1) * mean  # the part of V(s_0) that PWR's own value, E[R_T], leaves out
    methods: dict[str, tuple[AdvantageEstimator, float, float]] = {
        "MC": (MonteCarlo(space, **undiscounted), env.state_value(P_TAKE), env.mc_variance),
        "H-PWR": (PWR(space, **undiscounted, **weights), env.state_value(P_TAKE) - noise, env.pwr_variance),
    }
    runs = []
    for seed in seeds:
        for action in (LEAVE, TAKE):
            env.reset(seed=(2 * seed + action) * lanes)  # lane i takes this seed plus i: no two share one
            batches = [collect(env, action) for _ in range(rounds)]
            for method, (estimator, baseline, predicted) in methods.items():
                estimates = np.concatenate([first_advantages(estimator, batch, baseline) for batch in batches])
                metrics = {
                    "variance": estimates.var(ddof=1),
                    "predicted_variance": predicted,
                    "advantage": estimates.mean(),
                    "bias": estimates.mean() - env.advantage(action, P_TAKE),
                }
                setting = {"length": length, "sigma": deviation, "action": action}
                runs.append(Run(method, setting, seed, metrics, frames=len(estimates) * length))
    return Outcome(runs)


def measuring(settings: Settings, results: Results) -> list[Task]:
    """One task for each length and noise."""
    return [
        Task(
            f"T={length} sigma={deviation:g}",
            measure,
            {
                "length": length,
                "deviation": deviation,
                "mean": settings.mean,
                "seeds": list(range(settings.seeds)),
                "lanes": settings.lanes,
                "rounds": settings.rounds,
            },
        )
        for length in settings.lengths
        for deviation in settings.deviations
    ]


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """Variance against length, and the mean estimate beside the true advantage."""
    with drawing(folder / "figure1_umbrella_variance.png", 7.2, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        plot_variance(settings, summary, left)
        plot_means(settings, summary, right)
        handles = [
            Line2D([], [], color=COLOURS[method], marker=MARKERS[method], mfc=FILLS[method], lw=0.8, label=label)
            for method, label in (
                ("MC", "Monte Carlo (line: (T − 1)σ²)"),
                ("H-PWR", "pairwise weights on the last reward (line: 0)"),
            )
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)


def plot_variance(settings: Settings, summary: pd.DataFrame, axes: Axes) -> None:
    """Measured variances (markers) on the predictions (lines)."""
    lengths = np.array(settings.lengths)
    dense = np.geomspace(lengths.min(), lengths.max(), 50)
    for deviation in settings.deviations:
        prediction = (dense - 1) * deviation**2
        axes.plot(dense, prediction, color=COLOURS["MC"], lw=0.8)
        axes.annotate(
            f"σ = {deviation:g}", (dense[25], prediction[25]), (-4, 5), textcoords="offset points", ha="right"
        )
    axes.plot(dense, 0 * dense, color=COLOURS["H-PWR"], lw=0.8)
    axes.annotate("any σ", (dense[25], 0), (-4, 5), textcoords="offset points", ha="right")
    rows = summary[(summary["metric"] == "variance") & (summary["action"] == TAKE)]
    for method, fill in FILLS.items():
        chosen = rows[rows["method"] == method]
        spread = [chosen["mean"] - chosen["ci_low"], chosen["ci_high"] - chosen["mean"]]
        axes.errorbar(
            chosen["length"], chosen["mean"], spread, fmt=MARKERS[method], color=COLOURS[method], mfc=fill, ms=5
        )
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
    axes.set_ylim(-0.4, 3 * (lengths.max() - 1) * max(settings.deviations) ** 2)
    axes.set_xlabel("episode length T (steps)")
    axes.set_ylabel("variance of the estimate of Ψ(s₀, a₀)")


def plot_means(settings: Settings, summary: pd.DataFrame, axes: Axes) -> None:
    """Mean estimates with 95 % intervals; the true advantages are lines."""
    cells = [(length, deviation) for length in settings.lengths for deviation in settings.deviations]
    rows = summary[summary["metric"] == "advantage"].set_index(["method", "action", "length", "sigma"]).sort_index()
    for action, name in ((LEAVE, "leave"), (TAKE, "take")):
        truth = 2.0 * action - 1.0
        axes.axhline(truth, color="0.6", lw=0.8)
        label = f"a₀ = {name}: Ψ = {'+' if truth > 0 else '−'}1"
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 8}
        axes.annotate(label, (0.02, truth), (0, 11 if truth > 0 else -18), **beside)
        for (method, fill), shift in zip(FILLS.items(), (-0.15, 0.15), strict=True):
            for place, (length, deviation) in enumerate(cells):
                row = rows.loc[(method, action, length, deviation)]
                spread = [[row["mean"] - row["ci_low"]], [row["ci_high"] - row["mean"]]]
                style: dict[str, Any] = {"fmt": MARKERS[method], "color": COLOURS[method], "mfc": fill, "ms": 4}
                axes.errorbar(place + shift, row["mean"], spread, **style)
    axes.set_xticks(range(len(cells)), [f"{deviation:g}\n{length}" for length, deviation in cells])
    axes.set_xlabel("σ (upper row), T (lower row)")
    axes.set_ylabel("mean estimate of Ψ(s₀, a₀)")


FIGURE = Figure(
    name="fig1_umbrella_variance",
    scales={
        "quick": Settings(seeds=4, lengths=(5, 20), deviations=(1.0, 5.0), rounds=10),
        "cpu": Settings(seeds=30, lengths=(5, 20, 100), deviations=(1.0, 5.0, 25.0), rounds=25),
        "paper": Settings(seeds=100, lengths=(5, 20, 100, 500), deviations=(1.0, 5.0, 25.0), rounds=50),
    },
    stages=[measuring],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

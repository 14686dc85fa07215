"""Table 1: total regret on bsuite's domains that need credit assignment and something else.

Regret is bsuite's own count, summed over all training episodes. The paper ran every setting of seven domains for
100,000 episodes (cartpole 50,000) with 3 seeds; how it averaged over a domain's settings and what its hyperparameters
were stands in an appendix that is not public. All numbers here are ours. ``gamma`` is 1, because bsuite counts
undiscounted returns and the best chain of discounting_chain pays after up to 100 steps.

Every method gets the same small search: four configurations (two learning rates, times two values of what matters most
to the method), the same tuning problems, episodes and seeds; one configuration a method then serves all domains.
umbrella and discounting_chain are delayed-credit environments that somebody else wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from harness import Figure, Outcome, Results, Run, Task, main
from matplotlib.axes import Axes
from numpy.typing import NDArray
from plotting import COLOURS as SHARED_COLOURS
from plotting import drawing, plot_mean
from stable_baselines3.common.callbacks import BaseCallback

from tca_envs.envs.bsuite import DOMAINS
from tca_sb3 import A2C, HPWR, MetaPWR, MetaPWTD, make_gym_vec_env
from tca_sb3.algorithms import A2CRR, RGM, MetaLambda

ENV_ID = "tca_envs:tca/Bsuite-v0"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    :param algorithm: its class.
    :param choices: the two settings, besides the learning rate, among which the search chooses.
    :param paper: its row in the paper's table, by domain.
    """

    algorithm: type[A2C]
    choices: tuple[dict[str, Any], dict[str, Any]]
    paper: Mapping[str, int]


# Regret of an episode under uniformly random actions: bsuite's own counts, as the environment's documentation has them.
# cartpole's is the base regret, which no agent can reach.
RANDOM_REGRET = dict(zip(DOMAINS, (1.6, 1.6, 1.6, 1.0, 1.0, 1000.0, 0.08), strict=True))
PAPER_EPISODES = {domain: 50_000 if domain == "cartpole" else 100_000 for domain in DOMAINS}


def row(*numbers: int) -> dict[str, int]:
    return dict(zip(DOMAINS, numbers, strict=True))


def meta_rates(*rates: float) -> Any:
    return tuple({"meta_kwargs": {"learning_rate": rate}} for rate in rates)


METHODS: dict[str, Method] = {
    "A2C": Method(A2C, ({"gae_lambda": 1.0}, {"gae_lambda": 0.9}), row(5975, 42221, 56800, 38050, 37524, 76874, 3554)),
    "A2C-RR": Method(A2CRR, ({"gamma": 0.5}, {"gamma": 0.9}), row(5950, 42295, 57033, 38083, 37433, 71506, 3548)),
    "RGM": Method(RGM, meta_rates(0.0002, 0.001), row(7849, 48268, 54421, 40397, 40159, 119102, 2444)),
    "Meta-PWTD": Method(MetaPWTD, meta_rates(0.0002, 0.001), row(6096, 41106, 48199, 37973, 37226, 65945, 1040)),
    "Meta-PWR": Method(MetaPWR, meta_rates(0.0002, 0.001), row(5967, 43076, 49361, 38168, 36554, 61752, 161)),
    "Meta-λ(s)": Method(MetaLambda, meta_rates(0.0002, 0.001), {}),
    "H-PWR": Method(HPWR, ({"ent_coef": 0.0}, {"ent_coef": 0.01}), {}),
}
COLOURS = {
    **SHARED_COLOURS,
    "A2C": SHARED_COLOURS["MC"],
    "A2C-RR": "#56B4E9",
    "RGM": "#009E73",
    "Meta-λ(s)": "#CC79A7",
}
HANDWRITTEN = "H-PWR"  # needs the environment's credit_matrix
N_BINS = 20
TUNING_SEEDS = 1000


@dataclass(frozen=True)
class Settings:
    """How much of everything.

    :param seeds: runs of each method on each problem.
    :param tuning_seeds: runs of each configuration on each tuning problem; their seeds count from 1000.
    :param problems: ``bsuite_id`` and episodes of each run that is reported.
    :param tuning_problems: the same for the search.
    :param n_envs: episodes in one update. Seed ``s`` takes the environments' seeds ``s · n_envs`` and following.
    :param learning_rates: of RMSprop: three times SB3's default for A2C, and the default. (At 0.006, in an earlier
        search with one tuning seed, every method stuck to one action on umbrella.)
    """

    seeds: int
    tuning_seeds: int
    problems: tuple[tuple[str, int], ...]
    tuning_problems: tuple[tuple[str, int], ...]
    n_envs: int
    learning_rates: tuple[float, float] = (0.002, 0.0007)

    def configuration(self, method: str, index: int) -> dict[str, Any]:
        """Arguments of the algorithm in configuration 0 to 3."""
        rate, choice = divmod(index, 2)
        return {"learning_rate": self.learning_rates[rate], **METHODS[method].choices[choice]}


def domain_of(bsuite_id: str) -> str:
    return bsuite_id.partition("/")[0]


# -- one run --------------------------------------------------------------------------------------------------------


class Regret(BaseCallback):
    """Takes down the regret of each episode in the order in which they end, and stops after enough of them."""

    def __init__(self, n_episodes: int) -> None:
        super().__init__()
        self.n_episodes = n_episodes
        self.regrets: list[float] = []
        self._totals: dict[int, float] = {}

    def _on_step(self) -> bool:
        for env, info in enumerate(self.locals["infos"]):
            if "total_regret" in info:
                self.regrets.append(info["total_regret"] - self._totals.get(env, 0.0))
                self._totals[env] = info["total_regret"]
        return len(self.regrets) < self.n_episodes


def train(
    method: str,
    configuration: dict[str, Any],
    bsuite_id: str,
    n_episodes: int,
    seed: int,
    n_envs: int,
    experiment: str,
    index: int,
) -> Outcome:
    """One run; its regret is that of the first ``n_episodes`` episodes of training."""
    env = make_gym_vec_env(ENV_ID, n_envs=n_envs, bsuite_id=bsuite_id)
    arguments = {"n_episodes": 1, "gamma": 1.0, "gae_lambda": 1.0, **configuration}
    model = METHODS[method].algorithm("MlpPolicy", env, seed=seed * n_envs, device="cpu", **arguments)
    regret = Regret(n_episodes)
    model.learn(1 << 40, callback=regret)
    env.close()
    regrets = np.array(regret.regrets[:n_episodes])
    bins = np.array([part.mean() for part in np.array_split(regrets, min(N_BINS, n_episodes))])
    metrics = {
        "regret": float(regrets.sum()),
        "share": float(regrets.mean()) / RANDOM_REGRET[domain_of(bsuite_id)],
        "last_share": float(regrets[-n_episodes // 5 :].mean()) / RANDOM_REGRET[domain_of(bsuite_id)],
    }
    setting = {"experiment": experiment, "problem": bsuite_id, "episodes": n_episodes, "configuration": index}
    return Outcome([Run(method, setting, seed, metrics, model.num_timesteps)], {"regret": bins})


# -- stages ---------------------------------------------------------------------------------------------------------


def methods_for(bsuite_id: str) -> list[str]:
    """All, but H-PWR only where there is a matrix by hand."""
    has_matrix = gym.make(ENV_ID, bsuite_id=bsuite_id).unwrapped.credit_matrix is not None  # type: ignore[attr-defined]
    return [method for method in METHODS if method != HANDWRITTEN or has_matrix]


def task(
    settings: Settings, experiment: str, method: str, index: int, bsuite_id: str, n_episodes: int, seed: int
) -> Task:
    name = f"{experiment} {list(METHODS).index(method)} c{index} {bsuite_id.replace('/', '-')} s{seed}"
    arguments = {
        "method": method,
        "configuration": settings.configuration(method, index),
        "bsuite_id": bsuite_id,
        "n_episodes": n_episodes,
        "seed": seed,
        "n_envs": settings.n_envs,
        "experiment": experiment,
        "index": index,
    }
    return Task(name, train, arguments)


def tuning(settings: Settings, results: Results) -> list[Task]:
    """Every configuration of every method on the tuning problems."""
    return [
        task(settings, "tuning", method, index, bsuite_id, n_episodes, TUNING_SEEDS + seed)
        for seed in range(settings.tuning_seeds)
        for bsuite_id, n_episodes in settings.tuning_problems
        for method in methods_for(bsuite_id)
        for index in range(4)
    ]


def chosen(runs: pd.DataFrame) -> dict[str, int]:
    """The configuration of each method whose regret, as a share of the random policy's, is lowest on average over the
    tuning problems."""
    tuned = runs[runs["experiment"] == "tuning"]
    shares = tuned.groupby(["method", "configuration", "problem"])["share"].mean()
    scores = shares.groupby(["method", "configuration"]).mean()
    return {method: int(scores[method].idxmin()) for method in scores.index.unique("method")}


def reporting(settings: Settings, results: Results) -> list[Task]:
    """The chosen configuration of every method, on fresh seeds."""
    configurations = chosen(results.runs)
    return [
        task(settings, "report", method, configurations[method], bsuite_id, n_episodes, seed)
        for seed in range(settings.seeds)
        for bsuite_id, n_episodes in settings.problems
        for method in methods_for(bsuite_id)
    ]


# -- what came out --------------------------------------------------------------------------------------------------


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """The table, as text, and regret over training as a picture."""
    (folder / "table1.md").write_text(table(settings, results.runs, summary), encoding="utf-8")
    problems = [bsuite_id for bsuite_id, _ in settings.problems]
    columns = min(4, len(problems))
    rows = -(-len(problems) // columns)
    with drawing(folder / "table1_regret.png", 2.3 * columns, 2.0 * rows + 0.7) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(problems) :]:
            axes.axis("off")
        for axes, (bsuite_id, n_episodes) in zip(grid.flat, settings.problems, strict=False):
            plot_problem(axes, results, bsuite_id, n_episodes)
        for axes in grid[:, 0]:
            axes.set_ylabel("regret / random policy's")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=2 * columns, handlelength=1.2, columnspacing=1.0
        )


def plot_problem(axes: Axes, results: Results, bsuite_id: str, n_episodes: int) -> None:
    """Regret of an episode over training, mean and standard error over seeds."""
    for number, method in enumerate(METHODS):
        curves = curves_of(results, number, bsuite_id)
        if not len(curves):
            continue
        curves = curves / RANDOM_REGRET[domain_of(bsuite_id)]
        n_bins = curves.shape[1]
        episodes = (np.arange(n_bins) + 0.5) * n_episodes / n_bins
        plot_mean(axes, episodes, curves, color=COLOURS[method], lw=1.2, label=method)
    axes.axhline(1.0, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.set_title(bsuite_id)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("episodes")


def curves_of(results: Results, number: int, bsuite_id: str) -> NDArray[np.float64]:
    """Mean regret of an episode in each bin of training, ``(seeds, bins)``."""
    problem = bsuite_id.replace("/", "-")
    found = []
    for name, arrays in results.arrays.items():
        experiment, method, _, where, _ = name.split()
        if (experiment, method, where) == ("report", str(number), problem):
            found.append(arrays["regret"])
    return np.array(found)


def table(settings: Settings, runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Regret as a share of the random policy's, ours and the paper's, and the configurations that were chosen."""
    configurations = chosen(runs)
    shown = summary[(summary["experiment"] == "report") & (summary["metric"] == "share")]
    head = ["method", *(f"{bsuite_id}, {n_episodes:,} ep." for bsuite_id, n_episodes in settings.problems)]
    head += [f"paper: {domain}" for domain in domains_of(settings)]
    lines = [head, ["---"] * len(head)]
    for method, facts in METHODS.items():
        cells = [method]
        for bsuite_id, _ in settings.problems:
            found = shown[(shown["method"] == method) & (shown["problem"] == bsuite_id)]
            if len(found):
                (one,) = found.itertuples()
                cells.append(f"{one.mean:.3f} [{one.ci_low:.3f}, {one.ci_high:.3f}]")
            else:
                cells.append("–")
        for domain in domains_of(settings):
            if domain in facts.paper:
                cells.append(f"{facts.paper[domain] / RANDOM_REGRET[domain] / PAPER_EPISODES[domain]:.3f}")
            else:
                cells.append("–")
        lines.append(cells)
    chosen_lines = [["method", "configuration"], ["---", "---"]]
    for method, index in configurations.items():
        arguments = settings.configuration(method, index)
        chosen_lines.append([method, ", ".join(f"`{name}={value}`" for name, value in arguments.items())])
    return (
        "Regret of all training episodes as a share of the uniformly random policy's (in cartpole, of 1000 an "
        f"episode): mean over {settings.seeds} seeds and its 95 % bootstrap interval; low is good. The paper's columns "
        "are its Table 1 on the same scale, over 100,000 episodes (cartpole 50,000) and all settings of a domain.\n\n"
        + markdown(lines)
        + "\nChosen by the search:\n\n"
        + markdown(chosen_lines)
    )


def domains_of(settings: Settings) -> list[str]:
    return list(dict.fromkeys(domain_of(bsuite_id) for bsuite_id, _ in settings.problems))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def whole_domain(domain: str) -> tuple[tuple[str, int], ...]:
    """Every setting of a domain, for as many episodes as the paper ran."""
    n_settings = 23 if domain.startswith("umbrella") else 20
    return tuple((f"{domain}/{number}", PAPER_EPISODES[domain]) for number in range(n_settings))


FIGURE = Figure(
    name="table1_bsuite",
    scales={
        "quick": Settings(
            seeds=1,
            tuning_seeds=1,
            problems=(("catch/0", 24), ("umbrella_length/1", 24)),
            tuning_problems=(("umbrella_length/2", 8),),
            n_envs=8,
        ),
        "cpu": Settings(
            seeds=3,
            tuning_seeds=1,
            problems=(("catch_noise/8", 1000), ("umbrella_length/4", 3000)),
            tuning_problems=(("catch_noise/4", 1000), ("umbrella_length/3", 2000)),
            n_envs=8,
        ),
        "paper": Settings(
            seeds=3,
            tuning_seeds=3,
            problems=tuple(problem for domain in DOMAINS for problem in whole_domain(domain)),
            tuning_problems=(("catch_noise/4", 10_000), ("umbrella_length/3", 10_000), ("discounting_chain/4", 10_000)),
            n_envs=16,
        ),
    },
    stages=[tuning, reporting],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

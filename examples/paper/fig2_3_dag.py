"""Figures 2 (right) and 3: what the metagradient learns on the DAG, and how fast policies learn with it.

Figure 3 by inner-loop reset (§5.1): ``θ``, ``ψ`` and ``φ`` start afresh for every outer update, which takes 16 inner
updates, evaluates the outer objective on the trajectories after each, and goes back through all of them. Figure 2: the
learned weights are then fixed and train new policies, next to regular returns and handcrafted weights.

The paper's hyperparameters are in an appendix that is not public; all numbers in ``FIGURE`` are ours. Because the
outcome hangs on the learning rate, Figure 2 is drawn under two protocols: every method at the rate that the weights
were meta-trained at ("matched"), and every method at its own best rate, found on other seeds ("tuned").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from gymnasium import spaces
from harness import Figure, Outcome, Results, Run, Scalar, Task, main
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from plotting import COLOURS, MARKERS, drawing
from tabular import Critic, Lifetimes, layers_of
from torch import Tensor

from tca_envs.envs.dag import DAGEnv
from tca_sb3.estimators import PWR, PWTD, AdvantageEstimator, MonteCarlo, WeightedEstimator
from tca_sb3.inner import InnerOptimizer
from tca_sb3.meta import unroll
from tca_sb3.weights import Fixed, Tabular

Method = Literal["MC", "H-PWR", "Meta-PWR", "Meta-PWTD"]
Signs = Literal["fixed", "redrawn"]
Criterion = Literal["first_hit", "stays"]

LEARNED: tuple[Method, ...] = ("Meta-PWR", "Meta-PWTD")
METHODS: tuple[Method, ...] = ("MC", "H-PWR", *LEARNED)
CRITERIA: tuple[Criterion, ...] = ("first_hit", "stays")
PROBES: tuple[Critic, ...] = ("zero", "exact")
INNER_UPDATES = 16  # the paper's
UNDISCOUNTED: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0}

# Of classes of pairs; partner and zeros as in the heatmaps.
CLASS_COLOURS = {"partner": "#FDE725", "inner": "#440154", "outer": "#31688E", "no_reward": "#C8C8C8"}

# Seeds of different purposes never meet: reporting seeds count from 0.
TUNING_SEEDS = 100_000
META_SEEDS = 200_000
LIFETIME_SEEDS = (1_000_000, 2**31)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome.

    :param seeds: policies trained for each method in Figure 2.
    :param meta_seeds: weight tables learned for each variant. Figure 2's seed ``i`` uses table ``i mod meta_seeds``.
    :param tuning_seeds: policies trained for each learning rate of the grid.
    :param depths: of Figure 2.
    :param heatmap_depth: of Figure 3.
    :param batch_size: episodes in one update of a policy in Figure 2, and in the meta-training for it.
    :param inner_rates: learning rate of meta-training and of the matched protocol, by depth.
    :param single_rate: learning rate of meta-training with one episode an update, as the paper's text reads ("the
        i-th trajectory"); Figure 3 only.
    :param meta_rate: of Adam on ``η``.
    :param outer_steps: meta-training's length.
    :param lifetimes: lifetimes in one outer update; twice as many with one episode an update.
    :param rates: the grid of the tuned protocol.
    :param max_episodes: after so many a policy has failed, by depth.
    :param hold: "stays" wants the return at 95 % for so many updates in a row.
    """

    seeds: int
    meta_seeds: int
    tuning_seeds: int
    depths: tuple[int, ...]
    heatmap_depth: int
    outer_steps: int
    lifetimes: int
    max_episodes: dict[int, int]
    batch_size: int = 8
    inner_rates: tuple[tuple[int, float], ...] = ((4, 0.8), (8, 1.2), (16, 1.6))
    single_rate: float = 3.2
    meta_rate: float = 0.1
    rates: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
    hold: int = 50

    def inner_rate(self, depth: int) -> float:
        """Learning rate that weights for this depth are meta-trained with."""
        return dict(self.inner_rates)[depth]


# -- the parts of an agent ------------------------------------------------------------------------------------------


def state_space(depth: int) -> spaces.Discrete:
    """The DAG's states, the terminal one included."""
    return spaces.Discrete(DAGEnv(depth=depth).n_states + 1)


def fixed_estimator(method: Method, depth: int, table: NDArray[np.float32] | None) -> AdvantageEstimator:
    """The estimator of a method that learns no weights; ``table`` holds the learned ones, ``(|S| + 1, |S| + 1)``."""
    if method == "MC":
        return MonteCarlo(state_space(depth), **UNDISCOUNTED)
    if method == "H-PWR":
        table = DAGEnv(depth=depth).state_credit_matrix.astype(np.float32)
    weights: dict[str, Any] = {"weights_class": Fixed, "weights_kwargs": {"matrix": table, "index": "state"}}
    kind = PWTD if method == "Meta-PWTD" else PWR
    return kind(state_space(depth), **UNDISCOUNTED, **weights)


def learned_estimator(method: Method, depth: int) -> WeightedEstimator:
    """The estimator whose table the metagradient learns; weights start at 0.5."""
    return (PWTD if method == "Meta-PWTD" else PWR)(state_space(depth), **UNDISCOUNTED, weights_class=Tabular)


# -- Figure 3: learning weights -------------------------------------------------------------------------------------


def learn_weights(
    method: Method,
    depth: int,
    seed: int,
    signs: Signs,
    critic: Critic,
    batch_size: int,
    lr: float,
    meta_rate: float,
    outer_steps: int,
    lifetimes: int,
) -> Outcome:
    """Inner-loop reset; gives the learned table and its statistics."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    estimator = learned_estimator(method, depth)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=meta_rate)
    inner = InnerOptimizer("sgd", lr=lr)
    frames = 0
    for _ in range(outer_steps):
        agents = Lifetimes(
            rng.integers(*LIFETIME_SEEDS, size=lifetimes).tolist(),
            batch_size,
            depth,
            estimator,
            redraw_signs="lifetime" if signs == "redrawn" else "never",
            critic=critic,
        )
        inner_losses, outer_losses = [agents.inner_loss] * INNER_UPDATES, [agents.outer_loss] * INNER_UPDATES
        loss, _ = unroll(agents.initial(), inner, inner_losses, outer_losses)
        optimizer.zero_grad()
        (loss / lifetimes).backward()
        optimizer.step()
        frames += agents.frames
    assert isinstance(estimator.weights, Tabular)
    table = estimator.weights.table().numpy()
    setting: dict[str, Scalar] = {
        "experiment": "reset",
        "depth": depth,
        "signs": signs,
        "critic": critic,
        "batch_size": batch_size,
        "lr": lr,
    }
    metrics = weight_statistics(table, PairClasses(DAGEnv(depth=depth)), memorable=signs == "fixed")
    return Outcome([Run(method, setting, seed, metrics, frames)], {"weights": table})


class PairClasses:
    """Which pairs of a decision state ``i`` and a later state ``j`` are what; masks of shape ``(|S| + 1, |S| + 1)``.

    * ``reachable``: ``j`` can follow ``i``;
    * ``partner``: the reward on entering ``j`` pays for the decision at ``i`` (the handcrafted ones);
    * ``inner``: it pays for a decision taken after ``i`` (nested inside the pair of ``i`` and its partner);
    * ``outer``: it pays for a decision taken before ``i``;
    * ``no_reward``: entering ``j`` pays nothing; of these, ``next_state`` has lag 1 and ``later`` more;
    * ``inner_good``, ``inner_bad``: inner pairs whose ``j`` can be reached only by the rewarded (the other) action
      at ``i``: there the state gives the action away.

    :param env: the DAG.
    """

    def __init__(self, env: DAGEnv) -> None:
        following = env.next_state
        size = env.n_states + 1
        depth, decisions = env.horizon, env.rules.n_decision_states
        time = np.full(size, depth)
        for t, layer in enumerate(layers_of(following)):
            time[layer] = t

        reaches = np.eye(size, dtype=bool)  # [i, j]: j can follow i, or is i
        for state in reversed(range(env.n_states)):  # numbers grow with time
            reaches[state] |= reaches[following[state]].any(axis=0)
        i, j = np.indices((size, size))
        self.reachable = reaches & (i != j) & (i < decisions)
        self.partner = env.state_credit_matrix == 1
        pays = time[j] > depth // 2
        partner_time = depth - time[i]
        self.inner = self.reachable & pays & (time[j] < partner_time)
        self.outer = self.reachable & pays & (time[j] > partner_time)
        self.no_reward = self.reachable & ~pays
        self.next_state = self.no_reward & (time[j] == time[i] + 1)
        self.later = self.no_reward & ~self.next_state

        after_one = np.zeros((size, size), bool)  # j can be reached by action 1 at i
        rewarded = np.zeros(size, bool)  # action 1 is the rewarded one at i
        for state in range(decisions):
            after_one[state] = reaches[following[state, 1]]
            # Where the partner is entered after action 1, what it pays tells.
            entrances = [s for s in np.flatnonzero(after_one[state]) if s < size - 1]
            paid = [env.reward[s, 0] for s in entrances if self.partner[state, following[s, 0]]]
            rewarded[state] = paid[0] > 0
        good = after_one == rewarded[:, None]
        self.inner_good = self.inner & good
        self.inner_bad = self.inner & ~good


def weight_statistics(table: NDArray[np.float32], pairs: PairClasses, memorable: bool) -> dict[str, float]:
    """Mean weight of each class, and how well weights tell partners from zeros.

    :param table: ``(|S| + 1, |S| + 1)``.
    :param pairs: its classes.
    :param memorable: the rewarded actions were the same in all lifetimes.
    :return: ``weight_<class>``; the shares ``partners_raised`` above and ``zeros_lowered`` below the 0.5 they started
        from, where zeros are inner and outer pairs; and ``auc``, the probability that a random partner's weight is
        above that of a random zero, ties counting half.
    """
    names = ["partner", "inner", "outer", "no_reward", "next_state", "later"]
    if memorable:
        names += ["inner_good", "inner_bad"]
    metrics = {}
    for name in names:
        weights = table[getattr(pairs, name)]
        metrics[f"weight_{name}"] = float(weights.mean())
    partners, zeros = table[pairs.partner], np.sort(table[pairs.inner | pairs.outer])
    metrics["partners_raised"], metrics["zeros_lowered"] = float((partners > 0.5).mean()), float((zeros < 0.5).mean())
    below, not_above = (np.searchsorted(zeros, partners, side=side) for side in ("left", "right"))
    metrics["auc"] = float((below + not_above).mean() / 2 / len(zeros))
    return metrics


# -- Figure 2: using weights ----------------------------------------------------------------------------------------


class Milestones:
    """When each lifetime first was at 95 %, and when it came to stay there; both as a number of updates, from 1.

    :param n: lifetimes.
    :param n_updates: after so many updates a milestone not reached is booked as this number.
    :param hold: what comes to stay is followed by ``hold − 1`` more updates at 95 %.
    """

    def __init__(self, n: int, n_updates: int, hold: int) -> None:
        self.first_hit = torch.full((n,), n_updates)
        self.stays = torch.full((n,), n_updates)
        self._n_updates, self._hold = n_updates, hold
        self._update = 0
        self._in_a_row = torch.zeros(n, dtype=torch.int64)

    def add(self, above: Tensor) -> None:
        """Take in whether each lifetime is at 95 % after one more update; shape ``(n,)``, bool."""
        self._update += 1
        self._in_a_row = torch.where(above, self._in_a_row + 1, 0)
        self.first_hit = torch.where(above, self.first_hit.clamp(max=self._update), self.first_hit)
        arrived = self._update - self._hold + 1
        self.stays = torch.where(self._in_a_row >= self._hold, self.stays.clamp(max=arrived), self.stays)

    @property
    def finished(self) -> bool:
        """Nothing can change any more."""
        # A lifetime that arrives last has `hold` updates more to show that it stays.
        return bool((self.stays < self._n_updates).all()) or self._update >= self._n_updates + self._hold - 1


def train_policies(
    method: Method,
    depth: int,
    seeds: Sequence[int],
    rates: Sequence[float],
    table: NDArray[np.float32] | None,
    batch_size: int,
    max_episodes: int,
    hold: int,
    experiment: str,
    extra: Mapping[str, str],
) -> Outcome:
    """Train one policy for each seed and rate; measure episodes until 95 % of the maximum return.

    The return is exact, by dynamic programming, after every update. ``first_hit`` is the episodes before the first
    update that reached 95 %, ``stays`` those before the first of ``hold`` updates in a row at 95 %. A policy that
    fails within ``max_episodes`` is booked that number and ``…_reached = 0``.
    """
    everyone = [(seed, lr) for lr in rates for seed in seeds]
    agents = Lifetimes([seed for seed, _ in everyone], batch_size, depth, fixed_estimator(method, depth, table))
    # SGD's step is the rate times the gradient, for each lifetime its own.
    inner = InnerOptimizer("sgd", lr=torch.tensor([[lr] for _, lr in everyone]))
    n_updates = max_episodes // batch_size
    milestones = Milestones(len(everyone), n_updates, hold)
    theta = agents.initial()
    while not milestones.finished:
        (gradient,) = torch.autograd.grad(agents.inner_loss(theta), theta)
        decrement, _ = inner.update(gradient, {})
        theta = (theta - decrement).detach().requires_grad_()
        milestones.add(agents.model.returns(agents.policy(theta)) >= 0.95 * agents.n_decisions)
    runs = []
    first_hits, stays = milestones.first_hit.tolist(), milestones.stays.tolist()
    for (seed, lr), hit, stay in zip(everyone, first_hits, stays, strict=True):
        setting: dict[str, Scalar] = {
            "experiment": experiment,
            "depth": depth,
            "batch_size": batch_size,
            "lr": lr,
            **extra,
        }
        metrics = {
            "first_hit": hit * batch_size,
            "stays": stay * batch_size,
            "first_hit_reached": float(hit < n_updates),
            "stays_reached": float(stay < n_updates),
        }
        runs.append(Run(method, setting, seed, metrics, agents.frames // len(everyone)))
    return Outcome(runs)


# -- stages ---------------------------------------------------------------------------------------------------------


def table_seeds(settings: Settings, critic: Critic) -> range:
    """Seeds of the weight tables of one variant; the probe shows one table of each kind."""
    return range(META_SEEDS, META_SEEDS + (1 if critic in PROBES else settings.meta_seeds))


def reset_name(method: str, depth: int, signs: str, critic: str, batch_size: int, seed: int) -> str:
    """The name of a meta-training task."""
    return f"reset {method} depth={depth} signs={signs} critic={critic} batch={batch_size} seed={seed}"


def meta_training(settings: Settings, results: Results) -> list[Task]:
    """Learn weights: for Figure 2 at every depth, for Figure 3 and the probe at one."""
    wide, deep = settings.batch_size, settings.heatmap_depth
    variants: list[tuple[Method, int, Signs, Critic, int]] = [
        (method, depth, "fixed", "learned", wide) for depth in settings.depths for method in LEARNED
    ]
    variants += [(method, deep, signs, "learned", 1) for method in LEARNED for signs in ("fixed", "redrawn")]
    variants += [("Meta-PWTD", deep, "fixed", critic, 1) for critic in PROBES]
    variants += [(method, deep, "redrawn", "learned", wide) for method in LEARNED]
    tasks = []
    for method, depth, signs, critic, batch_size in variants:
        for seed in table_seeds(settings, critic):
            arguments = {
                "method": method,
                "depth": depth,
                "seed": seed,
                "signs": signs,
                "critic": critic,
                "batch_size": batch_size,
                "lr": settings.single_rate if batch_size == 1 else settings.inner_rate(depth),
                "meta_rate": settings.meta_rate,
                "outer_steps": settings.outer_steps,
                "lifetimes": settings.lifetimes * (2 if batch_size == 1 else 1),
            }
            tasks.append(Task(reset_name(method, depth, signs, critic, batch_size, seed), learn_weights, arguments))
    return tasks


def policy_tasks(
    settings: Settings,
    results: Results,
    experiment: str,
    method: Method,
    depth: int,
    seeds: Sequence[int],
    rates: Sequence[float],
    extra: Mapping[str, str],
) -> list[Task]:
    """Train policies with one method: one task for each weight table."""
    n_tables = settings.meta_seeds if method in LEARNED else 1
    tasks = []
    for number in range(n_tables):
        table = None
        if method in LEARNED:
            name = reset_name(method, depth, "fixed", "learned", settings.batch_size, META_SEEDS + number)
            table = results.arrays[name]["weights"]
        mine = [seed for seed in seeds if seed % n_tables == number]
        if not mine:
            continue
        arguments = {
            "method": method,
            "depth": depth,
            "seeds": mine,
            "rates": list(rates),
            "table": table,
            "batch_size": settings.batch_size,
            "max_episodes": settings.max_episodes[depth],
            "hold": settings.hold,
            "experiment": experiment,
            "extra": extra,
        }
        suffix = "".join(f" {value}" for value in extra.values())
        name = f"{experiment} {method} depth={depth} table={number}{suffix}"
        tasks.append(Task(name, train_policies, arguments))
    return tasks


def tuning(settings: Settings, results: Results) -> list[Task]:
    """Every method at every rate of the grid, on tuning seeds."""
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + settings.tuning_seeds)
    return [
        task
        for depth in settings.depths
        for method in METHODS
        for task in policy_tasks(settings, results, "tuning", method, depth, seeds, settings.rates, {})
    ]


def best_rate(results: Results, method: Method, depth: int, criterion: Criterion) -> float:
    """The rate with the fewest failures on the tuning seeds; among those, the lowest mean number of episodes."""
    chosen = rows_where(results.runs, experiment="tuning", method=method, depth=depth)
    scores = chosen.groupby("lr")[[f"{criterion}_reached", criterion]].mean()
    ranked = scores.sort_values([f"{criterion}_reached", criterion], ascending=[False, True])
    return float(ranked.index[0])


def reporting(settings: Settings, results: Results) -> list[Task]:
    """Fresh seeds: every method at the matched rate, and at its tuned ones."""
    seeds = range(settings.seeds)
    tasks = []
    for depth in settings.depths:
        for method in METHODS:
            matched = [settings.inner_rate(depth)]
            tasks += policy_tasks(settings, results, "matched", method, depth, seeds, matched, {})
            for criterion in CRITERIA:
                tuned = [best_rate(results, method, depth, criterion)]
                extra = {"tuned_for": criterion}
                tasks += policy_tasks(settings, results, "tuned", method, depth, seeds, tuned, extra)
    return tasks


def rows_where(runs: pd.DataFrame, **columns: Scalar) -> pd.DataFrame:
    """The runs that have these values in these columns."""
    for name, value in columns.items():
        runs = runs[runs[name] == value]
    return runs


# -- pictures -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """All pictures."""
    plot_speed(settings, results.runs, folder / "figure2_right.png")
    plot_rates(settings, results.runs, folder / "figure2_learning_rates.png")
    plot_heatmaps(settings, results, folder / "figure3_weights.png")
    plot_classes(settings, results.runs, folder / "figure3_classes.png")
    plot_probe(settings, results, folder / "pwtd_probe.png")


def plot_speed(settings: Settings, runs: pd.DataFrame, path: Path) -> None:
    """Figure 2, right: episodes to 95 %. A dot is a policy, a bar a median; failures lie at the top."""
    protocols = {"matched": "learning rate of meta-training", "tuned": "each method's best learning rate"}
    with drawing(path, 7.2, 5.4) as figure:
        grid = figure.subplots(2, 2, sharex=True, sharey=True)
        rng = np.random.default_rng(0)  # of the dots' sideways scatter
        for row, criterion in zip(grid, CRITERIA, strict=True):
            for axes, (experiment, title) in zip(row, protocols.items(), strict=True):
                shown = rows_where(runs, experiment=experiment)
                if experiment == "tuned":
                    shown = rows_where(shown, tuned_for=criterion)
                for place, depth in enumerate(settings.depths):
                    for shift, method in zip((-0.3, -0.1, 0.1, 0.3), METHODS, strict=True):
                        mine = rows_where(shown, depth=depth, method=method)
                        scatter = place + shift + rng.uniform(-0.06, 0.06, len(mine))
                        axes.scatter(scatter, mine[criterion], s=4, alpha=0.35, color=COLOURS[method], lw=0)
                        median = mine[criterion].median()
                        axes.plot(place + shift + np.array([-0.08, 0.08]), [median] * 2, color=COLOURS[method], lw=2.2)
                        failed = int((mine[f"{criterion}_reached"] == 0).sum())
                        if failed:
                            at = (place + shift, settings.max_episodes[depth])
                            label = f"{failed}/{len(mine)} fail"
                            axes.annotate(
                                label, at, (0, 5), textcoords="offset points", ha="center", fontsize=6,
                                rotation=60, color=COLOURS[method],
                            )  # fmt: skip
                if axes in grid[0]:
                    axes.set_title(title)
        for axes, name in zip(grid[:, 0], ("first hit", f"stays for {settings.hold} updates"), strict=True):
            axes.set_yscale("log")
            axes.set_ylim(0.6 * settings.batch_size, 8 * max(settings.max_episodes.values()))
            axes.set_ylabel(f"episodes to 95 % of maximum\n({name})")
        for axes in grid[1]:
            axes.set_xticks(range(len(settings.depths)), [str(depth) for depth in settings.depths])
            axes.set_xlabel("depth of the DAG")
        names = {"MC": "regular return (MC)", "H-PWR": "handcrafted (H-PWR)"}
        handles = [
            Line2D([], [], color=COLOURS[method], marker="o", ms=3, lw=2, label=names.get(method, f"fixed {method}"))
            for method in METHODS
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)


def plot_rates(settings: Settings, runs: pd.DataFrame, path: Path) -> None:
    """What the tuned protocol tuned on: mean episodes until the return stays at 95 %, against the learning rate."""
    tuning_runs = rows_where(runs, experiment="tuning")
    with drawing(path, 7.2, 2.9) as figure:
        grid = np.atleast_1d(figure.subplots(1, len(settings.depths), sharey=True))
        for axes, depth in zip(grid, settings.depths, strict=True):
            axes.axvline(settings.inner_rate(depth), color="0.6", lw=0.8, ls="--")
            axes.axhline(settings.max_episodes[depth], color="0.8", lw=0.8)
            for method in METHODS:
                scores = rows_where(tuning_runs, depth=depth, method=method).groupby("lr")[["stays", "stays_reached"]]
                means = scores.mean()
                axes.plot(means.index, means["stays"], color=COLOURS[method], lw=1.2)
                for reliable, fill in ((True, COLOURS[method]), (False, "white")):
                    chosen = means[(means["stays_reached"] == 1) == reliable]
                    style: dict[str, Any] = {"color": COLOURS[method], "marker": MARKERS[method], "mfc": fill}
                    axes.plot(chosen.index, chosen["stays"], **style, ms=4, ls="")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("learning rate")
            axes.set_title(f"depth {depth}")
        grid[0].set_ylabel("mean episodes to 95 %")
        handles = [
            Line2D([], [], color=COLOURS[method], marker=MARKERS[method], ms=4, lw=1.2, label=method)
            for method in METHODS
        ]
        handles.append(Line2D([], [], color="0.4", marker="o", mfc="white", ms=4, ls="", label="some runs fail"))
        handles.append(Line2D([], [], color="0.6", lw=0.8, ls="--", label="rate of meta-training"))
        figure.legend(handles=handles, loc="outside upper center", ncols=6, columnspacing=1.2, handlelength=1.6)


def mean_table(
    settings: Settings, results: Results, method: Method, signs: Signs, critic: Critic, batch_size: int
) -> NDArray[np.float32]:
    """Learned weights at the heatmaps' depth, averaged over meta-training seeds."""
    seeds = table_seeds(settings, critic)
    names = [reset_name(method, settings.heatmap_depth, signs, critic, batch_size, seed) for seed in seeds]
    return np.mean([results.arrays[name]["weights"] for name in names], axis=0)


def draw_table(axes: Axes, table: NDArray[Any], pairs: PairClasses, title: str) -> AxesImage:
    """Rows are decision states, columns the states that follow; unreachable pairs stay white."""
    decisions = int(pairs.reachable.any(axis=1).sum())
    size = len(table)
    shown = np.where(pairs.reachable, table, np.nan)[:decisions, 1:]
    image = axes.imshow(shown, vmin=0, vmax=1, cmap="viridis", extent=(0.5, size - 0.5, decisions - 0.5, -0.5))
    axes.set_title(title)
    first_phase = decisions - 0.5  # columns to its left belong to states that decide
    axes.axvline(first_phase, color="0.5", lw=0.6)
    axes.set_yticks(range(0, decisions, 7))
    axes.set_xticks([1, decisions, *range(decisions + 7, size - 1, 8), size - 1])
    return image


def plot_heatmaps(settings: Settings, results: Results, path: Path) -> None:
    """Figure 3: handcrafted weights, and what the metagradient makes of 0.5 everywhere."""
    env = DAGEnv(depth=settings.heatmap_depth)
    pairs = PairClasses(env)
    wide = settings.batch_size
    with drawing(path, 7.2, 6.6) as figure:
        grid = figure.subplots(4, 2)
        image = draw_table(grid[0, 0], env.state_credit_matrix, pairs, "handcrafted (H-PWR)")
        draw_classes(grid[0, 1], pairs)
        variants: list[tuple[Signs, int]] = [("fixed", wide), ("fixed", 1), ("redrawn", 1)]
        for row, (signs, batch_size) in zip(grid[1:], variants, strict=True):
            for axes, method in zip(row, LEARNED, strict=True):
                table = mean_table(settings, results, method, signs, "learned", batch_size)
                draw_table(axes, table, pairs, f"{method}, {signs} signs, batch of {batch_size}")
        for axes in grid[-1]:
            axes.set_xlabel("state in which the reward arrives, $S_k$")
        for axes in grid[:, 0]:
            axes.set_ylabel("state to credit, $S_t$")
        figure.colorbar(image, ax=grid, label="weight $w(S_t, S_k)$", shrink=0.5, aspect=30)


def draw_classes(axes: Axes, pairs: PairClasses) -> None:
    """A key to the heatmaps: which pair is what."""
    kinds = np.zeros(pairs.reachable.shape)
    for number, name in enumerate(CLASS_COLOURS, start=1):
        kinds[getattr(pairs, name)] = number
    colours = ListedColormap(["white", *CLASS_COLOURS.values()])
    image = draw_table(axes, kinds, pairs, "")
    image.set_cmap(colours)
    image.set_clim(-0.5, len(CLASS_COLOURS) + 0.5)
    handles = [Patch(color=colour, label=name.replace("_", " ")) for name, colour in CLASS_COLOURS.items()]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.97), ncols=4, handlelength=1, columnspacing=1
    )


def plot_classes(settings: Settings, runs: pd.DataFrame, path: Path) -> None:
    """Mean weight of each class of pairs, and AUC: one marker a meta-training."""
    wide = settings.batch_size
    measures = {
        "weight_partner": "partner",
        "weight_inner": "inner\nzeros",
        "weight_outer": "outer\nzeros",
        "weight_no_reward": "no\nreward",
        "auc": "AUC",
    }
    variants = [
        ("fixed", wide, "#0072B2", "o"),
        ("fixed", 1, "#56B4E9", "o"),
        ("redrawn", wide, "#D55E00", "s"),
        ("redrawn", 1, "#E69F00", "s"),
    ]
    handles = []
    with drawing(path, 7.2, 3.0) as figure:
        grid = figure.subplots(1, 2, sharey=True)
        for shift, (signs, batch_size, colour, marker) in zip((-0.24, -0.08, 0.08, 0.24), variants, strict=True):
            style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "", "ms": 4.5, "mew": 0}
            handles.append(Line2D([], [], **style, label=f"{signs} signs, batch of {batch_size}"))
            for axes, method in zip(grid, LEARNED, strict=True):
                shown = rows_where(
                    runs, experiment="reset", method=method, depth=settings.heatmap_depth,
                    signs=signs, critic="learned", batch_size=batch_size,
                )  # fmt: skip
                for place, name in enumerate(measures):
                    axes.plot(np.full(len(shown), place + shift), shown[name], **style, alpha=0.8)
        for axes, method in zip(grid, LEARNED, strict=True):
            axes.plot([-0.5, 3.5], [0.5, 0.5], color="0.6", lw=0.8, ls="--", zorder=0)
            axes.axvline(3.5, color="0.6", lw=0.8)
            axes.set_title(method)
            axes.set_xticks(range(len(measures)), list(measures.values()))
            axes.set_ylim(0, 1.02)
        grid[0].set_ylabel("mean weight of the class; AUC")
        figure.legend(handles=handles, loc="outside lower center", ncols=4)


def plot_probe(settings: Settings, results: Results, path: Path) -> None:
    """PWTD's weights under a value function that is never, soon, and always right."""
    pairs = PairClasses(DAGEnv(depth=settings.heatmap_depth))
    titles: dict[Critic, str] = {
        "zero": "value 0 throughout: TD errors are rewards",
        "learned": "value learned from 0",
        "exact": "exact value of the present policy",
    }
    with drawing(path, 4.6, 5.4) as figure:
        grid = figure.subplots(3, 1)
        for axes, (critic, title) in zip(grid, titles.items(), strict=True):
            name = reset_name("Meta-PWTD", settings.heatmap_depth, "fixed", critic, 1, META_SEEDS)
            table = results.arrays[name]["weights"]
            image = draw_table(axes, table, pairs, title)
            axes.set_ylabel("state to credit, $S_t$")
        grid[-1].set_xlabel("state in which the TD error arrives, $S_k$")
        figure.colorbar(image, ax=grid, label="weight $w(S_t, S_k)$", shrink=0.5, aspect=30)


FIGURE = Figure(
    name="fig2_3_dag",
    scales={
        "quick": Settings(
            seeds=4,
            meta_seeds=1,
            tuning_seeds=2,
            depths=(4, 8),
            heatmap_depth=8,
            outer_steps=5,
            lifetimes=8,
            max_episodes={4: 160, 8: 160},
            rates=(0.4, 3.2),
            hold=5,
        ),
        "cpu": Settings(
            seeds=100,
            meta_seeds=3,
            tuning_seeds=30,
            depths=(4, 8, 16),
            heatmap_depth=8,
            outer_steps=400,
            lifetimes=32,
            max_episodes={4: 1600, 8: 3200, 16: 3200},
        ),
        "paper": Settings(
            seeds=100,
            meta_seeds=20,
            tuning_seeds=100,
            depths=(4, 8, 16),
            heatmap_depth=8,
            outer_steps=2000,
            lifetimes=64,
            max_episodes={4: 6400, 8: 12800, 16: 12800},
        ),
    },
    stages=[meta_training, tuning, reporting],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

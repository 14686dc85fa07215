"""How much of Meta-PWR's metagradient on Key-to-Door is signal, and which averages of outer gradients are biased.

No figure of the paper. The weights are those that learning begins with in Figure 5, and are held; the policy learns
with them. Of every inner step it is measured where the metagradient would move the weights of six kinds of pairs (one
number added to all logits of a kind), by several estimates of the outer gradient of Eq. 15: from the next rollout
alone, which is the paper's; its mean over the next 4, 16 or 32 rollouts (``outer_rollouts``); and a running average
that holds the gradient of the inner step's own rollout. ``signal.csv`` has mean over deviation of sums over windows of
updates, scaled to a hundred updates: at 2 the drift of a hundred updates is twice its chance part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fig4_5_key_to_door as figure5
import numpy as np
import pandas as pd
import torch
from gymnasium import spaces
from harness import Figure, Outcome, Results, Run, Task, main
from numpy.typing import NDArray
from plotting import drawing
from torch import Tensor, nn

from tca_envs.envs.key_to_door import KeyToDoorRules
from tca_sb3.episodes import Episodes
from tca_sb3.weights.base import MakeEncoder, PairwiseWeights
from tca_sb3.weights.product import discount_logits

PAIRS = (
    "key→door",
    "key→apple",
    "apple→door",
    "door→door",
    "apple→apple, lag ≤ 8",
    "apple→apple, lag ≥ 30",
)
RUNNING_AVERAGE = 0.9


@dataclass(frozen=True)
class Settings:
    """What decides the outcome besides Figure 5's constants.

    :param seeds: runs for each λ.
    :param updates: measured inner steps of a run.
    :param window: updates that are summed up.
    :param counts: of later rollouts whose outer gradients are averaged.
    :param outer_lambdas: λ of the outer advantages, and of ``v_φ``'s targets.
    :param n_envs: environments side by side.
    :param env: arguments of the environment.
    :param first_seed: of the runs.
    """

    seeds: int
    updates: int = 200
    window: int = 50
    counts: tuple[int, ...] = (1, 4, 16, 32)
    outer_lambdas: tuple[float, ...] = (0.95, 1.0)
    n_envs: int = 64
    env: tuple[tuple[str, Any], ...] = ()
    first_seed: int = 2030

    @property
    def estimates(self) -> list[str]:
        """The names of the estimates, in the order of the arrays."""
        return [*(f"next {count}" if count > 1 else "next" for count in self.counts), "running average"]


class HeldWeights(PairwiseWeights):
    """Weights of times alone, with one number to add to the logits of each kind of pairs.

    :param start: logits ``[t, k − 1]``, ``(T, T)``.
    :param kinds: which number a pair has, ``(T, T)``.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        make_encoder: MakeEncoder | None = None,
        *,
        start: Tensor,
        kinds: NDArray[np.int64],
    ) -> None:
        super().__init__(observation_space)
        self.register_buffer("logits", start)
        self.register_buffer("kinds", torch.as_tensor(kinds))
        self.offsets = nn.Parameter(torch.zeros(int(kinds.max()) + 1))

    logits: Tensor
    kinds: Tensor

    def forward(self, episodes: Episodes) -> Tensor:
        return torch.sigmoid(self.logits + self.offsets[self.kinds]).expand(episodes.batch_size, -1, -1)


def kinds_of_pairs(starts: Sequence[int]) -> NDArray[np.int64]:
    """The index in ``PAIRS`` of each pair ``[t, k − 1]``, and one more for all others."""
    _, apple, door, end = starts
    times = np.arange(end)
    lags = times[None] + 1 - times[:, None]
    kinds = np.full((end, end), len(PAIRS))
    kinds[:apple, door:] = 0
    kinds[:apple, apple:door] = 1
    kinds[apple:door, door:] = 2
    kinds[door:, door:] = 3
    apples = np.zeros((end, end), bool)
    apples[apple:door, apple:door] = True
    kinds[apples & (lags <= 8)] = 4
    kinds[apples & (lags >= 30)] = 5
    return kinds


def measure(
    seed: int, outer_lambda: float, counts: Sequence[int], updates: int, n_envs: int, env: dict[str, Any]
) -> Outcome:
    """One run; the arguments are those of :class:`Settings`."""
    rules = KeyToDoorRules(**env)
    own = figure5.WARM["estimator_kwargs"]["weights_kwargs"]
    start = discount_logits(rules.horizon, own["initial_discount"], own["initial_floor"]).float()
    weights_kwargs = {"start": start, "kinds": kinds_of_pairs(rules.phases.starts)}
    meta_kwargs = {
        **figure5.SEPARATE,
        "learning_rate": 1e-12,
        "gae_lambda": outer_lambda,
        "outer_rollouts": max(counts),
    }
    changes = {
        "meta_kwargs": meta_kwargs,
        "estimator_kwargs": {"weights_class": HeldWeights, "weights_kwargs": weights_kwargs},
    }
    model, _ = figure5.make_model("Meta-PWR", seed, n_envs, env=env, changes=changes)
    meta = model.meta
    assert meta is not None
    plain = meta.metagradient
    found: list[list[list[float]]] = []
    average: Tensor | None = None

    def watched(policy: nn.Module, outer_gradient: Tensor, *rest: Any) -> Sequence[Tensor | None]:
        nonlocal average
        later = meta.outer_gradients
        average = later[0] if average is None else torch.lerp(later[0], average, RUNNING_AVERAGE)
        candidates = [torch.stack(later[:count]).mean(0) for count in counts]
        gradients = [plain(policy, one, *rest)[0] for one in (*candidates, average)]
        found.append([(-gradient[: len(PAIRS)]).tolist() for gradient in gradients if gradient is not None])
        return plain(policy, outer_gradient, *rest)

    meta.metagradient = watched  # type: ignore[method-assign]
    curves = figure5.Curves(rules, 0)
    model.learn((updates + max(counts)) * n_envs * rules.horizon, callback=curves)
    metrics = {"door_reward": float(np.mean(curves.door[-updates // 10 :]))}
    run = Run("held weights", {"outer_lambda": outer_lambda}, seed, metrics, model.num_timesteps)
    return Outcome([run], {"moves": np.array(found, np.float32)})


def _name(outer_lambda: float, seed: int) -> str:
    return f"lambda={outer_lambda:g} seed={seed}"


def runs(settings: Settings, results: Results) -> list[Task]:
    """Every λ on every seed."""
    return [
        Task(
            _name(outer_lambda, seed),
            measure,
            {
                "seed": seed,
                "outer_lambda": outer_lambda,
                "counts": settings.counts,
                "updates": settings.updates,
                "n_envs": settings.n_envs,
                "env": dict(settings.env),
            },
        )
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for outer_lambda in settings.outer_lambdas
    ]


def signal(settings: Settings, results: Results) -> pd.DataFrame:
    """Mean by deviation of the sums over windows, for a hundred updates; by half of the run."""
    rows = []
    for outer_lambda in settings.outer_lambdas:
        names = [_name(outer_lambda, settings.first_seed + index) for index in range(settings.seeds)]
        moves = np.stack([results.arrays[name]["moves"] for name in names])  # (seeds, updates, estimates, pairs)
        sums = moves.reshape(len(moves), -1, settings.window, *moves.shape[2:]).sum(2)
        for half, part in zip(("first half", "second half"), np.split(sums, 2, axis=1), strict=True):
            windows = part.reshape(-1, *part.shape[2:])
            with np.errstate(invalid="ignore"):  # the mini map has no lag of 30
                ratio = windows.mean(0) / windows.std(0, ddof=1) * (100 / settings.window) ** 0.5
            for estimate, values in zip(settings.estimates, ratio, strict=True):
                row = {"outer_lambda": outer_lambda, "updates": half, "outer_gradient": estimate}
                rows.append({**row, **dict(zip(PAIRS, values, strict=True)), "windows": len(windows)})
    return pd.DataFrame(rows)


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """The table, and it as a picture."""
    table = signal(settings, results)
    table.to_csv(folder / "signal.csv", index=False, float_format="%.3g")
    groups = list(table.groupby(["outer_lambda", "updates"], sort=False))
    with drawing(folder / "signal.png", 9.6, 2.4 * len(settings.outer_lambdas)) as figure:
        grid = figure.subplots(len(settings.outer_lambdas), 2, sharex=True, sharey=True, squeeze=False)
        for axes, ((outer_lambda, half), part) in zip(grid.flat, groups, strict=True):
            places = np.arange(len(PAIRS))
            width = 0.8 / len(part)
            for index, (_, row) in enumerate(part.iterrows()):
                left = places + (index - (len(part) - 1) / 2) * width
                colour = "#D55E00" if row["outer_gradient"] == "running average" else "C0"
                shade = 1.0 if colour != "C0" else 0.25 + 0.75 * (index + 1) / len(settings.counts)
                axes.bar(left, row[list(PAIRS)], width, color=colour, alpha=shade, label=row["outer_gradient"])
            axes.axhline(0, color="black", lw=0.7)
            axes.set_title(f"λ = {outer_lambda:g}, {half}")
            axes.set_xticks(places, [name.replace(", ", ",\n") for name in PAIRS], fontsize=7)
        for axes in grid[:, 0]:
            axes.set_ylabel("signal by noise")
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(settings.estimates)
        )


FIGURE = Figure(
    name="metagradient_noise",
    scales={
        "quick": Settings(
            seeds=2, updates=4, window=1, counts=(1, 2), outer_lambdas=(1.0,), n_envs=8, env=figure5.MINI
        ),
        "cpu": Settings(seeds=4),
        "paper": Settings(seeds=20),
    },
    stages=[runs],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

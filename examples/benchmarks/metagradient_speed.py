"""What the metagradient costs: a Meta-PWR update beside a plain A2C update on the same batch, and how it grows.

    python examples/benchmarks/metagradient_speed.py --out runs/benchmarks

Key-to-Door images of one pixel a cell, convolutional networks (16 and 32 channels, 64 features), every network separate
as in the paper: policy, v_ψ, v_φ and that of the weights; with a metagradient after every second rollout; with v_φ as a
second head on the critic (``shared_critic``), beside an A2C that fits its critic in as many steps; and with weights
that read the critic's features (``CriticFeatures``). Updates only: rollouts cost all the same. Then whole iterations,
rollout and all, of the agents of Figure 5. Every round runs all variants one after the other, two updates each; a ratio
is the median over rounds of a variant's processor time by A2C's in the same round, with quartiles.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from algorithm_speed import added_memory, as_markdown, in_fresh_process, ratios

sys.path.append(str(Path(__file__).resolve().parents[1] / "paper"))

import fig4_5_key_to_door as figure5
from plotting import drawing

import tca_envs  # noqa: F401 (registers Key-to-Door)
from tca_sb3 import A2C, HPWR, MetaPWR, MetaPWTD
from tca_sb3.algorithms import CreditMixin
from tca_sb3.networks import CriticFeatures, TileExtractor
from tca_sb3.vec_env import make_gym_vec_env
from tca_sb3.weights.product import _Fusion

torch.set_num_threads(1)

PHASES = (15, 90, 15)


def collected(algorithm: type[CreditMixin], horizon: int, batch: int, **kwargs: Any) -> Any:
    """A model that has made two iterations, so that optimisers and the last inner step exist."""
    key, apple, door = (round(horizon * part / sum(PHASES)) for part in PHASES)
    env = make_gym_vec_env(
        "tca/KeyToDoor-v0",
        batch,
        seed=0,
        tile_size=1,
        maps=(7, 7),
        key_steps=key,
        apple_steps=apple,
        door_steps=door,
    )
    model: Any = algorithm(
        "MultiInputPolicy",
        env,
        n_episodes=1,
        ent_coef=0.01,
        normalize_advantage=True,
        policy_kwargs={
            "features_extractor_class": TileExtractor,
            "share_features_extractor": False,
            "net_arch": [],
        },
        seed=0,
        device="cpu",
        **kwargs,
    )
    model.horizon = horizon
    model.learn(2 * horizon * batch)
    return model


class Stopwatch:
    """Adds up the processor time of what an iteration does with its rollout: advantages, outer step, training."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds = model, 0.0
        for owner, name in ((model, "train"), (model, "outer_step")):
            setattr(owner, name, self._timed(getattr(owner, name)))
        buffer = model.rollout_buffer
        buffer.compute_returns_and_advantage = self._timed(buffer.compute_returns_and_advantage)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed

    def update(self) -> float:
        """Seconds of an update, the mean of two in a row; the rollouts before them are not counted."""
        self.seconds = 0.0
        self.model.learn(2 * self.model.n_envs * self.model.horizon, reset_num_timesteps=False)
        return self.seconds / 2


def compare(models: dict[str, Any], rounds: int) -> pd.DataFrame:
    """Time one update of every model in every round; ratios to the first."""
    watches = {name: Stopwatch(model) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, watch in watches.items():
            seconds[name].append(watch.update())
    return ratios(seconds, "ms", 1e3)


def methods(rounds: int) -> pd.DataFrame:
    """Every method at the paper's size: T = 120, B = 16, d = 32."""
    wide = {"weights_kwargs": {"embedding_dim": 32}}
    variants: dict[str, Callable[[], Any]] = {
        "A2C": lambda: collected(A2C, 120, 16),
        "H-PWR": lambda: collected(HPWR, 120, 16),
        "Meta-PWR": lambda: collected(MetaPWR, 120, 16, estimator_kwargs=wide),
        "Meta-PWR, every second rollout": lambda: collected(
            MetaPWR, 120, 16, estimator_kwargs=wide, meta_kwargs={"update_interval": 2}
        ),
        "Meta-PWR, critic's features": lambda: collected(
            MetaPWR, 120, 16, estimator_kwargs={**wide, "encoder_class": CriticFeatures}
        ),
        "Meta-PWTD": lambda: collected(MetaPWTD, 120, 16, estimator_kwargs=wide),
    }
    return compare({name: make() for name, make in variants.items()}, rounds)


def one_critic(rounds: int) -> pd.DataFrame:
    """The same with critics that make one further step; ``v_φ`` separate from v_ψ or a head beside it, and then weights
    of images or of that critic's features."""
    estimator_kwargs = {"weights_kwargs": {"embedding_dim": 32}}
    wide = {"critic_updates": 1, "estimator_kwargs": estimator_kwargs}
    shared = {"critic_updates": 1, "meta_kwargs": {"shared_critic": True}}
    models = {
        "A2C": collected(A2C, 120, 16, critic_updates=1),
        "Meta-PWR": collected(MetaPWR, 120, 16, **wide),
        "Meta-PWR, shared critic": collected(MetaPWR, 120, 16, **shared, estimator_kwargs=estimator_kwargs),
        "Meta-PWR, shared critic and its features": collected(
            MetaPWR, 120, 16, **shared, estimator_kwargs={**estimator_kwargs, "encoder_class": CriticFeatures}
        ),
    }
    return compare(models, rounds)


def iterations(rounds: int) -> pd.DataFrame:
    """Rollout and update of the agents of Figure 5: 64 episodes of 120 steps, MLPs, critics fitted in 24 steps."""
    n_envs = 64
    models = {}
    every_second = "Meta-PWR, every second rollout"
    for method in ("A2C", "H-PWR", "Meta-PWR", every_second, "Meta-PWR, shared critic", "Meta-PWTD"):
        model, rules = figure5.make_model(method, 0, n_envs)
        warm = 2 if model.meta is None else 1 + model.meta.outer_rollouts  # then every iteration moves η
        model.learn(warm * n_envs * rules.horizon)
        models[method] = model
    seconds: dict[str, list[float]] = {method: [] for method in models}
    for _ in range(rounds):
        for method, model in models.items():
            start = time.process_time()
            model.learn(2 * n_envs * rules.horizon, reset_num_timesteps=False)
            seconds[method].append((time.process_time() - start) / 2)
    return ratios(seconds, "ms", 1e3)


SIZES = {
    "T": [(60, 16, 32), (120, 16, 32), (240, 16, 32), (480, 16, 32), (1000, 16, 32)],
    "B": [(120, 4, 32), (120, 16, 32), (120, 64, 32)],
    "d": [(120, 16, 8), (120, 16, 32), (120, 16, 128)],
}


def sized(horizon: int, batch: int, width: int) -> dict[str, Any]:
    """A2C and Meta-PWR at some size."""
    wide = {"weights_kwargs": {"embedding_dim": width}}
    return {
        "A2C": collected(A2C, horizon, batch),
        "Meta-PWR": collected(MetaPWR, horizon, batch, estimator_kwargs=wide),
    }


def growth(rounds: int) -> pd.DataFrame:
    """Meta-PWR by A2C at other sizes, one changed at a time: seconds, and what an update adds to the memory in use."""
    rows = []
    for horizon, batch, width in dict.fromkeys(size for sizes in SIZES.values() for size in sizes):
        found = compare(sized(horizon, batch, width), rounds).iloc[1]
        of_a2c, of_meta_pwr = in_fresh_process(__file__, "--peak", horizon, batch, width)
        rows.append(
            {
                "T": horizon,
                "B": batch,
                "d": width,
                **found[["ms", "ratio", "q25", "q75"]].to_dict(),
                "A2C adds (MB)": of_a2c,
                "Meta-PWR adds (MB)": of_meta_pwr,
            }
        )
    return pd.DataFrame(rows)


def peaks(horizon: int, batch: int, width: int) -> list[float]:
    """Megabytes that an update adds to the memory in use, of A2C and of Meta-PWR."""
    models = sized(horizon, batch, width).values()
    return [added_memory(partial(model.learn, horizon * batch, reset_num_timesteps=False)) for model in models]


def plot_growth(table: pd.DataFrame, path: Path) -> None:
    """Time by A2C's, and memory, against each size."""
    sizes = table.set_index(["T", "B", "d"])
    with drawing(path, 7.2, 3.8) as figure:
        above, below = figure.subplots(2, len(SIZES), sharey="row", sharex="col")
        for column, (name, shown) in enumerate(SIZES.items()):
            part = sizes.loc[shown].reset_index()
            quartiles = [part["ratio"] - part["q25"], part["q75"] - part["ratio"]]
            above[column].errorbar(part[name], part["ratio"], quartiles, marker="o", capsize=2, color="#0072B2")
            for method, colour in (("A2C", "#000000"), ("Meta-PWR", "#0072B2")):
                below[column].plot(part[name], part[f"{method} adds (MB)"], marker="o", color=colour, label=method)
            below[column].set_xlabel(name)
            below[column].set_xscale("log")
            below[column].set_xticks(part[name], [str(number) for number in part[name]], minor=False)
            below[column].minorticks_off()
            below[column].set_yscale("symlog", linthresh=10)  # small updates fit into memory that is free already
        above[0].set_ylabel("time of an update\nby A2C's")
        above[0].set_ylim(bottom=0)
        below[0].set_ylabel("memory an\nupdate adds (MB)")
        below[0].legend()


def fuse(horizon: int, batch: int, width: int) -> tuple[float, float]:
    """Seconds and added megabytes of all pairs' weights and their gradient, from embeddings."""
    rates = torch.tensor([0.0, 1 / 4, 1 / 16, 1 / 64])

    def embeddings(length: int) -> list[torch.Tensor]:
        shapes = [(batch, length, width)] * 2 + [(4, width)]
        return [torch.randn(shape).requires_grad_() for shape in shapes]

    # The first call in a process allocates libraries' own memory, and takes its time; so does the first backward() with
    # a gradient, for which torch imports a whole algebra system.
    _Fusion.apply(*embeddings(64), rates, None).backward(torch.randn(batch, 64, 64))
    leaves, signal = embeddings(horizon), torch.randn(batch, horizon, horizon)
    added = added_memory(lambda: _Fusion.apply(*leaves, rates, None).backward(signal))
    start = time.process_time()
    _Fusion.apply(*leaves, rates, None).backward(signal)
    return time.process_time() - start, added


def fusion() -> pd.DataFrame:
    """The fusion alone, each size in a process of its own; the weights themselves are part of what it adds."""
    rows = []
    for horizon in (60, 120, 240, 500, 1000):
        seconds, added = in_fresh_process(__file__, "--fuse", horizon, 16, 32)
        weights = 16 * horizon**2 * 4 / 2**20
        rows.append({"T": horizon, "ms": 1e3 * seconds, "weights (MB)": weights, "added in all (MB)": added})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fuse", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(*peaks(*options.peak))
        return
    if options.fuse:
        print(*fuse(*options.fuse))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    grown = growth(max(3, options.rounds // 3))
    plot_growth(grown, options.out / "metagradient_growth.png")
    parts = [
        ("One update (T = 120, B = 16, d = 32, conv16-conv32-fc64)", methods(options.rounds)),
        ("The same, critics with one further step", one_critic(options.rounds)),
        ("One iteration of Figure 5 (T = 120, B = 64)", iterations(options.rounds)),
        ("Growth of a Meta-PWR update; ratios to A2C of that size", grown),
        ("Fusion of embeddings and its gradient (B = 16, d = 32)", fusion()),
    ]
    text = "\n\n".join(f"### {title}\n\n{as_markdown(table)}" for title, table in parts)
    print(text)
    (options.out / "metagradient_speed.md").write_text(text + "\n")
    tables = pd.concat([table.assign(part=title) for title, table in parts])
    tables.to_csv(options.out / "metagradient_speed.csv", index=False)


if __name__ == "__main__":
    main()

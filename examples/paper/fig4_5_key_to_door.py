"""Figures 4 and 5: Key-to-Door, every method of the paper but TVT; what is learned, and which weights learn it.

``--scale paper`` runs other variants besides, and ``--set 'methods=[...]'`` those you name.

Figure 5 is reward in the door phase and total return against frames; Figure 4 the handcrafted weights beside those that
Meta-PWR learned. The paper's hyperparameters are in an appendix that is not public: all numbers here are ours, tuned on
the middle setting (mean 5, variance 25) with seeds from 1000 up, then frozen for the other apple settings. Reporting
seeds are lower. Methods differ in what they estimate and learn; policy, critic, optimiser and entropy bonus are the
same for all. Pairwise weights are learned with advantages as they are, the others' are normalised.

Policy, critic and the networks of η are small MLPs on the image with one pixel a cell, every entry standardised by its
mean and deviation under random play: walls and floor are most of an image and drown the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from gymnasium import spaces
from harness import Figure, Outcome, Results, Run, Task, bootstrap_interval, main
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from plotting import COLOURS, drawing, plot_mean
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

import tca_envs  # noqa: F401 (registers Key-to-Door)
import tca_sb3
from tca_sb3.algorithms import CreditMixin
from tca_sb3.vec_env import make_gym_vec_env

REWARD_SCALE = 0.1  # SB3's critic and its clipping want returns of order 1
HANDCRAFTED_DISCOUNT = 0.92  # the paper's, of pairs in the same phase
STANDARDISATION_SEED = 10_000_000

# What every method shares. Adam with β₁ = 0 is RMSprop with bias correction: SB3's own RMSprop starts from ones and
# takes hundreds of updates to forget them, torch's starts from zeros and makes a first step of ten learning rates.
SHARED: dict[str, Any] = {
    "learning_rate": 5e-3,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "ent_coef": 5e-3,
    "normalize_advantage": True,
    "max_grad_norm": 10.0,
    "use_rms_prop": False,
    # Ours: SB3's critic makes one step a rollout. With further ones A2C itself learns nearly twice as fast here.
    "critic_updates": 24,
}
META: dict[str, Any] = {
    # With a smaller λ it takes v_φ a hundred updates to carry the door's reward back to the key.
    "gae_lambda": 1.0,
    # Its successive steps share most of their outer gradients, so that the noise in them adds up.
    "learning_rate": 5e-4,
    "optimizer_kwargs": {"betas": (0.9, 0.99)},
    "value_learning_rate": 3e-3,
    "outer_rollouts": 32,
    "center_scores": True,
}
# v_φ has to know what the key is worth before the metagradient can: one step a rollout leaves it far behind.
SEPARATE: dict[str, Any] = {**META, "value_updates": 24}
SHARED_CRITIC: dict[str, Any] = {**META, "shared_critic": True}  # a second head, which SHARED's critic_updates fit
# Normalised advantages share one size, so that a weight that goes up takes from all others. Without that, weights learn
# sooner and go further; to A2C and H-PWR it makes no difference.
PAIRWISE: dict[str, Any] = {"normalize_advantage": False, "meta_kwargs": SEPARATE}
# Weights begin as A2C's best discount, but nowhere near 0, where they would hardly have a gradient.
WARM: dict[str, Any] = {
    **PAIRWISE,
    "estimator_kwargs": {"weights_kwargs": {"initial_discount": 0.92, "initial_floor": 0.15}},
}

# The algorithm of each method, and what is its own. Of the discounts .92 gives A2C the best return; with it A2C cannot
# learn what the key is for.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "A2C": ("A2C", {"gamma": 0.92, "gae_lambda": 0.9}),
    "H-PWR": ("HPWR", {}),
    "Meta-PWR": ("MetaPWR", WARM),
    "Meta-PWTD": ("MetaPWTD", {**WARM, "gamma": 0.92, "meta_kwargs": META}),
    "Meta-λ(s)": ("MetaLambda", {"gamma": 0.92, "meta_kwargs": META}),
    "RGM": ("RGM", {"meta_kwargs": SEPARATE}),
    "A2C-RR": ("A2CRR", {"gamma": 0.95}),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **METHODS,
    "Meta-PWR, shared critic": ("MetaPWR", {**WARM, "meta_kwargs": SHARED_CRITIC}),
    "Meta-PWR, one outer rollout": ("MetaPWR", {**WARM, "meta_kwargs": {**SEPARATE, "outer_rollouts": 1}}),
    "Meta-PWR, every second rollout": (
        "MetaPWR",
        {**WARM, "meta_kwargs": {**SEPARATE, "update_interval": 2, "learning_rate": 1e-3}},
    ),
    "Meta-PWR, from ½": ("MetaPWR", PAIRWISE),
    "A2C, γ = 1": ("A2C", {}),
    "A2C, not normalised": ("A2C", {**METHODS["A2C"][1], "normalize_advantage": False}),
    "A2C, critic of SB3": ("A2C", {"gae_lambda": 0.98, "critic_updates": 0}),
}
# Processor time of an iteration, rollout and all, by A2C's: examples/benchmarks/results/metagradient_speed.md.
ITERATION_COST = {"Meta-PWR": 2.09, "Meta-PWR, shared critic": 1.86, "Meta-PWR, every second rollout": 1.82}
Setting = tuple[float, float]
MIDDLE: Setting = (5.0, 25.0)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome besides the constants above.

    :param seeds: runs of each method in the middle setting.
    :param updates: updates of a run; one takes an episode of each environment.
    :param methods: which of ``VARIANTS``, in the middle setting.
    :param other_settings: further pairs of apple mean and variance.
    :param other_methods: which methods run there.
    :param other_seeds: runs of each there.
    :param n_envs: environments side by side, ``B``.
    :param env: arguments of the environment besides the apples'.
    :param points: points of a curve.
    :param first_seed: of the runs.
    """

    seeds: int
    updates: int
    methods: tuple[str, ...] = tuple(METHODS)
    other_settings: tuple[Setting, ...] = ()
    other_methods: tuple[str, ...] = ("A2C", "H-PWR", "Meta-PWR", "Meta-PWTD")
    other_seeds: int = 0
    n_envs: int = 64
    env: tuple[tuple[str, Any], ...] = ()
    points: int = 20
    first_seed: int = 0

    @property
    def middle_seeds(self) -> range:
        """The seeds of the middle setting."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def their_seeds(self) -> range:
        """The seeds of the other settings."""
        return range(self.first_seed, self.first_seed + self.other_seeds)


class StandardTiles(VecEnvWrapper):
    """The image and the key as one vector, each entry standardised, and rewards scaled.

    :param venv: Key-to-Door environments.
    :param moments: mean and scale of the entries, as :func:`moments_of_random_play` gives them.
    """

    def __init__(self, venv: VecEnv, moments: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        self.mean, self.scale = moments
        space = spaces.Box(-np.inf, np.inf, self.mean.shape, np.float32)
        super().__init__(venv, observation_space=space)

    def _standardised(self, observations: Mapping[str, Any]) -> NDArray[np.float32]:
        return (flat(observations) - self.mean) * self.scale

    def reset(self) -> VecEnvObs:
        observations = self.venv.reset()
        assert isinstance(observations, dict)
        return self._standardised(observations)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observations, dict)
        for index in np.flatnonzero(dones):
            last = infos[index]["terminal_observation"]
            infos[index]["terminal_observation"] = self._standardised(
                {key: np.asarray(value)[None] for key, value in last.items()}
            )[0]
        return self._standardised(observations), rewards * REWARD_SCALE, dones, infos


def flat(observations: Mapping[str, Any]) -> NDArray[np.float32]:
    """Images and keys of ``n`` observations as ``(n, entries)``, pixels from 0 to 1."""
    image = np.asarray(observations["image"])
    out = np.empty((len(image), image[0].size + 1), np.float32)
    np.multiply(image.reshape(len(image), -1), np.float32(1 / 255), out=out[:, :-1])
    out[:, -1] = np.reshape(observations["has_key"], -1)
    return out


def moments_of_random_play(venv: VecEnv, n_steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale of every entry over one episode of random actions; the key's entry stays as it is."""
    venv.seed(STANDARDISATION_SEED)
    rng = np.random.default_rng(0)
    observations: Any = venv.reset()
    seen = [flat(observations)]
    for _ in range(n_steps - 1):
        observations = venv.step(rng.integers(4, size=venv.num_envs))[0]
        seen.append(flat(observations))
    entries = np.concatenate(seen)
    mean, scale = entries.mean(0), 1 / (entries.std(0) + 0.1)
    mean[-1], scale[-1] = 0.0, 1.0
    return mean, scale


def handcrafted_weights(rules: Any) -> NDArray[np.float32]:
    """The paper's matrix: 1 from the key phase to the door, ``0.92^(k - t - 1)`` within a phase, else 0."""
    matrix = np.array(rules.credit_matrix, np.float32)
    times = np.arange(rules.horizon)
    phase = np.asarray(rules.phases.schedule())[:-1]
    lag = np.maximum(times[None] - times[:, None], 0)
    same = phase[:, None] == phase[None]
    return np.where(same, matrix * np.float32(HANDCRAFTED_DISCOUNT) ** lag, matrix).astype(np.float32)


class Curves(BaseCallback):
    """Return and door reward of every rollout, seconds of training, and the weights now and then.

    :param rules: of the environment.
    :param weights_every: updates between two pictures of the mean weights; 0 for none.
    """

    def __init__(self, rules: Any, weights_every: int) -> None:
        super().__init__()
        self.horizon, self.door_starts = rules.horizon, rules.phases.starts[2]
        self.weights_every = weights_every
        self.returns: list[float] = []
        self.door: list[float] = []
        self.weights: list[NDArray[np.float32]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        rewards = self.locals["rollout_buffer"].rewards[: self.horizon] / REWARD_SCALE
        self.returns.append(float(rewards.sum(0).mean()))
        self.door.append(float(rewards[self.door_starts :].sum(0).mean()))
        if self.weights_every and len(self.returns) % self.weights_every == 0:
            assert isinstance(self.model, CreditMixin)
            self.weights.append(self.model.mean_weights().astype(np.float32))


def make_model(
    method: str,
    seed: int,
    n_envs: int,
    apples: Setting = MIDDLE,
    env: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[CreditMixin, Any]:
    """The agent of a run, and the rules of its environment.

    :param changes: arguments that replace the method's own; the search for settings uses it.
    """
    mean, variance = apples
    base = make_gym_vec_env(
        "tca/KeyToDoor-v0", n_envs, tile_size=1, apple_mean=mean, apple_variance=variance, **(env or {})
    )
    rules = base.vector_env.unwrapped.rules  # type: ignore[attr-defined]
    venv = StandardTiles(base, moments_of_random_play(base, rules.horizon))
    venv.seed(seed * n_envs)
    name, own = VARIANTS[method]
    arguments = {**SHARED, "n_episodes": 1, **own, **(changes or {})}
    if name == "HPWR":
        arguments["estimator_kwargs"] = {"weights_kwargs": {"matrix": handcrafted_weights(rules)}}
    policy_kwargs = {
        "net_arch": [64, 64],
        "activation_fn": torch.nn.ReLU,
        "optimizer_class": torch.optim.Adam,
        "optimizer_kwargs": {"betas": (0.0, 0.99), "eps": 1e-5},
    }
    torch.distributions.Distribution.set_default_validate_args(False)
    model = getattr(tca_sb3, name)("MlpPolicy", venv, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **arguments)
    return model, rules


def train(
    method: str,
    seed: int,
    updates: int,
    n_envs: int,
    apples: Setting,
    env: Mapping[str, Any],
    points: int,
    changes: Mapping[str, Any] | None = None,
) -> Outcome:
    """One run; the arguments are those of :func:`make_model` and of :class:`Settings`."""
    mean, variance = apples
    model, rules = make_model(method, seed, n_envs, apples, env, changes)
    curves = Curves(rules, max(1, updates // 4) if isinstance(model, tca_sb3.MetaPWR) else 0)
    model.learn(updates * n_envs * rules.horizon, callback=curves)
    returns, door = np.array(curves.returns), np.array(curves.door)
    tail = max(1, updates // 10)
    metrics = {
        "door_reward": float(door[-tail:].mean()),
        "return": float(returns[-tail:].mean()),
        "door_reward_overall": float(door.mean()),
        "return_overall": float(returns.mean()),
    }
    arrays = {
        "returns": np.array([part.mean() for part in np.array_split(returns, points)]),
        "door": np.array([part.mean() for part in np.array_split(door, points)]),
        "frames": np.array(
            [(part[-1] + 1) * n_envs * rules.horizon for part in np.array_split(np.arange(updates), points)]
        ),
        "optimal_return": np.array(rules.optimal_return if rules.optimal_return is not None else np.nan),
    }
    if curves.weights:
        arrays |= {
            "weights": np.stack(curves.weights),
            "handcrafted": handcrafted_weights(rules),
            "phase_starts": np.array(rules.phases.starts),
        }
        metrics |= features(curves.weights[-1], rules.phases.starts)
    setting = {"apple_mean": mean, "apple_variance": variance}
    return Outcome([Run(method, setting, seed, metrics, model.num_timesteps)], arrays)


def features(weights: NDArray[np.float32], starts: Sequence[int]) -> dict[str, float]:
    """Figure 4 in numbers: mean weights from phase to phase, and of apples by lag."""
    _, apple, door, end = starts
    apples = weights[apple:door, apple:door]
    lags = [lag for lag in (1, 4, 11, 31, 61) if lag <= len(apples)]
    return {
        "key→door": float(np.nanmean(weights[:apple, door:end])),
        "key→apple": float(np.nanmean(weights[:apple, apple:door])),
        "apple→door": float(np.nanmean(weights[apple:door, door:end])),
        **{f"apple→apple at lag {lag}": float(np.nanmean(np.diag(apples, lag - 1))) for lag in lags},
    }


def run_name(method: str, apples: Setting, seed: int) -> str:
    """The name of a run's task."""
    plain = method.replace("λ(s)", "lambda").replace("γ = ", "gamma=")
    return f"{plain} mean={apples[0]:g} variance={apples[1]:g} seed={seed}"


def _task(settings: Settings, method: str, apples: Setting, seed: int) -> Task:
    arguments = {
        "method": method,
        "seed": seed,
        "updates": settings.updates,
        "n_envs": settings.n_envs,
        "apples": apples,
        "env": dict(settings.env),
        "points": settings.points,
    }
    return Task(run_name(method, apples, seed), train, arguments)


def middle(settings: Settings, results: Results) -> list[Task]:
    """Every method in the middle setting; seed by seed, so that an interrupted figure has whole ones."""
    return [_task(settings, method, MIDDLE, seed) for seed in settings.middle_seeds for method in settings.methods]


def others(settings: Settings, results: Results) -> list[Task]:
    """The other apple settings, with the middle's hyperparameters."""
    return [
        _task(settings, method, apples, seed)
        for seed in settings.their_seeds
        for apples in settings.other_settings
        for method in settings.other_methods
    ]


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """Figure 5, the other settings in a picture of their own, and the points of both; Figure 4; and how far Meta-PWR is
    from the others, paired by seed, at equal frames and from A2C at equal time."""
    plot_learning(results, [(MIDDLE, settings.methods, settings.middle_seeds)], folder / "figure5_learning.png")
    if settings.other_seeds:
        columns = [(apples, settings.other_methods, settings.their_seeds) for apples in settings.other_settings]
        plot_learning(results, columns, folder / "figure5_other_settings.png")
    learned = [method for method in settings.methods if method.startswith("Meta-PWR")]
    for method in learned:
        suffix = method.removeprefix("Meta-PWR").replace(", ", "_").replace(" ", "_")
        plot_weights(settings, results, method, folder / f"figure4_weights{suffix}.png")
    curves(results).to_csv(folder / "curves.csv", index=False, float_format="%.4g")
    groups = [(MIDDLE, settings.methods, settings.middle_seeds)]
    groups += [(apples, settings.other_methods, settings.their_seeds) for apples in settings.other_settings]
    rows = [row for group in groups for row in differences(results, *group)]
    if rows:
        pd.DataFrame(rows).to_csv(folder / "differences.csv", index=False, float_format="%.6g")


def differences(
    results: Results, apples: Setting, methods: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """How far every kind of Meta-PWR is from the other methods in one setting."""
    rows: list[dict[str, Any]] = []
    for method in (one for one in methods if one.startswith("Meta-PWR") and len(seeds)):
        setting = {"apple_mean": apples[0], "apple_variance": apples[1], "of": method}
        rows += [
            {**setting, "minus": other, "metric": metric, **interval_between(results, method, other, metric, apples)}
            for other in methods
            if other != method
            for metric in ("door_reward", "return", "door_reward_overall", "return_overall")
        ]
        rows += [
            {
                **setting,
                "minus": other,
                "metric": f"{metric} at equal time",
                **equal_time(results, method, other, curve, apples, seeds),
            }
            for other in methods
            if VARIANTS[other][0] == "A2C" and method in ITERATION_COST
            for metric, curve in (("door_reward", "door"), ("return", "returns"))
        ]
    return rows


def curves(results: Results) -> pd.DataFrame:
    """The points of every run's curves."""
    runs = results.runs[["method", "apple_mean", "apple_variance", "seed"]].to_dict("records")
    return pd.concat(
        pd.DataFrame({**run, "frames": arrays["frames"], "return": arrays["returns"], "door": arrays["door"]})
        for run, arrays in zip(runs, results.arrays.values(), strict=True)
    )


def plot_learning(results: Results, columns: Sequence[tuple[Setting, Sequence[str], range]], path: Path) -> None:
    """Return, and door reward below it, for each setting with its methods and seeds; three settings a line."""
    width = min(3, len(columns))
    lines = -(-len(columns) // width)
    with drawing(path, max(6.4, 3.2 * width), 5.4 * lines) as figure:
        grid = figure.subplots(2 * lines, width, sharex=True, squeeze=False)
        for index, (apples, methods, seeds) in enumerate(columns):
            line, column = divmod(index, width)
            above, below = grid[2 * line : 2 * line + 2, column]
            for method in (one for one in methods if one in COLOURS):
                plot_curve(results, method, apples, seeds, "returns", above)
                plot_curve(results, method, apples, seeds, "door", below)
            above.set_title(f"apples of mean {apples[0]:g}, variance {apples[1]:g}")
            below.set_xlabel("million frames")
            below.set_ylim(0, 10.2)
            if column == 0:
                above.set_ylabel("episode return")
                below.set_ylabel("reward in the door phase")
        for rest in range(len(columns), lines * width):
            line, column = divmod(rest, width)
            for axes in grid[2 * line : 2 * line + 2, column]:
                axes.set_axis_off()
        shown = dict.fromkeys(method for _, methods, _ in columns for method in methods if method in COLOURS)
        handles = [Line2D([], [], color=COLOURS[method], label=method) for method in shown]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)


def plot_curve(results: Results, method: str, apples: Setting, seeds: range, name: str, axes: Axes) -> None:
    """Mean over seeds and its standard error, as in the paper."""
    runs = [results.arrays[run_name(method, apples, seed)] for seed in seeds]
    plot_mean(axes, runs[0]["frames"] / 1e6, np.stack([run[name] for run in runs]), color=COLOURS[method], lw=1.4)


def plot_weights(settings: Settings, results: Results, method: str, path: Path) -> None:
    """Figure 4: handcrafted weights, those of the run with the median door reward at its end, and the mean of all."""
    runs = [results.arrays[run_name(method, MIDDLE, seed)] for seed in settings.middle_seeds]
    median = int(np.argsort([run["door"][-1] for run in runs], kind="stable")[len(runs) // 2])
    horizon = len(runs[0]["handcrafted"])
    never = np.tril(np.ones((horizon, horizon), bool), -1)
    panels = {
        "handcrafted (H-PWR)": np.where(never, np.nan, runs[0]["handcrafted"]),
        f"learned by {method.split(',')[0]}, seed {settings.middle_seeds[median]}": runs[median]["weights"][-1],
        f"mean of {len(runs)} runs": np.mean([run["weights"][-1] for run in runs], axis=0),
    }
    with drawing(path, 9.6, 3.4) as figure:
        axes_row = figure.subplots(1, 3, sharey=True)
        for axes, (title, weights) in zip(axes_row, panels.items(), strict=True):
            image = axes.imshow(
                weights, vmin=0, vmax=1, cmap="viridis", extent=(0.5, horizon + 0.5, horizon - 0.5, -0.5)
            )
            for start in runs[0]["phase_starts"][1:-1]:
                axes.axvline(start + 0.5, color="white", lw=0.7)
                axes.axhline(start - 0.5, color="white", lw=0.7)
            axes.set_title(title)
            axes.set_xlabel("time k at which the reward arrives")
        axes_row[0].set_ylabel("time t of the action")
        figure.colorbar(image, ax=axes_row, label="weight")


def mean_and_interval(differences: NDArray[np.float64]) -> dict[str, float]:
    """The entries of ``differences.csv`` for one difference a seed."""
    low, high = bootstrap_interval(differences)
    return {"mean": float(differences.mean()), "low": low, "high": high, "n": len(differences)}


def interval_between(results: Results, one: str, other: str, metric: str, apples: Setting) -> dict[str, float]:
    """Mean difference of two methods over the seeds that both ran, and its 95 % bootstrap interval."""
    runs = results.runs
    runs = runs[(runs["apple_mean"] == apples[0]) & (runs["apple_variance"] == apples[1])].pivot(
        index="seed", columns="method", values=metric
    )
    return mean_and_interval((runs[one] - runs[other]).dropna().to_numpy(np.float64))


def equal_time(
    results: Results, method: str, a2c: str, curve: str, apples: Setting, seeds: Sequence[int]
) -> dict[str, float]:
    """As :func:`interval_between`, of a method when an A2C has spent all its time: the mean over a tenth of A2C's
    iterations, the last that fit into it; a point of the curves stands for the iterations before it."""
    found = []
    for seed in seeds:
        mine, theirs = (results.arrays[run_name(one, apples, seed)][curve] for one in (method, a2c))
        tail = max(1, len(theirs) // 10)
        end = max(float(tail), len(theirs) / ITERATION_COST[method])
        begin, total = np.interp([end - tail, end], np.arange(len(mine) + 1), np.append(0.0, np.cumsum(mine)))
        found.append((total - begin) / tail - theirs[-tail:].mean())
    return mean_and_interval(np.array(found, np.float64))


NINE = tuple((mean, variance) for mean in (1.0, 5.0, 9.0) for variance in (5.0, 25.0, 125.0))
OTHERS = tuple(apples for apples in NINE if apples != MIDDLE)
HARD: Setting = (5.0, 625.0)  # "variance 25" read as a standard deviation
MINI = (("maps", "mini"), ("key_steps", 6), ("apple_steps", 20), ("door_steps", 6), ("n_apples", 4))

FIGURE = Figure(
    name="fig4_5_key_to_door",
    scales={
        "quick": Settings(
            seeds=1,
            updates=4,
            n_envs=8,
            env=MINI,
            points=4,
            other_settings=OTHERS[:1],
            other_methods=("A2C",),
            other_seeds=1,
        ),
        "cpu": Settings(
            seeds=10,
            updates=400,
            methods=(*METHODS, "Meta-PWR, shared critic", "A2C, γ = 1", "A2C, not normalised"),
            first_seed=38,
            other_settings=(*OTHERS, HARD),
            other_seeds=1,
        ),
        "paper": Settings(seeds=10, updates=4000, methods=tuple(VARIANTS), other_settings=OTHERS, other_seeds=10),
    },
    stages=[middle, others],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

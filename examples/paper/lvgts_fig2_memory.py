"""Figure 2 of the LVGTS paper: both algorithms on three memory tasks, gradients truncated after four states.

The recall phase pays for what was, or was not, seen eight steps before its first action: no truncated gradient reaches
back so far except through a temporal shortcut. Curves are the return of the policy without its noise, on episodes of
their own. The paper shows the best 15 of 20 runs; here are all of them, and the best three quarters below. Bottom row:
what step 12, in the recall phase, attends to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from harness import Figure, Outcome, Results, Run, Task, bootstrap_interval, main
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from plotting import drawing
from stable_baselines3.common.callbacks import BaseCallback

import tca_envs  # noqa: F401 (registers the tasks)
from tca_sb3.lvgts import LMSVG, LVGTS, AttentionEncoder, RecurrentEncoder, learn_together
from tca_sb3.vec_env import GymVecEnv, make_gym_vec_env

ALGORITHMS: dict[str, type[LVGTS]] = {"LVGTS": LVGTS, "LM-SVG": LMSVG}
ENCODERS = {"attention": AttentionEncoder, "recurrent": RecurrentEncoder}
COLOURS = {"LVGTS": "#009E73", "LM-SVG": "#CC79A7"}
TASKS = {"dummy-PMT": "tca/DummyPMT-v0", "dummy-AMT": "tca/DummyAMT-v0", "pendulum-AMT": "tca/PendulumAMT-v0"}
LANES = 16
SIDE_BY_SIDE = 20
RECALL_STEP = 12
EVALUATION_SEEDS = 1_000_000
KEPT = 0.75  # the paper's 15 of 20


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome; what is not here is the algorithms' default.

    :param seeds: runs of LVGTS on each active task.
    :param other_seeds: runs of LM-SVG on each task, and of LVGTS on the passive one; no more than ``seeds``.
    :param first_seed: of every cell; those before it have been looked at.
    :param episodes: length of training, by task.
    :param learning_starts: episodes with uniform actions before training.
    :param evaluate_every: episodes between two points of a curve.
    :param evaluation_episodes: episodes of a point.
    """

    seeds: int
    other_seeds: int
    episodes: dict[str, int]
    first_seed: int = 121
    learning_starts: int = 256
    evaluate_every: int = 250
    evaluation_episodes: int = 128


class Episodes(NamedTuple):
    """Some episodes of the policy without noise; ``T`` is the length of the task."""

    returns: NDArray[np.float64]
    """``(B,)``."""
    actions: NDArray[np.float32]
    """``(B, T, 1)``."""
    attention: NDArray[np.float32]
    """``(B, T, T)``."""


def play(model: LVGTS, env: GymVecEnv) -> Episodes:
    """One episode in each lane of ``env``, whose episodes all have one length."""
    observation = env.reset()
    state, begins = None, np.ones(env.num_envs, bool)
    observations, actions, returns = [], [], np.zeros(env.num_envs)
    while not observations or not begins.all():
        action, state = model.predict(observation, state, begins, deterministic=True)
        observations.append(observation)
        actions.append(action)
        observation, rewards, begins, _ = env.step(action)
        returns += rewards
    taken = np.stack(actions, axis=1)
    return Episodes(returns, taken, model.attention_weights(np.stack(observations, axis=1), taken))


class LearningCurve(BaseCallback):
    """The return of the policy without noise, every so many training episodes."""

    def __init__(self, env: GymVecEnv, every: int) -> None:
        super().__init__()
        self.env, self.every = env, every
        self.episodes: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, LVGTS)
        episodes = self.model.replay_buffer.n_added
        if episodes // self.every > (self.episodes[-1] // self.every if self.episodes else -1):
            self.episodes.append(episodes)
            self.returns.append(float(play(self.model, self.env).returns.mean()))


def train(
    method: str,
    task: str,
    seeds: list[int],
    episodes: int,
    learning_starts: int,
    evaluate_every: int,
    evaluation_episodes: int,
    encoder: str = "attention",
) -> Outcome:
    """Runs side by side: their curves, and a last look at return, remember actions and attention."""
    policy_kwargs = {"encoder_class": ENCODERS[encoder]}
    models, curves = [], []
    for seed in seeds:
        env = make_gym_vec_env(TASKS[task], LANES, seed=seed * LANES)
        own = make_gym_vec_env(TASKS[task], evaluation_episodes, seed=EVALUATION_SEEDS + seed * evaluation_episodes)
        models.append(
            ALGORITHMS[method](
                "MlpPolicy",
                env,
                learning_starts=learning_starts,
                policy_kwargs=policy_kwargs,
                seed=seed,
                device="cpu",
            )
        )
        curves.append(LearningCurve(own, evaluate_every))
    rules = own.vector_env.unwrapped.rules  # type: ignore[attr-defined]
    learn_together(models, episodes * rules.horizon, curves)
    runs, returns, attention = [], [], []
    for seed, model, curve in zip(seeds, models, curves, strict=True):
        last = play(model, curve.env)
        on_remember = last.attention[:, :, : rules.t1].sum(-1)
        remembered = last.actions[:, : rules.t1 - 1, 0]  # the last remember action shows nothing any more
        metrics = {
            "return": float(last.returns.mean()),
            "attention_on_remember": float(on_remember[:, rules.t2 + 1 :].mean()),
            # The first step of the distractor phase has nothing else to recall.
            "distractors_attention_on_remember": float(on_remember[:, rules.t1 + 1 : rules.t2 + 1].mean()),
            "remember_action": float(remembered.mean()),
            "remember_action_error": float(np.abs(remembered - rules.a_m).mean()),
            # What its remember actions allow, and what they would if they had drifted the other way: an agent without
            # credit for them has no reason to prefer one of the two.
            "recall_return": rules.recall_return(remembered),
            "recall_return_mirrored": rules.recall_return(-remembered),
        }
        runs.append(Run(method, {"task": task}, seed, metrics, model.num_timesteps))
        returns.append([*curve.returns, metrics["return"]])
        attention.append(last.attention.mean(0))
    arrays = {
        "episodes": np.append(curves[0].episodes, models[0].replay_buffer.n_added),
        "returns": np.array(returns),
        "attention": np.array(attention),
        "myopic_return": np.array(rules.myopic_return),
        "optimal_return": np.array(rules.optimal_return),
    }
    return Outcome(runs, arrays)


def groups(settings: Settings, method: str, task: str) -> list[list[int]]:
    """Seeds of this algorithm on this task that are trained side by side."""
    heart = method == "LVGTS" and task.endswith("AMT")
    n_runs = settings.seeds if heart else min(settings.seeds, settings.other_seeds)
    seeds = range(settings.first_seed, settings.first_seed + n_runs)
    return [list(seeds[first : first + SIDE_BY_SIDE]) for first in range(0, n_runs, SIDE_BY_SIDE)]


def task_name(method: str, task: str, seeds: list[int]) -> str:
    """The name of a group of runs."""
    return f"{method} {task} seeds={seeds[0]}-{seeds[-1]}"


def training(settings: Settings, results: Results) -> list[Task]:
    """Every algorithm on every task, LVGTS on the active ones first: what the figure is about, should time run out."""
    cells = [(method, task) for method in ALGORITHMS for task in reversed(TASKS)]
    chosen = [(method, task, seeds) for method, task in cells for seeds in groups(settings, method, task)]
    return [
        Task(
            task_name(method, task, seeds),
            train,
            {
                "method": method,
                "task": task,
                "seeds": seeds,
                "episodes": settings.episodes[task],
                "learning_starts": settings.learning_starts,
                "evaluate_every": settings.evaluate_every,
                "evaluation_episodes": settings.evaluation_episodes,
            },
        )
        for method, task, seeds in chosen
    ]


def gather(settings: Settings, results: Results, method: str, task: str, array: str) -> NDArray[np.float64]:
    """An array of all runs, along its first axis."""
    names = [task_name(method, task, seeds) for seeds in groups(settings, method, task)]
    return np.concatenate([results.arrays[name][array] for name in names])


def plot(settings: Settings, results: Results, summary: pd.DataFrame, folder: Path) -> None:
    """Curves of all runs, curves of the best, attention; a column for each task."""
    credit(results).to_csv(folder / "credit.csv", index=False, float_format="%.4g")
    rows = [(1.0, "all runs"), (KEPT, f"best {KEPT:.0%}")]
    with drawing(folder / "figure2_memory.png", 7.2, 6.2) as figure:
        axes = figure.subplots(3, len(TASKS), sharey="row")
        for column, task in enumerate(TASKS):
            for row, (share, _) in enumerate(rows):
                plot_curves(settings, results, task, share, axes[row, column])
            plot_attention(settings, results, task, axes[2, column])
            axes[0, column].set_title(task)
        for row, (_, label) in enumerate(rows):
            axes[row, 0].set_ylabel(f"return\n({label})")
        axes[2, 0].set_ylabel(f"attention weight at t = {RECALL_STEP}\n(mean; dots: runs)")
        handles = [Line2D([], [], color=colour, label=method) for method, colour in COLOURS.items()]
        handles.append(Line2D([], [], color="0.3", ls="--", lw=0.8, label="ideal myopic agent"))
        handles.append(Line2D([], [], color="0.3", ls=":", lw=0.8, label="maximum"))
        figure.legend(handles=handles, loc="outside upper center", ncols=4)


def credit(results: Results) -> pd.DataFrame:
    """Did the remember actions of the active tasks get credit? Means over runs, with 95 % bootstrap intervals."""
    rows = []
    active = results.runs[results.runs["task"] != "dummy-PMT"]
    for (task, method), runs in active.groupby(["task", "method"], sort=False):
        own, mirrored = runs["recall_return"], runs["recall_return_mirrored"]
        measures = {
            "return": runs["return"],
            "remember_action": runs["remember_action"],
            "allowed": own,
            "allowed, less with the other sign": own - mirrored,
            "allowed, mean of both signs": (own + mirrored) / 2,
            "return less that mean": runs["return"] - (own + mirrored) / 2,
        }
        for measure, values in measures.items():
            low, high = bootstrap_interval(values.to_numpy(np.float64))
            about = {"task": task, "method": method, "measure": measure}
            rows.append({**about, "mean": values.mean(), "low": low, "high": high, "n": len(values)})
    return pd.DataFrame(rows)


def plot_curves(settings: Settings, results: Results, task: str, share: float, axes: Axes) -> None:
    """Single runs (thin), their mean and its 95 % interval. The best are those with the best last quarter."""
    for method, colour in COLOURS.items():
        returns = gather(settings, results, method, task, "returns")
        about = results.arrays[task_name(method, task, groups(settings, method, task)[0])]
        episodes = about["episodes"]
        score = returns[:, -max(1, returns.shape[1] // 4) :].mean(1)
        kept = max(1, round(share * len(returns)))
        returns = returns[np.argsort(-score, kind="stable")[:kept]]
        axes.plot(episodes, returns.T, color=colour, lw=0.4, alpha=0.35)
        axes.plot(episodes, returns.mean(0), color=colour, lw=1.6)
        low, high = np.transpose([bootstrap_interval(column) for column in returns.T])
        axes.fill_between(episodes, low, high, color=colour, alpha=0.2, lw=0)
    axes.axhline(float(about["optimal_return"]), color="0.3", ls=":", lw=0.8)
    axes.axhline(float(about["myopic_return"]), color="0.3", ls="--", lw=0.8)
    axes.set_ylim(-2.2, 2.2)
    axes.set_xlabel("training episodes")


def plot_attention(settings: Settings, results: Results, task: str, axes: Axes) -> None:
    """What the recall step attends to, over all runs of LVGTS."""
    rows = gather(settings, results, "LVGTS", task, "attention")[:, RECALL_STEP]
    times = np.arange(rows.shape[1])
    axes.bar(times, rows.mean(0), color=COLOURS["LVGTS"], alpha=0.5)
    axes.plot(times, rows.T, ".", color=COLOURS["LVGTS"], ms=3)
    axes.axvline(RECALL_STEP, color="0.3", lw=0.8)
    axes.set_ylim(0, 1)
    axes.set_xlabel("time recalled")


def episodes(*by_task: int) -> dict[str, int]:
    """Training lengths, in the order of the tasks."""
    return dict(zip(TASKS, by_task, strict=True))


FIGURE = Figure(
    name="lvgts_fig2_memory",
    scales={
        "quick": Settings(
            seeds=2,
            other_seeds=2,
            episodes=episodes(48, 48, 48),
            learning_starts=32,
            evaluate_every=16,
            evaluation_episodes=16,
        ),
        "cpu": Settings(seeds=20, other_seeds=20, episodes=episodes(2000, 8000, 8000)),
        "paper": Settings(seeds=20, other_seeds=20, episodes=episodes(4000, 16_000, 16_000)),
    },
    stages=[training],
    plot=plot,
)

if __name__ == "__main__":
    main(FIGURE)

"""Search for the hyperparameters of one method on Key-to-Door's middle setting, with Optuna.

    pip install "tca[search]"
    python examples/paper/search_key_to_door.py --method Meta-PWR --trials 30

Every trial trains the method on tuning seeds (1000, 1001, …), which no figure reports, and is scored by the episode
return averaged over all of training. The first trial has the figure's settings. Unpromising trials are stopped after
their first seed. The study lives in a file: the same command goes on where an interrupted one stopped. Beside it,
`trials.csv` lists every trial so far.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fig4_5_key_to_door as figure
import torch
from harness import at_least_one

try:
    import optuna
except ImportError as error:
    raise SystemExit('The search needs Optuna: pip install "tca[search]".') from error

FIRST_SEED = 1000


def policy_space(trial: optuna.Trial) -> dict[str, Any]:
    """What every method may choose."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 2e-3, 1e-2, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 3e-4, 3e-2, log=True),
    }


def discount_space(trial: optuna.Trial) -> dict[str, Any]:
    """The discount of those whose critic predicts the return."""
    return {"gamma": trial.suggest_categorical("gamma", [0.92, 0.95, 0.99, 1.0])}


def a2c_space(trial: optuna.Trial) -> dict[str, Any]:
    """The fixed λ and γ of A2C, and of A2C on redistributed rewards."""
    return {
        **discount_space(trial),
        "gae_lambda": trial.suggest_categorical("gae_lambda", [0.9, 0.95, 0.98, 1.0]),
    }


def meta_space(method: str, trial: optuna.Trial) -> dict[str, Any]:
    """The outer loop's settings; what is not searched stays the figure's."""
    return {
        "meta_kwargs": {
            **figure.VARIANTS[method][1]["meta_kwargs"],
            "learning_rate": trial.suggest_float("meta_learning_rate", 3e-4, 5e-3, log=True),
            "gae_lambda": trial.suggest_categorical("outer_lambda", [0.9, 0.95, 0.98, 1.0]),
            "outer_rollouts": trial.suggest_categorical("outer_rollouts", [1, 8, 16, 32, 48]),
        }
    }


def product_space(method: str, trial: optuna.Trial) -> dict[str, Any]:
    """The outer loop's settings, and what pairwise weights begin with."""
    own = figure.VARIANTS[method][1].get("estimator_kwargs", {}).get("weights_kwargs", {})
    start = {
        "initial_discount": trial.suggest_categorical("initial_discount", [None, 0.83, 0.92, 0.95]),
        "initial_floor": trial.suggest_float("initial_floor", 0.03, 0.3, log=True),
    }
    return {**meta_space(method, trial), "estimator_kwargs": {"weights_kwargs": {**own, **start}}}


SPACES: dict[str, Callable[[optuna.Trial], dict[str, Any]]] = {
    "A2C": a2c_space,
    "A2C-RR": a2c_space,
    "H-PWR": lambda trial: {},
    "RGM": partial(meta_space, "RGM"),
    "Meta-λ(s)": lambda trial: {**discount_space(trial), **meta_space("Meta-λ(s)", trial)},
    "Meta-PWTD": lambda trial: {**discount_space(trial), **product_space("Meta-PWTD", trial)},
    **{method: partial(product_space, method) for method in ("Meta-PWR", "Meta-PWR, shared critic")},
}


def frozen(method: str) -> dict[str, Any]:
    """The figure's settings as a trial; the first one of every study."""
    own = {**figure.SHARED, **figure.VARIANTS[method][1]}
    meta = own.get("meta_kwargs", {})
    weights = own.get("estimator_kwargs", {}).get("weights_kwargs", {})
    return {
        "learning_rate": own["learning_rate"],
        "ent_coef": own["ent_coef"],
        "gamma": own["gamma"],
        "gae_lambda": own["gae_lambda"],
        "meta_learning_rate": meta.get("learning_rate"),
        "outer_lambda": meta.get("gae_lambda"),
        "outer_rollouts": meta.get("outer_rollouts"),
        "initial_discount": weights.get("initial_discount"),
        "initial_floor": weights.get("initial_floor", 0.1),
    }


def objective(method: str, settings: figure.Settings) -> Callable[[optuna.Trial], float]:
    """The score of a trial: episode return averaged over training and seeds."""

    def score(trial: optuna.Trial) -> float:
        changes = {**policy_space(trial), **SPACES[method](trial)}
        total = 0.0
        for index, seed in enumerate(settings.middle_seeds):
            outcome = figure.train(
                method,
                seed,
                settings.updates,
                settings.n_envs,
                figure.MIDDLE,
                dict(settings.env),
                settings.points,
                changes,
            )
            metrics = outcome.runs[0].metrics
            total += metrics["return_overall"]
            for name in ("return", "door_reward"):
                trial.set_user_attr(f"{name}, seed {seed}", metrics[name])
            trial.report(total / (index + 1), index)
            if trial.should_prune():
                raise optuna.TrialPruned
        return total / settings.seeds

    return score


def search(method: str, settings: figure.Settings, trials: int, folder: Path) -> optuna.Study:
    """Run so many trials more, and write the table of all.

    :param method: a key of ``SPACES``.
    :param settings: ``seeds``, ``first_seed``, ``updates``, ``n_envs``, ``env`` and ``points`` count.
    :param folder: where the study lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=method,
        storage=f"sqlite:///{folder / 'study.db'}",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        direction="maximize",
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(frozen(method))
    study.optimize(objective(method, settings), n_trials=trials)
    study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--method", choices=SPACES, required=True)
    parser.add_argument("--scale", choices=figure.FIGURE.scales, default="cpu", help="length of a run (default: cpu)")
    parser.add_argument("--trials", type=at_least_one, default=30)
    parser.add_argument("--seeds", type=at_least_one, default=2, help="tuning seeds of a trial (default: 2)")
    parser.add_argument("--first-seed", type=at_least_one, default=FIRST_SEED, help="(default: %(default)s)")
    parser.add_argument("--updates", type=at_least_one, help="of a run (default: the scale's)")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    scale = figure.FIGURE.scales[options.scale]
    settings = figure.Settings(
        seeds=options.seeds,
        first_seed=options.first_seed,
        updates=options.updates or scale.updates,
        n_envs=scale.n_envs,
        env=scale.env,
    )
    study = search(options.method, settings, options.trials, options.out / options.method)
    print(f"Best of {len(study.trials)} trials: return {study.best_value:.2f} over training, with {study.best_params}")


if __name__ == "__main__":
    main()

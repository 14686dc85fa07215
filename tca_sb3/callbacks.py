"""Callbacks: the outer loop, and looking at what it learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback

from tca_sb3.estimators import PairwiseEstimator
from tca_sb3.inner import InnerOptimizer
from tca_sb3.meta import Lifetime
from tca_sb3.networks import CriticFeatures

if TYPE_CHECKING:
    from tca_sb3.algorithms import CreditMixin


def _credit_model(callback: BaseCallback) -> CreditMixin:
    model: Any = callback.model
    if not hasattr(model, "estimator"):
        raise TypeError(
            f"{type(callback).__name__} got a {type(model).__module__}.{type(model).__name__}; it needs an algorithm "
            "with a pluggable estimator: write `from tca_sb3 import A2C`."
        )
    return cast("CreditMixin", model)


class OuterLoop(BaseCallback):
    """What every outer loop has in common: the model holds its state.

    :param meta_kwargs: arguments of :class:`~tca_sb3.meta.MetaLearner`: ``learning_rate``, ``optimizer_kwargs``,
        ``value_learning_rate``, ``gamma``, ``gae_lambda``, ``outer_rollouts``, ``update_interval``, ``value_updates``,
        ``center_scores``, ``shared_critic``; by default the model's ``gamma`` and ``gae_lambda``.
    """

    def __init__(self, verbose: int = 0, **meta_kwargs: Any) -> None:
        super().__init__(verbose)
        self.meta_kwargs = meta_kwargs

    def _init_callback(self) -> None:
        model = _credit_model(self)
        if model.meta is None:
            model.attach_meta(self.meta_kwargs)
        elif self.meta_kwargs and self.meta_kwargs != model.meta_kwargs:
            raise ValueError(
                f"{type(self).__name__} got {self.meta_kwargs} but the model's outer loop runs with "
                f"{model.meta_kwargs}; pass meta_kwargs to the model, or the same arguments to the callback."
            )

    def _on_step(self) -> bool:
        return True


def has_outer_loop(callback: BaseCallback | None) -> bool:
    """Whether a callback is an outer loop or holds one, however deep."""
    if isinstance(callback, CallbackList):
        return any(has_outer_loop(inside) for inside in callback.callbacks)
    if isinstance(callback, EventCallback):
        return has_outer_loop(callback.callback)
    return isinstance(callback, OuterLoop)


class MetaGradientCallback(OuterLoop):
    """Learns the weight function of the model's estimator while the policy learns (Eqs. 15, 16).

    At the end of every rollout ``τ′``, collected with ``θ′``: move ``η`` by the gradient of ``J(θ′; τ′)`` through the
    last inner step (with ``outer_rollouts=K``: by the last ``K`` rollouts' mean gradient through the ``K``-th last
    step), and have the buffer filled with advantages under the new ``η``; SB3's ``train()`` then makes the next inner
    step. ``τ′`` is reused as the next ``τ``.

    The state (``η``, its optimiser, ``v_φ``, the inner steps not judged yet) belongs to the model and is saved and
    loaded with it.
    """

    def _on_rollout_end(self) -> None:
        for name, value in _credit_model(self).outer_step().items():
            self.logger.record(f"meta/{name}", value)


class InnerLoopReset(OuterLoop):
    """Trains the weights for a *random* policy: the procedure behind Figure 3 (§5.1, "inner-loop reset").

    A lifetime is ``n_inner_updates`` updates of ``θ`` from a fresh random initialisation of policy, critic and
    ``v_φ``. The outer objective is the sum of Eq. 16 over the trajectories sampled after each update; its gradient
    goes back through all the preceding updates. Then ``η`` moves and the next lifetime begins. A lifetime takes
    ``n_inner_updates + 1`` rollouts.

    Reading note: gradients go through the updates of ``θ``; the critic's values inside advantages are constants, as
    they are in SB3's update. A lifetime under way when the model is saved begins again after loading.

    :param n_inner_updates: updates in one lifetime; the paper's 16.
    """

    def __init__(self, n_inner_updates: int = 16, verbose: int = 0, **meta_kwargs: Any) -> None:
        super().__init__(verbose, **meta_kwargs)
        if n_inner_updates < 1:
            raise ValueError(f"InnerLoopReset got n_inner_updates={n_inner_updates}; it must be at least 1.")
        self.n_inner_updates = n_inner_updates
        self._lifetime: Lifetime | None = None

    def _init_callback(self) -> None:
        model = _credit_model(self)
        if any(isinstance(module, CriticFeatures) for module in model.estimator.modules()):
            raise ValueError(
                "InnerLoopReset takes all of a lifetime's rollouts through the weights at its end, and those of "
                "encoder_class=CriticFeatures change with the critic in between; leave encoder_class out."
            )
        asked = {**(model.meta_kwargs or {}), **self.meta_kwargs}
        unknown = {"outer_rollouts": 1, "update_interval": 1, "center_scores": False}
        given = {name: asked.get(name, default) for name, default in unknown.items()}
        if given != unknown:
            raise ValueError(
                f"InnerLoopReset got {', '.join(f'{name}={value}' for name, value in given.items())}; it goes through "
                "all inner steps of a lifetime at once and knows none of them: leave them out, or take "
                "MetaGradientCallback."
            )
        super()._init_callback()

    def _on_rollout_start(self) -> None:
        if self._lifetime is None:
            model = _credit_model(self)
            model.reset_policy()
            assert model.meta is not None
            self._lifetime = Lifetime(
                model.meta, model.policy, model.ent_coef, model.vf_coef, model.normalizes_advantage
            )

    def _on_rollout_end(self) -> None:
        model = _credit_model(self)
        assert self._lifetime is not None
        episodes, values = model.rollout_buffer.episodes()
        model.estimator.check(episodes)
        self._lifetime.add(episodes, values)
        if self._lifetime.n_rollouts > self.n_inner_updates:
            settings = InnerOptimizer.of(model.policy.optimizer, model.max_grad_norm)
            for name, value in self._lifetime.outer_step(settings).items():
                self.logger.record(f"meta/{name}", value)
            self._lifetime = None  # train() still runs on this rollout; the reset comes before the next one
        with torch.no_grad():
            for name, value in model.fill_buffer(model.estimator(episodes, values)).items():
                self.logger.record(f"meta/{name}", value)


class CreditHeatmap(BaseCallback):
    """Draws the pairwise weights: as an image for TensorBoard, and as PNG files if a folder is given.

    Rows are action times (or states), columns the times (states) at which rewards arrive.

    :param every: rollouts between two pictures.
    :param folder: where to write ``credit_<timesteps>.png``; ``None`` for TensorBoard only.
    :param by: ``"time"``: the average over the rollout's episodes, pairs ``k <= t`` left blank. ``"state"``: the
        table of a tabular weight function, pairs that have not occurred together in an episode left blank.
    :raises ValueError: if ``by`` is neither.
    """

    def __init__(self, every: int = 100, folder: str | Path | None = None, by: str = "time", verbose: int = 0) -> None:
        super().__init__(verbose)
        if by not in ("time", "state"):
            raise ValueError(f"CreditHeatmap got by={by!r}; write by='time' or by='state'.")
        if every < 1:
            raise ValueError(f"CreditHeatmap got every={every}; it must be at least 1.")
        self.every = every
        self.folder = None if folder is None else Path(folder)
        self.by = by
        self._rollouts = 0

    def _init_callback(self) -> None:
        model = _credit_model(self)
        if not isinstance(model.estimator, PairwiseEstimator):
            raise ValueError(
                f"CreditHeatmap has nothing to draw: {type(model.estimator).__name__} has no pairwise weights; "
                "use it with PWTD, PWR, StateLambda or ReturnGeneratingModel."
            )
        drawn = getattr(model.estimator, "weights", model.estimator)
        if self.by == "state" and not hasattr(drawn, "table"):
            raise ValueError(
                f"CreditHeatmap(by='state') needs Tabular weights, not {type(drawn).__name__}; write by='time'."
            )
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        if (self._rollouts - 1) % self.every:
            return
        # SB3's own plotting dependency; imported late because most runs draw nothing.
        from matplotlib.figure import Figure as MplFigure
        from stable_baselines3.common.logger import Figure

        picture = MplFigure(figsize=(5, 4.2), layout="constrained")
        draw_credit(picture, self.matrix(), self.by, f"{self.num_timesteps} steps")
        if self.folder is not None:
            picture.savefig(self.folder / f"credit_{self.num_timesteps:09d}.png", dpi=120)
        self.logger.record("credit/weights", Figure(picture, close=True), exclude=("stdout", "log", "json", "csv"))

    def matrix(self) -> np.ndarray:
        """The weights to draw; NaN where there is no pair."""
        model = _credit_model(self)
        if self.by == "state":
            seen = model.seen_state_pairs()
            return np.where(seen, cast(Any, model.estimator.weights).table().cpu().numpy(), np.nan)
        return model.mean_weights()

    def _on_step(self) -> bool:
        return True


def draw_credit(figure: Any, weights: np.ndarray, by: str, title: str) -> None:
    """A heatmap of pairwise weights on a matplotlib figure.

    :param weights: ``(n, n)``, NaN where there is no pair.
    :param by: ``"time"`` or ``"state"``, for the axes' names.
    """
    axes = figure.subplots()
    # By time, the first column is the arrival at time 1.
    left = 0.5 if by == "time" else -0.5
    n = len(weights)
    image = axes.imshow(
        weights,
        vmin=0,
        vmax=1,
        cmap="viridis",
        interpolation="nearest",
        extent=(left, left + n, n - 0.5, -0.5),
    )
    axes.set_xlabel("time k at which the reward arrives" if by == "time" else "state the reward arrives in")
    axes.set_ylabel("time t of the action" if by == "time" else "state of the action")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="weight")

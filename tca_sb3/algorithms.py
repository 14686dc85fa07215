"""SB3's A2C and PPO with pluggable advantage estimators, and the named algorithms.

SB3's loops stay SB3's. What is added: the rollout buffer asks an estimator where SB3 computes GAE, a rollout may be
whole episodes, and the outer loop's state is saved with the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from tca_sb3.buffers import DictEpisodeBuffer, EpisodeBuffer, RolloutLength, _EpisodeStorage
from tca_sb3.callbacks import MetaGradientCallback, has_outer_loop
from tca_sb3.estimators import (
    PWR,
    PWTD,
    AdvantageEstimator,
    Estimate,
    PairwiseEstimator,
    ReturnGeneratingModel,
    RewardRedistribution,
    StateLambda,
    TDLambda,
    WeightedEstimator,
)
from tca_sb3.inner import InnerOptimizer
from tca_sb3.meta import MetaLearner
from tca_sb3.networks import CriticHead, ObservationEncoder, RegularValue, critic_parameters, same_in_training
from tca_sb3.objectives import value_loss
from tca_sb3.policies import TabularPolicy
from tca_sb3.vec_env import GymVecEnv
from tca_sb3.weights import Fixed, PairwiseWeights, Product, Tabular
from tca_sb3.weights.tabular import require_discrete

if TYPE_CHECKING:
    _Host = OnPolicyAlgorithm
else:
    _Host = object


class CreditMixin(_Host):
    """What A2C and PPO gain. All arguments besides these are SB3's own.

    :param estimator_class: an :class:`~tca_sb3.estimators.base.AdvantageEstimator`; ``TDLambda`` is SB3's own GAE.
    :param estimator_kwargs: its arguments besides ``gamma`` and ``gae_lambda``, which are the algorithm's; for
        instance ``dict(weights_class=Tabular)``. One more is ``encoder_class``: what makes features of observations for
        its networks, a module built from the policy; :class:`~tca_sb3.networks.ObservationEncoder` by default, or
        :class:`~tca_sb3.networks.CriticFeatures`.
    :param n_episodes: collect rollouts of so many whole episodes of each environment, of whatever length, instead of
        ``n_steps`` steps. Every rollout starts with fresh episodes. An environment that finishes early keeps
        stepping until the slowest is done; those steps count in ``num_timesteps``, are trained on by nobody, and
        are logged as ``rollout/discarded_steps``. Environments of one fixed length discard nothing.
    :param max_rollout_steps: with ``n_episodes``, the most steps an environment may take in a rollout.
    :param meta_kwargs: run the outer loop with these arguments of :class:`~tca_sb3.meta.MetaLearner` (``{}`` for its
        defaults). The same as passing a ``MetaGradientCallback`` to every ``learn()``.
    :param critic_updates: after SB3's own training on a rollout, up to so many further steps of the policy's optimiser
        on the value loss alone, each on an equal share of the rollout's steps, so that all together cost about one
        pass. They move only what the policy's actions do not depend on: where actor and critic share layers, the
        critic's own. Ours; 0 is SB3's A2C, whose critic makes one step a rollout and falls behind in states that are
        rarely seen.
    :raises TypeError: if ``estimator_class`` is not an estimator.
    :raises ValueError: if a number is out of range.
    """

    rollout_buffer: Any

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        estimator_class: type[AdvantageEstimator] = TDLambda,
        estimator_kwargs: dict[str, Any] | None = None,
        n_episodes: int | None = None,
        max_rollout_steps: int = 100_000,
        meta_kwargs: dict[str, Any] | None = None,
        critic_updates: int = 0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if not (isinstance(estimator_class, type) and issubclass(estimator_class, AdvantageEstimator)):
            raise TypeError(
                f"{type(self).__name__} got estimator_class={estimator_class!r}; it needs a subclass of "
                "AdvantageEstimator (the class, not an object), for instance estimator_class=PWR."
            )
        for name, value, least in (
            ("n_episodes", n_episodes, 1),
            ("max_rollout_steps", max_rollout_steps, 1),
            ("critic_updates", critic_updates, 0),
        ):
            if value is None and name == "n_episodes":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{type(self).__name__} got {name}={value!r}; it must be a whole number.")
            if value < least:
                raise ValueError(f"{type(self).__name__} got {name}={value}; it must be at least {least}.")
        for name, kwargs_given in (("estimator_kwargs", estimator_kwargs), ("meta_kwargs", meta_kwargs)):
            if not isinstance(kwargs_given, dict | None):
                raise TypeError(f"{type(self).__name__} got {name}={kwargs_given!r}; it must be a dict of arguments.")
        self.estimator_class = estimator_class
        self.estimator_kwargs = estimator_kwargs or {}
        self.n_episodes = n_episodes
        self.max_rollout_steps = max_rollout_steps
        self.meta_kwargs = meta_kwargs
        self.critic_updates = critic_updates
        self.discarded_steps = 0
        self.meta: MetaLearner | None = None
        # load() builds the model without setting it up and then takes over the file's attributes: what stays None comes
        # from a file of Stable-Baselines3 itself.
        self._saved_by = type(self).__name__ if _init_setup_model else None
        self._collecting: BaseCallback | None = None
        super().__init__(policy, env, *args, **kwargs, _init_setup_model=_init_setup_model)  # type: ignore[misc]

    # -- construction, saving, loading ---------------------------------------------------------------------------

    def _setup_model(self) -> None:
        self._check_saved_class()
        own_buffer = DictEpisodeBuffer if isinstance(self.observation_space, spaces.Dict) else EpisodeBuffer
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = own_buffer
        uses_estimator = self.estimator_class is not TDLambda or self.n_episodes or self.meta_kwargs is not None
        if uses_estimator and not issubclass(self.rollout_buffer_class, _EpisodeStorage):
            raise ValueError(
                f"{type(self).__name__} got rollout_buffer_class={self.rollout_buffer_class.__name__}, which computes "
                f"its own advantages; leave it out, or derive the class from {own_buffer.__name__}."
            )
        super()._setup_model()
        # Never in training mode: with batch normalisation one episode's weights would depend on the others.
        self.estimator = self._make_estimator().to(self.device).eval()
        if isinstance(self.rollout_buffer, _EpisodeStorage):
            self.rollout_buffer.estimator = self.estimator
            self.rollout_buffer.n_episodes = self.n_episodes
        if self.meta_kwargs is not None:
            self.attach_meta(self.meta_kwargs)

    def _check_saved_class(self) -> None:
        ours, theirs = type(self).__name__, self._saved_by
        if theirs is None:
            # Only a file of SB3's PPO brings a clip_range that is a schedule already.
            theirs = "PPO" if callable(vars(self).get("clip_range")) else "A2C"
            host = "PPO" if isinstance(self, sb3.PPO) else "A2C"
            if theirs == host and self.estimator_class is TDLambda and self.meta_kwargs is None:
                self._saved_by = ours
                return
        elif theirs == ours:
            return
        raise ValueError(f"This file was saved by {theirs} and cannot be loaded as {ours}; write {theirs}.load(...).")

    def _make_estimator(self) -> AdvantageEstimator:
        kwargs = dict(self.estimator_kwargs)
        encoder_class = kwargs.pop("encoder_class", ObservationEncoder)
        if not (isinstance(encoder_class, type) and issubclass(encoder_class, nn.Module)):
            raise TypeError(
                f"{type(self).__name__} got encoder_class={encoder_class!r}; it needs a torch module that is built "
                "from the policy (the class, not an object), for instance encoder_class=CriticFeatures."
            )
        made: list[nn.Module] = []

        def make_encoder() -> nn.Module:
            made.append(encoder_class(self.policy))
            return made[-1]

        if issubclass(self.estimator_class, WeightedEstimator) and "weights_class" not in kwargs:
            kwargs["weights_class"] = self._default_weights_class()
            kwargs["weights_kwargs"] = {
                **self._default_weights_kwargs(),
                **(kwargs.get("weights_kwargs") or {}),
            }
        estimator = self.estimator_class(
            self.observation_space,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            make_encoder=make_encoder,
            action_space=self.action_space,
            **kwargs,
        )
        if "encoder_class" in self.estimator_kwargs and not made:
            weights = getattr(estimator, "weights", estimator)
            raise ValueError(
                f"{type(self).__name__} got encoder_class={encoder_class.__name__}, but {type(weights).__name__} has "
                "no network that looks at observations; leave encoder_class out."
            )
        return estimator

    def _default_weights_class(self) -> type[PairwiseWeights]:
        """A table where states are numbers from 0, a network otherwise."""
        space = self.observation_space
        return Tabular if isinstance(space, spaces.Discrete) and space.start == 0 else Product

    def _default_weights_kwargs(self) -> dict[str, Any]:
        return {}

    def attach_meta(self, meta_kwargs: dict[str, Any]) -> None:
        """Give the model an outer loop; see ``meta_kwargs`` in the class's arguments.

        :raises ValueError: if the estimator has nothing that the metagradient learns, if the optimiser has no
            differentiable step, or if the algorithm makes more than one gradient step per rollout.
        """
        if getattr(self, "n_epochs", 1) != 1:
            raise ValueError(
                f"The metagradient goes through one gradient step per rollout but {type(self).__name__} makes "
                f"n_epochs={self.n_epochs} passes; use A2C, or set n_epochs=1 and batch_size to the whole rollout."  # type: ignore[attr-defined]
            )
        InnerOptimizer.of(self.policy.optimizer)
        settings: dict[str, Any] = {"gamma": self.gamma, "gae_lambda": self.gae_lambda, **meta_kwargs}
        value_net = self._make_value_net(bool(settings.get("shared_critic")))
        self.meta = MetaLearner(self.estimator, value_net, **settings)
        self.meta_kwargs = meta_kwargs
        self.rollout_buffer.deferred = True

    def _make_value_net(self, shared_critic: bool) -> nn.Module | None:
        """A fresh ``v_φ``; ``None`` where the policy's critic is the regular one already."""
        if self.estimator.regular_critic:
            if shared_critic:
                raise ValueError(
                    f"{type(self).__name__} got shared_critic=True, but the critic of {type(self.estimator).__name__} "
                    "is v_φ already; leave it out."
                )
            return None
        if shared_critic and not self.critic_updates:
            raise ValueError(
                f"{type(self).__name__} got shared_critic=True, which fits both heads of the critic in critic_updates, "
                "and there are none; write for instance critic_updates=8."
            )
        network = CriticHead(self.policy) if shared_critic else RegularValue(self.policy)
        return network.to(self.device).eval()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "estimator", "meta", "_collecting"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        # Without η and without an outer loop the file is the same as Stable-Baselines3's own.
        ours = (["estimator"] if self.estimator.state_dict() else []) + (["meta"] if self.meta is not None else [])
        return state_dicts + ours, variables

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's own wrapping; a Gymnasium ``VectorEnv`` is welcome too."""
        if isinstance(env, VectorEnv):
            env = GymVecEnv(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    # -- collecting ----------------------------------------------------------------------------------------------

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if self.meta_kwargs is not None:
            users: list[BaseCallback]
            if callback is None:
                users = []
            elif isinstance(callback, list):
                users = callback
            else:
                users = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
            if not any(has_outer_loop(one) for one in users):
                # First, so that the user's callbacks see advantages under the new η.
                callback = [MetaGradientCallback(), *users]
        return super()._init_callback(callback, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._collecting = callback
        if self.n_episodes is not None:
            assert isinstance(rollout_buffer, _EpisodeStorage) and self._last_episode_starts is not None
            if not self._last_episode_starts.all():
                self._last_obs = env.reset()  # type: ignore[assignment]
                self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)
            length = RolloutLength(self.max_rollout_steps)
            length.buffer = rollout_buffer
            n_rollout_steps = length
        try:
            finished = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            self._collecting = None
        if isinstance(rollout_buffer, _EpisodeStorage):
            for name, value in rollout_buffer.fit_stats.items():
                self.logger.record(f"estimator/{name}", value)
        if self.n_episodes is not None:
            self.discarded_steps += rollout_buffer.discarded_steps  # type: ignore[attr-defined]
            self.logger.record("rollout/discarded_steps", self.discarded_steps)
        return finished

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self._collecting is not None and isinstance(self.rollout_buffer, _EpisodeStorage):
            step = self._collecting.locals
            self.rollout_buffer.note_step(step["rewards"], step["new_obs"], step["dones"], infos)

    # -- training ------------------------------------------------------------------------------------------------

    def outer_step(self) -> dict[str, float]:
        """Move ``η`` with the rollout in the buffer and fill in advantages under the new ``η``.

        :return: what is worth logging: outer loss, gradient norm, mean weight, share of saturated weights.
        """
        assert self.meta is not None
        episodes, values = self.rollout_buffer.episodes()
        self.estimator.check(episodes)
        batch_size = getattr(self, "batch_size", episodes.n_steps)
        if batch_size < episodes.n_steps:
            raise ValueError(
                f"The metagradient goes through one gradient step per rollout but batch_size={batch_size} cuts a "
                f"rollout of {episodes.n_steps} steps into several; raise batch_size."
            )
        stats = self.meta.outer_step(self.policy, episodes, values, self.vf_coef, self.normalizes_advantage)
        return {**stats, **self.fill_buffer(self.meta.estimate(episodes, values))}

    @property
    def normalizes_advantage(self) -> bool:
        """Whether ``train()`` normalises advantages."""
        return bool(getattr(self, "normalize_advantage", False))

    def fill_buffer(self, estimate: Estimate) -> dict[str, float]:
        """Hand advantages and value targets to SB3's ``train()``.

        :return: what is worth logging of the weights (of pairs or of steps): their mean, and the share within 0.02 of
            0 or 1.
        """
        self.rollout_buffer.fill(estimate)
        if estimate.weights is None:
            return {}
        mask = self.rollout_buffer.episodes()[0].mask
        weights = estimate.weights.detach()
        used = weights.masked_select(mask if weights.ndim == 2 else _pair_mask(mask))
        saturated = int(((used - 0.5).abs_() > 0.48).count_nonzero())
        return {f"mean_{self.estimator.weights_name}": used.mean().item(), "saturation": saturated / len(used)}

    def reset_policy(self) -> None:
        """Give ``θ`` (and the critic in it), its optimiser and ``v_φ`` fresh random values; ``η`` stays."""
        fresh = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )
        self.policy.load_state_dict(fresh.state_dict())
        self.policy.optimizer.load_state_dict(fresh.optimizer.state_dict())
        if self.meta is not None:
            self.meta.forget()
            value_net = self._make_value_net(self.meta.shared_critic)
            if value_net is not None:
                self.meta.reset_value(value_net)

    def train(self) -> None:
        if self.meta is None or not self.meta.awaits_inner_step:
            super().train()
        else:
            rows = self.rollout_buffer.sampled_steps if same_in_training(self.policy) else None
            with self.meta.recording(self.policy, self.policy.optimizer, self.max_grad_norm, rows):
                super().train()
        if self.critic_updates:
            self._fit_critic()

    def _fit_critic(self) -> None:
        """``critic_updates`` steps on the value loss, outside the inner step that the metagradient goes through; the
        loss of a second head, if there is one, is added to it."""
        fitted = critic_parameters(self.policy, self._last_obs)
        optimizers = [self.policy.optimizer]
        second: tuple[CriticHead, torch.Tensor] | None = None
        if self.meta is not None and (targets := self.meta.take_head_targets()) is not None:
            assert isinstance(self.meta.value_net, CriticHead) and self.meta.value_optimizer is not None
            second = self.meta.value_net, targets
            fitted += self.meta.value_net.parameters()
            optimizers.append(self.meta.value_optimizer)
        n_steps = self.rollout_buffer.buffer_size * self.rollout_buffer.n_envs
        for share in self.rollout_buffer.get(-(-n_steps // self.critic_updates)):
            if second is None:
                loss = value_loss(share.returns, self.policy.predict_values(share.observations).flatten())
            else:
                head, targets = second
                values, regular = head.both(share.observations)
                wanted = targets[self.rollout_buffer.sampled_steps()]
                loss = value_loss(share.returns, values.flatten()) + value_loss(wanted, regular.flatten())
            for optimizer in optimizers:
                optimizer.zero_grad()  # to None: what has no gradient is not moved
            (self.vf_coef * loss).backward(inputs=fitted)
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()

    # -- looking at weights --------------------------------------------------------------------------------------

    def pair_weights(self) -> torch.Tensor:
        """The weights of the last rollout's pairs, ``(B, T, T)``, ``[b, t, k - 1]``.

        :raises ValueError: before the first rollout, or if the estimator has no pairwise weights, not even implied.
        """
        if not isinstance(self.estimator, PairwiseEstimator):
            raise ValueError(
                f"{type(self.estimator).__name__} has no pairwise weights to look at; use PWTD, PWR, StateLambda or "
                "ReturnGeneratingModel."
            )
        with torch.no_grad():
            return self.estimator.pair_weights(self.rollout_buffer.episodes()[0])

    def mean_weights(self) -> np.ndarray:
        """The weights of the last rollout, averaged over its episodes: ``(T, T)``, NaN where no episode has the
        pair."""
        weights = self.pair_weights()
        mask = _pair_mask(self.rollout_buffer.episodes()[0].mask)
        count = mask.sum(0)
        mean = torch.where(mask, weights, 0.0).sum(0) / count
        return torch.where(count > 0, mean, torch.nan).cpu().numpy()

    def seen_state_pairs(self) -> np.ndarray:
        """Which pairs of states the last rollout's episodes contain in this order: bool, ``(n, n)``, for
        ``Discrete(n)``."""
        n_states = require_discrete("seen_state_pairs", self.observation_space)
        episodes = self.rollout_buffer.episodes()[0]
        states = episodes.observations.T.long()
        mask = _pair_mask(episodes.mask)
        horizon = episodes.horizon
        rows = states[:, :-1, None].expand(-1, horizon, horizon)[mask]
        columns = states[:, None, 1:].expand(-1, horizon, horizon)[mask]
        seen = torch.zeros(n_states, n_states, dtype=torch.bool)
        seen[rows.cpu(), columns.cpu()] = True
        return seen.numpy()


def _pair_mask(mask: torch.Tensor) -> torch.Tensor:
    """Which entries of ``(B, T, T)`` are pairs ``t < k`` of real steps, from a step mask ``(T, B)``."""
    # Step k - 1 is real only if step t is.
    return mask.T.unsqueeze(1).expand(-1, mask.shape[0], -1).triu()


class A2C(CreditMixin, sb3.A2C):
    """``stable_baselines3.A2C`` with pluggable advantages. With the defaults it computes what SB3's computes.

    Knows one more policy than SB3: ``"TabularPolicy"``, see :class:`~tca_sb3.policies.TabularPolicy`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3.A2C.policy_aliases,
        "TabularPolicy": TabularPolicy,
    }


class PPO(CreditMixin, sb3.PPO):
    """``stable_baselines3.PPO`` with pluggable advantages. With the defaults it computes what SB3's computes.

    The metagradient goes through one gradient step per rollout: for an outer loop set ``n_epochs=1`` and
    ``batch_size`` to the size of the rollout.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3.PPO.policy_aliases,
        "TabularPolicy": TabularPolicy,
    }


class HPWR(A2C):
    """H-PWR: rewards weighted by a matrix written by hand (§5.1, §5.2).

    The matrix is the environment's own ``credit_matrix`` (``tca_envs`` environments have one) unless
    ``estimator_kwargs=dict(weights_kwargs=dict(matrix=...))`` gives another, see
    :class:`~tca_sb3.weights.fixed.Fixed`.

    :raises ValueError: if there is neither.
    """

    def __init__(self, *args: Any, n_episodes: int | None = 1, **kwargs: Any) -> None:
        super().__init__(*args, **{"estimator_class": PWR, **kwargs}, n_episodes=n_episodes)

    def _default_weights_class(self) -> type[PairwiseWeights]:
        return Fixed

    def _default_weights_kwargs(self) -> dict[str, Any]:
        weights_kwargs = self.estimator_kwargs.get("weights_kwargs") or {}
        if "matrix" in weights_kwargs:
            return {}
        try:
            assert self.env is not None
            matrix = self.env.get_attr("credit_matrix")[0]
        except (AttributeError, AssertionError):
            matrix = None
        if matrix is None:
            raise ValueError(
                "HPWR found no hand-written weights: the environment has no credit_matrix. Write estimator_kwargs="
                "dict(weights_kwargs=dict(matrix=w)) with w[t, k-1] the weight of reward R_k for action A_t."
            )
        # Kept with the arguments, so that a saved model loads without its environment.
        matrix = np.asarray(matrix, dtype=np.float32)
        self.estimator_kwargs = {
            **self.estimator_kwargs,
            "weights_kwargs": {**weights_kwargs, "matrix": matrix},
        }
        return {"matrix": matrix}


class MetaPWR(A2C):
    """Meta-PWR: pairwise-weighted rewards (Eqs. 10, 11) whose weights are learned by the metagradient (Eq. 15).

    Weights are :class:`~tca_sb3.weights.tabular.Tabular` for ``Discrete`` observations and
    :class:`~tca_sb3.weights.product.Product` otherwise; ``estimator_kwargs`` chooses others. Rollouts are whole
    episodes.
    """

    def __init__(
        self, *args: Any, n_episodes: int | None = 1, meta_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            *args, **{"estimator_class": PWR, **kwargs}, n_episodes=n_episodes, meta_kwargs=meta_kwargs or {}
        )


class MetaPWTD(A2C):
    """Meta-PWTD: pairwise-weighted TD errors (Eq. 9) whose weights are learned by the metagradient (Eq. 15).

    Weights as in :class:`MetaPWR`. PWTD may bootstrap, so a rollout may also be ``n_steps`` steps
    (``n_episodes=None``).
    """

    def __init__(
        self, *args: Any, n_episodes: int | None = 1, meta_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            *args, **{"estimator_class": PWTD, **kwargs}, n_episodes=n_episodes, meta_kwargs=meta_kwargs or {}
        )


class MetaLambda(A2C):
    """Meta-λ(s): the λ-return with a λ for every state, learned by the metagradient (Xu et al. 2018).

    See :class:`~tca_sb3.estimators.state_lambda.StateLambda`, whose arguments go into ``estimator_kwargs``, for what is
    theirs and what is ours. It may bootstrap, so a rollout may also be ``n_steps`` steps (``n_episodes=None``).
    """

    def __init__(
        self, *args: Any, n_episodes: int | None = 1, meta_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            *args, **{"estimator_class": StateLambda, **kwargs}, n_episodes=n_episodes, meta_kwargs=meta_kwargs or {}
        )


class RGM(A2C):
    """RGM: one weight for each reward, generated from the whole episode and learned by the metagradient (Wang et al.
    2019).

    See :class:`~tca_sb3.estimators.return_generating.ReturnGeneratingModel`, whose arguments go into
    ``estimator_kwargs``, for what is theirs and what is ours. Rollouts are whole episodes.
    """

    def __init__(
        self, *args: Any, n_episodes: int | None = 1, meta_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            *args,
            **{"estimator_class": ReturnGeneratingModel, **kwargs},
            n_episodes=n_episodes,
            meta_kwargs=meta_kwargs or {},
        )


class A2CRR(A2C):
    """A2C-RR: A2C on rewards redistributed by an LSTM that predicts the return, inspired by RUDDER (§5.2).

    See :class:`~tca_sb3.estimators.reward_redistribution.RewardRedistribution`, whose arguments go into
    ``estimator_kwargs``, for what is whose. The paper ran it with a low discount factor, so that it "relied solely" on
    the redistribution; ``gamma`` is SB3's. Rollouts are whole episodes.
    """

    def __init__(self, *args: Any, n_episodes: int | None = 1, **kwargs: Any) -> None:
        super().__init__(*args, **{"estimator_class": RewardRedistribution, **kwargs}, n_episodes=n_episodes)

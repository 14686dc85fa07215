"""LVGTS and LM-SVG as Stable-Baselines3 algorithms."""

from __future__ import annotations

import io
import pathlib
import sys
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor, safe_mean, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from tca_sb3.lvgts.imagination import (
    imagine,
    imagined_return,
    infer_noise,
    reparameterized,
    sliding_window_objective,
)
from tca_sb3.lvgts.policy import (
    ActorState,
    CnnPolicy,
    LVGTSPolicy,
    MlpPolicy,
    MultiInputPolicy,
    begin_episodes,
)
from tca_sb3.lvgts.replay import EpisodeBatch, EpisodeCollector, EpisodeReplayBuffer, as_arrays
from tca_sb3.lvgts.world_model import ModelLosses, model_losses
from tca_sb3.vec_env import GymVecEnv

UNSATURATED = 1.5  # tanh's slope is 0.18 there

Truncations = Literal["block", "window"]

SelfLVGTS = TypeVar("SelfLVGTS", bound="LVGTS")


class Replay(NamedTuple):
    """What a replay of episodes leaves for the actor's step; constants."""

    value: Tensor
    """``G``, a scalar."""
    latents: Tensor
    """``ĥ_t``, shape ``(B, T, d)``."""
    real_latents: Tensor
    """``h_t`` of the real episodes, shape ``(B, T, d)``."""


@dataclass(frozen=True)
class ConstantThenLinear:
    """A learning rate: constant for the first half of training, then linear down to a tenth. Ours.

    :param initial: its value in the first half.
    """

    initial: float

    def __call__(self, progress_remaining: float) -> float:
        """The rate when so much, from 1 to 0, of training remains."""
        return self.initial * (0.1 + 0.9 * min(1.0, 2.0 * progress_remaining))


class LVGTS(BaseAlgorithm):
    """Latent Value Gradients with Temporal Shortcuts (Algorithm 1), for continuous actions and partial observability.

    Each turn collects ``n_episodes`` episodes, trains encoder and world model on whole episodes of the replay buffer
    (Eq. 7), and then the actor by the gradient of the return of replayed episodes. That gradient is truncated every
    ``truncation`` states, but reaches distant actions through the states that the encoder recalled later. See
    :mod:`~tca_sb3.lvgts.encoder`, :mod:`~tca_sb3.lvgts.world_model` and :mod:`~tca_sb3.lvgts.imagination` for the
    mathematics, and :class:`LMSVG` for the algorithm without shortcuts.

    The paper gives ``truncation = 4``, ``n_recalls = 3`` and the form of the losses; all other defaults are ours.
    Nothing in the encoder says what time it is, so phase or time must be in the observation where it matters.

    Episodes may differ in length. One that a time limit cut counts for what happened until then: the return is
    undiscounted, and nothing stands for what would have followed.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class derived from ``LVGTSPolicy``.
    :param env: an environment, its id, a ``VecEnv`` or a Gymnasium ``VectorEnv``. Many environments side by side
        collect faster and change nothing else.
    :param learning_rate: the actor's, a number or a schedule.
    :param model_learning_rate: that of encoder and world model.
    :param n_episodes: episodes to collect, over all environments, before each training phase.
    :param model_updates: gradient steps of the models for each collected episode.
    :param policy_updates: gradient steps of the actor for each collected episode, warm-up aside.
    :param batch_size: episodes in a gradient step.
    :param buffer_size: episodes in the replay buffer.
    :param learning_starts: episodes to collect with uniform actions before training.
    :param truncation: ``N``, the states after which the gradient is cut; ``None`` cuts nowhere.
    :param truncation_mode: ``"block"`` cuts at fixed times (Algorithm 1), ``"window"`` lets every reward reach
        ``truncation`` states back (Appendix A.1).
    :param n_recalls: ``k``, the most moments that one step recalls.
    :param dense_updates: gradient steps of the models before attention becomes sparse; until then every step recalls
        its whole past. Ours: only what is recalled gets a gradient, so that sparse attention which begins at the wrong
        moments may stay there. 0 is the paper's.
    :param action_noise_std: standard deviation of the policy's noise ``η`` while collecting, in actions scaled to
        [-1, 1].
    :param replay_noise_std: the same in replayed episodes, where ``η`` is drawn afresh; ``None`` for the same
        value. 0 was worse than fresh noise on the active memory task.
    :param alpha_reward: weight of ``L_rew``.
    :param alpha_decoder: weight of ``L_decoder``. With a small one nothing keeps a step from recalling what it does not
        need; what it has recalled then also travels along the latents, where truncation cuts its credit.
    :param alpha_transition: weight of ``L_trans``.
    :param saturation_coef: weight of a penalty, ours, on actions at the edge of their range, where the gradient of the
        actor's tanh vanishes: without it an actor that once ran there may stay.
    :param max_grad_norm: largest norm of a gradient, of the models and of the actor.
    :param max_episode_steps: longest episode to expect; a longer one is an error.
    :param policy_kwargs: arguments of the policy: ``latent_dim``, ``net_arch``, ``encoder_class``,
        ``world_model_class`` and more, see :class:`~tca_sb3.lvgts.policy.LVGTSPolicy`.
    :param stats_window_size: episodes over which ``rollout/`` logs average.
    :param tensorboard_log: folder of TensorBoard logs.
    :param verbose: 0 for silence, 1 for logs.
    :param seed: of Python, NumPy, torch, environment and action space.
    :param device: where to compute.
    :param _init_setup_model: build the networks now.
    :raises ValueError: if a number is out of range, or the action space is not a bounded ``Box``.

    Example:
        >>> from tca_sb3 import make_gym_vec_env
        >>> from tca_sb3.lvgts import LVGTS
        >>> env = make_gym_vec_env("tca_envs:tca/DummyAMT-v0", n_envs=16)
        >>> model = LVGTS("MlpPolicy", env).learn(15 * 8000)  # doctest: +SKIP
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    shortcuts: ClassVar[bool] = True
    """The transition is given what the encoder recalled."""

    policy: LVGTSPolicy
    replay_buffer: EpisodeReplayBuffer

    def __init__(
        self,
        policy: str | type[LVGTSPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = ConstantThenLinear(2e-3),
        model_learning_rate: float | Schedule = ConstantThenLinear(4e-3),
        n_episodes: int = 16,
        model_updates: float = 1.0,
        policy_updates: float = 0.5,
        batch_size: int = 16,
        buffer_size: int = 2000,
        learning_starts: int = 256,
        truncation: int | None = 4,
        truncation_mode: Truncations = "block",
        n_recalls: int = 3,
        dense_updates: int = 1000,
        action_noise_std: float = 1 / 6,
        replay_noise_std: float | None = None,
        alpha_reward: float = 1.0,
        alpha_decoder: float = 3.0,
        alpha_transition: float = 1.0,
        saturation_coef: float = 0.1,
        max_grad_norm: float = 10.0,
        max_episode_steps: int = 1000,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        for name, least, number in (
            ("n_episodes", 1, n_episodes),
            ("batch_size", 1, batch_size),
            ("buffer_size", 1, buffer_size),
            ("learning_starts", 0, learning_starts),
            ("truncation", 1, truncation),
            ("n_recalls", 1, n_recalls),
            ("dense_updates", 0, dense_updates),
            ("max_episode_steps", 1, max_episode_steps),
        ):
            if number is None and name == "truncation":
                continue
            if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < least:
                raise ValueError(f"{type(self).__name__} got {name}={number!r}; it must be an integer from {least}.")
        for name, value in (
            ("model_updates", model_updates),
            ("policy_updates", policy_updates),
            ("action_noise_std", action_noise_std),
            ("replay_noise_std", 0.0 if replay_noise_std is None else replay_noise_std),
            ("alpha_reward", alpha_reward),
            ("alpha_decoder", alpha_decoder),
            ("alpha_transition", alpha_transition),
            ("saturation_coef", saturation_coef),
            ("max_grad_norm", max_grad_norm),
        ):
            if not value >= 0.0:
                raise ValueError(f"{type(self).__name__} got {name}={value!r}; it must be a number from 0.")
        if truncation_mode not in get_args(Truncations):
            raise ValueError(
                f"{type(self).__name__} got truncation_mode={truncation_mode!r}; write one of {get_args(Truncations)}."
            )
        if truncation_mode == "window" and truncation is None:
            raise ValueError("truncation_mode='window' needs a truncation; truncation=None cuts nowhere: leave it out.")
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        self.model_learning_rate = model_learning_rate
        self.n_episodes = n_episodes
        self.model_updates, self.policy_updates = model_updates, policy_updates
        self.batch_size, self.buffer_size, self.learning_starts = batch_size, buffer_size, learning_starts
        self.truncation, self.truncation_mode = truncation, truncation_mode
        self.n_recalls, self.dense_updates = n_recalls, dense_updates
        self.action_noise_std, self.replay_noise_std = action_noise_std, replay_noise_std
        self.alpha_reward, self.alpha_decoder = alpha_reward, alpha_decoder
        self.alpha_transition = alpha_transition
        self.saturation_coef = saturation_coef
        self.max_grad_norm = max_grad_norm
        self.max_episode_steps = max_episode_steps
        # Gradient steps that collected episodes have earned and training has not yet made.
        self._model_updates_due = 0.0
        self._policy_updates_due = 0.0
        self._n_model_updates = 0
        self._n_lost_gradients = 0
        self._saved_by = type(self).__name__
        if _init_setup_model:
            self._setup_model()

    # -- construction, saving, loading -----------------------------------------------------------------------------

    def _setup_model(self) -> None:
        if self._saved_by != type(self).__name__:
            raise ValueError(
                f"This file was saved by {self._saved_by} and cannot be loaded as {type(self).__name__}; "
                f"write {self._saved_by}.load(...)."
            )
        self._setup_lr_schedule()
        self.model_lr_schedule = FloatSchedule(self.model_learning_rate)
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            model_lr_schedule=self.model_lr_schedule,
            n_recalls=self._recalls_now(),
            noise_std=self.action_noise_std,
            **self.policy_kwargs,
        )
        self.policy = self.policy.to(self.device)
        self.replay_buffer = EpisodeReplayBuffer(
            self.buffer_size, self.observation_space, self.policy.action_dim, self.device
        )
        # Made by learn(), for as many environments as there are then.
        self._collector: EpisodeCollector | None = None
        self._acting: ActorState | None = None

    def _recalls_now(self) -> int:
        """``k``, or the whole past as long as attention is dense."""
        if self._n_model_updates < self.dense_updates:
            return max(self.n_recalls, self.max_episode_steps)
        return self.n_recalls

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_collector", "_acting"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "policy.model_optimizer"], []

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's own wrapping; a Gymnasium ``VectorEnv`` is welcome too."""
        if isinstance(env, VectorEnv):
            env = GymVecEnv(env)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save the replay buffer as a pickle file; ``save`` leaves it out, as SB3 does."""
        save_to_pkl(path, self.replay_buffer, self.verbose)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Load a replay buffer that :meth:`save_replay_buffer` saved.

        :raises TypeError: if the file holds something else.
        :raises ValueError: if the buffer's observations are not this model's.
        """
        buffer = load_from_pkl(path, self.verbose)
        if not isinstance(buffer, EpisodeReplayBuffer):
            raise TypeError(f"The file holds a {type(buffer).__name__}, not an EpisodeReplayBuffer of whole episodes.")
        if buffer.observation_space != self.observation_space:
            raise ValueError(
                f"The buffer holds observations of {buffer.observation_space}, the model's are of "
                f"{self.observation_space}."
            )
        buffer.device = self.device
        self.replay_buffer = buffer

    # -- collecting ------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError("There is no environment to learn from; write model.set_env(env) first.")
        if self._collector is None:
            self._last_obs = None  # a loaded model knows nothing of the episodes that were in progress
        begins = reset_num_timesteps or self._last_obs is None
        total_timesteps, callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if begins:
            self._collector = EpisodeCollector(
                self.n_envs, self.observation_space, self.policy.action_dim, self.max_episode_steps
            )
            self._acting = self.policy.first_state(self.n_envs)
        return total_timesteps, callback

    def _choose_actions(self) -> Tensor:
        """Scaled actions for ``_last_obs``, ``(n_envs, action_dim)``; uniform before training starts."""
        assert self._acting is not None and self._last_obs is not None
        observations: Any = obs_as_tensor(self._last_obs, self.device)
        actions, self._acting = self.policy.act(observations, self._acting)
        if not actions.isfinite().all():
            raise FloatingPointError(
                f"{type(self).__name__}'s actions are no numbers any more: its latent states overflowed. Begin anew "
                "with a smaller model_learning_rate."
            )
        if self.replay_buffer.n_added < self.learning_starts:
            actions = 2.0 * torch.rand_like(actions) - 1.0
            self._acting = self._acting._replace(previous_actions=actions)
        return actions

    def collect_episodes(self, env: VecEnv, callback: BaseCallback) -> bool:
        """Step all environments until ``n_episodes`` more episodes have ended; others stay in progress.

        :return: False if a callback wants to stop.
        """
        assert self._collector is not None and self._acting is not None
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        n_ended = 0
        while n_ended < self.n_episodes:
            scaled = self._choose_actions()
            actions = self.policy.to_environment(scaled)
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            # Stopping loses no step: the next learn() may go on with the episodes in progress.
            goes_on = callback.on_step()
            self._update_info_buffer(infos, dones)
            observations: Any = self._last_obs
            if self._vec_normalize_env is not None:
                # Stored as they are, and normalised when sampled, by the statistics of then.
                observations, rewards = self._last_original_obs, self._vec_normalize_env.get_original_reward()
                self._last_original_obs = self._vec_normalize_env.get_original_obs()
            ended = self._collector.add(
                as_arrays(observations), scaled.cpu().numpy(), rewards, dones, self.replay_buffer
            )
            self._earn_updates(ended)
            n_ended += ended
            self._episode_num += ended
            if ended:
                self._acting = begin_episodes(self._acting, torch.as_tensor(dones, device=self.device))
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            if not goes_on:
                return False
        callback.on_rollout_end()
        return True

    def _earn_updates(self, n_ended: int) -> None:
        # Warm-up episodes earn updates of the models only: an actor that climbs an untrained model saturates.
        self._model_updates_due += self.model_updates * n_ended
        if self.replay_buffer.n_added >= self.learning_starts:
            self._policy_updates_due += self.policy_updates * n_ended

    # -- training --------------------------------------------------------------------------------------------------

    def model_loss(self, batch: EpisodeBatch) -> tuple[Tensor, ModelLosses]:
        """What :meth:`model_step` descends, and the terms of Eq. 7 in it, unweighted."""
        policy = self.policy
        encoding = policy.encode(batch)
        losses = model_losses(
            policy.world_model,
            encoding,
            policy.decoder_targets(batch.observations),
            batch.actions,
            batch.rewards,
            batch.mask,
            self.shortcuts,
        )
        loss = (
            self.alpha_reward * losses.reward
            + self.alpha_decoder * losses.decoder
            + self.alpha_transition * losses.transition
        )
        return loss, losses

    def model_step(self, batch: EpisodeBatch) -> ModelLosses:
        """One gradient step of encoder and world model on Eq. 7; returns its terms, unweighted."""
        loss, losses = self.model_loss(batch)
        self._descend(loss, self.policy.model_optimizer)
        return losses

    def replay_noise(self, batch: EpisodeBatch) -> Tensor:
        """``η`` of a replay of these episodes, drawn afresh; ``(B, T, action_dim)``."""
        std = self.action_noise_std if self.replay_noise_std is None else self.replay_noise_std
        return std * torch.randn_like(batch.actions)

    def replay(self, batch: EpisodeBatch, action_noise: Tensor) -> tuple[Tensor, Replay]:
        """Algorithm 1's replay under the actor.

        :param action_noise: ``η``, ``(B, T, action_dim)``. By this the result is to be differentiated, see
            :meth:`policy_loss`, so let it require a gradient.
        :return: a scalar whose derivative by ``η`` is ``∂G/∂η``, truncated; and what else the actor's step needs.
        """
        world_model = self.policy.world_model
        with torch.no_grad():
            encoding = self.policy.encode(batch)
        noise = infer_noise(world_model, encoding, batch.actions, self.shortcuts)
        act = reparameterized(self.policy.actor, action_noise)
        if self.truncation_mode == "window":
            assert self.truncation is not None
            objective, replay = sliding_window_objective(
                act, world_model, encoding, noise, batch.mask, self.truncation, self.shortcuts
            )
            value = imagined_return(replay.rewards, batch.mask)
        else:
            replay = imagine(act, world_model, encoding, noise, self.truncation, self.shortcuts)
            value = objective = imagined_return(replay.rewards, batch.mask)
        return objective, Replay(value.detach(), replay.latents.detach(), encoding.latents)

    def policy_loss(self, replay: Replay, worth: Tensor, mask: Tensor) -> Tensor:
        """What :meth:`policy_step` descends: by the actor's parameters, its derivative is that of penalty less ``G``.

        An action is ``clip(actor(ĥ_t) + η_t, -1, 1)``, so ``∂G/∂η_t`` is also the derivative of ``G`` by what the
        actor says at ``t``, all consequences included. What is left of the chain rule, the actor's derivative by its
        parameters, is taken of all times at once: one large product of matrices in place of ``T`` small ones.

        :param replay: the replay that ``worth`` is of.
        :param worth: ``∂G/∂η``, ``(B, T, action_dim)``, a constant.
        :param mask: True where a step is real, ``(B, T)``.
        """
        loss = -(self.policy.actor(replay.latents) * worth).sum()
        if self.saturation_coef > 0.0:
            loss = loss + self.saturation_coef * self._saturation(replay.real_latents, mask)
        return loss

    def policy_step(self, batch: EpisodeBatch) -> Tensor:
        """One gradient step of the actor up the return ``G`` of replayed episodes (Algorithm 1); returns ``G``."""
        noise = self.replay_noise(batch).requires_grad_()
        objective, replay = self.replay(batch, noise)
        (worth,) = torch.autograd.grad(objective, noise)
        self._descend(self.policy_loss(replay, worth, batch.mask), self.policy.optimizer)
        return replay.value

    def _saturation(self, latents: Tensor, mask: Tensor) -> Tensor:
        """How far the actor is in the flat part of its tanh: ``max(|u| - 1.5, 0)²``, a sum over time like ``G``."""
        excess = torch.relu(self.policy.actor.unbounded(latents).abs() - UNSATURATED)
        return (excess.square().sum(-1) * mask).sum() / len(mask)

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimiser's parameters down their clipped gradient; one that is not finite counts as 0."""
        parameters = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        # Not autograd.grad(): a fused optimiser trusts that a gradient lies in memory as its parameter does.
        loss.backward(inputs=parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not norm.isfinite():  # a long replay through models that are not good yet can overflow
            self._n_lost_gradients += 1
            for gradient in gradients:
                gradient.zero_()
        elif norm > self.max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        optimizer.step()

    def train(self) -> None:
        """Make the gradient steps that collected episodes have earned: the models', then the actor's."""
        n_model, n_policy = self._begin_training()
        losses = [self.model_step(self._sample()) for _ in range(n_model)]
        returns = [self.policy_step(self._sample()) for _ in range(n_policy)]
        self._end_training(losses, returns)

    def _begin_training(self) -> tuple[int, int]:
        """Set learning rates; the numbers of steps that are due, of the models and of the actor."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        model_rate = self.model_lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.policy.model_optimizer, model_rate)
        self.logger.record("train/model_learning_rate", model_rate)
        n_model, n_policy = int(self._model_updates_due), int(self._policy_updates_due)
        self._model_updates_due -= n_model
        self._policy_updates_due -= n_policy
        return n_model, n_policy

    def _end_training(self, losses: list[ModelLosses], returns: list[Tensor]) -> None:
        self._n_updates += len(losses) + len(returns)
        self._n_model_updates += len(losses)
        self.policy.n_recalls = self._recalls_now()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/lost_gradients", self._n_lost_gradients)
        for name, terms in zip(ModelLosses._fields, zip(*losses, strict=True), strict=bool(losses)):
            self.logger.record(f"train/{name}_loss", torch.stack(terms).mean().item())
        if returns:
            self.logger.record("train/imagined_return", torch.stack(returns).mean().item())

    def _sample(self) -> EpisodeBatch:
        return self.replay_buffer.sample(self.batch_size, self._vec_normalize_env)

    def learn(
        self: SelfLVGTS,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfLVGTS:
        """Collect and train in turn for at least ``total_timesteps`` environment steps.

        :param total_timesteps: a lower bound, for collection ends with an episode.
        :param callback: called at every step.
        :param log_interval: turns between logs.
        :param tb_log_name: name of the run for TensorBoard; the class's by default.
        :param reset_num_timesteps: begin to count anew; False continues, episodes in progress included.
        :param progress_bar: show one.
        """
        tb_log_name = tb_log_name or type(self).__name__
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        turn = 0
        while self.num_timesteps < total_timesteps and self.collect_episodes(self.env, callback):
            turn += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if self.replay_buffer.n_added >= self.learning_starts:
                self.train()
            if log_interval is not None and turn % log_interval == 0:
                self.dump_logs()
        callback.on_training_end()
        return self

    def dump_logs(self) -> None:
        """Write the logs."""
        assert self.ep_info_buffer is not None and self.ep_success_buffer is not None
        elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        steps = self.num_timesteps - self._num_timesteps_at_start
        self.logger.record("time/fps", int(steps / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    # -- looking at attention --------------------------------------------------------------------------------------

    def attention_weights(self, observations: Any, actions: np.ndarray) -> np.ndarray:
        """What each step of some episodes recalls: ``w[b, t, i]``, shape ``(B, T, T)``, 0 for ``i >= t``.

        :param observations: ``o_0 … o_{T-1}``, ``(B, T, *observation shape)``, or a dict of such arrays; normalised
            already if training's are.
        :param actions: ``(B, T, *action shape)``, in the environment's units.
        :raises ValueError: if the two disagree on ``B`` or ``T``.
        """
        tensors: Any = obs_as_tensor(observations, self.device)
        taken = np.asarray(actions)
        first = next(iter(tensors.values())) if isinstance(tensors, dict) else tensors
        if taken.shape[:2] != tuple(first.shape[:2]):
            raise ValueError(
                f"attention_weights got observations of (B, T) = {tuple(first.shape[:2])} and actions of "
                f"{taken.shape[:2]}; one action belongs to each observation."
            )
        scaled = torch.as_tensor(self.policy.scale_action(taken), dtype=torch.float32, device=self.device)
        scaled = scaled.flatten(2) if scaled.ndim > 2 else scaled.unsqueeze(2)
        mask = torch.ones(taken.shape[:2], dtype=torch.bool, device=self.device)
        self.policy.set_training_mode(False)
        with torch.no_grad():
            return self.policy.encode(EpisodeBatch(tensors, scaled, scaled[..., 0], mask)).weights.cpu().numpy()


class LMSVG(LVGTS):
    """Latent-Memory Stochastic Value Gradients (§3.1), the paper's baseline: LVGTS without temporal shortcuts.

    The encoder attends to the past as LVGTS's does, but the transition model is not told what was recalled (Eq. 2). The
    latent dynamics are then not Markov, and no gradient passes a truncation. Arguments are those of :class:`LVGTS`.
    """

    shortcuts: ClassVar[bool] = False

"""LVGTS's networks as one Stable-Baselines3 policy, whose ``predict`` carries the attention memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from tca_sb3.episodes import Observations, map_observations
from tca_sb3.lvgts.encoder import AttentionEncoder, Encoder, Encoding, Memory, mlp
from tca_sb3.lvgts.replay import EpisodeBatch
from tca_sb3.lvgts.world_model import WorldModel

NetArch = list[int] | dict[str, list[int]]
_NET_PARTS = ("encoder", "model", "pi")
FIRST_ACTIONS = 0.1  # factor on the actor's last layer: first actions are near the middle of their range
ACTION_GAIN = 1 / 3  # of the actor's tanh; Adam's steps in its argument are as large whatever the range of actions


class Actor(nn.Module):
    """``π_θ`` without its noise: ``tanh(MLP(h_t) / 3)``; the network's form and its scale are ours.

    :param latent_dim: ``d``.
    :param action_dim: components of an action.
    :param net_arch: widths of the hidden layers.
    :param activation_fn: between them.
    """

    def __init__(
        self, latent_dim: int, action_dim: int, net_arch: list[int], activation_fn: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.net = mlp(latent_dim, net_arch, action_dim, activation_fn)
        with torch.no_grad():
            for parameter in self.net[-1].parameters():
                parameter.mul_(FIRST_ACTIONS)

    def forward(self, latents: Tensor) -> Tensor:
        """``(..., d)`` to mean actions ``(..., action_dim)`` within (-1, 1)."""
        return torch.tanh(self.unbounded(latents))

    def unbounded(self, latents: Tensor) -> Tensor:
        """The argument of ``tanh``."""
        return ACTION_GAIN * self.net(latents)


class ActorState(NamedTuple):
    """What acting remembers of ``n`` episodes in progress."""

    memory: Memory
    previous_actions: Tensor
    """``a_{t-1}``, shape ``(n, action_dim)``, scaled; 0 at the start of an episode."""


class LVGTSPolicy(BasePolicy):
    """Encoder, world model and actor; actions are continuous and bounded.

    Inside, actions are scaled to [-1, 1]; ``predict`` returns them in the environment's units. The policy's noise
    ``η ~ N(0, noise_std²)`` is added to what the actor says, and the sum is clipped.

    :param observation_space: any space of SB3's.
    :param action_space: a ``Box``.
    :param lr_schedule: learning rate of ``optimizer``, which trains the actor.
    :param model_lr_schedule: learning rate of ``model_optimizer``, which trains everything else; ``lr_schedule`` by
        default.
    :param latent_dim: ``d``, size of a latent state.
    :param n_recalls: ``k``, the most moments that one step recalls.
    :param noise_std: standard deviation of ``η``, in scaled units.
    :param net_arch: widths of hidden layers: one list for all networks, or a dict with the keys ``"encoder"``,
        ``"model"`` (decoder, transition and reward) and ``"pi"``; those left out are ``[128, 128]``.
    :param activation_fn: between layers.
    :param encoder_class: an :class:`~tca_sb3.lvgts.encoder.Encoder`; ``RecurrentEncoder`` is the paper's other one.
    :param encoder_kwargs: its arguments besides ``input_dim``, ``latent_dim`` and ``n_recalls``.
    :param world_model_class: a :class:`~tca_sb3.lvgts.world_model.WorldModel`.
    :param world_model_kwargs: its arguments besides the three sizes.
    :param features_extractor_class: SB3's; it is trained with the encoder.
    :param features_extractor_kwargs: its arguments.
    :param normalize_images: divide images by 255.
    :param optimizer_class: of both optimisers.
    :param optimizer_kwargs: its arguments besides the learning rate. For Adam the default is ``dict(fused=True)``,
        which on a CPU saves most of the step's time.
    :raises ValueError: if ``net_arch`` names an unknown network, a number is out of range, or the action space is
        not a bounded ``Box``.
    :raises TypeError: if a class is not of its kind.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model_lr_schedule: Schedule | None = None,
        latent_dim: int = 32,
        n_recalls: int = 3,
        noise_std: float = 1 / 6,
        net_arch: NetArch | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        encoder_class: type[Encoder] = AttentionEncoder,
        encoder_kwargs: dict[str, Any] | None = None,
        world_model_class: type[WorldModel] = WorldModel,
        world_model_kwargs: dict[str, Any] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
            raise ValueError(
                f"LVGTS got the action space {action_space}; gradients flow through actions, so it needs a Box with "
                "finite bounds. For discrete actions use A2C or PPO of tca_sb3."
            )
        for name, given, kind in (
            ("encoder_class", encoder_class, Encoder),
            ("world_model_class", world_model_class, WorldModel),
        ):
            if not (isinstance(given, type) and issubclass(given, kind)):
                raise TypeError(f"LVGTS got {name}={given!r}; it needs a subclass of {kind.__name__}, not an object.")
        if not noise_std >= 0.0:
            raise ValueError(f"LVGTS got noise_std={noise_std}; a standard deviation is at least 0.")
        widths = _widths(net_arch)
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"fused": True}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.latent_dim, self.noise_std = latent_dim, noise_std
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.encoder_class, self.encoder_kwargs = encoder_class, encoder_kwargs or {}
        self.world_model_class, self.world_model_kwargs = world_model_class, world_model_kwargs or {}

        action_dim = int(np.prod(action_space.shape))
        self.action_dim = action_dim
        self.features_extractor = self.make_features_extractor()
        arch = {"net_arch": widths["encoder"], "activation_fn": activation_fn}
        self.encoder = encoder_class(
            input_dim=self.features_extractor.features_dim + action_dim,
            latent_dim=latent_dim,
            n_recalls=n_recalls,
            **{**arch, **self.encoder_kwargs},
        )
        arch = {"net_arch": widths["model"], "activation_fn": activation_fn}
        self.world_model = world_model_class(
            latent_dim=latent_dim,
            action_dim=action_dim,
            observation_dim=_flat_dim(observation_space),
            **{**arch, **self.world_model_kwargs},
        )
        self.actor = Actor(latent_dim, action_dim, widths["pi"], activation_fn)
        self.optimizer = self._make_optimizer(self.actor_parameters, lr_schedule)
        self.model_optimizer = self._make_optimizer(self.model_parameters, model_lr_schedule or lr_schedule)

    def _make_optimizer(self, parameters: list[nn.Parameter], lr_schedule: Schedule) -> torch.optim.Optimizer:
        return self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @property
    def n_recalls(self) -> int:
        """``k``; may be changed."""
        return self.encoder.n_recalls

    @n_recalls.setter
    def n_recalls(self, n_recalls: int) -> None:
        self.encoder.n_recalls = n_recalls

    @property
    def actor_parameters(self) -> list[nn.Parameter]:
        """``θ``, all that the policy gradient moves."""
        return list(self.actor.parameters())

    @property
    def model_parameters(self) -> list[nn.Parameter]:
        """All that Eq. 7 moves: features extractor, encoder and world model."""
        return [p for part in (self.features_extractor, self.encoder, self.world_model) for p in part.parameters()]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "lr_schedule": self._dummy_schedule,  # what a loaded policy does not need
            "latent_dim": self.latent_dim,
            "n_recalls": self.n_recalls,
            "noise_std": self.noise_std,
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "encoder_class": self.encoder_class,
            "encoder_kwargs": self.encoder_kwargs,
            "world_model_class": self.world_model_class,
            "world_model_kwargs": self.world_model_kwargs,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    # -- whole episodes --------------------------------------------------------------------------------------------

    def encode(self, batch: EpisodeBatch) -> Encoding:
        """``h`` and ``w`` of every time of every episode, with their graph."""
        features = self._per_step(self._features, batch.observations, batch.mask.shape)
        before = torch.cat([torch.zeros_like(batch.actions[:, :1]), batch.actions[:, :-1]], dim=1)
        return self.encoder(torch.cat([features, before], dim=-1))

    def decoder_targets(self, observations: Observations) -> Tensor:
        """What the decoder should say: observations as SB3 preprocesses them, flat; ``(B, T, observation_dim)``.

        :param observations: ``(B, T, *observation shape)``, or a dict of such tensors.
        """
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        return self._per_step(self._flat, observations, first.shape[:2])

    def _features(self, observations: PyTorchObs) -> Tensor:
        return self.extract_features(observations, self.features_extractor)

    def _flat(self, observations: PyTorchObs) -> Tensor:
        processed = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
        parts = processed.values() if isinstance(processed, dict) else [processed]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @staticmethod
    def _per_step(function: Any, observations: Observations, shape: Any) -> Tensor:
        """Apply a function of ``(n, ...)`` observations to ``(B, T, ...)`` ones."""
        return function(map_observations(lambda part: part.flatten(0, 1), observations)).unflatten(0, shape)

    # -- step by step ----------------------------------------------------------------------------------------------

    def first_state(self, n: int) -> ActorState:
        """``n`` episodes about to begin."""
        memory = Memory.empty(n, self.latent_dim, self.device)
        return ActorState(memory, torch.zeros(n, self.action_dim, device=self.device))

    def act(
        self, observations: PyTorchObs, state: ActorState, deterministic: bool = False
    ) -> tuple[Tensor, ActorState]:
        """One step of every episode; without gradients.

        :param observations: ``(n, *observation shape)``.
        :param state: its memory is changed in place; a previous action has to be the one really taken.
        :param deterministic: leave out ``η``.
        :return: scaled actions ``(n, action_dim)``, and the state for the next step if they are taken.
        """
        with torch.no_grad():
            inputs = torch.cat([self._features(observations), state.previous_actions], dim=-1)
            actions = self.actor(self.encoder.step(inputs, state.memory))
            if not deterministic:
                actions = (actions + self.noise_std * torch.randn_like(actions)).clamp(-1.0, 1.0)
        return actions, ActorState(state.memory, actions)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        return self.act(observation, self.first_state(len(first)), deterministic)[0]

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Scaled actions at the first step of an episode, ``(n, action_dim)``."""
        return self._predict(observation, deterministic)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Actions for one step, in the environment's units, and the state to pass to the next call.

        :param observation: of one environment, or of ``n``.
        :param state: what the last call returned; ``None`` where all episodes begin. It is not changed. It holds the
            attention memory (keys and values ``(n, L, d)``, their number ``(n,)``) and the last actions, and takes
            for granted that the actions returned were the ones taken.
        :param episode_start: ``(n,)``, True where an episode begins: what is remembered there is dropped.
        :param deterministic: leave out the policy's noise ``η``.
        :raises ValueError: if ``observation`` is what ``env.reset()`` of Gymnasium returns, or ``state`` belongs to
            another number of environments.
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple):
            raise ValueError(
                "predict() got a tuple; that is what env.reset() of Gymnasium returns: write obs, info = env.reset() "
                "and pass obs."
            )
        tensors, vectorized = self.obs_to_tensor(observation)
        n = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
        acting = self._state_of(state, n)
        if episode_start is not None:
            begins = torch.as_tensor(np.reshape(episode_start, -1), dtype=torch.bool, device=self.device)
            if len(begins) != n:
                raise ValueError(f"predict() got {n} observations and {len(begins)} entries of episode_start.")
            acting = begin_episodes(acting, begins)
        scaled, (memory, previous) = self.act(tensors, acting, deterministic)
        actions = self.to_environment(scaled)
        parts = (memory.keys, memory.values, memory.lengths, previous)
        return (actions if vectorized else actions[0]), tuple(part.cpu().numpy() for part in parts)

    def to_environment(self, scaled: Tensor) -> np.ndarray:
        """Scaled actions ``(n, action_dim)`` in the environment's units and shape."""
        shape = self.action_space.shape
        assert isinstance(self.action_space, spaces.Box) and shape is not None
        actions = self.unscale_action(scaled.cpu().numpy().reshape(-1, *shape))
        # Rounding may leave the bounds by a hair.
        return np.clip(actions, self.action_space.low, self.action_space.high).astype(self.action_space.dtype)

    def _state_of(self, state: tuple[np.ndarray, ...] | None, n: int) -> ActorState:
        if state is None:
            return self.first_state(n)
        if len(state) != 4 or any(len(part) != n for part in state):
            raise ValueError(
                f"predict() got {n} observations and a state of other environments; pass the state that the last call "
                "returned, or state=None where episodes begin."
            )
        keys, values, lengths, previous = (torch.tensor(part, device=self.device) for part in state)
        return ActorState(Memory(keys, values, lengths), previous)


def begin_episodes(state: ActorState, begins: Tensor) -> ActorState:
    """Forget what is remembered of the episodes where ``begins``, bool ``(n,)``, is True."""
    state.memory.forget(begins)
    return ActorState(state.memory, state.previous_actions.masked_fill(begins.unsqueeze(1), 0.0))


def _widths(net_arch: NetArch | None) -> dict[str, list[int]]:
    if isinstance(net_arch, dict):
        unknown = set(net_arch) - set(_NET_PARTS)
        if unknown:
            raise ValueError(f"net_arch has the keys {sorted(unknown)}, which name no network; write {_NET_PARTS}.")
        return {part: list(net_arch.get(part, [128, 128])) for part in _NET_PARTS}
    return {part: [128, 128] if net_arch is None else list(net_arch) for part in _NET_PARTS}


def _flat_dim(space: spaces.Space) -> int:
    if isinstance(space, spaces.Dict):
        return sum(get_flattened_obs_dim(part) for part in space.spaces.values())
    return get_flattened_obs_dim(space)


class CnnPolicy(LVGTSPolicy):
    """For images: SB3's ``NatureCNN`` before the encoder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": NatureCNN, **kwargs})


class MultiInputPolicy(LVGTSPolicy):
    """For dict observations: SB3's ``CombinedExtractor`` before the encoder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


MlpPolicy = LVGTSPolicy

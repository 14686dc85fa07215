"""Networks beside the policy, built from the policy's own parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from torch import Tensor, nn

from tca_sb3.episodes import Observations

_OTHER_IN_TRAINING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.RNNBase)


class ObservationEncoder(nn.Module):
    """Raw observations to features: SB3's preprocessing and a fresh features extractor of the policy's class.

    :param policy: the policy to take the class and its arguments from; no parameter is shared with it.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.observation_space = policy.observation_space
        self.normalize_images = policy.normalize_images
        self.extractor = policy.make_features_extractor()
        self.features_dim = self.extractor.features_dim

    def forward(self, observations: Observations) -> Tensor:
        """``(n, *observation shape)`` to ``(n, features_dim)``."""
        processed = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
        return self.extractor(processed)


class RegularValue(nn.Module):
    """``v_φ(s)``: a critic of its own with the architecture of the policy's."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.encoder = ObservationEncoder(policy)
        net_arch: Any = policy.net_arch
        widths = net_arch.get("vf", []) if isinstance(net_arch, dict) else net_arch
        self.hidden = MlpExtractor(
            self.encoder.features_dim, {"pi": [], "vf": list(widths)}, policy.activation_fn, device="cpu"
        )
        self.head = nn.Linear(self.hidden.latent_dim_vf, 1)

    def forward(self, observations: Observations) -> Tensor:
        """``(n, *observation shape)`` to ``(n, 1)``."""
        return self.head(self.hidden.forward_critic(self.encoder(observations)))


def values_and_features(policy: ActorCriticPolicy, observations: Observations) -> tuple[Tensor, Tensor]:
    """``v_ψ(s)``, ``(n, 1)``, and the hidden features it is a linear function of, from one pass."""
    hidden: list[Tensor] = []
    # What value_net is given, whatever the policy's class does before it.
    hook = policy.value_net.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    try:
        values = policy.predict_values(observations)
    finally:
        hook.remove()
    return values, hidden[-1]


def critic_width(policy: ActorCriticPolicy, who: str) -> int:
    """The number of those features.

    :param who: what needs them, for the message.
    :raises ValueError: if the policy's value is not the output of one linear layer called ``value_net``.
    """
    if not isinstance(getattr(policy, "value_net", None), nn.Linear):
        raise ValueError(
            f"{who} needs a policy whose value is the linear layer value_net, and {type(policy).__name__} has none; "
            f"leave {who} out."
        )
    return policy.value_net.in_features


class CriticFeatures(nn.Module):
    """Raw observations to the hidden features of the policy's critic: instead of an :class:`ObservationEncoder`, for
    weights without a trunk of their own. Ours.

    ``estimator_kwargs=dict(encoder_class=CriticFeatures)``. Features are constants: neither the metagradient nor the
    estimator trains the critic. They change as the critic learns.

    :param policy: the policy; no parameter of it becomes this module's.
    :raises ValueError: as :func:`critic_width`.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.features_dim = critic_width(policy, "encoder_class=CriticFeatures")
        self._policy = (policy,)  # torch does not look for modules in a tuple

    def forward(self, observations: Observations) -> Tensor:
        """``(n, *observation shape)`` to ``(n, features_dim)``."""
        with torch.no_grad():
            return values_and_features(self._policy[0], observations)[1]


class CriticHead(nn.Module):
    """``v_φ(s)`` as a second head on the policy's critic, whose hidden layers serve both.

    :param policy: the policy. Its parameters are used, and are not this module's: those are the head's alone.
    :raises ValueError: as :func:`critic_width`.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self._policy = (policy,)  # torch does not look for modules in a tuple
        self.head = nn.Linear(critic_width(policy, "shared_critic=True"), 1)

    def forward(self, observations: Observations) -> Tensor:
        """``(n, *observation shape)`` to ``(n, 1)``."""
        return self.both(observations)[1]

    def both(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """``v_ψ(s)`` and ``v_φ(s)`` from one pass, each ``(n, 1)``."""
        values, hidden = values_and_features(self._policy[0], observations)
        return values, self.head(hidden)


def critic_parameters(policy: ActorCriticPolicy, observations: Any) -> list[nn.Parameter]:
    """Parameters that the policy's value depends on and its distribution does not.

    :param observations: any batch of raw observations, as arrays or a dict of arrays.
    """
    states = policy.obs_to_tensor(observations)[0]
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    training = policy.training
    policy.set_training_mode(False)  # a look must not move what batch normalisation remembers
    with torch.enable_grad():
        value = policy.predict_values(states).sum()
        distribution = policy.get_distribution(states)
        acted = distribution.log_prob(distribution.mode()).sum()
    policy.set_training_mode(training)
    by_value = torch.autograd.grad(value, parameters, allow_unused=True)
    by_policy = torch.autograd.grad(acted, parameters, allow_unused=True)
    return [
        parameter
        for parameter, mine, theirs in zip(parameters, by_value, by_policy, strict=True)
        if mine is not None and theirs is None
    ]


def same_in_training(policy: ActorCriticPolicy) -> bool:
    """Whether the policy is known to compute the same in training mode as in evaluation mode: all parts are ours,
    SB3's or torch's, none is random, and none looks at its batch or its mode."""
    return all(
        type(module).__module__.split(".")[0] in ("torch", "stable_baselines3", "tca_sb3")
        and not isinstance(module, _OTHER_IN_TRAINING)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        for module in policy.modules()
    )


class TileExtractor(BaseFeaturesExtractor):
    """For images in which a pixel is a thing: gridworlds drawn with one pixel a cell.

    Stable-Baselines3's own image network halves the image three times and refuses images under 36 × 36. This one
    keeps every cell: 3 × 3 convolutions without stride, then one linear layer; or, without convolutions, the image
    flattened. Of a ``Dict`` observation, images go through that and everything else is flattened beside them.

    Use it as ``policy_kwargs=dict(features_extractor_class=TileExtractor)``. Sizes are ours.

    :param observation_space: an image, or a ``Dict`` with images in it.
    :param channels: output channels of the convolutions; ``()`` flattens the image.
    :param image_dim: features of an image after the linear layer; unused without convolutions.
    :raises ValueError: if a size is not positive.
    """

    def __init__(
        self, observation_space: spaces.Space, channels: Sequence[int] = (16, 32), image_dim: int = 64
    ) -> None:
        if min([image_dim, *channels]) < 1:
            raise ValueError(
                f"TileExtractor got channels={tuple(channels)}, image_dim={image_dim}; sizes must be at least 1."
            )
        parts = dict(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else {}
        branches = {
            name: _tile_branch(part, channels, image_dim) for name, part in (parts or {"": observation_space}).items()
        }
        super().__init__(observation_space, features_dim=sum(width for _, width in branches.values()))
        self.keys = tuple(parts)
        self.branches = nn.ModuleList(branch for branch, _ in branches.values())

    def forward(self, observations: Observations) -> Tensor:
        """Preprocessed observations to features ``(n, features_dim)``."""
        if isinstance(observations, Tensor):
            return self.branches[0](observations)
        return torch.cat(
            [branch(observations[key]) for key, branch in zip(self.keys, self.branches, strict=True)], dim=1
        )


def _tile_branch(space: spaces.Space, channels: Sequence[int], image_dim: int) -> tuple[nn.Module, int]:
    """The network of one observation, and its number of features."""
    if not (channels and is_image_space(space, normalized_image=False)):
        return nn.Flatten(), get_flattened_obs_dim(space)
    shape = space.shape
    assert shape is not None
    layers: list[nn.Module] = []
    width = shape[0]  # SB3 hands over images channels first
    for channel in channels:
        layers += [nn.Conv2d(width, channel, kernel_size=3, padding=1), nn.ReLU()]
        width = channel
    pixels = shape[1] * shape[2]
    layers += [nn.Flatten(), nn.Linear(width * pixels, image_dim), nn.ReLU()]
    return nn.Sequential(*layers), image_dim

"""Networks beside the policy, built from the policy's own parts."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from tca_sb3.episodes import Observations


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

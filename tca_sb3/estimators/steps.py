"""What networks inside estimators read: states through the policy's kind of encoder, and actions."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes, Observations, map_observations
from tca_sb3.weights.base import MakeEncoder, new_encoder


class StateEncoder(nn.Module):
    """Features of states, each entry standardised by its mean and deviation in the first rollout.

    What a state has in common with all others (the walls of a room) is most of an image and drowns the rest: without
    this an LSTM on the images of Key-to-Door learned nothing in thousands of steps, with it the return within a
    hundred. Entries that did not vary keep their unit, and nothing goes beyond 5 deviations. The moments stay what they
    were in the first rollout, so that the advantages of a rollout do not change after it. Ours.

    :param who: the estimator's name, for the message.
    :param make_encoder: builds the observation encoder; required, the algorithms pass the policy's.
    :raises ValueError: if it is missing.
    """

    mean: Tensor
    scale: Tensor
    calibrated: Tensor

    def __init__(self, who: str, make_encoder: MakeEncoder | None) -> None:
        super().__init__()
        self.encoder, self.features_dim = new_encoder(who, make_encoder)
        self.register_buffer("mean", torch.zeros(self.features_dim))
        self.register_buffer("scale", torch.ones(self.features_dim))
        self.register_buffer("calibrated", torch.tensor(False))

    def calibrate(self, episodes: Episodes) -> None:
        """Take mean and deviation from the states of the first rollout; of later ones, nothing."""
        if self.calibrated:
            return
        with torch.no_grad():
            features = self.encoder(episodes.flat_observations)
        deviation = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(torch.where(deviation > 1e-4, deviation, 1.0))
        self.calibrated.fill_(True)

    def encode(self, observations: Observations) -> Tensor:
        """``(n, *observation shape)`` to ``(n, features_dim)``."""
        return ((self.encoder(observations) - self.mean) / self.scale).clamp(-5.0, 5.0)

    def forward(self, episodes: Episodes) -> Tensor:
        """Features of ``S_0 … S_T``, shape ``(T + 1, B, features_dim)``."""
        states = map_observations(lambda part: part.flatten(0, 1), episodes.observations)
        return self.encode(states).view(episodes.horizon + 1, episodes.batch_size, self.features_dim)


class ActionEncoder(nn.Module):
    """Actions as numbers: one-hot where they are choices.

    :param who: the estimator's name, for the message.
    :param action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or ``Box``; required, the algorithms pass
        theirs.
    :raises ValueError: if it is missing or another.
    """

    def __init__(self, who: str, action_space: spaces.Space | None) -> None:
        super().__init__()
        self.n_choices = 0
        if isinstance(action_space, spaces.Discrete):
            self.n_choices = int(action_space.n)
        elif isinstance(action_space, spaces.MultiDiscrete):
            self.n_choices = int(action_space.nvec.max())
        elif not isinstance(action_space, spaces.MultiBinary | spaces.Box):
            raise ValueError(
                f"{who} got action_space={action_space}; it reads actions of Discrete, MultiDiscrete, MultiBinary and "
                "Box spaces, and the algorithms of tca_sb3 pass the environment's."
            )
        assert action_space.shape is not None
        self.features_dim = int(np.prod(action_space.shape)) * max(self.n_choices, 1)

    def forward(self, episodes: Episodes) -> Tensor:
        """``A_0 … A_{T-1}``, shape ``(T, B, features_dim)``; bool where actions are choices."""
        actions = episodes.actions.flatten(2)
        if not self.n_choices:
            return actions
        # Not F.one_hot, which refuses what padding may hold.
        return (actions.unsqueeze(3) == torch.arange(self.n_choices, device=actions.device)).flatten(2)

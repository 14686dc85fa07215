"""An episode step by step, as estimators with a sequence network read it."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes, map_observations
from tca_sb3.weights.base import MakeEncoder


class StepEncoder(nn.Module):
    """States through the policy's kind of encoder, actions one-hot where they are choices.

    :param who: the estimator's name, for messages.
    :param make_encoder: builds the observation encoder; required, the algorithms pass the policy's.
    :param action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or ``Box``; required, the algorithms pass
        theirs.
    :raises ValueError: if one of them is missing.
    """

    def __init__(self, who: str, make_encoder: MakeEncoder | None, action_space: spaces.Space | None) -> None:
        super().__init__()
        if make_encoder is None or action_space is None or action_space.shape is None:
            raise ValueError(
                f"{who} reads states and actions; it needs make_encoder, a function that builds an observation "
                f"encoder with a features_dim, and action_space, here {action_space}. The algorithms of tca_sb3 "
                "pass both."
            )
        self.encoder = make_encoder()
        self.state_dim = int(self.encoder.features_dim)  # type: ignore[arg-type]
        self.n_choices = 0
        if isinstance(action_space, spaces.Discrete):
            self.n_choices = int(action_space.n)
        elif isinstance(action_space, spaces.MultiDiscrete):
            self.n_choices = int(action_space.nvec.max())
        self.action_dim = int(np.prod(action_space.shape)) * max(self.n_choices, 1)

    def states(self, episodes: Episodes) -> Tensor:
        """Features of ``S_0 … S_T``, shape ``(T + 1, B, state_dim)``."""
        states = map_observations(lambda part: part.flatten(0, 1), episodes.observations)
        return self.encoder(states).view(episodes.horizon + 1, episodes.batch_size, self.state_dim)

    def actions(self, episodes: Episodes) -> Tensor:
        """``A_0 … A_{T-1}``, shape ``(T, B, action_dim)``; bool where actions are choices."""
        actions = episodes.actions.flatten(2)
        if not self.n_choices:
            return actions
        # Not F.one_hot, which refuses what padding may hold.
        return (actions.unsqueeze(3) == torch.arange(self.n_choices, device=actions.device)).flatten(2)

"""The tabular actor-critic of §5.1."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from tca_sb3.weights.tabular import require_discrete


class TabularPolicy(ActorCriticPolicy):
    """One logit for each state and action, one value for each state; all start at 0.

    SB3's ``MlpPolicy`` with ``net_arch=[]`` comes close, but its biases tie all states together. All arguments are
    SB3's; ``net_arch`` is fixed.

    :raises TypeError: if the observation space is not ``Discrete(n)`` starting at 0, or the action space not
        ``Discrete``.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Schedule, **kwargs: Any
    ) -> None:
        require_discrete("TabularPolicy", observation_space)
        if not isinstance(action_space, spaces.Discrete):
            raise TypeError(f"TabularPolicy got the action space {action_space}; it needs Discrete(n).")
        kwargs.pop("net_arch", None)
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        for name in ("action_net", "value_net"):
            table = nn.Linear(self.features_dim, getattr(self, name).out_features, bias=False)
            nn.init.zeros_(table.weight)
            setattr(self, name, table)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

"""Small double-precision actor-critics with the face of SB3's: the ordinary ones and the awkward ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from samples import N_STATES, generator
from torch import Tensor, nn

N_ACTIONS = 3


class Policy(nn.Module):
    """Features for the actor and for the critic, a head on each; categorical actions.

    :param actor: from observations to ``(n, 4)``.
    :param critic: the same; may be the same module.
    """

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.action_space: spaces.Space = spaces.Discrete(N_ACTIONS)
        self.actor = actor
        self.critic = critic
        self.action_net = nn.Linear(4, N_ACTIONS)
        self.value_net = nn.Linear(4, 1)

    def evaluate_actions(self, observations: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        features = self.actor(observations)
        distribution = torch.distributions.Categorical(logits=self.action_net(features))
        # As in SB3: a shared extractor is evaluated once.
        values = self.value_net(features if self.critic is self.actor else self.critic(observations))
        return values, distribution.log_prob(actions), distribution.entropy()


class Gaussian(Policy):
    """Continuous actions with a state-independent spread: a parameter in no layer."""

    def __init__(self) -> None:
        super().__init__(mlp(), mlp())
        self.action_space = spaces.Box(-1, 1, (N_ACTIONS,))
        self.log_std = nn.Parameter(torch.full((N_ACTIONS,), -0.3))

    def evaluate_actions(self, observations: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        normal = torch.distributions.Normal(self.action_net(self.actor(observations)), self.log_std.exp())
        values = self.value_net(self.critic(observations))
        return values, normal.log_prob(actions).sum(1), normal.entropy().sum(1)


class Conv(nn.Module):
    """Stride, padding, dilation and groups, none of them 1."""

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode=padding_mode)
        self.second = nn.Conv2d(4, 4, 2, dilation=2, groups=2, bias=False)
        self.last = nn.Linear(4 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).relu().flatten(1)).tanh()


class Worded(nn.Module):
    """A convolution whose padding is a word."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding="same")
        self.last = nn.Linear(2 * 7 * 7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh().flatten(1)).tanh()


class Sequence(nn.Module):
    """A layer applied at every position of ``(n, 3, 2)``."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x.unflatten(1, (3, 2))).tanh().sum(1)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.again = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.again(self.first(x).tanh()).tanh())


class Tied(nn.Module):
    """The layer's weight is used a second time behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.again = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.again(self.first(x).tanh()).tanh(), self.again.weight)


class Doubled(nn.Linear):
    """A linear layer whose output is not ``x Wᵀ + b``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


class Mixing(nn.Module):
    """A parameter that sits in no layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nd,d->nd", self.first(x), self.scale).tanh()


class Transposed(nn.Module):
    """Layer inputs whose first axis is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x.T.unsqueeze(2)).tanh().sum(0)


class DictExtractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(N_STATES, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return torch.cat([self.a(x["a"]), self.b(F.one_hot(x["b"], N_STATES).to(self.b.weight))], dim=1).tanh()


def mlp(*activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), *(activation or [nn.Tanh()]), nn.Linear(5, 4), nn.Tanh())


def shared(trunk: nn.Module) -> Policy:
    return Policy(trunk, trunk)


def frozen() -> Policy:
    """A features extractor that was trained elsewhere and stays as it is."""
    policy = Policy(mlp(), mlp())
    policy.actor[0].requires_grad_(False)
    return policy


# Policies that consist of plain layers used once, which the score tape must cover.
PLAIN: dict[str, Callable[[], Policy]] = {
    "mlp": lambda: Policy(mlp(), mlp()),
    "shared trunk": lambda: shared(mlp()),
    "conv": lambda: Policy(Conv(), Conv()),
    "shared conv": lambda: shared(Conv()),
    "conv with a word for its padding": lambda: Policy(Worded(), Worded()),
    "sequence": lambda: shared(Sequence()),
    "dict": lambda: shared(DictExtractor()),
}
# Policies that the tape cannot cover, or not without care.
AWKWARD: dict[str, Callable[[], Policy]] = {
    "gaussian": Gaussian,
    "layer norm": lambda: shared(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh())),
    "circular padding": lambda: shared(Conv("circular")),
    "a layer used twice": lambda: shared(Reused()),
    "a weight used twice": lambda: shared(Tied()),
    "activation in place": lambda: Policy(mlp(nn.ReLU(inplace=True)), mlp(nn.ELU(inplace=True))),
    "subclassed layer": lambda: shared(nn.Sequential(Doubled(6, 4), nn.Tanh())),
    "parametrised layer": lambda: shared(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh())
    ),
    "a parameter in no layer": lambda: shared(Mixing()),
    "batch second": lambda: shared(Transposed()),
    "batch normalisation": lambda: shared(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh())),
    "frozen layer": frozen,
}
KINDS = {**PLAIN, **AWKWARD}


def make(kind: str, dtype: torch.dtype = torch.float64) -> Policy:
    torch.manual_seed(3)
    policy = KINDS[kind]().to(dtype).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=dtype))
    return policy


def batch(kind: str, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """Observations and actions for a policy of that kind."""
    draw = generator(seed)
    observations: Any
    if "conv" in kind or "circular" in kind:
        observations = torch.randn(n, 2, 7, 7, generator=draw, dtype=dtype)
    elif kind == "dict":
        observations = {
            "a": torch.randn(n, 2, generator=draw, dtype=dtype),
            "b": torch.randint(N_STATES, (n,), generator=draw),
        }
    else:
        observations = torch.randn(n, 6, generator=draw, dtype=dtype)
    if kind == "gaussian":
        return observations, torch.randn(n, N_ACTIONS, generator=draw, dtype=dtype)
    return observations, torch.randint(N_ACTIONS, (n,), generator=draw)

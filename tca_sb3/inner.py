"""The optimiser's step as a differentiable function: ``θ′ = θ − U(g)``.

One instance of :class:`InnerOptimizer` holds the settings of a ``torch.optim`` optimiser and the norm clipping
that SB3 does before it. Parameters, gradients and optimiser state are flat vectors (any leading shape works: every
rule but the clipping is element-wise).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

OptimizerState = dict[str, Tensor]

_REFUSED_OPTIONS = ("momentum", "centered", "weight_decay", "nesterov", "amsgrad", "maximize", "dampening")


def safe_sqrt(x: Tensor) -> Tensor:
    """``√x`` with derivative 0 at 0, where the true one is infinite.

    There the whole derivative of an RMSprop or Adam step is finite, because ``√x`` is multiplied by the gradient
    that is 0 too. Without this, parameters that got no gradient (unvisited states) would turn the metagradient
    into NaN.
    """
    positive = x > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), 0.0)


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors of any shape into one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector into tensors named and shaped as ``like``; the inverse of :func:`flatten`."""
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"unflatten got a vector of shape {tuple(vector.shape)} for {sum(sizes)} numbers.")
    pieces = vector.split(sizes)
    return {name: piece.view_as(tensor) for (name, tensor), piece in zip(like.items(), pieces, strict=True)}


def clip_by_norm(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale a flat gradient to at most ``max_norm``, by the formula of ``torch.nn.utils.clip_grad_norm_``."""
    # The norm's own derivative is 0/0 at a zero gradient; clipping is then inactive.
    norm = safe_sqrt(gradient.square().sum(-1, keepdim=True))
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0)


@dataclass(frozen=True)
class InnerOptimizer:
    """The settings of one optimiser step.

    :param rule: ``"sgd"``, ``"rmsprop"`` (``eps`` outside the root, as in torch), ``"rmsprop_tf"`` (inside the
        root, as in SB3's ``RMSpropTFLike``) or ``"adam"``.
    :param lr: learning rate; a tensor that broadcasts against the parameters gives each lifetime its own.
    :param eps: the term in the denominator; unused by SGD.
    :param alpha: RMSprop's decay.
    :param betas: Adam's decays.
    :param max_grad_norm: clip the gradient to this norm first; ``None`` to leave it.
    """

    rule: str
    lr: float | Tensor
    eps: float = 0.0
    alpha: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in ("sgd", "rmsprop", "rmsprop_tf", "adam"):
            raise ValueError(f"InnerOptimizer got rule={self.rule!r}; write 'sgd', 'rmsprop', 'rmsprop_tf' or 'adam'.")
        for name in ("lr", "eps", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not bool((torch.as_tensor(value) >= 0).all()):
                raise ValueError(f"InnerOptimizer got {name}={value}; it must be at least 0.")

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> InnerOptimizer:
        """Read the settings of a live optimiser.

        :raises ValueError: if it is of a kind, or has an option switched on, that has no differentiable step here.
        """
        kinds = {"SGD": "sgd", "RMSprop": "rmsprop", "RMSpropTFLike": "rmsprop_tf", "Adam": "adam"}
        rule = kinds.get(type(optimizer).__name__)
        if rule is None or len(optimizer.param_groups) != 1:
            raise ValueError(
                f"The metagradient differentiates the optimiser's step and cannot do so for {type(optimizer).__name__} "
                f"with {len(optimizer.param_groups)} parameter group(s); use one group under SGD, RMSprop, "
                "RMSpropTFLike or Adam."
            )
        group = optimizer.param_groups[0]
        active = [option for option in _REFUSED_OPTIONS if group.get(option)]
        if active:
            raise ValueError(
                f"The metagradient has no differentiable step for {type(optimizer).__name__} with {', '.join(active)} "
                "switched on; leave these options at their defaults."
            )
        return cls(
            rule,
            lr=float(group["lr"]),
            eps=group.get("eps", 0.0),
            alpha=group.get("alpha", 0.99),
            betas=group.get("betas", (0.9, 0.999)),
            max_grad_norm=max_grad_norm,
        )

    def initial_state(self, parameters: Tensor) -> OptimizerState:
        """The state before the first step, shaped like ``parameters``."""
        zeros = torch.zeros_like(parameters)
        if self.rule == "sgd":
            return {}
        if self.rule == "adam":
            # Double precision: 1 − β₂ ** step would lose five digits in single.
            return {"exp_avg": zeros, "exp_avg_sq": zeros, "step": torch.zeros((), dtype=torch.float64)}
        # SB3's RMSpropTFLike starts from ones, as TensorFlow does.
        return {"square_avg": torch.ones_like(parameters) if self.rule == "rmsprop_tf" else zeros}

    def state_of(self, optimizer: torch.optim.Optimizer) -> OptimizerState:
        """A flat copy of a live optimiser's state."""
        parameters = optimizer.param_groups[0]["params"]
        state = self.initial_state(flatten(p.detach() for p in parameters))
        for name, start in state.items():
            if name == "step":
                steps = [optimizer.state[p]["step"] for p in parameters if "step" in optimizer.state[p]]
                state[name] = torch.tensor(float(max(steps, default=0.0)), dtype=start.dtype)
            else:
                default = unflatten(start, {str(i): p for i, p in enumerate(parameters)})
                state[name] = flatten(
                    optimizer.state[p].get(name, fresh).detach()
                    for p, fresh in zip(parameters, default.values(), strict=True)
                )
        return state

    def update(self, gradient: Tensor, state: OptimizerState) -> tuple[Tensor, OptimizerState]:
        """``U(g)`` and the next state; differentiable, and finite at a zero gradient.

        :param gradient: before clipping, shape ``(..., n_parameters)``.
        :param state: as :meth:`initial_state` or :meth:`state_of` give it.
        :return: the decrement ``U(g)`` of the parameters, and the state after the step.
        """
        if self.max_grad_norm is not None and math.isfinite(self.max_grad_norm):
            gradient = clip_by_norm(gradient, self.max_grad_norm)
        if self.rule == "sgd":
            return self.lr * gradient, {}
        if self.rule == "adam":
            beta1, beta2 = self.betas
            step = state["step"] + 1
            mean = beta1 * state["exp_avg"] + (1 - beta1) * gradient
            square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient.square()
            root = safe_sqrt(square) / (1 - beta2**step) ** 0.5
            decrement = self.lr / (1 - beta1**step) * mean / (root + self.eps)
            return decrement, {"exp_avg": mean, "exp_avg_sq": square, "step": step}
        square = self.alpha * state["square_avg"] + (1 - self.alpha) * gradient.square()
        root = safe_sqrt(square + self.eps) if self.rule == "rmsprop_tf" else safe_sqrt(square) + self.eps
        return self.lr * gradient / root, {"square_avg": square}

    def pull_back(self, gradient: Tensor, state: OptimizerState, cotangent: Tensor) -> Tensor:
        """``(∂U/∂g)ᵀ q``, with the optimiser's state held fixed.

        :param gradient: ``g`` of the step that was made.
        :param state: the state before that step.
        :param cotangent: ``q``, shaped like ``gradient``.
        :return: shaped like ``gradient``.
        """
        leaf = gradient.detach().requires_grad_()
        with torch.enable_grad():
            decrement, _ = self.update(leaf, state)
        return torch.autograd.grad(decrement, leaf, cotangent)[0]

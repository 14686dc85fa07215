"""Directional derivatives of ``log π_θ(A_t|S_t)`` and ``v(S_t)``, one number for each step."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tca_sb3.episodes import Observations


class ActorCritic(Protocol):
    """The part of SB3's ``ActorCriticPolicy`` that the metagradient uses."""

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values ``(n, 1)``, log-probabilities ``(n,)`` and entropies ``(n,)`` of actions already taken."""


class _Evaluate(nn.Module):
    """Lets ``functional_call`` reach ``evaluate_actions`` (it calls ``forward``, which in SB3 samples)."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Observations, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.policy.evaluate_actions(observations, actions)  # type: ignore[operator]


def evaluate_with(
    policy: nn.Module, parameters: dict[str, Tensor], observations: Observations, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``policy.evaluate_actions`` under other parameters.

    ``tie_weights=False`` matters: SB3 registers one features extractor under three names, and with the default
    torch writes the substituted weights into the live module.
    """
    named = {f"policy.{name}": value for name, value in parameters.items()}
    return torch.func.functional_call(_Evaluate(policy), named, (observations, actions), tie_weights=False)


class Linearization:
    """A policy at one ``θ`` on one batch, ready to be differentiated along any direction ``u``.

    Where all parameters sit in ``Linear`` and ``Conv2d`` layers that are used once, it keeps each layer's input
    ``x_l`` and the derivative ``d_l`` of the outputs with respect to the layer's output (a *score tape*). Then
    ``D_u = Σ_l ⟨d_l, layer(x_l; u_l)⟩`` is one forward-sized pass. Every other policy takes forward-mode
    differentiation (``torch.func.jvp``), several times as slow and equally exact.

    :param policy: an SB3 actor-critic policy.
    :param observations: ``(n, ...)`` or a dict of such tensors.
    :param actions: ``(n, ...)`` as ``evaluate_actions`` takes them.
    :param parameters: the point ``θ``; the policy's own parameters by default.
    :param forward_mode: never use the tape.
    """

    def __init__(
        self,
        policy: nn.Module,
        observations: Observations,
        actions: Tensor,
        parameters: dict[str, Tensor] | None = None,
        forward_mode: bool = False,
    ) -> None:
        self._policy = policy
        self._observations = observations
        self._actions = actions
        live = dict(policy.named_parameters())
        self.parameters: dict[str, Tensor] = dict(live)
        if parameters is not None:
            self.parameters = {name: value.requires_grad_() for name, value in parameters.items()}
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        hooks = [
            module.register_forward_hook(lambda layer, inputs, output: calls.append((layer, inputs[0], output)))
            for module in policy.modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ]
        try:
            with torch.enable_grad():
                if parameters is None:
                    values, log_prob, entropy = policy.evaluate_actions(observations, actions)  # type: ignore[operator]
                else:
                    values, log_prob, entropy = evaluate_with(policy, self.parameters, observations, actions)
        finally:
            for hook in hooks:
                hook.remove()
        self.values: Tensor = values.flatten()
        self.log_prob: Tensor = log_prob
        self.entropy: Tensor | None = entropy
        names = {id(parameter): name for name, parameter in live.items()}
        self._layers = [
            (layer, names.get(id(layer.weight)), names.get(id(layer.bias)), inputs.detach(), output)
            for layer, inputs, output in calls
        ]
        self._tape: list[Any] | None = None
        self._taped = not forward_mode and self._tape_covers_policy()

    def _tape_covers_policy(self) -> bool:
        n = len(self.log_prob)
        seen: list[str] = []
        for layer, weight, bias, _, output in self._layers:
            if weight is None or output.shape[0] != n or getattr(layer, "padding_mode", "zeros") != "zeros":
                return False
            seen += [weight] if bias is None else [weight, bias]
        if len(seen) != len(set(seen)):
            return False
        rest = [value for name, value in self.parameters.items() if name not in seen and value.requires_grad]
        if not rest:
            return True
        total = self.log_prob.sum() + self.values.sum()
        # A parameter outside the taped layers is harmless only if nothing depends on it.
        return all(g is None for g in torch.autograd.grad(total, rest, retain_graph=True, allow_unused=True))

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradient of a loss made of ``values``, ``log_prob`` and ``entropy`` with respect to ``θ``; keeps the
        graph."""
        grads = torch.autograd.grad(loss, list(self.parameters.values()), retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(value) if grad is None else grad
            for (name, value), grad in zip(self.parameters.items(), grads, strict=True)
        }

    def freeze(self) -> None:
        """Record what :meth:`along` needs and let go of the graph. ``θ`` may change afterwards."""
        if self._taped:
            outputs = [output for *_, output in self._layers]
            deltas = []
            for scalar in (self.log_prob.sum(), self.values.sum()):
                deltas.append(torch.autograd.grad(scalar, outputs, retain_graph=True, allow_unused=True))
            self._tape = [
                (layer, weight, bias, inputs, d_log_prob, d_value)
                for (layer, weight, bias, inputs, _), d_log_prob, d_value in zip(self._layers, *deltas, strict=True)
            ]
        else:
            self.parameters = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._layers = []
        self.values, self.log_prob = self.values.detach(), self.log_prob.detach()
        self.entropy = None if self.entropy is None else self.entropy.detach()

    @torch.no_grad()
    def along(self, direction: dict[str, Tensor], values: bool = True) -> tuple[Tensor, Tensor]:
        """Differentiate along ``direction``; call :meth:`freeze` first.

        :param direction: ``u``, named and shaped as the policy's parameters.
        :param values: whether ``D_u v`` is wanted; zeros otherwise.
        :return: ``D_u log π_θ(A_t|S_t)`` and ``D_u v(S_t)``, each ``(n,)``.
        """
        if self._tape is None:
            return self._along_forward_mode(direction)
        along_log_prob, along_values = torch.zeros_like(self.log_prob), torch.zeros_like(self.values)
        for layer, weight, bias, inputs, d_log_prob, d_value in self._tape:
            if d_log_prob is None and (d_value is None or not values):
                continue
            u_bias = None if bias is None else direction[bias]
            if isinstance(layer, nn.Conv2d):
                moved = F.conv2d(
                    inputs,
                    direction[weight],
                    u_bias,
                    layer.stride,
                    layer.padding,
                    layer.dilation,
                    layer.groups,
                )
            else:
                moved = F.linear(inputs, direction[weight], u_bias)
            if d_log_prob is not None:
                along_log_prob += (d_log_prob * moved).flatten(1).sum(1)
            if values and d_value is not None:
                along_values += (d_value * moved).flatten(1).sum(1)
        return along_log_prob, along_values

    def _along_forward_mode(self, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def outputs(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            values, log_prob, _ = evaluate_with(self._policy, parameters, self._observations, self._actions)
            return log_prob, values.flatten()

        point = {name: value.detach() for name, value in self.parameters.items()}
        return torch.func.jvp(outputs, (point,), (direction,))[1]

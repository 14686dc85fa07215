"""Directional derivatives of ``log π_θ(A_t|S_t)`` and ``v(S_t)``, one number for each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from tca_sb3.episodes import Observations

_LOG_PROB, _VALUE = 0, 1


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


class _Call:
    """One use of a layer, as the hook saw it."""

    def __init__(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        self.layer: Any = layer
        self.inputs = inputs
        self.output = output
        self.weight: str | None = None
        self.bias: str | None = None
        self._versions = inputs._version, output._version

    @property
    def changed(self) -> bool:
        """An operation in place (``nn.ReLU(inplace=True)``) has come after; the tensors are no longer the layer's."""
        return (self.inputs._version, self.output._version) != self._versions


def _leaf_uses(*outputs: Tensor) -> list[int]:
    """The ids of the leaf tensors under the graph of ``outputs``, one entry for every edge that leads to one."""
    uses: list[int] = []
    nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if node is None:
                continue
            if hasattr(node, "variable"):
                uses.append(id(node.variable))
            elif node not in seen:
                seen.add(node)
                nodes.append(node)
    return uses


class _WithGradients(torch.autograd.Function):
    """A tensor computed elsewhere, and a function that gives the gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradients: Callable[[Tensor], list[Tensor]], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradients(cotangent)


def _weight_gradient(layer: Any, inputs: Tensor, deltas: Tensor) -> Tensor:
    """Of a layer's weight, from the derivative with respect to its output."""
    if isinstance(layer, nn.Conv2d):
        return conv2d_weight(
            inputs, layer.weight.shape, deltas, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    return deltas.flatten(0, -2).T @ inputs.flatten(0, -2)


def _taped_gradient(tape: list[Any], trained: Collection[str], output: int, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradient of ``Σ_n c_n output_n`` for trained parameters that it depends on, by name.

    A step's outputs depend on its own row of every layer alone, so that ``c`` weights the rows of the deltas.
    """
    found: dict[str, Tensor] = {}
    for layer, weight, bias, inputs, *deltas in tape:
        delta = deltas[output]
        if delta is None:
            continue
        delta = delta * cotangent.reshape(-1, *[1] * (delta.ndim - 1))
        if weight in trained:
            found[weight] = _weight_gradient(layer, inputs, delta)
        if bias in trained:
            found[bias] = delta.sum((0, 2, 3)) if isinstance(layer, nn.Conv2d) else delta.flatten(0, -2).sum(0)
    return found


def _double_backward(
    outputs: Callable[[dict[str, Tensor]], tuple[Tensor, ...]], point: dict[str, Tensor], direction: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    """Forward mode by two backward passes: ``vᵀ J`` is linear in ``v``, and its derivative along ``u`` is ``J u``."""
    with torch.enable_grad():
        leaves = {name: value.requires_grad_() for name, value in point.items()}
        result = []
        for output in outputs(leaves):
            v = torch.zeros_like(output, requires_grad=True)
            rows = torch.autograd.grad(output, list(leaves.values()), v, create_graph=True, allow_unused=True)
            along = [(row * direction[name]).sum() for name, row in zip(leaves, rows, strict=True) if row is not None]
            result.append(torch.autograd.grad(torch.stack(along).sum(), v, retain_graph=True)[0])
        return tuple(result)


class Linearization:
    """A policy at one ``θ`` on one batch, ready to be differentiated along any direction ``u``.

    Where all parameters sit in ``Linear`` and ``Conv2d`` layers that are used once, it keeps each layer's input
    ``x_l`` and the derivative ``d_l`` of the outputs with respect to the layer's output (a *score tape*). Then
    ``D_u = Σ_l ⟨d_l, layer(x_l; u_l)⟩`` is one forward-sized pass. Every other policy takes forward-mode
    differentiation (``torch.func.jvp``), several times as slow and equally exact, or two backward passes where an
    operator has no forward mode. Whether the tape covers a policy is read off the graph of the evaluation itself.

    Frozen parameters (``requires_grad=False``) are constants.

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
            self.parameters = {
                name: value.requires_grad_(live[name].requires_grad) for name, value in parameters.items()
            }
        calls: list[_Call] = []
        # Not isinstance: a subclass may compute something else.
        hooks = [
            module.register_forward_hook(lambda layer, inputs, output: calls.append(_Call(layer, inputs[0], output)))
            for module in policy.modules()
            if type(module) in (nn.Linear, nn.Conv2d)
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
        for call in calls:
            call.weight, call.bias = names.get(id(call.layer.weight)), names.get(id(call.layer.bias))
        # Without a trainable parameter a layer contributes nothing.
        self._calls = [call for call in calls if self._trains(call.weight) or self._trains(call.bias)]
        self._tape: list[Any] | None = None
        self._answer: tuple[list[Tensor], tuple[Tensor | None, ...]] | None = None
        self._taped = not forward_mode and self._tape_covers_policy()

    def _trains(self, name: str | None) -> bool:
        return name is not None and self.parameters[name].requires_grad

    def _tape_covers_policy(self) -> bool:
        """Every trainable parameter that the outputs depend on enters once, through a layer that is on the tape."""
        n = len(self.log_prob)
        for call in self._calls:
            layer = call.layer
            if call.weight is None or call.output.shape[0] != n or call.changed:
                return False
            if layer._forward_hooks or layer._forward_pre_hooks or getattr(layer, "padding_mode", "zeros") != "zeros":
                return False
        on_tape = Counter(name for call in self._calls for name in (call.weight, call.bias) if self._trains(name))
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        used = Counter(names.get(leaf) for leaf in _leaf_uses(self.log_prob, self.values))
        # A layer that leads nowhere is on the tape and not in the graph; it does no harm.
        return all(count == 1 and on_tape[name] == 1 for name, count in used.items())

    def input_of(self, layer: nn.Module) -> Tensor | None:
        """What a linear layer or convolution with parameters to train was given, one row a step; call it before
        :meth:`freeze`. ``None`` unless it was used once, on all steps."""
        inputs = [call.inputs for call in self._calls if call.layer is layer and not call.changed]
        return inputs[0].detach() if len(inputs) == 1 and len(inputs[0]) == len(self.log_prob) else None

    def log_prob_gradient(self, cotangent: Tensor) -> dict[str, Tensor]:
        """``Σ_n c_n ∇_θ log π_θ(A_n|S_n)``, named and shaped as ``θ``; call it before :meth:`freeze`.

        :param cotangent: ``c``, shape ``(n,)``.
        """
        trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        if self._gives_gradients:
            found = _taped_gradient(self._record(), trained, _LOG_PROB, cotangent)
        else:
            grads = torch.autograd.grad(
                self.log_prob, list(trained.values()), cotangent, retain_graph=True, allow_unused=True
            )
            found = {name: grad for name, grad in zip(trained, grads, strict=True) if grad is not None}
        return {
            name: found[name] if name in found else torch.zeros_like(value) for name, value in self.parameters.items()
        }

    @property
    def _gives_gradients(self) -> bool:
        """Whether the tape serves for gradients too; a padding in words has none in ``conv2d_weight``."""
        return self._taped and not any(isinstance(getattr(call.layer, "padding", 0), str) for call in self._calls)

    def _record(self) -> list[Any]:
        """The tape: of each layer itself, its parameters' names, its input, and both deltas."""
        if self._tape is None:
            outputs = [call.output for call in self._calls]
            deltas = []
            for scalar in (self.log_prob.sum(), self.values.sum()):
                deltas.append(torch.autograd.grad(scalar, outputs, retain_graph=True, allow_unused=True))
            self._tape = [
                (call.layer, call.weight, call.bias, call.inputs.detach(), d_log_prob, d_value)
                for call, d_log_prob, d_value in zip(self._calls, *deltas, strict=True)
            ]
        return self._tape

    def freeze(self) -> None:
        """Record what :meth:`along` needs and let go of the graph, but for what :meth:`answering` may give away.

        ``θ`` may change afterwards.
        """
        if self._taped:
            self._record()
            self._answer = [parameter.detach().clone() for parameter in self.parameters.values()], self._outputs()
        else:
            self.parameters = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._calls = []
        self.values, self.log_prob = self.values.detach(), self.log_prob.detach()
        self.entropy = None if self.entropy is None else self.entropy.detach()

    def _outputs(self) -> tuple[Tensor | None, ...]:
        """What ``evaluate_actions`` would give, values with their gradient from the tape where that is the cheaper."""
        values, tape = self.values, self._record()
        shared = any(d_log_prob is not None and d_value is not None for *_, d_log_prob, d_value in tape)
        if self._gives_gradients and not shared:
            names = [
                name
                for _, weight, bias, _, _, d_value in tape
                if d_value is not None
                for name in (weight, bias)
                if self._trains(name)
            ]

            # It knows the tape and not self, which holds the graph that holds it: nobody could collect that.
            def gradients(cotangent: Tensor) -> list[Tensor]:
                found = _taped_gradient(tape, names, _VALUE, cotangent)
                return [found[name] for name in names]

            with torch.enable_grad():
                values = _WithGradients.apply(values.detach(), gradients, *(self.parameters[name] for name in names))
        return values.unsqueeze(1), self.log_prob, self.entropy

    @contextmanager
    def answering(self, rows: Callable[[], Tensor] | None) -> Iterator[None]:
        """Inside, the first ``policy.evaluate_actions`` gives what was computed here, with its gradient.

        Where the tape does not cover the policy, or ``θ`` has moved, it computes as ever. Works once.

        :param rows: says which of the steps given here the call is about; ``None`` to leave ``evaluate_actions`` alone.
        """
        policy: Any = self._policy
        answer, self._answer = self._answer, None
        if (
            answer is None
            or rows is None
            or not all(torch.equal(p, then) for p, then in zip(policy.parameters(), answer[0], strict=True))
        ):
            yield
            return

        def evaluate_actions(observations: Observations, actions: Tensor) -> tuple[Tensor | None, ...]:
            del policy.evaluate_actions
            asked = rows()
            return tuple(None if output is None else output[asked] for output in answer[1])

        policy.evaluate_actions = evaluate_actions
        try:
            yield
        finally:
            vars(policy).pop("evaluate_actions", None)

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
            # The outer loss knows no critic: there u is 0 unless clipping by the norm couples it to the policy.
            if not direction[weight].any() and (u_bias is None or not u_bias.any()):
                continue
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
        try:
            log_prob, values = torch.func.jvp(outputs, (point,), (direction,))[1]
        except NotImplementedError:  # an operator without forward mode
            log_prob, values = _double_backward(outputs, point, direction)
        return log_prob, values

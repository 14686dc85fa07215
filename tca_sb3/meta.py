"""The outer loop: Eqs. 15 and 16.

One inner step is ``θ′ = θ − U(g)`` with ``g(η) = ∇_θ L_inner(θ; η, τ)``. By the chain rule

    ``∇_η J(θ′) = ∇_η [g(η) · u]``,  ``u = −(∂U/∂g)ᵀ ∇_θ′ J(θ′; τ′)``,

and ``g(η)·u`` needs only directional derivatives of ``log π_θ`` (and of ``v`` where the value targets depend on
``η``): no second-order graph is built (see :func:`tca_sb3.objectives.adjoint_loss`).

The policy is differentiated in evaluation mode. With batch normalisation or dropout in it, SB3's own step is another
function, and the metagradient is an approximation.

Reading note: as in the paper, the outer objective leaves out the effect of ``θ`` on later sampling, and ``v_ψ`` is
a constant.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from tca_sb3.directional import Linearization, evaluate_with
from tca_sb3.episodes import Episodes, map_observations
from tca_sb3.estimators.base import AdvantageEstimator, Estimate
from tca_sb3.inner import InnerOptimizer, OptimizerState, flatten, unflatten
from tca_sb3.objectives import adjoint_loss, center_scores, inner_loss, normalize, policy_gradient_loss, value_loss
from tca_sb3.returns import lambda_advantages, td_errors


def episode_values(value_net: Callable[[Any], Tensor], episodes: Episodes, known: Tensor | None = None) -> Tensor:
    """``v(S_0) … v(S_T)`` of every column, 0 in terminal states and in the padding.

    :param value_net: maps observations ``(n, ...)`` to values ``(n,)`` or ``(n, 1)``.
    :param known: its values of the episodes' flat steps, ``(n_steps,)``, if they have been computed already.
    :return: shape ``(T + 1, B)``.
    """
    if known is None:
        known = value_net(episodes.flat_observations).flatten()
    steps = episodes.unflatten(known)
    values = torch.cat([steps, torch.zeros_like(steps[:1])])
    columns = torch.nonzero(~episodes.terminated).flatten()
    if len(columns):
        last = episodes.lengths[columns]
        states = map_observations(lambda part: part[last, columns], episodes.observations)
        values[last, columns] = value_net(states).flatten()
    return values


def regular_advantages(episodes: Episodes, values: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """The outer loop's ``Ψ_t``: Eq. 8 with the regular value function, and its λ-returns.

    :param values: ``v_φ(S_0) … v_φ(S_T)``, shape ``(T + 1, B)``.
    :return: advantages and value targets, each ``(T, B)``, meaningless in the padding.
    """
    errors = td_errors(episodes.rewards, values, gamma) * episodes.mask
    advantages = lambda_advantages(errors, gamma, gae_lambda)
    return advantages, advantages + values[:-1]


def policy_actions(policy: Any, episodes: Episodes) -> Tensor:
    """The actions of ``episodes`` in the shape that an SB3 policy's ``evaluate_actions`` takes."""
    actions = episodes.flat_actions
    if type(policy.action_space).__name__ == "Discrete":
        return actions.long().flatten()
    return actions


@contextlib.contextmanager
def parameters_held(policy: nn.Module, values: Tensor) -> Iterator[None]:
    """The policy with other parameters inside the ``with`` block; no graph through it notices.

    :param values: flat, in the order of ``policy.parameters()``.
    """
    parameters = dict(policy.named_parameters())
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, part in unflatten(values, parameters).items():
            parameters[name].data = part
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


@dataclass
class InnerStep:
    """What an inner step was made of; enough to differentiate through it at any later time.

    :param parameters: ``θ`` before the step, flat.
    :param gradient: ``g``, before clipping, flat.
    :param optimizer: the optimiser's settings.
    :param optimizer_state: its state before the step.
    :param episodes: ``τ``.
    :param values: the critic's values of ``τ``, ``(T + 1, B)``.
    :param judged: those of ``v_φ`` when ``τ`` was judged, ``(T + 1, B)``.
    """

    parameters: Tensor
    gradient: Tensor
    optimizer: InnerOptimizer
    optimizer_state: OptimizerState
    episodes: Episodes
    values: Tensor
    judged: Tensor

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        episodes = {field.name: getattr(self.episodes, field.name) for field in fields(Episodes)}
        return {**plain, "optimizer": asdict(self.optimizer), "episodes": episodes}

    @classmethod
    def of(cls, state: dict[str, Any]) -> InnerStep:
        """What :meth:`state_dict` was made of."""
        made = {"optimizer": InnerOptimizer(**state["optimizer"]), "episodes": Episodes(**state["episodes"])}
        return cls(**{**state, **made})


class MetaLearner:
    """Holds and trains ``η``: what an estimator has the metagradient learn, its weight function as a rule.

    It owns what the outer loop adds to a model: the optimiser of ``η``, the regular value function ``v_φ`` with its
    optimiser, and the inner steps that are not judged yet. ``state_dict`` covers all of it, so that a resumed run
    continues exactly.

    :param estimator: the estimator whose ``meta_parameters()`` are ``η``.
    :param value_net: ``v_φ``, from observations ``(n, ...)`` to ``(n, 1)``; ``None`` where the policy's critic
        predicts the regular return and serves the outer loop too.
    :param learning_rate: of ``η`` (Adam).
    :param optimizer_kwargs: further arguments of that Adam, for instance ``dict(betas=(0.9, 0.99))``.
    :param value_learning_rate: of ``v_φ`` (Adam).
    :param gamma: discount of the outer objective.
    :param gae_lambda: λ of the outer advantage.
    :param outer_rollouts: how many of the rollouts that follow an inner step judge it, ``K``. 1 is the paper's
        algorithm: ``τ′`` is the next rollout. With more, ours, the outer gradient of Eq. 15 is the mean over the next
        ``K``, each under the policy of its time, as if ``τ′`` had ``K`` times the episodes; that later inner steps
        depend on this one is left out. Metagradients are products of two noisy gradients, and of one rollout's they are
        mostly noise. ``η`` then learns ``K`` rollouts late, and ``K`` of them are kept. Only what comes after an inner
        step may judge it: a running average of outer gradients contains the one of ``τ`` itself, from the very actions
        and rewards of the inner step, and is biased by that.
    :param update_interval: ``η`` moves once in so many rollouts: of the inner steps only the first, and every
        ``update_interval``-th from there, are judged. 1 is the paper's algorithm; more, ours, cost less.
    :param value_updates: steps of ``v_φ``'s optimiser for each rollout; more than one are made on equal shares of its
        steps, drawn anew, so that all together cost about one pass. Ours. Few steps leave ``v_φ`` behind in states that
        are rarely seen: the worth of having found something is then taken for a loss.
    :param center_scores: subtract from each ``D_u log π(A_t|S_t)`` what the other episodes at the same time, and both
        critics' values there, let one expect, see :func:`~tca_sb3.objectives.center_scores`. Ours; it leaves the
        expected metagradient as it is. For episodes that begin together and have phases.
    :param shared_critic: ``v_φ`` is a second head on the policy's critic instead of a network of its own: cheaper, and
        fitted together with the critic, in the model's ``critic_updates``. Ours.
    :raises ValueError: if the estimator has no parameters to learn, or a number is out of range.
    """

    def __init__(
        self,
        estimator: AdvantageEstimator,
        value_net: nn.Module | None,
        *,
        gamma: float,
        gae_lambda: float,
        learning_rate: float = 1e-3,
        optimizer_kwargs: dict[str, Any] | None = None,
        value_learning_rate: float = 1e-3,
        outer_rollouts: int = 1,
        update_interval: int = 1,
        value_updates: int = 1,
        center_scores: bool = False,
        shared_critic: bool = False,
    ) -> None:
        eta = estimator.meta_parameters()
        if not eta:
            raise ValueError(
                f"{type(estimator).__name__} has no parameters for the metagradient to learn; take an estimator that "
                "has some (PWTD or PWR with weights_class=Tabular or Product, StateLambda, ReturnGeneratingModel), or "
                "drop the outer loop."
            )
        if not (0.0 <= gamma <= 1.0 and 0.0 <= gae_lambda <= 1.0):
            raise ValueError(
                f"MetaLearner got gamma={gamma}, gae_lambda={gae_lambda} for the outer objective; "
                "both must lie in [0, 1]."
            )
        if not (learning_rate > 0 and value_learning_rate > 0):
            raise ValueError(
                f"MetaLearner got learning_rate={learning_rate}, value_learning_rate={value_learning_rate}; "
                "rates must be positive."
            )
        for name, number in (
            ("outer_rollouts", outer_rollouts),
            ("update_interval", update_interval),
            ("value_updates", value_updates),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"MetaLearner got {name}={number!r}; it must be a whole number from 1.")
        if value_updates > 1 and value_net is None:
            raise ValueError(
                f"MetaLearner got value_updates={value_updates} but the policy's critic serves as v_φ here, and "
                "train() fits it; leave value_updates out."
            )
        if value_updates > 1 and shared_critic:
            raise ValueError(
                f"MetaLearner got value_updates={value_updates} but v_φ is a head of the policy's critic here; it is "
                "fitted in the model's critic_updates: set those, and leave value_updates out."
            )
        if "lr" in (optimizer_kwargs or {}):
            raise ValueError("MetaLearner got lr in optimizer_kwargs; write learning_rate instead.")
        self.estimator = estimator
        self.value_net = value_net
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.outer_rollouts = outer_rollouts
        self.update_interval = update_interval
        self.value_updates = value_updates
        self.center_scores = center_scores
        self.shared_critic = shared_critic
        self.optimizer = torch.optim.Adam(eta, lr=learning_rate, **(optimizer_kwargs or {}))
        self.value_optimizer = (
            None if value_net is None else torch.optim.Adam(value_net.parameters(), lr=value_learning_rate)
        )
        # The latest inner steps, oldest first, with None for those that nobody judges; and the latest outer gradients.
        self._steps: deque[InnerStep | None] = deque(maxlen=outer_rollouts)
        self._n_steps = 0
        self._outer_gradients: deque[Tensor] = deque(maxlen=outer_rollouts)
        # What a shared v_φ is to be fitted to once the inner step is made; a save in between drops it.
        self._head_targets: Tensor | None = None
        # Caches of what can be recomputed from `_steps`, kept where a rollout judges the step before it; never saved.
        self._linearization: Linearization | None = None
        self._estimate: Estimate | None = None
        self._pending: tuple[Episodes, Tensor, Tensor, Linearization] | None = None

    def outer_step(
        self,
        policy: nn.Module,
        episodes: Episodes,
        values: Tensor,
        vf_coef: float,
        normalize_advantage: bool,
    ) -> dict[str, float]:
        """One move of ``η`` with ``τ′`` = ``episodes``, if an inner step came before; then fit ``v_φ``.

        :param policy: the policy at ``θ′``, with which ``episodes`` were collected.
        :param values: the critic's values of ``episodes``, ``(T + 1, B)``.
        :param vf_coef: the weight of the value loss in the inner loss.
        :param normalize_advantage: whether the inner loss normalises advantages.
        :return: what is worth logging.
        """
        linearization = Linearization(policy, episodes.flat_observations, policy_actions(policy, episodes))
        advantages, judged = self.judge(episodes, values, self._known_values(policy, linearization))
        outer_loss = policy_gradient_loss(episodes.flatten(advantages), linearization.log_prob)
        stats = {"outer_loss": outer_loss.item()}
        if any(step is not None for step in self._steps):  # this rollout judges one of them
            (cotangent,) = torch.autograd.grad(outer_loss, linearization.log_prob, retain_graph=True)
            self._outer_gradients.append(flatten(linearization.log_prob_gradient(cotangent).values()))
        linearization.freeze()
        if len(self._steps) == self.outer_rollouts and self._steps[0] is not None:
            # The gradients are those of all rollouts since that step.
            mean = sum(self._outer_gradients, torch.zeros_like(self._outer_gradients[0])) / self.outer_rollouts
            gradient = self.metagradient(policy, mean, vf_coef, normalize_advantage)
            stats["grad_norm"] = self.apply(gradient)
        self._pending = (episodes, values, judged, linearization)
        return stats

    def _known_values(self, policy: Any, linearization: Linearization) -> Tensor | None:
        """A shared ``v_φ`` of the steps that ``linearization`` holds, ``(n_steps,)``: their pass through the critic
        has been made."""
        head: Any = self.value_net
        features = linearization.input_of(policy.value_net) if self.shared_critic else None
        if features is None:
            return None
        with torch.no_grad():
            return head.head(features).flatten()

    def estimate(self, episodes: Episodes, values: Tensor) -> Estimate:
        """Advantages under the present ``η``; where the coming inner step is judged before ``η`` moves, they have their
        graph and are kept for that."""
        kept = self.outer_rollouts == 1 and self._judges_next
        with torch.set_grad_enabled(kept):
            estimate = self.estimator(episodes, values)
        self._estimate = estimate if kept else None
        return estimate

    def metagradient(
        self, policy: nn.Module, outer_gradient: Tensor, vf_coef: float, normalize_advantage: bool
    ) -> Sequence[Tensor | None]:
        """Eq. 15 through the oldest inner step that is not judged yet: at the present ``η``, with the derivative of the
        optimiser's step where that was made.

        :param outer_gradient: ``∇_θ′`` of the outer loss, flat.
        :return: the gradient of the outer loss with respect to each parameter in ``η``.
        """
        last = self._steps[0] if self._steps else None
        assert last is not None, "no inner step was recorded"
        pulled = last.optimizer.pull_back(last.gradient, last.optimizer_state, outer_gradient)
        named = dict(policy.named_parameters())
        linearization = self._linearization
        if linearization is None:
            linearization = Linearization(
                policy,
                last.episodes.flat_observations,
                policy_actions(policy, last.episodes),
                {name: part.clone() for name, part in unflatten(last.parameters, named).items()},
            )
            linearization.freeze()
        estimate = self._estimate
        if estimate is None:
            with parameters_held(policy, last.parameters), torch.enable_grad():  # an estimator may look at the critic
                estimate = self.estimator(last.episodes, last.values)
        targets = last.episodes.flatten(estimate.value_targets)
        along_log_prob, along_values = linearization.along(unflatten(-pulled, named), values=targets.requires_grad)
        inner_advantages = last.episodes.flatten(estimate.advantages)
        if normalize_advantage:
            inner_advantages = normalize(inner_advantages)
        if self.center_scores:
            known = torch.stack([last.values[:-1], last.judged[:-1]], 2)
            scores = center_scores(last.episodes.unflatten(along_log_prob), last.episodes.mask, known)
            along_log_prob = last.episodes.flatten(scores)
        loss = adjoint_loss(
            inner_advantages,
            targets,
            along_log_prob,
            along_values if targets.requires_grad else None,
            vf_coef,
        )
        eta = self.optimizer.param_groups[0]["params"]
        if not loss.requires_grad:  # η had no say in these episodes: λ(s), where all have one step
            return [None] * len(eta)
        return torch.autograd.grad(loss, eta, allow_unused=True)

    def apply(self, gradient: Sequence[Tensor | None]) -> float:
        """Move ``η``.

        :param gradient: of the outer loss, one entry for each parameter in ``η``, ``None`` for no effect.
        :return: the gradient's norm.
        """
        eta = self.optimizer.param_groups[0]["params"]
        for parameter, part in zip(eta, gradient, strict=True):
            parameter.grad = torch.zeros_like(parameter) if part is None else part
        norm = flatten(parameter.grad for parameter in eta).norm().item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def judge(self, episodes: Episodes, values: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outer loop's regular advantages of a rollout; then ``v_φ``, where it is a network of its own, is fitted
        to it.

        :param values: the critic's values, ``(T + 1, B)``; used where the critic is ``v_φ``.
        :param known: ``v_φ`` of the episodes' flat steps, ``(n_steps,)``, where that needs no pass any more.
        :return: ``Ψ_t``, ``(T, B)``, and the values of ``v_φ`` it was made with, ``(T + 1, B)``.
        """
        if self.value_net is None or self.value_optimizer is None:
            return regular_advantages(episodes, values, self.gamma, self.gae_lambda)[0], values
        with torch.set_grad_enabled(self.value_updates == 1 and not self.shared_critic):
            predicted = episode_values(self.value_net, episodes, known)
        judged = predicted.detach()
        advantages, targets = regular_advantages(episodes, judged, self.gamma, self.gae_lambda)
        wanted = episodes.flatten(targets)
        if self.shared_critic:
            self._head_targets = wanted
            return advantages, judged
        if self.value_updates == 1:  # the prediction has its graph already
            with torch.enable_grad():
                self._descend_value(value_loss(wanted, episodes.flatten(predicted[:-1])))
            return advantages, judged
        order = torch.randperm(episodes.n_steps, device=wanted.device)
        for rows in order.tensor_split(self.value_updates):
            if len(rows):  # none where there are fewer steps than updates
                self._fit_rows(self.value_net, episodes, wanted, rows)
        return advantages, judged

    def _fit_rows(self, value_net: nn.Module, episodes: Episodes, targets: Tensor, rows: Tensor) -> None:
        states = map_observations(lambda part: part[rows], episodes.flat_observations)
        with torch.enable_grad():
            self._descend_value(value_loss(targets[rows], value_net(states).flatten()))

    def _descend_value(self, loss: Tensor) -> None:
        assert self.value_optimizer is not None
        self.value_optimizer.zero_grad()
        loss.backward()
        self.value_optimizer.step()

    def take_head_targets(self) -> Tensor | None:
        """What a shared ``v_φ`` is still to be fitted to, once: the value targets of the rollout judged last, in the
        order of the episodes' flat steps; ``None`` if nothing is left."""
        targets, self._head_targets = self._head_targets, None
        return targets

    @contextlib.contextmanager
    def recording(
        self,
        policy: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        rows: Callable[[], Tensor] | None = None,
    ) -> Iterator[None]:
        """Record the inner step that is made inside the ``with`` block (SB3's own ``train()``).

        :param rows: gives the steps that ``train()`` asks ``policy.evaluate_actions`` about, as rows of the episodes'
            flat steps: then it is answered with what :meth:`outer_step` computed, see
            :meth:`~tca_sb3.directional.Linearization.answering`. ``None`` where the policy may compute something else
            in training mode.
        :raises ValueError: if the optimiser has no differentiable step here, or more than one gradient step is made.
        """
        assert self._pending is not None, "outer_step() comes before the inner step"
        if not self._judges_next:
            with self._pending[-1].answering(rows):
                yield
            self._end_step(None)
            return
        settings = InnerOptimizer.of(optimizer, max_grad_norm)
        state = settings.state_of(optimizer)
        parameters = list(policy.parameters())
        before = flatten(parameter.detach() for parameter in parameters)
        gradients: dict[int, Tensor] = {}

        def keep(parameter: Tensor) -> None:
            if id(parameter) in gradients:
                raise ValueError(
                    "The metagradient goes through one gradient step per rollout but the algorithm made another; "
                    "use A2C, or PPO with n_epochs=1 and batch_size equal to the whole rollout."
                )
            assert parameter.grad is not None
            gradients[id(parameter)] = parameter.grad.clone()

        hooks = [p.register_post_accumulate_grad_hook(keep) for p in parameters if p.requires_grad]
        try:
            with self._pending[-1].answering(rows):
                yield
        finally:
            for hook in hooks:
                hook.remove()
        gradient = flatten(gradients.get(id(p), torch.zeros_like(p)) for p in parameters)
        # The learning rate is read after the step: SB3 sets it from its schedule inside train().
        settings = InnerOptimizer.of(optimizer, max_grad_norm)
        episodes, values, judged, linearization = self._pending
        self._end_step(InnerStep(before, gradient, settings, state, episodes, values, judged))
        self._linearization = linearization if self.outer_rollouts == 1 else None

    @property
    def _judges_next(self) -> bool:
        """Whether the coming inner step is one that later rollouts judge."""
        return self._n_steps % self.update_interval == 0

    def _end_step(self, step: InnerStep | None) -> None:
        self._steps.append(step)
        self._n_steps += 1
        self._linearization = self._pending = None

    @property
    def outer_gradients(self) -> list[Tensor]:
        """The outer gradients of the last ``outer_rollouts`` rollouts, flat, oldest first: those that
        :meth:`metagradient` is given the mean of."""
        return list(self._outer_gradients)

    @property
    def awaits_inner_step(self) -> bool:
        """:meth:`outer_step` was called for the present rollout, and the inner step on it is still to come."""
        return self._pending is not None

    def forget(self) -> None:
        """Drop the inner steps that are not judged yet, for when ``θ`` is set from outside."""
        self._steps.clear()
        self._n_steps = 0
        self._outer_gradients.clear()
        self._linearization = self._estimate = self._pending = self._head_targets = None

    def reset_value(self, value_net: nn.Module) -> None:
        """Start ``v_φ`` and its optimiser afresh, from the parameters of ``value_net``."""
        assert self.value_net is not None and self.value_optimizer is not None
        self.value_net.load_state_dict(value_net.state_dict())
        self.value_optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything but ``η`` itself, which the estimator holds; tensors and plain values only."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "value_net": None if self.value_net is None else self.value_net.state_dict(),
            "value_optimizer": None if self.value_optimizer is None else self.value_optimizer.state_dict(),
            "outer_gradients": list(self._outer_gradients),
            "steps": [None if step is None else step.state_dict() for step in self._steps],
            "n_steps": self._n_steps,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.value_net is not None and self.value_optimizer is not None:
            self.value_net.load_state_dict(state["value_net"], strict=strict)
            self.value_optimizer.load_state_dict(state["value_optimizer"])
        self.forget()
        self._outer_gradients.extend(state["outer_gradients"])
        self._steps.extend(None if step is None else InnerStep.of(step) for step in state["steps"])
        self._n_steps = state["n_steps"]


def unroll(
    parameters: Tensor,
    optimizer: InnerOptimizer,
    inner_losses: Sequence[Callable[[Tensor], Tensor]],
    outer_losses: Sequence[Callable[[Tensor], Tensor]],
    optimizer_state: OptimizerState | None = None,
) -> tuple[Tensor, Tensor]:
    """Several inner steps with their graph, and the outer loss after each (§5.1, "inner-loop reset").

    ``θ_{i+1} = θ_i − U(∇_θ inner_losses[i](θ_i))``; the result is ``Σ_i outer_losses[i](θ_{i+1})``, whose gradient
    goes through all the preceding updates.

    :param parameters: ``θ_0``, shape ``(..., n_parameters)``; leading dimensions are independent lifetimes, then
        each loss must be a sum over lifetimes.
    :param optimizer: the inner optimiser's settings.
    :param inner_losses: functions of ``θ``; ``η`` is in their closures.
    :param outer_losses: functions of ``θ``, one for each inner step.
    :param optimizer_state: state before the first step; fresh by default.
    :return: the summed outer loss and the last ``θ``.
    """
    theta = parameters if parameters.requires_grad else parameters.detach().requires_grad_()
    state = optimizer.initial_state(theta) if optimizer_state is None else optimizer_state
    total = torch.zeros((), dtype=theta.dtype, device=theta.device)
    for inner, outer in zip(inner_losses, outer_losses, strict=True):
        (gradient,) = torch.autograd.grad(inner(theta), theta, create_graph=True)
        decrement, state = optimizer.update(gradient, state)
        theta = theta - decrement
        total = total + outer(theta)
    return total, theta


class Lifetime:
    """One lifetime of inner-loop reset: the rollouts since the parameters were drawn, and the outer step at its end.

    :param meta: holds ``η``, its optimiser and ``v_φ``.
    :param policy: the live policy, at ``θ_0``.
    :param ent_coef: of the inner loss.
    :param vf_coef: of the inner loss.
    :param normalize_advantage: whether the inner loss normalises advantages.
    """

    def __init__(
        self, meta: MetaLearner, policy: nn.Module, ent_coef: float, vf_coef: float, normalize_advantage: bool
    ) -> None:
        self.meta = meta
        self.policy = policy
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.normalize_advantage = normalize_advantage
        self.start = flatten(parameter.detach() for parameter in policy.parameters())
        self.rollouts: list[tuple[Episodes, Tensor, Tensor]] = []

    @property
    def n_rollouts(self) -> int:
        """How many rollouts have been added."""
        return len(self.rollouts)

    def add(self, episodes: Episodes, values: Tensor) -> None:
        """Take in the rollout of the present ``θ_i``, judge it with ``v_φ``, then fit ``v_φ`` to it.

        :param values: the critic's values, ``(T + 1, B)``.
        """
        self.rollouts.append((episodes, values, self.meta.judge(episodes, values)[0]))

    def outer_step(self, optimizer: InnerOptimizer) -> dict[str, float]:
        """Move ``η`` by the gradient through all inner updates.

        :param optimizer: the settings the updates were made with.
        :return: what is worth logging.
        """
        named = dict(self.policy.named_parameters())

        def evaluate(theta: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor | None]:
            parameters = unflatten(theta, named)
            return evaluate_with(
                self.policy, parameters, episodes.flat_observations, policy_actions(self.policy, episodes)
            )

        def inner(episodes: Episodes, critic_values: Tensor) -> Callable[[Tensor], Tensor]:
            def loss(theta: Tensor) -> Tensor:
                estimate = self.meta.estimator(episodes, critic_values)
                advantages = episodes.flatten(estimate.advantages)
                if self.normalize_advantage:
                    advantages = normalize(advantages)
                targets = episodes.flatten(estimate.value_targets)
                values, log_prob, entropy = evaluate(theta, episodes)
                return inner_loss(advantages, targets, log_prob, values.flatten(), entropy, self.ent_coef, self.vf_coef)

            return loss

        def outer(episodes: Episodes, advantages: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda theta: policy_gradient_loss(episodes.flatten(advantages), evaluate(theta, episodes)[1])

        with torch.enable_grad():
            loss, _ = unroll(
                self.start,
                optimizer,
                [inner(episodes, values) for episodes, values, _ in self.rollouts[:-1]],
                [outer(episodes, advantages) for episodes, _, advantages in self.rollouts[1:]],
            )
            eta = self.meta.optimizer.param_groups[0]["params"]
            gradient = torch.autograd.grad(loss, eta, allow_unused=True)
        return {"outer_loss": loss.item(), "grad_norm": self.meta.apply(gradient)}

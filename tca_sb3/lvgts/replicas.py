"""Several seeds at once: runs that differ in nothing but their seeds, trained side by side in one process.

The networks are so small that a gradient step costs more in bookkeeping than in arithmetic. Here one step moves the
networks of all runs, stacked along a first axis. Each run keeps its own environments, replay buffer and random
numbers, so that it is, up to rounding, the run that it would have been alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tca_sb3.lvgts.lvgts import LVGTS
from tca_sb3.lvgts.replay import EpisodeBatch
from tca_sb3.lvgts.world_model import ModelLosses


class _Method(nn.Module):
    """A method of one model as a module over its policy, so that the policy's parameters can be replaced."""

    def __init__(self, policy: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.policy, self.method = policy, method

    def forward(self, *arguments: Any) -> Any:
        return self.method(*arguments)


def _clip(gradients: list[Tensor], max_norm: float) -> Tensor:
    """What :meth:`LVGTS._descend` does to gradients, in place and run by run.

    :param gradients: of all runs, each ``(n, ...)``.
    :return: whose gradient was finite, bool, ``(n,)``.
    """
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    finite = norms.isfinite()
    some_lost = not finite.all()
    for gradient in gradients:
        ones = [1] * (gradient.ndim - 1)
        gradient.mul_(factors.reshape(-1, *ones))
        if some_lost:
            gradient.masked_fill_(~finite.reshape(-1, *ones), 0.0)
    return finite


class Replicas:
    """Runs side by side.

    While this object is in use the models' parameters are views of stacked ones, and the optimisers' moments are here;
    :meth:`release` gives the moments back. :func:`learn_together` does all of it.

    :param models: of one class, with one configuration and one episode length; only seeds and environments' seeds
        differ.
    :raises ValueError: if there is none, they differ in class, device or networks, or truncate by a window.
    """

    def __init__(self, models: Sequence[LVGTS]) -> None:
        if not models:
            raise ValueError("There is no model to train; pass at least one.")
        first = models[0]
        shapes = [{name: p.shape for name, p in model.policy.named_parameters()} for model in models]
        if any(type(model) is not type(first) or model.device != first.device for model in models) or any(
            mine != shapes[0] for mine in shapes
        ):
            raise ValueError(
                "These models differ in class, device or networks; runs side by side differ in seeds only."
            )
        if first.truncation_mode == "window":
            raise ValueError(
                "truncation_mode='window' differentiates inside its objective, which runs side by side cannot; train "
                "these models one by one, or with truncation_mode='block'."
            )
        self.models = list(models)
        self.stacked: dict[str, Tensor] = {}
        for name, _ in first.policy.named_parameters():
            mine = [model.policy.get_parameter(name) for model in models]
            stack = torch.stack([parameter.detach() for parameter in mine]).requires_grad_()
            self.stacked[name] = stack
            for parameter, row in zip(mine, stack.detach(), strict=True):
                parameter.data = row
        policy = first.policy
        self._max_grad_norm = first.max_grad_norm
        self.model_optimizer = self._stack_optimizer("model_optimizer")
        self.policy_optimizer = self._stack_optimizer("optimizer")
        self._model_loss = _Method(policy, first.model_loss)
        self._replay = _Method(policy, first.replay)
        self._policy_loss = _Method(policy, first.policy_loss)
        self._random = [torch.get_rng_state() for _ in models]

    def _names(self, parameters: list[nn.Parameter]) -> list[str]:
        names = {id(parameter): name for name, parameter in self.models[0].policy.named_parameters()}
        return [names[id(parameter)] for parameter in parameters]

    def _stacked_of(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        return [self.stacked[name] for name in self._names(parameters)]

    # -- optimisers ------------------------------------------------------------------------------------------------

    def _stack_optimizer(self, attribute: str) -> torch.optim.Optimizer:
        """One optimiser for the stacked parameters, which goes on from the models' own moments."""
        theirs: list[torch.optim.Optimizer] = [getattr(model.policy, attribute) for model in self.models]
        (group,) = theirs[0].param_groups
        options = {key: value for key, value in group.items() if key != "params"}
        parameters = self._stacked_of(group["params"])
        ours = type(theirs[0])(parameters, **options)
        for place, parameter in enumerate(parameters):
            states = [one.state.get(one.param_groups[0]["params"][place], {}) for one in theirs]
            if states[0]:
                ours.state[parameter] = {
                    key: torch.stack([state[key] for state in states]) if _is_moment(value, parameter[0]) else value
                    for key, value in states[0].items()
                }
        return ours

    def _unstack_optimizer(self, attribute: str, ours: torch.optim.Optimizer) -> None:
        for i, model in enumerate(self.models):
            optimizer: torch.optim.Optimizer = getattr(model.policy, attribute)
            pairs = zip(optimizer.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True)
            for parameter, stacked in pairs:
                optimizer.state[parameter] = {
                    key: value[i].clone() if _is_moment(value, stacked) else _copy(value)
                    for key, value in ours.state.get(stacked, {}).items()
                }

    def release(self) -> None:
        """Make the models independent of each other again."""
        self._unstack_optimizer("model_optimizer", self.model_optimizer)
        self._unstack_optimizer("optimizer", self.policy_optimizer)
        for model in self.models:
            for parameter in model.policy.parameters():
                parameter.data = parameter.detach().clone()

    # -- random numbers --------------------------------------------------------------------------------------------

    @contextmanager
    def turn_of(self, i: int) -> Iterator[LVGTS]:
        """The ``i``-th model draws from its own random numbers inside."""
        torch.set_rng_state(self._random[i])
        try:
            yield self.models[i]
        finally:
            self._random[i] = torch.get_rng_state()

    def seed(self) -> None:
        """Begin the random numbers of each model with its seed; with any, if it has none."""
        for i, model in enumerate(self.models):
            fresh = int(torch.randint(2**62, ()))
            with self.turn_of(i):
                torch.manual_seed(fresh if model.seed is None else model.seed)

    # -- training --------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """:meth:`LVGTS.train` of all models.

        :raises ValueError: if they are not equally far, or sampled episodes of different lengths.
        """
        due = {model._begin_training() for model in self.models}
        if len(due) > 1:
            raise ValueError(f"These models are not equally far (steps due: {sorted(due)}); train them one by one.")
        ((n_model, n_policy),) = due
        for ours, attribute in ((self.model_optimizer, "model_optimizer"), (self.policy_optimizer, "optimizer")):
            ours.param_groups[0]["lr"] = getattr(self.models[0].policy, attribute).param_groups[0]["lr"]
        losses: list[ModelLosses] = [self.model_step() for _ in range(n_model)]
        returns = [self.policy_step() for _ in range(n_policy)]
        for i, model in enumerate(self.models):
            mine = [ModelLosses(*(term[i] for term in terms)) for terms in losses]
            model._end_training(mine, [value[i] for value in returns])

    def model_step(self) -> ModelLosses:
        """:meth:`LVGTS.model_step` of all models, each on episodes of its own; terms of shape ``(n,)``."""
        batches = []
        for i in range(len(self.models)):
            with self.turn_of(i) as model:
                batches.append(model._sample())
        losses, terms = self._each(self._model_loss, _stack(batches))
        self._descend(losses, self.model_optimizer)
        return tree_map(torch.Tensor.detach, terms)

    def policy_step(self) -> Tensor:
        """:meth:`LVGTS.policy_step` of all models, each on episodes of its own; shape ``(n,)``."""
        batches, noises = [], []
        for i in range(len(self.models)):
            with self.turn_of(i) as model:
                batches.append(model._sample())
                noises.append(model.replay_noise(batches[-1]))
        batch, noise = _stack(batches), torch.stack(noises).requires_grad_()
        objectives, replay = self._each(self._replay, batch, noise)
        # No run's objective depends on another's noise, nor below on its parameters: the sum's gradient is theirs.
        (worth,) = torch.autograd.grad(objectives.sum(), noise)
        self._descend(self._each(self._policy_loss, replay, worth, batch.mask), self.policy_optimizer)
        return replay.value

    def _each(self, method: _Method, *arguments: Any) -> Any:
        """The method of all models, each with its own parameters and row of the arguments."""

        def one(parameters: dict[str, Tensor], *arguments: Any) -> Any:
            named = {f"policy.{name}": parameter for name, parameter in parameters.items()}
            return torch.func.functional_call(method, named, arguments, tie_weights=False)

        return torch.vmap(one)(self.stacked, *arguments)

    def _descend(self, losses: Tensor, optimizer: torch.optim.Optimizer) -> None:
        parameters = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        losses.sum().backward(inputs=parameters)
        finite = _clip([parameter.grad for parameter in parameters if parameter.grad is not None], self._max_grad_norm)
        if not finite.all():
            for model, well in zip(self.models, finite, strict=True):
                model._n_lost_gradients += int(not well)
        optimizer.step()


def _is_moment(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _stack(batches: list[EpisodeBatch]) -> EpisodeBatch:
    lengths = {batch.mask.shape[1] for batch in batches}
    if len(lengths) > 1:
        raise ValueError(
            f"The models sampled episodes of different lengths ({sorted(lengths)}); runs side by side need one length."
        )
    return tree_map(lambda *parts: torch.stack(parts), *batches)


def learn_together(
    models: Sequence[LVGTS], total_timesteps: int, callbacks: Sequence[MaybeCallback] | None = None
) -> None:
    """``model.learn(total_timesteps)`` of several models that differ in their seeds only, at a fraction of the time.

    Each becomes what ``torch.manual_seed(model.seed)`` and ``model.learn(total_timesteps)`` make of it, up to rounding.
    Nothing is logged.

    :param models: made alike, each with environments and a seed of its own, and not trained yet. Episodes have one
        length, and all models as many environments.
    :param total_timesteps: as in ``learn``, for each of them.
    :param callbacks: one for each model.
    :raises ValueError: if the models differ, have been trained, or get out of step; or a callback stops one of them.
    """
    callbacks = [None] * len(models) if callbacks is None else callbacks
    if len(callbacks) != len(models):
        raise ValueError(f"There are {len(models)} models and {len(callbacks)} callbacks; pass one for each.")
    if any(model.num_timesteps for model in models):
        raise ValueError("A model has been trained already; learn_together() begins with fresh ones.")
    replicas = Replicas(models)
    replicas.seed()
    running = []
    for i, callback in enumerate(callbacks):
        with replicas.turn_of(i) as model:
            _, ready = model._setup_learn(total_timesteps, callback)
            ready.on_training_start({}, {})
            running.append(ready)
    try:
        while models[0].num_timesteps < total_timesteps:
            for i, callback in enumerate(running):
                with replicas.turn_of(i) as model:
                    if not model.collect_episodes(model.env, callback):  # type: ignore[arg-type]
                        raise ValueError("A callback wanted to stop one of several models; train that one by itself.")
                    model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
            if models[0].replay_buffer.n_added >= models[0].learning_starts:
                replicas.train()
        for callback in running:
            callback.on_training_end()
    finally:
        replicas.release()

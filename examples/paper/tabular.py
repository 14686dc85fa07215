"""Tabular agents on the DAG, many lifetimes at once.

One lifetime is one agent: a policy table ``θ``, a critic table and a regular value table ``v_φ``. ``L`` lifetimes run
side by side with ``B`` episodes an update each. They share what is batched (the environment's native vector form and
``tca_sb3``'s estimators see ``L·B`` columns, column ``c`` belonging to lifetime ``c // B``) and nothing else. Equations
and the differentiable inner step are ``tca_sb3``'s; here is only what a table adds: looking up, and exact returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tca_envs.envs.dag import DAGVectorEnv, Redraw
from tca_sb3.episodes import Episodes
from tca_sb3.estimators import AdvantageEstimator
from tca_sb3.meta import regular_advantages
from tca_sb3.objectives import policy_gradient_loss

Critic = Literal["learned", "zero", "exact"]


class Lifetimes:
    """``L`` independent tabular agents from birth.

    Parameters are one flat vector for each lifetime, shape ``(L, 2 · decision states)``: two logits for every state
    that has a choice. They start at 0, the uniformly random policy.

    :param seeds: one for each lifetime: of its actions, and of its signs where these are redrawn. What a lifetime
        draws does not depend on its neighbours.
    :param batch_size: ``B``, episodes in one update.
    :param depth: of the DAG.
    :param estimator: advantages and value targets of the inner loop.
    :param value_rate: each update moves a visited state's value by this share of the way to the mean of its targets,
        a step of Eq. 14 for each state that does not depend on how often others are visited (ours).
    :param redraw_signs: the DAG's own argument, ``"never"`` or ``"lifetime"``.
    :param critic: the values that the estimator is given: ``"learned"`` from zero, ``"zero"`` throughout, or the
        ``"exact"`` value of the present policy. The last two make the probe of a value function that is never and
        always right.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        batch_size: int,
        depth: int,
        estimator: AdvantageEstimator,
        value_rate: float = 0.3,
        redraw_signs: Redraw = "never",
        critic: Critic = "learned",
    ) -> None:
        self.n = n = len(seeds)
        self.batch_size = batch_size
        self.estimator = estimator
        self.value_rate = value_rate
        self.critic: Critic = critic
        self.frames = 0
        columns = n * batch_size
        self.env = DAGVectorEnv(columns, autoreset_mode="Disabled", depth=depth, redraw_signs=redraw_signs)
        # Columns of one lifetime share a seed, so that they share its signs.
        self.env.reset(seed=[seed for seed in seeds for _ in range(batch_size)])
        self._coins = [np.random.default_rng(seed) for seed in seeds]

        rules = self.env.rules
        self.n_decisions = rules.n_decisions  # of one episode: the first half of its steps
        self.n_decision_states = rules.n_decision_states
        self._n_states = rules.n_states + 1
        self._lifetime = torch.arange(n).repeat_interleave(batch_size)
        self._column_start = self._lifetime.numpy() * self.n_decision_states
        self._values = torch.zeros(n, self._n_states)
        self._regular_values = self._values if estimator.regular_critic else torch.zeros(n, self._n_states)
        self._latest: Episodes | None = None
        everyone = torch.ones(columns, dtype=torch.bool)
        self._flags = {
            "lengths": torch.full((columns,), self.env.horizon),
            "terminated": everyone,
            "truncated": ~everyone,
            "started": everyone,
        }
        if redraw_signs == "never":
            self.model = TreeModel(self.env)

    @property
    def size(self) -> int:
        """Number of parameters of one lifetime."""
        return 2 * self.n_decision_states

    def initial(self) -> Tensor:
        """``θ_0``, shape ``(L, size)``, requiring gradients."""
        return torch.zeros(self.n, self.size, requires_grad=True)

    def log_odds(self, theta: Tensor) -> Tensor:
        """``log π_θ(1|s) − log π_θ(0|s)``, the difference of the two logits; shape ``(L, decision states)``."""
        logits = theta.view(self.n, self.n_decision_states, 2)
        return logits[:, :, 1] - logits[:, :, 0]

    def policy(self, theta: Tensor) -> Tensor:
        """``π_θ(1|s)``, shape ``(L, decision states)``, without gradient."""
        with torch.no_grad():
            return torch.sigmoid(self.log_odds(theta))

    def sample(self, theta: Tensor) -> Episodes:
        """One whole episode for each column under ``θ``."""
        takes_one = self.policy(theta).flatten().numpy()
        horizon, columns = self.env.horizon, self.env.num_envs
        observations = np.empty((horizon + 1, columns), np.int64)
        actions = np.zeros((horizon, columns), np.int64)
        rewards = np.empty((horizon, columns))
        drawn = [coins.random((self.n_decisions, self.batch_size), np.float32) for coins in self._coins]
        coins = np.concatenate(drawn, axis=1)
        observations[0], _ = self.env.reset()
        for t in range(horizon):
            if t < self.n_decisions:  # afterwards there is one action, number 0
                actions[t] = coins[t] < takes_one[self._column_start + observations[t]]
            observations[t + 1], rewards[t], *_ = self.env.step(actions[t])
        self.frames += actions.size
        received = torch.from_numpy(rewards).to(theta.dtype)
        return Episodes(torch.from_numpy(observations), torch.from_numpy(actions), received, **self._flags)

    def loss(self, theta: Tensor, episodes: Episodes, advantages: Tensor) -> Tensor:
        """Eq. 12 or 16, summed over an episode's steps and over lifetimes, averaged over a lifetime's episodes."""
        states, actions = episodes.observations, episodes.actions
        assert isinstance(states, Tensor)
        deciding = slice(0, self.n_decisions)
        log_odds = self.log_odds(theta)[self._lifetime, states[deciding]]
        log_prob = torch.nn.functional.logsigmoid((2 * actions[deciding] - 1) * log_odds)
        # The library averages over all steps; log π = 0 where there is one action.
        return self.n * self.n_decisions * policy_gradient_loss(advantages[deciding], log_prob)

    def inner_loss(self, theta: Tensor) -> Tensor:
        """The loss of one update on the latest episodes, or on new ones; then fits the value tables to them."""
        episodes = self._latest or self.sample(theta)
        self._latest = None
        values = self._critic_values(theta, episodes)
        estimate = self.estimator(episodes, values)
        loss = self.loss(theta, episodes, estimate.advantages)
        regular_targets = self._regular(episodes)[1]
        self._fit(self._values, episodes, estimate.value_targets.detach())
        if self._regular_values is not self._values:
            self._fit(self._regular_values, episodes, regular_targets)
        return loss

    def outer_loss(self, theta: Tensor) -> Tensor:
        """Eq. 16 on new episodes, with the regular advantage; the next update uses the same episodes."""
        self._latest = self.sample(theta)
        return self.loss(theta, self._latest, self._regular(self._latest)[0])

    def _regular(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        values = self._look_up(self._regular_values, episodes)
        return regular_advantages(episodes, values, self.estimator.gamma, self.estimator.gae_lambda)

    def _critic_values(self, theta: Tensor, episodes: Episodes) -> Tensor:
        if self.critic == "zero":
            return torch.zeros(episodes.horizon + 1, episodes.batch_size)
        if self.critic == "exact":
            return self._look_up(self.model.state_values(self.policy(theta)), episodes)
        return self._look_up(self._values, episodes)

    def _look_up(self, table: Tensor, episodes: Episodes) -> Tensor:
        # Entry |S| of a value table, the terminal state, stays 0: it is never fitted.
        return table[self._lifetime, episodes.observations]

    def _fit(self, table: Tensor, episodes: Episodes, targets: Tensor) -> None:
        states = episodes.observations
        assert isinstance(states, Tensor)
        places = (self._lifetime * self._n_states + states[:-1]).flatten()
        flat = table.view(-1)
        errors = targets.flatten() - flat[places]
        visits = torch.zeros_like(flat).index_add_(0, places, torch.ones_like(errors))
        total = torch.zeros_like(flat).index_add_(0, places, errors)
        flat += self.value_rate * total / visits.clamp(min=1)


class TreeModel:
    """The DAG's transition and reward tables, layer by layer, for exact values by dynamic programming.

    :param env: any DAG whose signs are not redrawn.
    """

    def __init__(self, env: DAGVectorEnv) -> None:
        rules = env.rules
        # One environment's rewards are everyone's: the layout is fixed.
        rewards = rules.rewards_of(rules.allocate(1), 0)
        self.next_state = torch.from_numpy(env.next_state.copy())
        self.rewards = torch.from_numpy(rewards).to(torch.get_default_dtype())
        self.layers = [torch.from_numpy(layer) for layer in layers_of(env.next_state)]
        self.n_decisions = rules.n_decisions
        after = torch.zeros(len(self.next_state) + 1)
        for layer in reversed(self.layers[self.n_decisions :]):  # one action: no policy enters
            after[layer] = self.rewards[layer, 0] + after[self.next_state[layer, 0]]
        self._after_decisions = after

    def state_values(self, policy: Tensor) -> Tensor:
        """``V^π`` of every state.

        :param policy: ``π(1|s)``, shape ``(L, decision states)``.
        :return: shape ``(L, |S| + 1)``.
        """
        takes_one = policy.T.contiguous()  # states first: a gather is then a copy of rows
        values = self._after_decisions.unsqueeze(1).repeat(1, len(policy))
        for layer in reversed(self.layers[: self.n_decisions]):
            zero, one = (
                self.rewards[layer, action].unsqueeze(1) + values[self.next_state[layer, action]] for action in (0, 1)
            )
            values[layer] = torch.lerp(zero, one, takes_one[layer])
        return values.T

    def returns(self, policy: Tensor) -> Tensor:
        """``J``, the exact expected return, shape ``(L,)``; ``policy`` as for :meth:`state_values`."""
        return self.state_values(policy)[:, 0]


def layers_of(next_state: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The states that can be occupied at time 0, 1, …, the terminal one left out.

    :param next_state: shape ``(|S|, 2)``.
    """
    layers = [np.array([0])]
    while True:
        following = np.unique(next_state[layers[-1]])
        following = following[following < len(next_state)]
        if len(following) == 0:
            return layers
        layers.append(following)

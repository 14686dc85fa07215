"""Second, stupider derivations of what the packages compute.

Literal double loops over an equation's indices, backward induction on a table, enumeration of every trajectory,
central differences. Nothing here imports the packages, and nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# -- Eqs. 4, 7-11: one episode at a time, indices as printed --------------------------------------------------------


def objective_sample(rewards: list[float], gamma: float) -> float:
    """``Σ_{t=1..T} γ^{t-1} R_t``; ``rewards[0]`` is ``R_1``."""
    total = 0.0
    for t in range(1, len(rewards) + 1):
        total += gamma ** (t - 1) * rewards[t - 1]
    return total


def returns(rewards: list[float], gamma: float) -> list[float]:
    """``G_t = Σ_{k=t+1..T} γ^{k-t-1} R_k`` for ``t = 0 … T-1``."""
    return pairwise_sum(rewards, lambda t, k: gamma ** (k - t - 1))


def td_errors(rewards: list[float], values: list[float], gamma: float) -> list[float]:
    """``δ_k = R_k + γ v(S_k) − v(S_{k-1})`` for ``k = 1 … T``; ``values[0]`` is ``v(S_0)``."""
    return [rewards[k - 1] + gamma * values[k] - values[k - 1] for k in range(1, len(rewards) + 1)]


def pairwise_sum(signal: list[float], weight: Callable[[int, int], float]) -> list[float]:
    """``Σ_{k=t+1..T} w(t, k) x_k`` for ``t = 0 … T-1``; ``signal[0]`` is ``x_1``."""
    horizon = len(signal)
    result = []
    for t in range(horizon):
        total = 0.0
        for k in range(t + 1, horizon + 1):
            total += weight(t, k) * signal[k - 1]
        result.append(total)
    return result


# -- exact values: a table, backward induction, every trajectory ----------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One possible consequence of an action.

    :param probability: how likely it is.
    :param state: where it leads.
    :param reward: what it pays.
    """

    probability: float
    state: int
    reward: float


@dataclass(frozen=True)
class Table:
    """An episodic decision problem, small enough to write down; no state is visited twice in an episode.

    :param outcomes: ``outcomes[s][a]`` is the list of what can happen; states without actions are terminal.
    :param policy: ``policy[s][a]`` is the probability of action ``a`` in state ``s``.
    """

    outcomes: list[list[list[Outcome]]]
    policy: list[list[float]]

    @property
    def n_states(self) -> int:
        return len(self.outcomes)

    def action_values(self, gamma: float) -> tuple[list[float], list[list[float]]]:
        """``V(s)`` and ``Q(s, a)`` by backward induction (Eqs. 1 and 2)."""
        v: dict[int, float] = {}
        q: list[list[float]] = [[] for _ in self.outcomes]

        def value(state: int) -> float:
            if state not in v:
                q[state] = [
                    sum(o.probability * (o.reward + gamma * value(o.state)) for o in possible)
                    for possible in self.outcomes[state]
                ]
                v[state] = sum(p * x for p, x in zip(self.policy[state], q[state], strict=True))
            return v[state]

        return [value(state) for state in range(self.n_states)], q

    def trajectories(self, start: int = 0) -> Iterator[tuple[float, list[int], list[int], list[float]]]:
        """Every trajectory: its probability, ``S_0 … S_T``, ``A_0 … A_{T-1}``, ``R_1 … R_T``."""
        if not self.outcomes[start]:
            yield 1.0, [start], [], []
            return
        for action, possible in enumerate(self.outcomes[start]):
            for outcome in possible:
                chance = self.policy[start][action] * outcome.probability
                for p, states, actions, rewards in self.trajectories(outcome.state):
                    yield chance * p, [start, *states], [action, *actions], [outcome.reward, *rewards]


def umbrella(length: int, mean: float, std: float, prefer: float) -> Table:
    """Figure 1: the first of two actions decides the last reward (+1 or 0); between them, noise.

    The noise takes the two values ``mean ± std``, so that every trajectory can be listed. A state is (time, first
    action) from time 1 on, which is what makes the problem Markov.
    """

    def state(time: int, first: int) -> int:
        return 0 if time == 0 else 1 + 2 * (time - 1) + first

    terminal = 1 + 2 * (length - 1)
    outcomes: list[list[list[Outcome]]] = [[] for _ in range(terminal + 1)]
    noise = [(0.5, mean - std), (0.5, mean + std)]
    outcomes[0] = [[Outcome(p, state(1, a), r) for p, r in noise] for a in range(2)]
    for time in range(1, length):
        for first in range(2):
            if time == length - 1:
                only = [Outcome(1.0, terminal, float(first))]
            else:
                only = [Outcome(p, state(time + 1, first), r) for p, r in noise]
            outcomes[state(time, first)] = [only]
    policy = [[1 - prefer, prefer]] + [[1.0] if actions else [] for actions in outcomes[1:]]
    return Table(outcomes, policy)


def tree_that_closes(layers: int, seed: int = 0, uniform: bool = False) -> Table:
    """The DAG: ``layers`` binary decisions, then as many steps that pay for them, last decision first.

    States are named by the path that is still to be paid for; nothing here follows anyone's numbering. The rewarded
    action of each decision state and the policy (unless ``uniform``) are drawn from ``seed``.
    """
    random = np.random.default_rng(seed)
    names: dict[tuple[str, tuple[int, ...]], int] = {}

    def number(phase: str, path: tuple[int, ...]) -> int:
        return names.setdefault((phase, path), len(names))

    outcomes: dict[int, list[list[Outcome]]] = {}
    rewarded: dict[tuple[int, ...], int] = {}
    frontier: list[tuple[int, ...]] = [()]
    number("decide", ())
    for depth in range(layers):
        for path in frontier:
            rewarded[path] = int(random.integers(2))
            following = "decide" if depth + 1 < layers else "pay"
            outcomes[number("decide", path)] = [
                [Outcome(1.0, number(following, (*path, action)), 0.0)] for action in range(2)
            ]
        frontier = [(*path, action) for path in frontier for action in range(2)]
    while frontier[0]:
        for path in frontier:
            reward = 1.0 if path[-1] == rewarded[path[:-1]] else -1.0
            outcomes[number("pay", path)] = [[Outcome(1.0, number("pay", path[:-1]), reward)]]
        frontier = sorted({path[:-1] for path in frontier})
    outcomes[number("pay", ())] = []
    table = [outcomes[state] for state in range(len(names))]
    policy = []
    for actions in table:
        weights = np.ones(len(actions)) if uniform else random.uniform(0.2, 1.0, len(actions))
        policy.append([float(w) for w in weights / weights.sum()] if len(actions) else [])
    return Table(table, policy)


# -- derivatives ----------------------------------------------------------------------------------------------------


def central_difference(function: Callable[[Tensor], Tensor | float], point: Tensor, step: float = 1e-6) -> Tensor:
    """``∂f/∂x_i ≈ (f(x + ε e_i) − f(x − ε e_i)) / 2ε``, one entry at a time, for a scalar function."""
    flat = point.detach().clone().reshape(-1)
    result = torch.zeros_like(flat)
    for i in range(len(flat)):
        above, below = flat.clone(), flat.clone()
        above[i] += step
        below[i] -= step
        result[i] = (float(function(above.view_as(point))) - float(function(below.view_as(point)))) / (2 * step)
    return result.view_as(point)


# -- optimiser steps, as their papers and documentation print them --------------------------------------------------


def clipped(gradient: Tensor, max_norm: float | None) -> Tensor:
    """The whole gradient, shortened to ``max_norm`` where it is longer (torch adds 1e-6 to the norm)."""
    if max_norm is None:
        return gradient
    norm = torch.sqrt((gradient * gradient).sum())
    return gradient * (max_norm / (norm + 1e-6)) if norm + 1e-6 > max_norm else gradient


def optimizer_step(
    name: str, theta: Tensor, gradient: Tensor, memory: dict[str, Tensor], settings: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """``θ′`` and what the optimiser remembers, out of place; gradients must be non-zero.

    :param memory: empty before the first step.
    :param settings: ``lr``, and where they apply ``alpha``, ``eps``, ``beta1``, ``beta2``.
    """
    lr = settings["lr"]
    if name == "sgd":
        return theta - lr * gradient, {}
    if name == "adam":
        b1, b2 = settings["beta1"], settings["beta2"]
        t = memory.get("t", torch.tensor(0)) + 1
        m = b1 * memory.get("m", torch.zeros_like(gradient)) + (1 - b1) * gradient
        v = b2 * memory.get("v", torch.zeros_like(gradient)) + (1 - b2) * gradient**2
        m_hat, v_hat = m / (1 - b1 ** int(t)), v / (1 - b2 ** int(t))
        return theta - lr * m_hat / (torch.sqrt(v_hat) + settings["eps"]), {"t": t, "m": m, "v": v}
    start = torch.ones_like(gradient) if name == "rmsprop_tf" else torch.zeros_like(gradient)
    v = settings["alpha"] * memory.get("v", start) + (1 - settings["alpha"]) * gradient**2
    if name == "rmsprop_tf":
        return theta - lr * gradient / torch.sqrt(v + settings["eps"]), {"v": v}
    return theta - lr * gradient / (torch.sqrt(v) + settings["eps"]), {"v": v}

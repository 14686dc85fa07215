"""A check that holds any environment, ours or yours, to the laws of a credit assignment environment."""

from __future__ import annotations

import pickle
from math import sqrt
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence


class CreditEnvError(AssertionError):
    """An environment breaks a law; the message says which and how."""


class Episode(NamedTuple):
    """One recorded episode.

    Attributes:
        observations: S_0 .. S_T.
        rewards: R_1 .. R_T, float64.
        terminated: Whether the last step terminated it.
    """

    observations: list[Any]
    rewards: np.ndarray[Any, np.dtype[np.float64]]
    terminated: bool


def check_credit_env(
    env: gym.Env[Any, Any],
    *,
    episodes: int = 3,
    interventions: int = 20,
    simulations: int = 0,
    tolerance: float = 0.0,
    seed: int = 0,
) -> None:
    """Check an environment that states its credit structure; silence means that it passed.

    The environment, or what it wraps, has the properties `horizon`, `credit_matrix`, `optimal_return`,
    `random_return` and `myopic_return`. All but the first may be None where they are not known. The laws:

    1. The credit matrix has shape (horizon, horizon) and entries 0 or 1, and no action influences a reward
       that has already arrived. An `influence_matrix`, where there is one, is nowhere below it.
    2. Every episode lasts `horizon` steps and ends with `terminated`. (`horizon` may be None, for lengths that
       vary.)
    3. The same seed and actions give the same episode, also to a pickled copy.
    4. *Intervention*: repeating an episode with one action changed, at time t, changes no reward outside row
       t of the influence matrix, or of the credit matrix where there is no other, and no observation up to S_t.
    5. No return exceeds `optimal_return`: not `random_return`, not `myopic_return`.
    6. With `simulations` > 0: the mean return of that many uniformly random episodes is within five standard
       errors of `random_return`.

    Laws 3 to 6 are tried on random behaviour, so they may miss a fault; entries of 1 are not checked, for
    to refute influence one would have to try everything.

    Args:
        env: The environment, wrapped or not. It is reset; actions come from its action space, reseeded.
        episodes: Episodes for laws 2 and 3.
        interventions: Changed actions for law 4.
        simulations: Episodes for law 6.
        tolerance: Largest difference of two rewards that count as equal. Above 0, observations may differ by
            1e-5 (relative and absolute), too.
        seed: Decides everything that is tried.

    Raises:
        CreditEnvError: If the environment breaks a law.
    """
    facts = {name: _fact(env, name) for name in ("horizon", "credit_matrix", "optimal_return")}
    facts |= {name: _fact(env, name) for name in ("random_return", "myopic_return")}
    horizon, credit = facts["horizon"], facts["credit_matrix"]
    influence = credit
    if credit is not None:
        _check_matrix("credit_matrix", credit, horizon)
        if env.has_wrapper_attr("influence_matrix"):
            influence = env.get_wrapper_attr("influence_matrix")
            _check_matrix("influence_matrix", influence, horizon)
            _require(bool((influence >= credit).all()), "influence_matrix must hold all ones of credit_matrix.")
    _check_order(facts)

    env.action_space.seed(seed)
    copy = pickle.loads(pickle.dumps(env))
    for number in range(episodes):
        first = _play(env, seed + number, [], horizon)
        actions = first[1]
        again = _play(env, seed + number, actions, horizon)[0]
        copied = _play(copy, seed + number, actions, horizon)[0]
        for other, what in ((again, "a second time"), (copied, "in a pickled copy")):
            _require(
                _close(first[0].rewards, other.rewards, tolerance)
                and all(
                    data_equivalence(one, two, exact=tolerance == 0.0)
                    for one, two in zip(first[0].observations, other.observations, strict=True)
                ),
                f"seed {seed + number} and the same actions gave another episode {what}: all randomness must "
                "come from self.np_random, or from the seed, and all of the state must be reset.",
            )
    if influence is not None:
        for number in range(interventions):
            _intervene(env, influence, seed + number, tolerance)
    if simulations and facts["random_return"] is not None:
        returns = [_play(env, seed + n, [], horizon)[0].rewards.sum() for n in range(simulations)]
        error = float(np.std(returns, ddof=1)) / sqrt(simulations)
        off = abs(float(np.mean(returns)) - facts["random_return"])
        _require(
            off <= 5.0 * error + 1e-9,
            f"random_return is {facts['random_return']:g}, but {simulations} random episodes had a mean return of "
            f"{np.mean(returns):g} with standard error {error:.2g}.",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CreditEnvError(message)


def _fact(env: gym.Env[Any, Any], name: str) -> Any:
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        raise CreditEnvError(
            f"{env.unwrapped} has no `{name}`: give it a property of that name, None where it is not known."
        ) from None


def _check_matrix(name: str, credit: Any, horizon: Any) -> None:
    _require(
        isinstance(credit, np.ndarray) and credit.shape == (horizon, horizon),
        f"{name} must be an array of shape (horizon, horizon) = ({horizon}, {horizon}), got "
        f"{getattr(credit, 'shape', type(credit).__name__)}.",
    )
    _require(bool(np.isin(credit, (0.0, 1.0)).all()), f"{name} must hold zeros and ones only.")
    early = np.argwhere(np.tril(credit, -1))
    if len(early):
        t, column = early[0]
        raise CreditEnvError(
            f"{name}[{t}, {column}] = 1 says that the action at time {t} influences the reward that had "
            f"arrived at time {column + 1}: column k - 1 belongs to the reward arriving at k > t."
        )


def _check_order(facts: dict[str, Any]) -> None:
    best = facts["optimal_return"]
    for name in ("random_return", "myopic_return"):
        value = facts[name]
        if best is not None and value is not None:
            _require(value <= best + 1e-9, f"{name} = {value:g} exceeds optimal_return = {best:g}.")


def _play(env: gym.Env[Any, Any], seed: int, actions: list[Any], horizon: int | None) -> tuple[Episode, list[Any]]:
    """One episode with the given actions, and random ones once they are used up; what was done."""
    observation, _ = env.reset(seed=seed)
    observations: list[Any] = [observation]
    rewards: list[float] = []
    done: list[Any] = []
    terminated = truncated = False
    while not (terminated or truncated):
        t = len(done)
        done.append(actions[t] if t < len(actions) else env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(done[-1])
        observations.append(observation)
        rewards.append(float(reward))
        if horizon is not None and len(done) == horizon and not (terminated or truncated):
            raise CreditEnvError(f"An episode was still running after horizon = {horizon} steps.")
    _require(
        horizon is None or len(done) == horizon,
        f"An episode ended after {len(done)} steps, but horizon is {horizon}.",
    )
    _require(
        terminated,
        "An episode was truncated. A fixed length is part of the task, so its end must be terminated=True: "
        "after a truncation, learners add the value of a state that never follows.",
    )
    return Episode(observations, np.array(rewards), terminated), done


def _close(one: Any, two: Any, tolerance: float) -> bool:
    return len(one) == len(two) and bool((np.abs(one - two) <= tolerance).all())


def _intervene(env: gym.Env[Any, Any], influence: Any, seed: int, tolerance: float) -> None:
    """Change one action of an episode, and see whether a reward outside its row changes."""
    horizon = len(influence)
    plain, actions = _play(env, seed, [], horizon)
    t = int(np.random.default_rng(seed).integers(horizon))
    changed = list(actions)
    for _ in range(100):
        changed[t] = env.action_space.sample()
        if not np.array_equal(changed[t], actions[t]):
            break
    other, _ = _play(env, seed, changed, horizon)
    wrong = (np.abs(plain.rewards - other.rewards) > tolerance) & (influence[t] == 0.0)
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0]) + 1
        raise CreditEnvError(
            f"Under seed {seed}, changing the action at time {t} from {actions[t]} to {changed[t]} changed the reward "
            f"that arrives at {k} from {plain.rewards[k - 1]:g} to {other.rewards[k - 1]:g}, but the matrix says"
            f" 0 at [{t}, {k - 1}]."
        )
    _require(
        all(
            data_equivalence(one, two, exact=tolerance == 0.0)
            for one, two in zip(plain.observations[: t + 1], other.observations[: t + 1], strict=True)
        ),
        f"Under seed {seed}, changing the action at time {t} changed an observation before it.",
    )

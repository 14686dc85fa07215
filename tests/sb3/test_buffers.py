"""``EpisodeBuffer``: every step is who it says it is, each once, and SB3's GAE comes out where SB3 computes it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scripted import (
    ACTIONS,
    MAX_CODE,
    SPACES,
    Identity,
    Scripted,
    Watch,
    codes,
    identities,
    observe,
    reward_of,
    vec_env,
)
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from tca_sb3 import A2C, PPO, PWR, PWTD, Episodes, Exponential, MonteCarlo, TDLambda
from tca_sb3.buffers import EpisodeBuffer
from tca_sb3.estimators import AdvantageEstimator, Estimate

# PPO warns of minibatches that do not divide n_steps, whatever n_episodes says.
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

POLICIES = {"box": "MlpPolicy", "discrete": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}
TINY: dict[str, Any] = {"net_arch": [4]}


def tiny(kind: str) -> dict[str, Any]:
    extractor = {"cnn_output_dim": 4} if kind == "dict" else {"features_dim": 4} if kind == "image" else {}
    return {**TINY, **({"features_extractor_kwargs": extractor} if extractor else {})}


def collect(
    env: DummyVecEnv, kind: str = "box", rollouts: int = 2, cls: type = A2C, **kwargs: Any
) -> tuple[Any, Watch]:
    """Learn for so many rollouts and watch."""
    watch = Watch()
    model = cls(POLICIES[kind], env, policy_kwargs=tiny(kind), seed=0, **kwargs)
    while len(watch.rollouts) < rollouts:
        model.learn(1, callback=watch, reset_num_timesteps=False)
    return model, watch


def assert_contents(episodes: Episodes, env: DummyVecEnv, scale: float = 1.0) -> None:
    """Consecutive steps of one episode in each column, with the reward and the action that belong to each."""
    for b, column in enumerate(identities(episodes)):
        first = column[0]
        assert column == [(first[0], first[1], first[2] + i) for i in range(len(column))]
        assert bool(episodes.started[b]) == (first[2] == 0)
        source: Scripted = env.envs[first[0]].unwrapped  # type: ignore[assignment]
        for t, step in enumerate(column[:-1]):
            assert episodes.rewards[t, b].item() == scale * reward_of(*column[t + 1])
            # The environment saw the action clipped to its bounds; the buffer keeps the policy's own.
            wanted = source.taken[step]
            stored = episodes.actions[t, b].numpy()
            if isinstance(source.action_space, spaces.Box):
                stored = np.clip(stored, source.action_space.low, source.action_space.high)
            assert np.array_equal(stored.flatten(), wanted.flatten())
        length = source.lengths[first[1] % len(source.lengths)]
        ended = column[-1][2] == length
        ending = source.endings[first[1] % len(source.endings)]
        assert bool(episodes.terminated[b]) == (ended and ending == "t")
        assert bool(episodes.truncated[b]) == (ended and ending == "c")


def steps(episodes: Episodes) -> list[Identity]:
    return [step for column in identities(episodes) for step in column[:-1]]


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("endings", ["t", "c", "tc"])
def test_n_steps_rollouts_of_variable_lengths(kind: str, endings: str) -> None:
    """Fragments included: every step of every rollout, in order, each once."""
    env = vec_env([(2, 5), (3,), (7, 1)], endings, kind)
    _, watch = collect(env, kind, rollouts=3, n_steps=6)
    seen: list[Identity] = []
    for episodes, _ in watch.rollouts:
        assert_contents(episodes, env)
        assert episodes.n_steps == 18
        seen += steps(episodes)
    assert max(Counter(seen).values()) == 1
    for index, inner in enumerate(env.envs):
        assert sorted(step for step in seen if step[0] == index) == sorted(inner.unwrapped.taken)


@pytest.mark.parametrize("actions", ACTIONS)
def test_actions_of_every_kind(actions: str) -> None:
    env = vec_env([(3,), (2, 4)], actions=actions)
    for n_episodes in (None, 1):
        _, watch = collect(env, rollouts=1, n_steps=5, n_episodes=n_episodes)
        assert_contents(watch.rollouts[-1][0], env)


@pytest.mark.parametrize("kind", SPACES)
def test_environments_in_step_are_one_column_each(kind: str) -> None:
    """The fast way, where nothing is rearranged; the last state is the terminal one, not that of the next episode."""
    env = vec_env([(4,), (4,)], "tc", kind)
    _, watch = collect(env, kind, rollouts=2, n_steps=4)
    for i, (episodes, _) in enumerate(watch.rollouts):
        assert (episodes.horizon, episodes.batch_size, episodes.full) == (4, 2, True)
        assert_contents(episodes, env)
        assert [column[-1] for column in identities(episodes)] == [(0, i, 4), (1, i, 4)]
        assert bool(episodes.truncated[0]) == (i % 2 == 1)


@pytest.mark.parametrize("kind", SPACES)
def test_the_last_state_of_a_fragment_is_the_next_observation(kind: str) -> None:
    env = vec_env([(9,), (9,)], kind=kind)
    _, watch = collect(env, kind, rollouts=2, n_steps=4)
    assert [[column[-1] for column in identities(episodes)] for episodes, _ in watch.rollouts] == [
        [(0, 0, 4), (1, 0, 4)],
        [(0, 0, 8), (1, 0, 8)],
    ]
    episodes, values = watch.rollouts[1]
    assert not (episodes.terminated | episodes.truncated | episodes.started).any()
    assert values[-1].any(), "a fragment bootstraps"


@pytest.mark.parametrize(
    ("cls", "n_episodes", "kind"),
    [*((A2C, n, kind) for n in (1, 3) for kind in SPACES), (PPO, 1, "box"), (PPO, 2, "dict")],
)
def test_n_episodes_rollouts(cls: type, n_episodes: int, kind: str) -> None:
    """Exactly the first ``n_episodes`` of each environment, whole; everything else counted as discarded."""
    env = vec_env([(2, 5), (3,), (7, 1)], "t", kind)
    small = {"n_steps": 2, "batch_size": 4, "n_epochs": 2} if cls is PPO else {"n_steps": 2}
    model, watch = collect(env, kind, rollouts=3, cls=cls, n_episodes=n_episodes, **small)
    seen: list[Identity] = []
    total = 0
    for (episodes, values), discarded in zip(watch.rollouts, watch.discarded, strict=True):
        assert_contents(episodes, env)
        assert episodes.whole
        assert not values[episodes.lengths, torch.arange(episodes.batch_size)].any()
        assert [column[0][0] for column in identities(episodes)] == [e for e in range(3) for _ in range(n_episodes)]
        seen += steps(episodes)
        total += episodes.n_steps + discarded
        # The first ones after the reset: no episode between those that were taken was left out.
        for index in range(3):
            numbers = [column[0][1] for column in identities(episodes) if column[0][0] == index]
            assert numbers == list(range(numbers[0], numbers[0] + n_episodes))
    assert max(Counter(seen).values()) == 1
    assert total == model.num_timesteps == sum(len(inner.unwrapped.taken) for inner in env.envs)
    assert model.discarded_steps == sum(watch.discarded) > 0


def test_one_length_discards_nothing_and_resets_nothing() -> None:
    env = vec_env([(4,), (4,)])
    model, watch = collect(env, rollouts=3, n_episodes=2)
    assert watch.discarded == [0, 0, 0]
    assert model.discarded_steps == 0
    assert [inner.unwrapped.episode for inner in env.envs] == [6, 6]
    assert [steps(episodes)[0] for episodes, _ in watch.rollouts] == [(0, 0, 0), (0, 2, 0), (0, 4, 0)]


def test_the_buffer_grows_as_far_as_an_episode_needs() -> None:
    env = vec_env([(23,), (2,)])
    model, watch = collect(env, rollouts=2, n_episodes=1, n_steps=1)
    for episodes, _ in watch.rollouts:
        assert_contents(episodes, env)
        assert sorted(episodes.lengths.tolist()) == [2, 23]
    assert model.num_timesteps == 2 * 2 * 23


def test_a_shorter_rollout_after_a_longer_one() -> None:
    env = vec_env([(9, 2, 5)])
    _, watch = collect(env, rollouts=3, n_episodes=1, n_steps=3)
    assert [episodes.n_steps for episodes, _ in watch.rollouts] == [9, 2, 5]
    for episodes, _ in watch.rollouts:
        assert_contents(episodes, env)


def test_the_cap_says_what_to_do_and_leaves_the_policy_alone() -> None:
    model = A2C("MlpPolicy", vec_env([(1000,)]), n_episodes=1, max_rollout_steps=30, policy_kwargs=dict(TINY))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r"30 steps.*0 of the n_episodes=1.*max_rollout_steps\.$"):
        model.learn(100)
    assert model.num_timesteps == 30
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[name])
    # Exactly at the cap is in time.
    A2C("MlpPolicy", vec_env([(30,)]), n_episodes=1, max_rollout_steps=30, policy_kwargs=dict(TINY)).learn(30)


@pytest.mark.parametrize("lengths", [[(4,), (2,)], [(4,), (4,)]], ids=["gathered", "in step"])
@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 1e-5), (1000.0, 3e-3)])
def test_raw_rewards_and_values_come_apart_again(
    scale: float, tolerance: float, lengths: list[tuple[int, ...]]
) -> None:
    """SB3 adds γ v(S_T) to the reward of a time-out before it stores it; the buffer undoes that."""
    env = vec_env(lengths, "c", scale=scale)
    model, watch = collect(env, rollouts=1, n_steps=4, gamma=0.9, learning_rate=1e-12)
    episodes, values = watch.rollouts[0]
    assert_contents(episodes, env, scale=scale)  # rewards exactly
    folded = model.rollout_buffer.rewards
    assert not np.array_equal(np.sort(folded.flatten()), np.sort(episodes.rewards.numpy().flatten()))
    for b, column in enumerate(identities(episodes)):
        for t, step in enumerate(column):
            with torch.no_grad():
                wanted = model.policy.predict_values(torch.tensor([step], dtype=torch.float32)).item()
            # What was folded in was rounded to single precision beside rewards of this size.
            assert values[t, b].item() == pytest.approx(wanted, abs=tolerance)


@pytest.mark.parametrize("n_episodes", [None, 2])
@pytest.mark.parametrize("kind", SPACES)
def test_what_train_sees_are_the_used_steps_each_once(kind: str, n_episodes: int | None) -> None:
    """Observation, action and advantage stay together through SB3's flattening and minibatches."""
    env = vec_env([(2, 5), (3,), (7, 1)], "t", kind)
    model, watch = collect(env, kind, 1, n_steps=6, n_episodes=n_episodes, estimator_class=MonteCarlo, gamma=1.0)
    episodes, values = watch.rollouts[0]
    estimate = model.estimator(episodes, values)
    wanted: dict[Identity, tuple[float, float]] = {}
    for b, column in enumerate(identities(episodes)):
        for t, step in enumerate(column[:-1]):
            wanted[step] = estimate.advantages[t, b].item(), estimate.value_targets[t, b].item()
    buffer = model.rollout_buffer
    for batch_size in (4, None):
        seen = []
        for batch in buffer.get(batch_size):
            found = batch.observations["image"] if kind == "dict" else batch.observations
            if kind == "dict":
                assert torch.equal(batch.observations["code"].flatten(), codes(found))
            for i, row in enumerate(found):
                who = tuple(map(int, row[:, 0, 0] if row.ndim == 3 else row))
                if kind == "discrete":
                    who = (who[0] // MAX_CODE, who[0] % MAX_CODE // 10, who[0] % 10)
                seen.append(who)
                taken = env.envs[who[0]].unwrapped.taken[who]
                assert batch.actions[i].item() == taken
                assert (batch.advantages[i].item(), batch.returns[i].item()) == wanted[who]
        assert sorted(seen) == sorted(wanted)


def test_ppo_makes_as_many_minibatches_as_the_used_steps_need() -> None:
    env = vec_env([(2, 5), (3,), (7, 1)])
    model, watch = collect(env, rollouts=1, cls=PPO, n_episodes=1, n_steps=2, batch_size=5, n_epochs=1)
    assert watch.rollouts[0][0].n_steps == 12
    sizes = [len(batch.actions) for batch in model.rollout_buffer.get(5)]
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("endings", ["t", "c", "tc"])
def test_sb3s_own_buffer_computes_the_same_gae(gamma: float, gae_lambda: float, endings: str) -> None:
    """SB3's ``RolloutBuffer`` is the oracle: the same raw contents, its own loop."""
    env = vec_env([(2, 5), (3,), (7, 1)], endings, scale=0.1)
    kwargs = {"n_steps": 11, "gamma": gamma, "gae_lambda": gae_lambda}
    model, watch = collect(env, rollouts=1, **kwargs)
    ours = model.rollout_buffer
    theirs = RolloutBuffer(11, model.observation_space, model.action_space, "cpu", gae_lambda, gamma, n_envs=3)
    assert isinstance(ours, EpisodeBuffer)

    def unflatten(array: np.ndarray) -> np.ndarray:
        return array.reshape(3, 11).T if array.shape[0] == 33 else array

    theirs.rewards, theirs.episode_starts = ours.rewards, ours.episode_starts
    theirs.values = unflatten(ours.values)
    theirs.compute_returns_and_advantage(torch.from_numpy(ours._last_values), ours._dones)
    assert np.allclose(watch.advantages[0], theirs.advantages, rtol=1e-6, atol=1e-5)
    assert np.allclose(watch.returns[0], theirs.returns, rtol=1e-6, atol=1e-5)
    if gae_lambda == 1.0:  # a second name for the same thing
        env = vec_env([(2, 5), (3,), (7, 1)], endings, scale=0.1)
        _, watch = collect(env, rollouts=1, estimator_class=MonteCarlo, **kwargs)
        assert np.allclose(watch.advantages[0], theirs.advantages, rtol=1e-6, atol=1e-5)


def test_exponential_weights_through_the_whole_stack() -> None:
    """PWTD(γλ) trains as the λ-estimator does, PWR(γ) as MC does."""
    for weighted, rate, plain, n_steps in ((PWTD, 0.9 * 0.8, TDLambda, 6), (PWR, 0.9, MonteCarlo, None)):
        watches = []
        for cls in (weighted, plain):
            kwargs: dict[str, Any] = {"n_steps": n_steps} if n_steps else {"n_episodes": 1}
            if cls is weighted:
                kwargs["estimator_kwargs"] = {"weights_class": Exponential, "weights_kwargs": {"rate": rate}}
            env = vec_env([(2, 5), (3,)], scale=0.1)
            _, watch = collect(env, rollouts=3, gamma=0.9, gae_lambda=0.8, estimator_class=cls, **kwargs)
            watches.append(watch)
        for one, other in zip(watches[0].advantages, watches[1].advantages, strict=True):
            assert np.allclose(one, other, rtol=1e-5, atol=1e-5)


class Returns(AdvantageEstimator):
    """Advantages of any shape and value, for looking at the refusal."""

    shape: tuple[int, ...] | None = None
    value: float = 0.0
    targets: float = 0.0

    def forward(self, episodes: Episodes, values: torch.Tensor) -> Estimate:
        shape = self.shape or tuple(episodes.rewards.shape)
        return Estimate(torch.full(shape, self.value), torch.full(tuple(episodes.rewards.shape), self.targets))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (3, 3)}, r"Broken returned advantages of shape \(3, 3\).*\(T, B\) = \(4, 2\)"),
        ({"value": float("nan")}, "Broken returned advantages that are NaN or infinite"),
        ({"targets": float("inf")}, "Broken returned value targets that are NaN or infinite"),
    ],
)
def test_what_an_estimator_returns_is_checked_before_anything_is_written(change: dict[str, Any], words: str) -> None:
    broken = type("Broken", (Returns,), change)
    model = A2C("MlpPolicy", vec_env([(4,), (4,)]), n_steps=4, estimator_class=broken, policy_kwargs=dict(TINY))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        model.learn(8)
    assert str(caught.value).endswith(".")
    assert not model.rollout_buffer.advantages.any()
    assert not model.rollout_buffer.returns.any()
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_snapshot_of_a_rollout_survives_the_next_one() -> None:
    """Trajectory reuse keeps the episodes of one rollout while the buffer fills with the next."""
    env = vec_env([(4,), (4,)])
    _, watch = collect(env, rollouts=3, n_steps=4)
    for i, (episodes, _) in enumerate(watch.rollouts):
        assert steps(episodes)[0] == (0, i, 0)
        assert_contents(episodes, env)


def test_observe_covers_every_space() -> None:
    for kind, space in SPACES.items():
        assert space.contains(observe(kind, 2, 3, 4)), kind


def test_a_rollout_that_sb3_has_taken_apart_is_not_read_as_episodes() -> None:
    """With the default estimator nobody has asked for episodes before train(), and flattened arrays have no times."""
    model = A2C("MlpPolicy", vec_env([(3,)]), n_steps=4, policy_kwargs={"net_arch": [4]}).learn(4)
    with pytest.raises(ValueError, match=r"taken this rollout apart.*on_rollout_end\.$"):
        model.rollout_buffer.episodes()


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("n_episodes", [None, 1, 2])
@pytest.mark.parametrize("lengths", [[(4,), (4,)], [(2, 5), (3,), (7, 1)]])
def test_a_sample_says_which_steps_it_holds(kind: str, n_episodes: int | None, lengths: list[tuple[int, ...]]) -> None:
    model, watch = collect(vec_env(lengths, kind=kind), kind, rollouts=1, n_steps=8, n_episodes=n_episodes)
    episodes, _ = watch.rollouts[-1]
    seen = []
    for sample in model.rollout_buffer.get(3):
        rows = model.rollout_buffer.sampled_steps()
        seen += rows.tolist()
        assert torch.equal(sample.actions.flatten(), episodes.flat_actions[rows].flatten())
        for key, part in episodes.flat_observations.items() if kind == "dict" else [("", episodes.flat_observations)]:
            sampled = sample.observations[key] if kind == "dict" else sample.observations
            assert torch.equal(sampled.reshape(len(rows), -1), part[rows].reshape(len(rows), -1))
    assert sorted(seen) == list(range(episodes.n_steps))

"""What is stored and sampled is what happened, in environments that end at different times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from lvgts_samples import LengthsEnv, lengths_env, reward_of
from stable_baselines3.common.vec_env import VecNormalize

from tca_sb3.lvgts import LVGTS
from tca_sb3.lvgts.replay import EpisodeBatch, EpisodeCollector, EpisodeReplayBuffer

BOX = spaces.Box(-1.0, 1000.0, (3,), np.float32)
SMALL: dict[str, Any] = {"policy_kwargs": {"latent_dim": 4, "net_arch": [4]}, "seed": 0, "device": "cpu"}


def add(buffer: EpisodeReplayBuffer, who: int, length: int) -> None:
    observations = np.full((length, 3), who, np.float32)
    buffer.add({"": observations}, np.full((length, 2), who / 10, np.float32), np.full(length, who, np.float32))


def whose(batch: EpisodeBatch) -> list[tuple[int, int]]:
    """Identity and length of each episode; checks padding."""
    assert isinstance(batch.observations, torch.Tensor)
    result = []
    for b, mask in enumerate(batch.mask):
        length = int(mask.sum())
        assert mask[:length].all()
        who = batch.rewards[b, 0].item()
        assert (batch.observations[b, :length] == who).all() and (batch.rewards[b, :length] == who).all()
        assert torch.allclose(batch.actions[b, :length], torch.tensor(who / 10))
        for part in (batch.observations, batch.actions, batch.rewards):
            assert not part[b, length:].any()
        result.append((int(who), length))
    return result


def test_newest_episodes_stay_and_padding_is_zero_after_a_longer_one() -> None:
    buffer = EpisodeReplayBuffer(3, BOX, 2)
    for who, length in [(1, 5), (2, 2), (3, 1), (4, 2), (5, 9)]:
        add(buffer, who, length)
    assert len(buffer) == 3 and buffer.n_added == 5
    assert whose(buffer.get(np.arange(3))) == [(4, 2), (5, 9), (3, 1)]
    assert buffer.get(np.array([0, 2])).mask.shape == (2, 2)  # no longer than the longest


def test_samples_are_uniform_and_follow_torch_seed() -> None:
    buffer = EpisodeReplayBuffer(4, BOX, 2)
    for who in range(1, 4):
        add(buffer, who, 2)
    torch.manual_seed(0)
    first = whose(buffer.sample(600))
    torch.manual_seed(0)
    assert whose(buffer.sample(600)) == first
    counts = np.bincount([who for who, _ in first], minlength=5)
    assert counts[0] == counts[4] == 0 and (abs(counts[1:4] - 200) < 60).all()


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_refuses_what_is_not_finite(what: str) -> None:
    buffer = EpisodeReplayBuffer(2, BOX, 1)
    observations, rewards = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    (rewards if what == "reward" else observations)[1] = np.nan
    with pytest.raises(ValueError, match=f"a.? {what} that is NaN or infinite"):
        buffer.add({"": observations}, np.zeros((2, 1)), rewards)
    assert len(buffer) == 0


def test_refuses_to_sample_from_nothing() -> None:
    with pytest.raises(ValueError, match="buffer is empty"):
        EpisodeReplayBuffer(2, BOX, 1).sample(1)


def test_collector_names_an_episode_that_does_not_end() -> None:
    collector, buffer = EpisodeCollector(1, BOX, 1, max_episode_steps=3), EpisodeReplayBuffer(2, BOX, 1)

    def step(done: bool) -> int:
        return collector.add({"": np.zeros((1, 3))}, np.zeros((1, 1)), np.zeros(1), np.array([done]), buffer)

    assert [step(False), step(False), step(True)] == [0, 0, 1]
    assert [step(False), step(False), step(False)] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"not ended after max_episode_steps=3.*TimeLimit"):
        step(False)


@pytest.mark.parametrize("kind", ["box", "dict", "discrete", "image"])
def test_algorithm_stores_what_happened(kind: str) -> None:
    """Environments of different lengths, some cut by a time limit; and a second ``learn`` that goes on."""
    env = lengths_env((3,), (5, 2), (17, 4), endings="tc", kind=kind)
    policy = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}.get(kind, "MlpPolicy")
    model = LVGTS(policy, env, learning_starts=1000, n_episodes=2, **SMALL)
    model.learn(60)
    # Stopped in the middle of episodes, which go on afterwards.
    model.learn(60, callback=lambda local, _: local["self"].num_timesteps < 75, reset_num_timesteps=False)
    assert model.num_timesteps == 75
    model.learn(60, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert buffer.n_added == len(buffer) > 15
    batch = buffer.get(np.arange(len(buffer)))
    episodes = [0, 0, 0]
    for b, length in enumerate(buffer.lengths[: len(buffer)].tolist()):
        index = int(batch.rewards[b, 0])
        raw = env.envs[index].unwrapped
        assert isinstance(raw, LengthsEnv)
        episode = episodes[index]
        episodes[index] += 1
        assert length == raw.lengths[episode % len(raw.lengths)]
        assert batch.rewards[b, :length].tolist() == [reward_of(index, t) for t in range(length)]
        taken = np.stack([raw.taken[episode, t] for t in range(length)])
        stored = model.policy.to_environment(batch.actions[b, :length])
        np.testing.assert_allclose(stored, taken, atol=1e-6)
        observations: Any = batch.observations
        if kind == "box":
            assert observations[b, :length].tolist() == [[index, episode, t] for t in range(length)]
        elif kind == "dict":
            assert observations["who"][b, :length].tolist() == [[index, episode, t] for t in range(length)]
            assert observations["step"][b, :length].tolist() == list(range(length))
        elif kind == "discrete":
            assert observations[b, :length].tolist() == list(range(length))
        else:
            assert observations.dtype == torch.uint8 and observations.shape[2:] == (1, 36, 36)
            assert observations[b, :length, 0, 0, 0].tolist() == list(range(length))


def test_normalised_by_the_statistics_of_now() -> None:
    env = VecNormalize(lengths_env((3,), (5, 2)))
    model = LVGTS("MlpPolicy", env, learning_starts=1000, **SMALL).learn(100)
    places = np.arange(4)
    raw, normalised = model.replay_buffer.get(places), model.replay_buffer.get(places, env)
    assert isinstance(raw.observations, torch.Tensor) and isinstance(normalised.observations, torch.Tensor)
    for b, t in raw.mask.nonzero().tolist():
        observation = raw.observations[b, t].numpy()
        assert observation[2] == t and observation[0] == int(raw.rewards[b, t])  # as they are
        expected = (observation - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon)
        np.testing.assert_allclose(normalised.observations[b, t].numpy(), expected, rtol=1e-5)
        reward = raw.rewards[b, t].item() / np.sqrt(env.ret_rms.var + env.epsilon)
        assert normalised.rewards[b, t].item() == pytest.approx(reward, rel=1e-5)
    assert not normalised.rewards[~raw.mask].any()

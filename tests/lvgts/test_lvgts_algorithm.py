"""LVGTS and LM-SVG as Stable-Baselines3 algorithms: the contract, without learning anything."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from lvgts_samples import LATENT_DIM, LengthsEnv, lengths_env
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

import tca_sb3.lvgts
from tca_sb3.lvgts import LMSVG, LVGTS, ConstantThenLinear, LVGTSPolicy, RecurrentEncoder, WorldModel
from tca_sb3.lvgts.imagination import imagine, imagined_return, infer_noise, reparameterized
from tca_sb3.lvgts.replay import EpisodeBatch

ALGORITHMS = [LVGTS, LMSVG]
POLICY = {"latent_dim": LATENT_DIM, "net_arch": [8]}


def make(algorithm: type[LVGTS] = LVGTS, env: Any = None, **kwargs: Any) -> LVGTS:
    """Small, on three environments of different lengths, and training from the fourth episode."""
    settings: dict[str, Any] = {
        "n_episodes": 4,
        "learning_starts": 4,
        "batch_size": 4,
        "dense_updates": 5,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": POLICY,
    }
    if env is None:
        env = lengths_env((3,), (6, 2), (9, 4), endings="tc")
    return algorithm("MlpPolicy", env, **{**settings, **kwargs})


def parameters(model: LVGTS) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def equal(one: Any, other: Any) -> bool:
    """Of nested dicts, lists and tensors, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def run(model: LVGTS | LVGTSPolicy, steps: int = 40) -> np.ndarray:
    """Deterministic actions over several episodes."""
    env = lengths_env((3,), (6, 2), (9, 4))
    observations: Any = env.reset()
    state, begins, actions = None, np.ones(3, bool), []
    for _ in range(steps):
        action, state = model.predict(observations, state, begins, deterministic=True)
        actions.append(action)
        observations, _, begins, _ = env.step(action)
    return np.stack(actions)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mode", ["block", "window"])
def test_learn_moves_every_network_by_the_updates_that_episodes_earned(algorithm: type[LVGTS], mode: str) -> None:
    model = make(algorithm, model_updates=0.75, policy_updates=0.5, truncation_mode=mode)
    before = parameters(model)
    model.learn(120)
    after = parameters(model)
    unmoved = {name for name in before if torch.equal(before[name], after[name])}
    assert unmoved == set()
    n_added = model.replay_buffer.n_added
    due = model._model_updates_due + model._policy_updates_due
    # Warm-up episodes count for the models only; three ended before the one that made it complete.
    assert model._n_updates + due == pytest.approx(0.75 * n_added + 0.5 * (n_added - 3))
    assert 0 <= model._model_updates_due < 1 and 0 <= model._policy_updates_due < 1


def test_policy_step_moves_the_actor_alone_and_model_step_all_but_it() -> None:
    model = make().learn(60)
    batch = model.replay_buffer.sample(4)
    actor = {f"actor.{name}" for name, _ in model.policy.actor.named_parameters()}
    before = parameters(model)
    model.policy_step(batch)
    between = parameters(model)
    assert {name for name in before if not torch.equal(before[name], between[name])} == actor
    model.model_step(batch)
    after = parameters(model)
    assert {name for name in before if torch.equal(between[name], after[name])} == actor


def test_policy_step_climbs_the_imagined_return() -> None:
    model = make(learning_rate=1e-3, action_noise_std=0.0).learn(60)
    batch = model.replay_buffer.sample(32)
    returns = [model.policy_step(batch).item() for _ in range(30)]
    assert returns[-1] > returns[0] + 0.01


def test_actions_that_are_no_numbers_reach_no_environment() -> None:
    model = make().learn(30)
    taken, added = model.num_timesteps, model.replay_buffer.n_added
    with torch.no_grad():
        for parameter in model.policy.encoder.parameters():
            parameter.mul_(1e30)
    with pytest.raises(
        FloatingPointError, match="LVGTS's actions are no numbers any more: its latent states overflowed"
    ):
        model.learn(30, reset_num_timesteps=False)
    assert (model.num_timesteps, model.replay_buffer.n_added) == (taken, added)


def test_model_steps_reduce_the_losses() -> None:
    model = make(model_learning_rate=3e-3).learn(60)
    batch = model.replay_buffer.sample(32)
    losses = [model.model_step(batch) for _ in range(60)]
    assert losses[-1].reward < 0.5 * losses[0].reward and losses[-1].decoder < losses[0].decoder


def test_a_saturated_actor_is_pulled_back() -> None:
    """At the flat end of its tanh the return's gradient vanishes; the penalty's does not."""
    ends = []
    for coef in (0.0, 0.1):
        model = make(saturation_coef=coef, learning_rate=1e-2).learn(40)
        batch = model.replay_buffer.sample(8)
        with torch.no_grad():
            model.policy.actor.net[-1].bias += 60.0
        for _ in range(50):
            model.policy_step(batch)
        latents = model.policy.encode(batch).latents[batch.mask]
        ends.append(model.policy.actor.unbounded(latents).max().item())
    assert ends[0] > 15 and ends[1] < ends[0] - 1
    inside = make(saturation_coef=1e6)
    assert inside._saturation(torch.zeros(2, 3, LATENT_DIM), torch.ones(2, 3, dtype=torch.bool)) == 0.0


def test_gradients_are_clipped_by_norm() -> None:
    kwargs = {**POLICY, "optimizer_class": torch.optim.SGD}
    model = make(max_grad_norm=1e-3, learning_rate=1.0, model_learning_rate=1.0, policy_kwargs=kwargs).learn(40)
    batch = model.replay_buffer.sample(8)
    for step, moved in (
        (model.model_step, model.policy.model_parameters),
        (model.policy_step, model.policy.actor_parameters),
    ):
        before = [parameter.detach().clone() for parameter in moved]
        step(batch)
        squares = [(new - old).square().sum() for new, old in zip(moved, before, strict=True)]
        assert sum(squares).sqrt().item() == pytest.approx(1e-3, rel=1e-3)  # type: ignore[union-attr]


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    model = make(policy_kwargs={**POLICY, "optimizer_class": torch.optim.SGD}).learn(40)
    before = parameters(model)
    loss, _ = model.model_loss(model.replay_buffer.sample(8))
    model._descend(loss * torch.inf, model.policy.model_optimizer)
    assert all(torch.equal(value, before[name]) for name, value in parameters(model).items())
    assert model._n_lost_gradients == 1
    model.learn(40, reset_num_timesteps=False)
    assert model._n_lost_gradients == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("truncation", [2, None])
def test_the_actors_step_is_plain_backpropagation_of_the_return(algorithm: type[LVGTS], truncation: int | None) -> None:
    """Its two halves, through time and through the actor, against one call of autograd; some actions are clipped."""
    kwargs = {**POLICY, "optimizer_class": torch.optim.SGD}
    model = make(algorithm, truncation=truncation, action_noise_std=1.0, max_grad_norm=1e9, policy_kwargs=kwargs)
    batch = model.learn(40).replay_buffer.sample(8)
    policy, moved = model.policy, model.policy.actor_parameters
    torch.manual_seed(0)
    noise = model.replay_noise(batch)
    with torch.no_grad():
        encoding = policy.encode(batch)
    shocks = infer_noise(policy.world_model, encoding, batch.actions, model.shortcuts)
    act = reparameterized(policy.actor, noise)
    replay = imagine(act, policy.world_model, encoding, shocks, truncation, model.shortcuts)
    assert 0.1 < (replay.actions.abs() == 1.0).float().mean() < 0.9
    gain = imagined_return(replay.rewards, batch.mask)
    penalty = model.saturation_coef * model._saturation(encoding.latents, batch.mask)
    expected = torch.autograd.grad(penalty - gain, moved)
    torch.manual_seed(0)
    value = model.policy_step(batch)
    torch.testing.assert_close([parameter.grad for parameter in moved], list(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value, gain.detach())


@pytest.mark.parametrize("which", ["reward", "decoder", "transition"])
def test_alphas_weigh_their_terms(which: str) -> None:
    """With the two others at 0, only what this term may move moves."""
    alphas = {f"alpha_{name}": float(name == which) for name in ("reward", "decoder", "transition")}
    model = make(**alphas).learn(40)
    batch = model.replay_buffer.sample(8)
    model.policy.model_optimizer = torch.optim.SGD(model.policy.model_parameters, lr=0.1)
    before = parameters(model)
    model.model_step(batch)
    moved = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    heads = {name.split(".")[1] for name in moved if name.startswith("world_model")}
    assert heads == {which}
    assert any(name.startswith("encoder") for name in moved) == (which != "transition")


def test_replayed_noise_has_its_own_deviation() -> None:
    model = make(action_noise_std=0.5).learn(40)
    batch = model.replay_buffer.sample(8)
    model.policy.optimizer = torch.optim.SGD(model.policy.actor_parameters, lr=0.0)
    spreads = {}
    for std in (None, 0.5, 0.0):
        model.replay_noise_std = std
        torch.manual_seed(0)
        spreads[std] = np.std([model.policy_step(batch).item() for _ in range(10)])
    assert spreads[0.0] < 1e-6 < spreads[0.5] == spreads[None]


def test_inferred_noise_belongs_to_the_algorithm() -> None:
    """Under recorded actions both algorithms replay the rewards their model gives to real latents."""
    for algorithm in ALGORITHMS:
        model = make(algorithm, learning_starts=1000).learn(60)
        batch = model.replay_buffer.sample(8)
        policy = model.policy
        policy.actor = Recorded(batch.actions)  # type: ignore[assignment]
        policy.optimizer = torch.optim.SGD(policy.actor.parameters(), lr=0.0)
        model.replay_noise_std = 0.0
        rewards = policy.world_model.predict_reward(policy.encode(batch).latents, batch.actions)
        expected = (rewards * batch.mask).sum().item() / 8
        assert model.policy_step(batch).item() == pytest.approx(expected, abs=1e-5)


class Recorded(nn.Module):
    """Plays given actions, one time after the other; all of them when asked about all times.

    The same latents again are the same time again: a cut asks twice.
    """

    def __init__(self, actions: Tensor) -> None:
        super().__init__()
        self.actions, self.t = nn.Parameter(actions), -1
        self.last = torch.empty(0)

    def forward(self, latents: Tensor) -> Tensor:
        if latents.ndim == 3:
            return self.actions
        if not torch.equal(latents, self.last):
            self.t, self.last = self.t + 1, latents.detach()
        return self.actions[:, self.t]

    def unbounded(self, latents: Tensor) -> Tensor:
        return torch.zeros_like(self.actions[:, : latents.shape[1]])


def test_only_the_shortcuts_tell_the_two_apart() -> None:
    """Same networks and episodes; LM-SVG's transition is blind to what was recalled."""
    models = [make(algorithm).learn(60) for algorithm in ALGORITHMS]
    batch = models[0].replay_buffer.sample(8)
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    losses = [model.model_step(batch) for model in models]
    assert losses[0].reward == losses[1].reward and losses[0].decoder == losses[1].decoder
    assert losses[0].transition != losses[1].transition


def test_one_seed_one_result() -> None:
    one, same, other = (make(seed=seed).learn(80) for seed in (0, 0, 1))
    assert equal(parameters(one), parameters(same))
    assert not equal(parameters(one), parameters(other))


def test_learning_rates_follow_their_schedules() -> None:
    model = make(learning_rate=lambda left: left, model_learning_rate=ConstantThenLinear(0.5))
    seen = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            policy = self.model.policy
            seen.append([o.param_groups[0]["lr"] for o in (policy.optimizer, policy.model_optimizer)])  # type: ignore

    model.learn(200, callback=Watch())
    left = np.array([rate for rate, _ in seen[1:]])
    assert (np.diff(left) < 0).all() and left[0] > 0.8 and left[-1] < 0.3
    assert [rate for _, rate in seen[1:]] == pytest.approx(0.5 * (0.1 + 0.9 * np.minimum(1, 2 * left)))
    assert [ConstantThenLinear(2.0)(x) for x in (1.0, 0.5, 0.25, 0.0)] == pytest.approx([2.0, 2.0, 1.1, 0.2])


@pytest.mark.parametrize("truncated", [False, True])
def test_ending_does_not_change_what_is_learned(truncated: bool) -> None:
    """A time limit's last state stands for nothing: both endings train on the same data."""
    models = [
        make(env=lengths_env((3,), (6, 2), endings=endings)).learn(60) for endings in ("t", "c" if truncated else "t")
    ]
    assert equal(parameters(models[0]), parameters(models[1]))


def test_long_episodes_train() -> None:
    model = make(env=lengths_env((100,), (50,)), n_episodes=2, learning_starts=2, policy_kwargs=POLICY).learn(400)
    assert model._n_updates > 2
    assert all(torch.isfinite(value).all() for value in parameters(model).values())


@pytest.mark.parametrize("encoder_class", [tca_sb3.lvgts.AttentionEncoder, RecurrentEncoder])
def test_attention_is_dense_until_it_is_sparse(encoder_class: Any, tmp_path: Path) -> None:
    """Whoever loads a model attends as it did when it was saved."""
    model = make(n_recalls=2, dense_updates=12, policy_kwargs={**POLICY, "encoder_class": encoder_class})
    observations = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
    actions = np.stack([[model.action_space.sample() for _ in range(8)] for _ in range(5)])

    def recalled(model: LVGTS) -> int:
        return int((model.attention_weights(observations, actions) > 0).sum(-1).max())

    seen = []
    for _ in range(5):
        model.learn(15, reset_num_timesteps=False)
        model.save(tmp_path / "model")
        loaded = LVGTS.load(tmp_path / "model", device="cpu")
        model.policy.save(str(tmp_path / "policy.pt"))
        assert LVGTSPolicy.load(str(tmp_path / "policy.pt"), device="cpu").n_recalls == model.policy.n_recalls
        assert recalled(model) == recalled(loaded) == (7 if model._n_model_updates < 12 else 2)
        np.testing.assert_array_equal(run(loaded), run(model))
        seen.append(recalled(model))
    assert seen[0] == 7 and seen[-1] == 2
    assert recalled(make(n_recalls=2, dense_updates=0)) == 2


# -- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder_class", [tca_sb3.lvgts.AttentionEncoder, RecurrentEncoder])
def test_predict_is_the_actor_on_the_encoded_past(encoder_class: Any) -> None:
    model = make(policy_kwargs={**POLICY, "encoder_class": encoder_class})
    actions = run(model)
    raw: Any = lengths_env((3,), (6, 2), (9, 4))
    for lane, env in enumerate(raw.envs):
        begin, episode = 0, 0
        while begin < 40:
            length = min(env.lengths[episode % len(env.lengths)], 40 - begin)
            observations = torch.tensor([[[lane, episode, t] for t in range(length)]], dtype=torch.float32)
            mine = actions[begin : begin + length, lane]
            scaled = torch.as_tensor(model.policy.scale_action(mine)).unsqueeze(0)
            mask = torch.ones(1, length, dtype=torch.bool)
            encoding = model.policy.encode(EpisodeBatch(observations, scaled, scaled[..., 0], mask))
            expected = model.policy.to_environment(model.policy.actor(encoding.latents[0]).detach())
            np.testing.assert_allclose(mine, expected, atol=1e-4)
            begin, episode = begin + length, episode + 1


def test_first_actions_are_near_the_middle() -> None:
    actor = make().policy.actor
    latents = torch.randn(100, LATENT_DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(actor(latents), torch.tanh(actor.net(latents) / 3))
    assert actor(latents).abs().max() < 0.05
    assert actor(1000 * latents).abs().max() > 0.5


def test_predict_shapes_state_and_noise() -> None:
    model = make(action_noise_std=0.5)
    one = np.zeros(3, np.float32)
    action, state = model.predict(one, deterministic=True)
    assert action.shape == (2,) and model.action_space.contains(action)
    copies = [part.copy() for part in state]
    second, _ = model.predict(one, state, deterministic=True)
    assert not np.array_equal(second, action)  # it remembers
    assert all(np.array_equal(part, copy) for part, copy in zip(state, copies, strict=True))  # and keeps its hands off
    again, _ = model.predict(one, state, np.array([True]), deterministic=True)
    np.testing.assert_array_equal(again, action)
    many, many_state = model.predict(np.zeros((5, 3), np.float32))
    assert many.shape == (5, 2) and all(len(part) == 5 for part in many_state)
    assert len(np.unique(many)) > 5
    spread = model.policy.scale_action(model.predict(np.zeros((4000, 3), np.float32))[0])
    assert (abs(spread) <= 1).all()
    noise = spread - model.policy.scale_action(model.predict(one, deterministic=True)[0])
    assert np.median(abs(noise)) == pytest.approx(0.5 * 0.6745, rel=0.06)


def test_warm_up_actions_are_uniform() -> None:
    env = lengths_env(*[(5,)] * 40)
    model = make(env=env, learning_starts=400, n_episodes=40, model_updates=0.0).learn(40 * 5 * 10)
    batch = model.replay_buffer.get(np.arange(400))
    counts, _ = np.histogram(batch.actions.numpy(), bins=4, range=(-1, 1))
    assert counts.sum() == 4000 and (abs(counts - 1000) < 120).all()


@pytest.mark.parametrize("learning_starts", [1000, 1])
def test_acting_remembers_the_actions_really_taken(learning_starts: int) -> None:
    model = make(env=lengths_env((50,), (60,)), learning_starts=learning_starts, n_episodes=1)
    model.learn(1000, callback=lambda local, _: local["self"].num_timesteps < 40)
    taken = model.env.get_attr("taken")  # type: ignore[union-attr]
    assert model._acting is not None
    last = np.stack([mine[0, 19] for mine in taken])
    np.testing.assert_allclose(model.policy.to_environment(model._acting.previous_actions), last, atol=1e-6)
    assert model._acting.memory.lengths.tolist() == [20, 20]


def test_acting_forgets_where_an_episode_ended() -> None:
    model = make().learn(100)
    assert model._acting is not None and model._collector is not None
    lengths = model._collector.lengths
    assert model._acting.memory.lengths.tolist() == lengths.tolist()
    assert (model._acting.previous_actions.any(1).numpy() == (lengths > 0)).all()
    assert (lengths == 0).any() and (lengths > 0).any()


def test_evaluate_policy_carries_memory() -> None:
    """SB3's loop passes state and episode starts as ours does."""
    model = make()
    env = lengths_env((3,), (6, 2), (9, 4))
    seen: list[np.ndarray] = []
    evaluate_policy(
        model, env, n_eval_episodes=60, warn=False, callback=lambda local, _: seen.append(local["actions"][local["i"]])
    )
    # The callback runs for each environment and step, in turn, until 20 episodes of an environment are over.
    np.testing.assert_array_equal(np.array(seen[:120]).reshape(40, 3, 2), run(model))


def test_attention_weights_are_those_of_acting() -> None:
    model = make()
    observations = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    actions = np.stack([[model.action_space.sample() for _ in range(7)] for _ in range(2)])
    weights = model.attention_weights(observations, actions)
    assert weights.shape == (2, 7, 7) and not np.triu(weights).any()
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(np.arange(7) > 0, (2, 7)), atol=1e-5)
    # The action space is [-2, 4] x [0, 1].
    scaled = torch.as_tensor((actions - [1.0, 0.5]) / [3.0, 0.5], dtype=torch.float32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    encoding = model.policy.encode(EpisodeBatch(torch.as_tensor(observations), scaled, scaled[..., 0], mask))
    np.testing.assert_allclose(weights, encoding.weights.detach().numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="one action belongs to each observation"):
        model.attention_weights(observations, actions[:, :5])


# -- saving, loading, going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_loaded_model_predicts_bit_for_bit(algorithm: type[LVGTS], tmp_path: Path) -> None:
    model = make(algorithm, policy_kwargs={**POLICY, "encoder_class": RecurrentEncoder}).learn(60)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(run(loaded), run(model))
    assert equal(loaded.get_parameters(), model.get_parameters())
    assert model.get_parameters()["policy.optimizer"]["state"] and model.get_parameters()["policy.model_optimizer"]


@pytest.mark.parametrize("force_reset", [True, False])
def test_resumed_training_equals_uninterrupted(tmp_path: Path, force_reset: bool) -> None:
    """From whole episodes in any case: a file holds none that are in progress."""
    model = make().learn(60)
    assert model._collector is not None and model._collector.lengths.any()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    env, same = (lengths_env((3,), (6, 2), (9, 4), endings="tc") for _ in range(2))
    loaded = LVGTS.load(tmp_path / "model", env=env, device="cpu", force_reset=force_reset)
    loaded.load_replay_buffer(tmp_path / "buffer")
    model.set_env(same)
    for each in (model, loaded):
        each.set_random_seed(7)
        each.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == loaded.num_timesteps > 120
    assert equal(model.get_parameters(), loaded.get_parameters())
    assert model._n_updates == loaded._n_updates and model._model_updates_due == loaded._model_updates_due


def test_loads_with_another_number_of_environments(tmp_path: Path) -> None:
    make().learn(40).save(tmp_path / "model")
    loaded = LVGTS.load(tmp_path / "model", env=lengths_env((4,)), device="cpu")
    assert loaded.learn(40, reset_num_timesteps=False).num_timesteps >= 80


class Doubled(FlattenExtractor):
    """Flattens, and multiplies."""

    def __init__(self, observation_space: spaces.Space, factor: float = 2.0) -> None:
        super().__init__(observation_space)
        self.factor = factor

    def forward(self, observations: Tensor) -> Tensor:
        return self.factor * super().forward(observations)


def test_policy_saves_every_argument(tmp_path: Path) -> None:
    kwargs = {
        "latent_dim": 6,
        "net_arch": {"pi": [3], "model": [4, 4]},
        "activation_fn": nn.Tanh,
        "encoder_class": RecurrentEncoder,
        "encoder_kwargs": {"net_arch": [5]},
        "features_extractor_class": Doubled,
        "features_extractor_kwargs": {"factor": 3.0},
    }
    policy = make(policy_kwargs=kwargs, n_recalls=2, dense_updates=0, action_noise_std=0.3).policy
    policy.save(str(tmp_path / "policy.pt"))
    loaded = LVGTSPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    np.testing.assert_array_equal(run(loaded), run(policy))
    assert str(loaded) == str(policy)
    given, again = (one._get_constructor_parameters() for one in (policy, loaded))
    given.pop("lr_schedule"), again.pop("lr_schedule")
    assert given == again and given["n_recalls"] == 2 and given["noise_std"] == 0.3


def test_wrong_files_are_named(tmp_path: Path) -> None:
    model = make().learn(20)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="saved by LVGTS and cannot be loaded as LMSVG"):
        LMSVG.load(tmp_path / "model", device="cpu")
    model.replay_buffer.device = torch.device("meta")  # as if saved on another machine
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.device == model.device
    other = make(env=lengths_env((4,), kind="discrete"))
    with pytest.raises(ValueError, match=r"observations of Box.*model's are of Discrete"):
        other.load_replay_buffer(tmp_path / "buffer")
    from stable_baselines3.common.save_util import save_to_pkl

    save_to_pkl(tmp_path / "list", [1])
    with pytest.raises(TypeError, match="holds a list"):
        model.load_replay_buffer(tmp_path / "list")


# -- the host's conveniences ------------------------------------------------------------------------------------------


def test_callbacks_see_what_they_expect_and_may_stop(tmp_path: Path) -> None:
    names: set[str] = set()

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            names.update({"new_obs", "rewards", "dones", "infos", "actions"} & set(self.locals))
            return self.num_timesteps < 30

    model = make().learn(1000, callback=Watch())
    assert model.num_timesteps == 30 and len(names) == 5
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(2))
    assert model.num_timesteps < 100
    evaluation = EvalCallback(
        lengths_env((3,)), eval_freq=10, log_path=str(tmp_path), verbose=0, warn=False, n_eval_episodes=2
    )
    make().learn(60, callback=evaluation)
    assert evaluation.last_mean_reward == pytest.approx(sum(t / 16 for t in range(3)))


def test_learn_goes_on_with_episodes_in_progress() -> None:
    env = lengths_env((50,), (7,))
    model = make(env=env, n_episodes=1, learning_starts=1000).learn(14).learn(90, reset_num_timesteps=False)
    assert 50 in model.replay_buffer.lengths


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_logs(tmp_path: Path) -> None:
    written: dict[str, Any] = {}

    class Keep(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
            written.update(key_values)

        def close(self) -> None: ...

    model = make(env=DummyVecEnv([lambda: gym.wrappers.RecordEpisodeStatistics(LengthsEnv(0, (4,)))]))
    model.set_logger(Logger(None, [Keep()]))
    model.learn(100, log_interval=1, progress_bar=True)
    assert {
        "train/reward_loss",
        "train/decoder_loss",
        "train/transition_loss",
        "train/imagined_return",
        "train/learning_rate",
        "train/model_learning_rate",
        "train/n_updates",
        "rollout/ep_rew_mean",
        "time/episodes",
        "time/total_timesteps",
    } <= set(written)
    assert written["rollout/ep_rew_mean"] == pytest.approx(sum(t / 16 for t in range(4)))


def test_takes_environments_in_every_form() -> None:
    for env in ("Pendulum-v1", LengthsEnv(0, (4,)), gym.make_vec("Pendulum-v1", 2, vector_kwargs=_same_step())):
        make(env=env, n_episodes=1, learning_starts=1).learn(10)
    normalised = VecNormalize(lengths_env((3,), (6, 2)))
    make(env=normalised).learn(60)


def _same_step() -> dict[str, Any]:
    return {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}


def test_networks_of_ones_own() -> None:
    class Shifted(WorldModel):
        def __init__(self, *args: Any, shift: float, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.shift = nn.Parameter(torch.tensor(shift))

        def predict_reward(self, latents: Tensor, actions: Tensor) -> Tensor:
            return super().predict_reward(latents, actions) + self.shift

    arch = {"pi": [3], "encoder": [7, 7]}
    kwargs = {"world_model_class": Shifted, "world_model_kwargs": {"shift": 2.0}, "net_arch": arch}
    model = make(policy_kwargs={**POLICY, **kwargs, "optimizer_class": torch.optim.SGD}).learn(40)
    assert isinstance(model.policy.world_model, Shifted) and model.policy.world_model.shift != 2.0
    assert model.policy.actor.net[0].out_features == 3
    assert isinstance(model.policy.optimizer, torch.optim.SGD)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"truncation": 0}, ValueError, "truncation=0; it must be an integer from 1"),
        ({"n_recalls": 0}, ValueError, "n_recalls=0"),
        ({"batch_size": 2.5}, ValueError, "batch_size=2.5"),
        ({"n_episodes": True}, ValueError, "n_episodes=True"),
        ({"action_noise_std": -1.0}, ValueError, "action_noise_std=-1.0"),
        ({"model_updates": float("nan")}, ValueError, "model_updates=nan"),
        ({"truncation_mode": "blocks"}, ValueError, "write one of"),
        ({"truncation_mode": "window", "truncation": None}, ValueError, "cuts nowhere"),
        ({"policy_kwargs": {"net_arch": {"vf": [3]}}}, ValueError, r"keys \['vf'\], which name no network"),
        ({"policy_kwargs": {"encoder_class": nn.Linear}}, TypeError, "needs a subclass of Encoder"),
        ({"policy_kwargs": {"world_model_class": WorldModel(1, 1, 1)}}, TypeError, "subclass of WorldModel"),
        ({"env": "CartPole-v1"}, ValueError, r"Discrete\(2\); gradients flow through actions"),
    ],
)
def test_bad_arguments_are_answered_in_a_sentence(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_bad_calls_are_answered_in_a_sentence() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"obs, info = env\.reset"):
        model.predict((np.zeros(3), {}))  # type: ignore[arg-type]
    _, state = model.predict(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="got 3 observations and a state of other environments"):
        model.predict(np.zeros((3, 3)), state)
    with pytest.raises(ValueError, match="got 2 observations and 3 entries of episode_start"):
        model.predict(np.zeros((2, 3)), state, np.zeros(3, bool))
    with pytest.raises(ValueError, match="max_episode_steps=8"):
        make(max_episode_steps=8).learn(100)
    model.env = None
    with pytest.raises(ValueError, match=r"write model\.set_env"):
        model.learn(10)


def test_mathematics_does_not_import_the_host() -> None:
    folder = Path(tca_sb3.lvgts.__file__).parent
    for name in ("encoder", "world_model", "imagination"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not any(module.split(".")[0] in {"stable_baselines3", "gymnasium"} for module in imported), name
    assert isinstance(make().action_space, spaces.Box)

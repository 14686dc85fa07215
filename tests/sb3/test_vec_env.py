"""``GymVecEnv`` against ``DummyVecEnv`` over ``Monitor``, bit for bit, and against what each host
promises."""

from __future__ import annotations

import doctest
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from tca_sb3 import vec_env
from tca_sb3.vec_env import GymVecEnv, make_gym_vec_env

N_ENVS = 3
OBSERVATION_SPACES: dict[str, spaces.Space] = {
    "box": spaces.Box(-10, 10, (2, 2), np.float32),
    "float64": spaces.Box(-10, 10, (3,), np.float64),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi_discrete": spaces.MultiDiscrete([3, 5]),
    "dict": spaces.Dict(image=spaces.Box(0, 255, (4, 4, 3), np.uint8), has_key=spaces.Discrete(2)),
}


class RandomEnv(gym.Env):
    """Random observations, rewards and lengths, which ends now by termination and now by truncation.

    The action enters the reward, so that a lost or shifted action shows.
    """

    def __init__(self, observation_space: spaces.Space, render_mode: str | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(4)
        self.render_mode = render_mode
        self.gravity = 9.8

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def _draw(self) -> Any:
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps_left = int(self.np_random.integers(1, 6))
        return self._draw(), {"start": float(self.np_random.random()), "options": str(options or None)}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.steps_left -= 1
        over = self.steps_left == 0
        kind = int(self.np_random.integers(3)) if over else -1
        info: dict[str, Any] = {"noise": float(self.np_random.random()), "nested": {"left": self.steps_left}}
        if over:
            info["is_success"] = kind == 0
        # kind 2 reports both, which is not a time-out for SB3.
        return (
            self._draw(),
            float(self.np_random.normal() + 10 * action),
            kind in (0, 2),
            kind in (1, 2),
            info,
        )

    def render(self) -> np.ndarray:
        return np.full((8, 8, 3), self.steps_left, dtype=np.uint8)

    def double(self, x: int) -> int:
        return 2 * x


def sync(
    make: Callable[[], gym.Env],
    n_envs: int = N_ENVS,
    mode: AutoresetMode = AutoresetMode.SAME_STEP,
    **kwargs: Any,
) -> SyncVectorEnv:
    return SyncVectorEnv([make] * n_envs, autoreset_mode=mode, **kwargs)


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


def without_time(info: dict[str, Any]) -> dict[str, Any]:
    assert info["episode"]["t"] >= 0
    return {**info, "episode": {key: info["episode"][key] for key in "rl"}}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES.keys())
def test_gives_what_dummy_vec_env_over_monitor_gives(space: spaces.Space, mode: AutoresetMode, copy: bool) -> None:
    def make() -> gym.Env:
        return RandomEnv(type(space)(**space_arguments(space)))

    ours = GymVecEnv(sync(make, mode=mode, copy=copy))
    theirs = DummyVecEnv([lambda: Monitor(make())] * N_ENVS)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    ours.seed(5)
    theirs.seed(5)
    ours.set_options({"level": 1})
    theirs.set_options({"level": 1})
    obs = ours.reset()
    kept = [obs]
    assert_same(obs, theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    assert ours.reset_infos[0]["options"] == "{'level': 1}"

    rng = np.random.default_rng(0)
    expected: list[Any] = []
    ended = 0
    for _ in range(60):
        actions = rng.integers(4, size=N_ENVS)
        obs, rewards, dones, infos = ours.step(actions)
        their_obs, their_rewards, their_dones, their_infos = theirs.step(actions)
        assert_same(obs, their_obs)
        assert_same(rewards, their_rewards)
        assert_same(dones, their_dones)
        for index in range(N_ENVS):
            if dones[index]:
                ended += 1
                info, their_info = without_time(infos[index]), without_time(their_infos[index])
                assert_same(info.pop("terminal_observation"), their_info.pop("terminal_observation"))
                assert info == their_info
                assert {key: type(value) for key, value in info.items()} == {
                    key: type(value) for key, value in their_info.items()
                }
            else:
                assert infos[index] == {}
        assert ours.reset_infos == theirs.reset_infos
        kept.append(obs)
        expected.append(their_obs)
    assert ended > 30
    # Observations that somebody kept are not overwritten by later steps.
    for obs, their_obs in zip(kept[1:], expected, strict=True):
        assert_same(obs, their_obs)


def space_arguments(space: spaces.Space) -> dict[str, Any]:
    """A space for each environment, since they draw from it: the arguments that make the same one again."""
    if isinstance(space, spaces.Box):
        return {"low": space.low, "high": space.high, "dtype": space.dtype.type}
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"nvec": space.nvec}
    assert isinstance(space, spaces.Dict)
    return {"spaces": {key: type(part)(**space_arguments(part)) for key, part in space.items()}}


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
@pytest.mark.parametrize(
    ("env_id", "policy"),
    [
        ("tca/DAG4-v0", "MlpPolicy"),
        ("tca/KeyToDoorMini-v0", "MultiInputPolicy"),
        ("tca/DummyAMT-v0", "MlpPolicy"),
        ("tca/Bsuite-v0", "MlpPolicy"),
    ],
)
def test_native_environments_of_tca_envs(env_id: str, policy: str, mode: str) -> None:
    """The native vector environments, against ``DummyVecEnv`` of the single ones; and SB3 trains on them."""
    pytest.importorskip("tca_envs")
    if "Bsuite" in env_id:
        pytest.importorskip("bsuite")
    if gym.spec(env_id).vector_entry_point is None:
        ours = GymVecEnv(sync(lambda: gym.make(env_id), mode=AutoresetMode(mode)))
    elif mode == "SameStep":
        ours = make_gym_vec_env(env_id, N_ENVS)
        assert type(ours.vector_env) is not SyncVectorEnv
    else:
        ours = GymVecEnv(gym.make_vec(env_id, N_ENVS, autoreset_mode=mode))
    theirs = DummyVecEnv([lambda: Monitor(gym.make(env_id))] * N_ENVS)
    ours.seed(3)
    theirs.seed(3)
    assert_same(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    ours.action_space.seed(0)
    ended = 0
    for _ in range(2 * ours.get_attr("horizon")[0] + 2):
        actions = np.array([ours.action_space.sample() for _ in range(N_ENVS)])
        (obs, rewards, dones, infos), their = ours.step(actions), theirs.step(actions)
        assert_same(obs, their[0])
        assert_same(rewards, their[1])
        assert_same(dones, their[2])
        for index in np.flatnonzero(dones):
            ended += 1
            info, their_info = without_time(infos[index]), without_time(their[3][index])
            assert_same(info.pop("terminal_observation"), their_info.pop("terminal_observation"))
            assert info == their_info
    assert ended == 2 * N_ENVS
    model = A2C(policy, ours, n_steps=4, device="cpu").learn(24)
    assert model.num_timesteps == 24


def test_every_kind_of_end_is_told_apart() -> None:
    """The equality above would hold if no episode ended by a time-out."""
    env = GymVecEnv(sync(lambda: RandomEnv(spaces.Discrete(7))))
    env.seed(0)
    env.reset()
    seen = set()
    for _ in range(60):
        infos = env.step(np.zeros(N_ENVS, dtype=int))[3]
        seen |= {(info["TimeLimit.truncated"], info["is_success"]) for info in infos if info}
    assert seen == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize("algorithm", [A2C, PPO, DQN])
def test_training_is_the_same_as_on_dummy_vec_env(algorithm: type) -> None:
    """The parameters after training agree to the last bit, time-outs and their bootstrap included."""

    def make() -> gym.Env:
        return TimeLimit(CartPoleEnv(), max_episode_steps=15)

    kwargs: dict[str, Any] = {"seed": 3, "device": "cpu"}
    kwargs |= {"learning_starts": 20, "train_freq": 2} if algorithm is DQN else {"n_steps": 16}
    if algorithm is PPO:
        kwargs["batch_size"] = 16
    models = [
        algorithm("MlpPolicy", env, **kwargs).learn(128)
        for env in (GymVecEnv(sync(make)), DummyVecEnv([lambda: Monitor(make())] * N_ENVS))
    ]
    ours, theirs = (torch.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models)
    assert torch.equal(ours, theirs)
    lengths = [[episode["l"] for episode in model.ep_info_buffer] for model in models]
    assert lengths[0] == lengths[1]
    assert 15 in lengths[0]


def test_cartpole_vector_env_makes_no_transition_that_never_happened() -> None:
    """Every transition is one of the single environment, and every episode starts as its ``reset`` does."""
    env = GymVecEnv(CartPoleVectorEnv(num_envs=5, max_episode_steps=20))
    env.seed(0)
    obs = env.reset()
    single = CartPoleEnv()
    single.reset()
    rng = np.random.default_rng(0)
    lengths = np.zeros(5, dtype=int)
    truncations = terminations = 0
    for _ in range(200):
        actions = rng.integers(2, size=5)
        state = env.vector_env.state.T.copy()
        new_obs, rewards, dones, infos = env.step(actions)
        lengths += 1
        for index in range(5):
            single.state = state[index]
            single.steps_beyond_terminated = None
            expected, reward, terminated, _, _ = single.step(int(actions[index]))
            truncated = lengths[index] == 20
            last = infos[index]["terminal_observation"] if dones[index] else new_obs[index]
            np.testing.assert_allclose(last, expected, rtol=1e-6)
            assert rewards[index] == reward
            assert dones[index] == (terminated or truncated)
            if dones[index]:
                assert infos[index]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[index]["episode"]["l"] == infos[index]["episode"]["r"] == lengths[index]
                assert np.abs(new_obs[index]).max() <= 0.05
                lengths[index] = 0
                truncations += bool(truncated)
                terminations += bool(terminated)
        np.testing.assert_array_equal(new_obs, env.vector_env.state.T.astype(np.float32))
    assert np.array_equal(obs, env.reset()) is False
    assert truncations > 0
    assert terminations > 0


def test_atari_vector_env() -> None:
    pytest.importorskip("ale_py")
    env = make_gym_vec_env(
        "ale_py:ALE/Pong-v5", n_envs=2, seed=0, max_num_frames_per_episode=60, img_height=36, img_width=36
    )
    assert type(env.vector_env).__name__ == "AtariVectorEnv"
    # A second environment in another mode writes into metadata that the two share.
    next_step = gym.make_vec("ALE/Pong-v5", num_envs=1, autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="AtariVectorEnv resets in the step after"):
        GymVecEnv(next_step)
    GymVecEnv(env.vector_env)
    with pytest.raises(ValueError, match="returns 1 of its 2 sub-environments"):
        GymVecEnv(gym.make_vec("ALE/Pong-v5", num_envs=2, batch_size=1, autoreset_mode="SameStep"))
    obs = env.reset()
    assert obs.shape == (2, 4, 36, 36)
    last = obs
    for step in range(40):
        obs, rewards, dones, infos = env.step(np.zeros(2, dtype=int))
        assert rewards.dtype == np.float32
        if dones.any():
            assert dones.all()
            assert infos[0]["TimeLimit.truncated"]
            assert infos[0]["episode"]["l"] == step + 1
            # The last frames of the episode follow on the frames before; the new episode's do not.
            np.testing.assert_array_equal(infos[0]["terminal_observation"][:-1], last[0][1:])
            assert not np.array_equal(obs[0][:-1], last[0][1:])
            break
        last = obs
    else:
        pytest.fail("no episode ended")
    env.seed()
    env.reset()


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [(AutoresetMode.NEXT_STEP, "resets in the step after an episode's end"), (None, "does not say")],
)
def test_other_autoreset_modes_are_refused(mode: AutoresetMode | None, sentence: str) -> None:
    envs = sync(CartPoleEnv)
    envs.autoreset_mode = mode
    envs.metadata = {} if mode is None else {"autoreset_mode": mode}
    with pytest.raises(ValueError, match=sentence) as error:
        GymVecEnv(envs)
    assert "autoreset_mode=AutoresetMode.SAME_STEP" in str(error.value)
    wrapped = RecordEpisodeStatistics(CartPoleVectorEnv())
    with pytest.raises(ValueError, match="never happened"):
        GymVecEnv(wrapped)


def test_what_is_not_a_vector_env_is_refused() -> None:
    with pytest.raises(TypeError, match="got CartPoleEnv, which is not a Gymnasium VectorEnv"):
        GymVecEnv(CartPoleEnv())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Stable-Baselines3 VecEnv already"):
        GymVecEnv(DummyVecEnv([CartPoleEnv]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"step_info_keys=\('phase',\)"):
        GymVecEnv(CartPoleVectorEnv(), step_info_keys="phase")
    for n_envs in (0, 2.0, True):
        with pytest.raises(ValueError, match="integer of at least 1"):
            make_gym_vec_env("CartPole-v1", n_envs=n_envs)  # type: ignore[arg-type]


def test_seed_numbers_the_environments_as_sb3_does() -> None:
    env = make_gym_vec_env("Acrobot-v1", n_envs=3, seed=11)
    obs = env.reset()
    for index in range(3):
        np.testing.assert_array_equal(obs[index], gym.make("Acrobot-v1").reset(seed=11 + index)[0])
    # A seed serves one reset.
    assert not np.array_equal(obs, env.reset())
    env.seed(11)
    np.testing.assert_array_equal(obs, env.reset())
    spaces_ = [make_gym_vec_env("Acrobot-v1", n_envs=3, seed=11).action_space for _ in range(2)]
    assert [spaces_[0].sample() for _ in range(30)] == [spaces_[1].sample() for _ in range(30)]
    # AtariVectorEnv takes no seed of 2^31 or more.
    assert max(env.seed()[-1] for _ in range(30)) < 2**31


def test_options_are_one_dict_for_all_and_serve_one_reset() -> None:
    env = make_gym_vec_env("CartPole-v1", n_envs=4, seed=0)
    env.set_options({"low": 0.2, "high": 0.3})
    assert env.reset().min() >= 0.2
    assert env.reset().max() <= 0.05
    env.set_options([{"low": 0.2, "high": 0.3}] * 4)
    assert env.reset().min() >= 0.2
    with pytest.raises(ValueError, match="pass that dict"):
        env.set_options([{"low": 0.1}, {}, {}, {}])
    assert env.reset().max() <= 0.05


def test_fastest_version_is_taken() -> None:
    assert type(make_gym_vec_env("CartPole-v1", 2).vector_env) is CartPoleVectorEnv
    acrobot = make_gym_vec_env("Acrobot-v1", 2).vector_env
    assert type(acrobot) is SyncVectorEnv
    assert acrobot.autoreset_mode is AutoresetMode.SAME_STEP


def test_an_id_may_name_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registers_on_import.py").write_text(
        "import gymnasium\ngymnasium.register('Poles-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_gym_vec_env("registers_on_import:Poles-v0", 2, seed=0).reset().shape == (2, 4)


def test_step_info_keys() -> None:
    envs = sync(lambda: RandomEnv(spaces.Discrete(7)))
    env = GymVecEnv(envs, step_info_keys=("noise", "nested", "absent"))
    dummy = DummyVecEnv([lambda: Monitor(RandomEnv(spaces.Discrete(7)))] * N_ENVS)
    env.seed(1)
    dummy.seed(1)
    env.reset()
    dummy.reset()
    for _ in range(20):
        _, _, dones, infos = env.step(np.zeros(N_ENVS, dtype=int))
        their_infos = dummy.step(np.zeros(N_ENVS, dtype=int))[3]
        for index in range(N_ENVS):
            their = {key: their_infos[index][key] for key in ("noise", "nested")}
            assert {key: infos[index][key] for key in ("noise", "nested")} == their
            assert dones[index] or set(infos[index]) == {"noise", "nested"}


def test_reset_in_the_middle_of_an_episode_starts_its_statistics_anew() -> None:
    env = GymVecEnv(sync(lambda: TimeLimit(CartPoleEnv(), 5), 1))
    env.seed(0)
    env.reset()
    for _ in range(3):
        env.step(np.zeros(1, dtype=int))
    env.reset()
    infos = [env.step(np.zeros(1, dtype=int))[3][0] for _ in range(5)]
    assert infos[:4] == [{}] * 4
    assert (infos[4]["episode"]["l"], infos[4]["episode"]["r"]) == (5, 5.0)


def test_infos_are_nobody_elses() -> None:
    """Running infos are shared empty dicts: writing into one must not reach a later step."""
    env = make_gym_vec_env("CartPole-v1", n_envs=3, seed=0)
    env.reset()
    infos = env.step(np.zeros(3, dtype=int))[3]
    infos[1]["mine"] = 1
    later = env.step(np.zeros(3, dtype=int))[3]
    assert later == [{}, {}, {}]
    assert infos == [{}, {"mine": 1}, {}]
    ended: list[Any] = []
    for _ in range(40):
        dones, infos = env.step(np.zeros(3, dtype=int))[2:]
        ended += [(info, {**info}) for info, done in zip(infos, dones, strict=True) if done]
    assert len(ended) > 3
    assert later == [{}, {}, {}]
    assert all(info == copy for info, copy in ended if "terminal_observation" not in copy)
    for info, copy in ended:
        np.testing.assert_array_equal(info["terminal_observation"], copy["terminal_observation"])
        assert info["episode"] == copy["episode"]


def test_evaluate_policy_trusts_the_statistics_and_does_not_warn() -> None:
    model = A2C("MlpPolicy", make_gym_vec_env("CartPole-v1", n_envs=2, seed=0), device="cpu", seed=0)

    def make() -> gym.Env:
        return TimeLimit(CartPoleEnv(), max_episode_steps=30)

    results = []
    for env in (GymVecEnv(sync(make, 4)), DummyVecEnv([lambda: Monitor(make())] * 4)):
        env.seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.append(evaluate_policy(model, env, n_eval_episodes=10, return_episode_rewards=True))
    assert results[0] == results[1]
    # Statistics are of the rewards before VecNormalize, as with Monitor.
    normalized = VecNormalize(make_gym_vec_env("CartPole-v1", n_envs=2), training=False, clip_reward=0.25)
    rewards, lengths = evaluate_policy(model, normalized, n_eval_episodes=4, return_episode_rewards=True)
    assert rewards == lengths


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_vec_normalize_and_vec_monitor_agree_with_dummy_vec_env() -> None:
    envs = [
        VecNormalize(VecMonitor(env)) for env in (GymVecEnv(sync(CartPoleEnv)), DummyVecEnv([CartPoleEnv] * N_ENVS))
    ]
    for env in envs:
        env.seed(2)
    assert_same(envs[0].reset(), envs[1].reset())
    rng = np.random.default_rng(1)
    for _ in range(60):
        actions = rng.integers(2, size=N_ENVS)
        (obs, rewards, dones, infos), theirs = envs[0].step(actions), envs[1].step(actions)
        assert_same(obs, theirs[0])
        assert_same(rewards, theirs[1])
        for index in np.flatnonzero(dones):
            assert_same(infos[index]["terminal_observation"], theirs[3][index]["terminal_observation"])
            assert infos[index]["episode"]["r"] == theirs[3][index]["episode"]["r"]


def test_image_wrappers_and_callback() -> None:
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    env = GymVecEnv(sync(lambda: RandomEnv(image)))
    stacked = VecFrameStack(VecTransposeImage(env), 2)
    model = A2C("CnnPolicy", stacked, n_steps=4, device="cpu")
    model.learn(24, callback=EvalCallback(stacked, eval_freq=4, n_eval_episodes=2, verbose=0))
    assert model.ep_info_buffer


def test_a_monitor_inside_is_believed() -> None:
    """SB3's AtariWrapper ends an episode at every lost life; only the Monitor inside knows the true end."""

    class LostLives(gym.Wrapper):
        def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
            obs, reward, _, truncated, info = self.env.step(action)
            self.lives = getattr(self, "lives", 0) + 1
            return obs, reward, self.lives % 2 == 0, truncated, info

        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            return self.env.reset(**kwargs) if kwargs.get("seed") is not None else (self.unwrapped.state, {})

    env = GymVecEnv(sync(lambda: LostLives(Monitor(CartPoleEnv())), 2))
    env.seed(0)
    env.reset()
    env.step(np.zeros(2, dtype=int))
    dones, infos = env.step(np.zeros(2, dtype=int))[2:]
    assert dones.all()
    assert "episode" not in infos[0]


def test_attributes_and_methods_of_single_environments() -> None:
    env = GymVecEnv(sync(lambda: TimeLimit(RandomEnv(spaces.Discrete(2), "rgb_array"), 10)))
    assert env.get_attr("gravity") == [9.8] * 3
    env.set_attr("gravity", 1.6, indices=[0, 2])
    assert env.get_attr("gravity") == [1.6, 9.8, 1.6]
    assert env.get_attr("gravity", indices=1) == [9.8]
    assert env.vector_env.envs[2].unwrapped.gravity == 1.6
    assert env.env_method("double", 4, indices=[1]) == [8]
    assert env.has_attr("gravity")
    assert not env.has_attr("levity")
    assert env.env_is_wrapped(TimeLimit) == [True] * 3
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.ClipReward, indices=0) == [False]
    env.seed(0)
    env.reset()
    frames = env.get_images()
    assert [frame[0, 0, 0] for frame in frames] == [e.unwrapped.steps_left for e in env.vector_env.envs]
    assert env.render().shape == (16, 16, 3)


class NativeEnv(CartPoleVectorEnv):
    """A vector environment with its own SAME_STEP, which returns views of its one buffer, and with one
    attribute."""

    level = 1

    def __init__(self, num_envs: int = 2, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        super().__init__(num_envs, max_episode_steps=4)
        self.autoreset_mode = autoreset_mode
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.buffer = np.zeros((num_envs, 4), dtype=np.float32)
        self.final = np.zeros((num_envs, 4), dtype=np.float32)
        self.rewards = np.zeros(num_envs, dtype=np.float32)
        self.gusts = np.zeros((num_envs, 2))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        self.buffer[:], info = super().reset(**kwargs)
        return self.buffer[:], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        self.buffer[:], _, terminated, truncated, _ = super().step(action)
        self.rewards += 1
        self.gusts += 1
        info: dict[str, Any] = {"wind": 3.0, "gusts": self.gusts}
        if truncated.all():
            self.final[:] = self.buffer
            info["final_obs"] = self.final
            self.reset()
        return self.buffer[:], self.rewards, terminated, truncated, info

    def doubled(self, x: int) -> int:
        self.calls = getattr(self, "calls", 0) + 1
        return 2 * x * self.level


def test_attributes_and_methods_of_a_native_vector_env() -> None:
    env = GymVecEnv(RecordEpisodeStatistics(NativeEnv(3)))
    assert env.get_attr("level") == [1, 1, 1]
    env.set_attr("level", 2)
    assert env.get_attr("level", indices=[0]) == [2]
    assert env.env_method("doubled", 5, indices=[0, 1]) == [20, 20]
    assert env.vector_env.unwrapped.calls == 1
    with pytest.raises(ValueError, match="leave indices out"):
        env.set_attr("level", 3, indices=1)
    assert env.get_attr("level") == [2, 2, 2]
    assert not env.has_attr("levity")
    assert env.env_is_wrapped(TimeLimit) == [False] * 3


def test_a_native_vector_env_may_reuse_its_buffers() -> None:
    env = GymVecEnv(NativeEnv(2), step_info_keys=("wind", "gusts"))
    twin = NativeEnv(2)
    env.seed(0)
    kept = [(env.reset(), twin.reset(seed=0)[0].copy())]
    finals = []
    kept_rewards, kept_gusts = [], []
    for step in range(12):
        actions = np.ones(2, dtype=int)
        obs, rewards, dones, infos = env.step(actions)
        kept_rewards.append(rewards)
        kept_gusts += [(step + 1.0, info["gusts"]) for info in infos if "gusts" in info]
        twin_obs, *_, twin_info = twin.step(actions)
        kept.append((obs, twin_obs.copy()))
        assert dones[0] or (infos[0]["wind"] == 3.0 and set(infos[0]) == {"wind", "gusts"})
        if dones.any():
            finals.append(([info["terminal_observation"] for info in infos], twin_info["final_obs"].copy()))
    for ours, theirs in kept + finals:
        np.testing.assert_array_equal(ours, theirs)
    assert len(finals) == 3
    np.testing.assert_array_equal(kept_rewards, np.arange(1, 13)[:, None] * np.ones(2))
    assert len(kept_gusts) == 2 * 9  # in three steps episodes ended
    assert all((gusts == strength).all() for strength, gusts in kept_gusts)


@pytest.mark.ci
def test_async_vector_env() -> None:
    def make() -> gym.Env:
        return gym.make("Acrobot-v1", max_episode_steps=5)

    env = GymVecEnv(AsyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    twin = GymVecEnv(sync(make, 2))
    for one in (env, twin):
        one.seed(0)
    np.testing.assert_array_equal(env.reset(), twin.reset())
    for _ in range(12):
        (obs, rewards, dones, infos), theirs = env.step([0, 2]), twin.step([0, 2])
        np.testing.assert_array_equal(obs, theirs[0])
        np.testing.assert_array_equal(rewards, theirs[1])
        if dones[0]:
            assert infos[0]["TimeLimit.truncated"]
            np.testing.assert_array_equal(infos[0]["terminal_observation"], theirs[3][0]["terminal_observation"])
    env.set_attr("book_or_nips", "nips", indices=1)
    assert env.get_attr("book_or_nips") == ["book", "nips"]
    assert env.get_attr("book_or_nips", indices=[1]) == ["nips"]
    with pytest.raises(ValueError, match="AsyncVectorEnv calls all of them"):
        env.env_method("get_wrapper_attr", "spec", indices=0)
    assert len(env.env_method("has_wrapper_attr", "spec")) == 2
    env.close()


def test_continuous_actions_reach_the_environment_in_its_own_dtype() -> None:
    class Recorded(gym.ActionWrapper):
        def action(self, action: Any) -> Any:
            assert action.dtype == np.float32
            return action

    env = GymVecEnv(sync(lambda: Recorded(gym.make("Pendulum-v1")), 2))
    env.seed(0)
    dummy = DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1"))] * 2)
    dummy.seed(0)
    assert_same(env.reset(), dummy.reset())
    for _ in range(5):
        actions = np.random.default_rng(0).uniform(-2, 2, size=(2, 1))
        assert_same(env.step(actions.tolist())[0], dummy.step(actions.astype(np.float32))[0])
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    assert model.learn(64).num_timesteps == 64


def test_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(vec_env)
    assert results.attempted > 0
    assert results.failed == 0

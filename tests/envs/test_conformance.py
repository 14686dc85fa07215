"""Laws that hold for every environment of the package; new ones are found in the registry by themselves."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check

import tca_envs
from tca_envs.env import CreditEnv
from tca_envs.registration import registrations
from tca_envs.testing import check_credit_env

assert tca_envs
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def horizons() -> dict[str, int]:
    """Every registered id that can be made here, with the length of its episodes (0: varies)."""
    found = {}
    for name in sorted(name for name in gym.registry if name.startswith("tca/")):
        with contextlib.suppress(DependencyNotInstalled):  # an optional extra
            found[name] = gym.make(name).get_wrapper_attr("horizon") or 0
    return found


HORIZONS = horizons()
IDS = list(HORIZONS)
NATIVE = [name for name in IDS if gym.spec(name).vector_entry_point]
MODES = [mode.value for mode in AutoresetMode]
# One id a class, with short episodes, for what all configurations of a class share.
SHORTEST = {
    min((name for name in IDS if gym.spec(name).entry_point == point), key=lambda name: HORIZONS[name])
    for point in {gym.spec(name).entry_point for name in IDS}
}
# The sine of a library may differ in its last bit from one call to another; nothing else may.
TOLERANCE = {name: 1e-5 if "Pendulum" in name else 0.0 for name in IDS}


@pytest.fixture(autouse=True)
def strict_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Boxes without bounds are meant where they occur, and so are observations of few pixels.
        warnings.filterwarnings("ignore", message=".*(infinity|bounds|symmetric|minimal resolution|Box).*")
        yield


def assert_equal(one: Any, two: Any, tolerance: float = 0.0) -> None:
    """The same structure and the same numbers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key], tolerance)
    elif np.asarray(one).dtype == object:
        assert len(one) == len(two)
        for x, y in zip(one, two, strict=True):
            assert_equal(x, y, tolerance)
    elif tolerance:
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(one, two)
        assert np.asarray(one).dtype == np.asarray(two).dtype


def final_of(infos: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """Infos without `final_obs`, and the final observations by environment: arrays or objects alike."""
    infos = dict(infos)
    finals = infos.pop("final_obs", None)
    mask = infos.get("_final_obs", ())
    return infos, {int(i): finals[i] for i in np.flatnonzero(mask)}


def without_masked(infos: dict[str, Any]) -> dict[str, Any]:
    """Infos with everything that a mask hides set to zero: hidden entries mean nothing."""
    clean = {}
    for key, value in infos.items():
        if isinstance(value, dict):
            clean[key] = without_masked(value)
        elif key.startswith("_"):
            clean[key] = value
        else:
            mask = infos[f"_{key}"]
            clean[key] = np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros_like(value))
    return clean


def test_there_is_something_to_check():
    assert {f"tca/{entry.name}" for _, entry in registrations()} >= set(IDS)
    assert {"tca/Umbrella-v0", "tca/DAG8-v0", "tca/KeyToDoor-v0", "tca/KeyToDoorMini-v0"} <= set(NATIVE)


@pytest.mark.parametrize("env_id", IDS)
def test_spec_survives_json(env_id):
    spec = gym.spec(env_id)
    assert isinstance(spec.entry_point, str)
    assert spec.max_episode_steps is None  # the environment ends by itself
    back = EnvSpec.from_json(spec.to_json())
    json.loads(spec.to_json())
    gym.make(back).close()
    made = gym.make(env_id)
    assert EnvSpec.from_json(made.spec.to_json()).id == env_id


def test_prefixed_id_works_without_import():
    code = "import gymnasium as g; e = g.make('tca_envs:tca/DAG8-v0'); print(e.reset(seed=0)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_import_stays_light():
    code = (
        "import sys, tca_envs; "
        "heavy = {'torch', 'numba', 'bsuite', 'pygame', 'matplotlib', 'stable_baselines3', 'tca_sb3'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_checker(env_id):
    gymnasium_check(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_sb3_checker(env_id):
    sb3_check(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_credit_laws(env_id):
    check_credit_env(gym.make(env_id), episodes=2, interventions=8, tolerance=TOLERANCE[env_id])


@pytest.mark.parametrize("env_id", IDS)
def test_rendering(env_id):
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=0)
    env.action_space.seed(0)
    frames = [env.render()]
    for _ in range(3):
        env.step(env.action_space.sample())
        frames.append(env.render())
    for frame in frames:
        assert isinstance(frame, np.ndarray)
        assert frame.dtype == np.uint8
        assert frame.shape == frames[0].shape == (*frame.shape[:2], 3)
    assert any((frames[0] != frame).any() for frame in frames[1:])
    assert "human" in env.metadata["render_modes"]
    assert env.metadata["render_fps"] > 0


@pytest.mark.parametrize("env_id", sorted(SHORTEST))
def test_human_rendering(env_id):
    pygame = pytest.importorskip("pygame")
    env = gym.make(env_id, render_mode="human")
    env.unwrapped.metadata = {**env.unwrapped.metadata, "render_fps": 1000}
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert pygame.display.get_surface() is not None
    env.close()
    assert not pygame.display.get_init()


@pytest.mark.parametrize("env_id", IDS)
def test_mistakes_are_refused_and_change_nothing(env_id):
    env, twin = (gym.make(env_id).unwrapped for _ in range(2))
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())
    env.reset(seed=1)
    twin.reset(seed=1)
    discrete = isinstance(env.action_space, gym.spaces.Discrete)
    wrong = [float("nan"), "up", None]
    wrong += (
        [-1, int(env.action_space.n), 0.5] if discrete else [np.array([1e9]), np.array([[0.0]]), np.array([np.nan])]
    )
    for action in wrong:
        with pytest.raises((ValueError, TypeError)):
            env.step(action)
    with pytest.raises(ValueError, match="no_such_option"):
        env.reset(options={"no_such_option": 1})
    env.action_space.seed(0)
    terminated = False
    while not terminated:
        action = env.action_space.sample()
        one, two = env.step(action), twin.step(action)
        for mine, its in zip(one, two, strict=True):
            assert_equal(mine, its)
        terminated = one[2]
        assert type(one[1]) is float
    with pytest.raises(ResetNeeded):
        env.step(action)


@pytest.mark.parametrize("env_id", IDS)
def test_unseeded_environments_differ(env_id):
    """Without a seed entropy is fresh, and `np_random` decides it."""
    episodes = []
    for seed in (None, None, 5, 5):
        env = gym.make(env_id).unwrapped
        if seed is not None:
            env.reset(seed=len(episodes))  # to be forgotten
            env.np_random = np.random.default_rng(seed)
        env.action_space.seed(0)
        seen = []
        for _ in range(3):
            seen.append(env.reset()[0])
            terminated = False
            while not terminated:
                observation, reward, terminated, _, _ = env.step(env.action_space.sample())
                seen += [observation, reward]
        episodes.append(pickle.dumps(seen))
    assert episodes[2] == episodes[3]
    if env_id not in {"tca/DAG-v0", "tca/DAG4-v0", "tca/DAG8-v0", "tca/DAG16-v0"}:  # nothing in them is random
        assert episodes[0] != episodes[1]


@pytest.mark.parametrize("env_id", IDS)
def test_state_survives_pickling_and_copying(env_id):
    env = gym.make(env_id).unwrapped
    if not isinstance(env, CreditEnv):
        pytest.skip("made anew from its arguments, as Gymnasium's EzPickle environments are")
    env.reset(seed=3)
    env.action_space.seed(3)
    for _ in range(min(16, env.horizon - 1)):
        env.step(env.action_space.sample())
    twins = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    for _ in range(2):
        terminated = False
        while not terminated:
            action = env.action_space.sample()
            expected = env.step(action)
            for twin in twins:
                for one, two in zip(expected, twin.step(action), strict=True):
                    assert_equal(one, two)
            terminated = expected[2]
        first = env.reset()
        for twin in twins:
            assert_equal(first[0], twin.reset()[0])


def make_pair(env_id: str, lanes: int, mode: str, **arguments: Any) -> tuple[Any, Any]:
    native = gym.make_vec(env_id, num_envs=lanes, autoreset_mode=mode, **arguments)
    arguments.pop("backend", None)
    sync = gym.make_vec(env_id, lanes, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **arguments)
    return native, sync


def compare_steps(native: Any, sync: Any, steps: int, tolerance: float) -> int:
    """Step both with the same actions; the number of episodes that ended."""
    ended = 0
    for _ in range(steps):
        actions = native.action_space.sample()
        one, two = native.step(actions), sync.step(actions)
        assert_equal(one[0], two[0], tolerance)
        assert_equal(one[1], two[1], tolerance)
        assert_equal(one[2], two[2])
        assert_equal(one[3], two[3])
        (infos, finals), (sync_infos, sync_finals) = final_of(one[4]), final_of(two[4])
        assert_equal(without_masked(infos), without_masked(sync_infos), tolerance)
        assert_equal(finals, sync_finals, tolerance)
        ended += int(one[2].sum())
        if native.metadata["autoreset_mode"] is AutoresetMode.DISABLED and one[2].any():
            options = {"reset_mask": one[2].copy()}
            first, second = native.reset(options=dict(options)), sync.reset(options=dict(options))
            assert_equal(first[0], second[0], tolerance)
            assert_equal(without_masked(first[1]), without_masked(second[1]), tolerance)
    return ended


@pytest.mark.parametrize(
    ("env_id", "mode"),
    [(env_id, mode) for env_id in NATIVE for mode in MODES if mode == "SameStep" or env_id in SHORTEST],
)
def test_vector_equals_sync(env_id, mode):
    """The native vector environment is `SyncVectorEnv` of the single one, bit for bit."""
    tolerance = TOLERANCE[env_id]
    native, sync = make_pair(env_id, 3, mode)
    assert native.metadata["autoreset_mode"] == AutoresetMode(mode)
    assert native.single_observation_space == sync.single_observation_space
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    native.action_space.seed(0)
    for seed in (11, [5, 3, 4]):
        one, two = native.reset(seed=seed), sync.reset(seed=seed)
        assert_equal(one[0], two[0], tolerance)
        assert_equal(one[1], two[1], tolerance)
        assert native.observation_space.contains(one[0])
        assert compare_steps(native, sync, 2 * native.horizon + 3, tolerance) >= 6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", [name for name in NATIVE if name in SHORTEST])
def test_vector_equals_sync_out_of_lockstep(env_id, mode):
    """Resetting some lanes in mid-episode leaves the rest alone, and lanes may meet again."""
    tolerance = TOLERANCE[env_id]
    native, sync = make_pair(env_id, 4, mode)
    native.reset(seed=2)
    sync.reset(seed=2)
    native.action_space.seed(1)
    early = max(1, native.horizon // 3)
    masks = ([True, False, False, False], [False, True, True, False], [False, False, False, True])
    for mask, seed in zip(masks, (None, 70, None), strict=True):
        compare_steps(native, sync, early, tolerance)
        options = {"reset_mask": np.array(mask)}
        one, two = native.reset(seed=seed, options=dict(options)), sync.reset(seed=seed, options=dict(options))
        assert_equal(one[0], two[0], tolerance)
        assert_equal(without_masked(one[1]), without_masked(two[1]), tolerance)
    assert compare_steps(native, sync, 2 * native.horizon + 3, tolerance) >= 4
    one, two = native.reset(seed=9), sync.reset(seed=9)
    assert_equal(one[0], two[0], tolerance)
    compare_steps(native, sync, native.horizon + 1, tolerance)


@pytest.mark.parametrize("env_id", NATIVE)
def test_position_and_batch_size_do_not_matter(env_id):
    """Seed s gives the same episodes alone, in a batch, and at any place in it."""
    histories = []
    for lanes, seed, lane in ((1, 7, 0), (5, 3, 4), (9, 5, 2)):
        env = gym.make_vec(env_id, num_envs=lanes)
        observations, _ = env.reset(seed=seed)
        actions = env.single_action_space
        actions.seed(0)
        history = [pick(observations, lane)]
        for _ in range(env.horizon + 2):
            action = np.asarray(actions.sample())
            observations, rewards, *_ = env.step(np.repeat(action[None], lanes, axis=0))
            history += [pick(observations, lane), rewards[lane]]
        histories.append(history)
    for history in histories[1:]:
        assert_equal(dict(enumerate(history)), dict(enumerate(histories[0])), TOLERANCE[env_id])


def pick(observations: Any, lane: int) -> Any:
    if isinstance(observations, dict):
        return {name: values[lane].copy() for name, values in observations.items()}
    return observations[lane].copy()


@pytest.mark.parametrize("env_id", NATIVE)
def test_vector_laws(env_id):
    """Arrays are the caller's own, wrong input changes nothing, and the state survives pickling."""
    env = gym.make_vec(env_id, num_envs=3, render_mode="rgb_array")
    single = gym.make(env_id).unwrapped
    for name in ("horizon", "optimal_return", "random_return", "myopic_return"):
        assert getattr(env, name) == getattr(single, name)
    np.testing.assert_array_equal(env.credit_matrix, single.credit_matrix)
    with pytest.raises(ValueError, match="read-only"):
        env.credit_matrix[0, 0] = 5.0
    sample = env.action_space.sample()
    with pytest.raises(ResetNeeded):
        env.step(sample)
    observations, _ = env.reset(seed=4)
    kept, frozen = observations, copy.deepcopy(observations)
    twin = pickle.loads(pickle.dumps(env))
    discrete = sample.dtype.kind == "i"
    wrong = [sample[:2], sample[None], "left", sample.astype(object)]
    wrong += (
        [sample * 0 - 1, sample * 0 + 99, sample * 0.5, sample > 0] if discrete else [sample * np.nan, sample + 1e9]
    )
    for actions in wrong:
        with pytest.raises((ValueError, TypeError)):
            env.step(actions)
    for options in (
        {"no_such_option": 1},
        {"reset_mask": [True, False, False]},
        {"reset_mask": np.ones(2, bool)},
        {"reset_mask": np.zeros(3, bool)},
        {"reset_mask": np.ones(3, int)},
    ):
        with pytest.raises((ValueError, TypeError)):
            env.reset(options=options)
    with pytest.raises(ValueError, match="3 environments"):
        env.reset(seed=[1, 2])
    with pytest.raises(TypeError, match="sequence"):
        env.reset(seed=1.5)
    for _ in range(env.horizon + 2):
        sample = env.action_space.sample()
        for one, two in zip(env.step(sample)[:4], twin.step(sample)[:4], strict=True):
            assert_equal(one, two)
    assert_equal(kept, frozen)
    frames = env.render()
    assert len(frames) == 3
    assert frames[0].dtype == np.uint8


def test_disabled_needs_resets():
    env = gym.make_vec("tca/DAG4-v0", num_envs=2, autoreset_mode="Disabled")
    env.reset(seed=0)
    actions = np.zeros(2, int)
    env.step(actions)
    env.reset(options={"reset_mask": np.array([True, False])})
    for _ in range(3):
        _, _, terminated, _, _ = env.step(actions)
    assert terminated.tolist() == [False, True]
    with pytest.raises(ResetNeeded, match=r"\[1\]"):
        env.step(actions)
    env.reset(options={"reset_mask": np.array([False, True])})
    env.step(actions)
    assert native_clock(env) is None
    for mask in ([True, False], [False, True]):
        env.reset(options={"reset_mask": np.array(mask)})
    env.step(actions)
    assert native_clock(env) == 1  # together again, and fast again


def test_disabled_in_lockstep():
    env = gym.make_vec("tca/DAG4-v0", num_envs=2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="first reset"):
        env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    env.reset(seed=0, options={"reset_mask": np.array([True, True])})
    for _ in range(4):
        _, _, terminated, _, _ = env.step(np.zeros(2, int))
    assert terminated.all()
    for _ in range(2):
        with pytest.raises(ResetNeeded):
            env.step(np.zeros(2, int))
    env.reset(options={"reset_mask": np.array([True, True])})
    assert native_clock(env) == 0


def native_clock(env: Any) -> int | None:
    """The time of all lanes, or None out of lockstep."""
    return env._clock if isinstance(env._clock, int) else None


def test_entropy_of_vector_environments():
    """Without a seed fresh streams, each lane its own, decided by `np_random`; partly seeded where asked."""

    def first_rewards(env, **arguments):
        env.reset(**arguments)
        return env.step(np.zeros(4, int))[1]

    envs = [gym.make_vec("tca/Umbrella-v0", num_envs=4) for _ in range(5)]
    drawn = [first_rewards(env) for env in envs[:2]]
    assert len(np.unique(drawn)) == 8
    for number, env in enumerate(envs[2:4]):
        env.reset(seed=number)  # to be forgotten
        env.np_random = np.random.default_rng(3)
    np.testing.assert_array_equal(first_rewards(envs[2]), first_rewards(envs[3]))
    following = first_rewards(envs[2])
    assert (following != first_rewards(envs[1])).all()
    seeded = first_rewards(envs[4], seed=[7, None, 9, None])
    whole = first_rewards(envs[0], seed=7)
    np.testing.assert_array_equal(seeded[[0, 2]], whole[[0, 2]])
    assert (seeded[[1, 3]] != whole[[1, 3]]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"autoreset_mode": "Sometimes"}, "'NextStep', 'SameStep', 'Disabled'"),
        ({"render_mode": "human"}, "None, 'rgb_array'"),
    ],
)
def test_bad_vector_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        gym.make_vec("tca/DAG8-v0", **arguments)


def test_zero_copy_gives_the_same_numbers():
    copied, views = (gym.make_vec("tca/KeyToDoorMini-v0", num_envs=3, copy=copy) for copy in (True, False))
    seen, _ = views.reset(seed=0)
    assert_equal(copied.reset(seed=0)[0], seen)
    views.action_space.seed(0)
    for _ in range(40):
        actions = views.action_space.sample()
        first, second = copied.step(actions), views.step(actions)
        assert_equal(first[0], second[0])
        assert np.shares_memory(seen["image"], second[0]["image"])
        if "final_obs" in second[4]:
            finals = first[4]["final_obs"], second[4]["final_obs"]
            assert_equal(*finals)
            assert not np.shares_memory(finals[1][0]["image"], second[0]["image"])

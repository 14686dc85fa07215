"""The compiled kernels give what the plain ones give, bit for bit."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
from test_conformance import HORIZONS, NATIVE, SHORTEST, TOLERANCE, assert_equal, final_of, without_masked

from tca_envs import backends

IN_FAST_TESTS = ("tca/DAG4-v0", "tca/Umbrella-v0", "tca/KeyToDoorMini-v0")  # every class compiles for seconds
CASES = [
    *(
        pytest.param(env_id, {}, marks=() if env_id in IN_FAST_TESTS else pytest.mark.ci)
        for env_id in NATIVE
        if env_id in SHORTEST
    ),
    ("tca/DAG4-v0", {"redraw_signs": "lifetime"}),
    pytest.param(
        "tca/KeyToDoorMini-v0",
        {"respawn": 3, "view": "crop", "crop_size": 3, "tile_size": 2},
        marks=pytest.mark.ci,
    ),
]


@pytest.mark.parametrize(("env_id", "arguments"), CASES)
def test_numba_equals_numpy(env_id, arguments):
    pytest.importorskip("numba")
    tolerance = TOLERANCE[env_id]
    plain, fast = (gym.make_vec(env_id, num_envs=5, backend=name, **arguments) for name in ("numpy", "numba"))
    plain.action_space.seed(0)

    def compare(steps):
        for _ in range(steps):
            actions = plain.action_space.sample()
            one, two = plain.step(actions), fast.step(actions)
            for mine, its in zip(one[:4], two[:4], strict=True):
                assert_equal(mine, its, tolerance)
            (infos, finals), (fast_infos, fast_finals) = final_of(one[4]), final_of(two[4])
            assert_equal(without_masked(infos), without_masked(fast_infos), tolerance)
            assert_equal(finals, fast_finals, tolerance)

    assert_equal(plain.reset(seed=5)[0], fast.reset(seed=5)[0], tolerance)
    compare(2 * HORIZONS[env_id] + 3)
    options = {"reset_mask": np.array([False, True, True, False, False])}
    assert_equal(plain.reset(options=options)[0], fast.reset(options=options)[0], tolerance)
    compare(HORIZONS[env_id])
    fast = pickle.loads(pickle.dumps(fast))
    compare(3)


def test_any_integers_will_do_for_compiled_loops():
    """Compiled loops trust their input, so whatever layout the caller's array has must be put right."""
    pytest.importorskip("numba")
    plain, fast = (gym.make_vec("tca/DAG8-v0", num_envs=4, backend=name) for name in ("numpy", "numba"))
    plain.reset()
    fast.reset()
    wide = np.array([[0, 1, 9, 9], [1, 1, 9, 9], [1, 0, 9, 9], [0, 0, 9, 9]])
    locked = wide[:, 1].copy()
    locked.setflags(write=False)
    for actions in (wide[:, 0], wide[:, 0].astype(">i8"), wide[:, 1].astype(np.uint8), locked, [1, 0, 1, 0]):
        for mine, its in zip(plain.step(actions)[:2], fast.step(actions)[:2], strict=True):
            assert_equal(mine, its)
    for env_id, wrong in (
        ("tca/DAG8-v0", [0, 1, 2, 1]),
        ("tca/DAG8-v0", [0, -1, 1, 1]),
        ("tca/DummyAMT-v0", [[0.0], [3.1], [0.0], [0.0]]),
        ("tca/DummyAMT-v0", [[0.0], [0.0], [np.nan], [0.0]]),
    ):
        messages = []
        for name in ("numpy", "numba"):
            env = gym.make_vec(env_id, num_envs=4, backend=name)
            env.reset(seed=0)
            with pytest.raises(ValueError, match="Actions must") as caught:
                env.step(np.array(wrong))
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_unknown_backend_and_missing_numba(monkeypatch):
    with pytest.raises(ValueError, match="'numpy', 'numba'"):
        gym.make_vec("tca/DAG8-v0", num_envs=2, backend="jax")
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tca-envs\[fast\]"):
        gym.make_vec("tca/DAG8-v0", num_envs=2, backend="numba")


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8, 12, 24, 32])
def test_opaque_entries_as_words(size):
    """Reading and writing entries word by word moves the bytes that numpy's own opaque entries move."""
    rng = np.random.default_rng(size)
    source, target = (rng.integers(256, size=(11, size), dtype=np.uint8).view(f"V{size}").ravel() for _ in range(2))
    copy = target.copy()
    words = backends.Words(copy)
    for i, j in (
        (3, 5),
        (np.array([9, 0, 4]), np.array([1, 10, 1])),
        (np.array([2, 6]), 7),
        (slice(7, 9), slice(0, 2)),
    ):
        target[i] = source[j]
        words[i] = backends.Words(source)[j]
        assert copy.tobytes() == target.tobytes()

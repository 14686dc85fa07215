"""Parts of Figures 4 and 5: what the agent sees, the handcrafted matrix, the numbers of Figure 4, and the search."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
sys.path.insert(0, str(PAPER))

import fig4_5_key_to_door as figure  # noqa: E402
from harness import Results  # noqa: E402

from tca_envs.envs.key_to_door import KeyToDoorRules  # noqa: E402
from tca_sb3.vec_env import make_gym_vec_env  # noqa: E402

MINI = {"maps": "mini", "key_steps": 6, "apple_steps": 20, "door_steps": 6, "n_apples": 4}


def test_handcrafted_weights_entry_by_entry() -> None:
    rules = KeyToDoorRules(**MINI)
    weights = figure.handcrafted_weights(rules)
    phase = [0] * 6 + [1] * 20 + [2] * 6
    for t in range(32):
        for k in range(t + 1, 33):
            wanted = 0.0
            if rules.credit_matrix[t, k - 1]:
                # The reward at time k is paid for the step taken in the phase of k - 1.
                wanted = 0.92 ** (k - t - 1) if phase[t] == phase[k - 1] else 1.0
            assert weights[t, k - 1] == pytest.approx(wanted, rel=1e-6)
    assert weights[0, -1] == 1.0
    assert not np.tril(weights, -1).any()


def test_what_the_agent_sees_is_standardised_and_ends_with_the_last_state() -> None:
    base = make_gym_vec_env("tca/KeyToDoor-v0", 256, tile_size=1, **MINI)
    venv = figure.StandardTiles(base, figure.moments_of_random_play(base, 32))
    twin = make_gym_vec_env("tca/KeyToDoor-v0", 256, tile_size=1, **MINI)
    venv.seed(3)
    twin.seed(3)
    rng = np.random.default_rng(0)
    seen, raw = [venv.reset()], [twin.reset()]
    for _ in range(32):
        actions = rng.integers(4, size=256)
        observations, rewards, dones, infos = venv.step(actions)
        theirs = twin.step(actions)
        seen.append(observations)
        raw.append(theirs[0])
        np.testing.assert_allclose(rewards, theirs[1] * 0.1, rtol=1e-6)
    assert dones.all()
    for ours, theirs in zip(seen, raw, strict=True):
        assert isinstance(theirs, dict)
        pixels = (theirs["image"].reshape(256, -1) / 255 - venv.mean[:-1]) * venv.scale[:-1]
        np.testing.assert_allclose(ours[:, :-1], pixels, atol=1e-5)
        np.testing.assert_array_equal(ours[:, -1], theirs["has_key"])
    # Random play with other random numbers has about the same moments.
    entries = np.concatenate(seen[:-1])[:, :-1]
    assert np.abs(entries.mean(0)).max() < 0.3
    assert infos[5]["terminal_observation"].shape == (venv.mean.size,)
    assert not np.array_equal(infos[5]["terminal_observation"], seen[-1][5])


def test_features_are_block_means() -> None:
    weights = np.full((10, 10), np.nan)
    for t in range(10):
        for k in range(t, 10):
            weights[t, k] = t + k / 100
    found = figure.features(weights, (0, 2, 7, 10))
    assert found["key→door"] == pytest.approx(np.mean([t + k / 100 for t in range(2) for k in range(7, 10)]))
    assert found["key→apple"] == pytest.approx(np.mean([t + k / 100 for t in range(2) for k in range(2, 7)]))
    assert found["apple→door"] == pytest.approx(np.mean([t + k / 100 for t in range(2, 7) for k in range(7, 10)]))
    assert found["apple→apple at lag 4"] == pytest.approx(np.mean([t + (t + 3) / 100 for t in range(2, 4)]))
    assert "apple→apple at lag 11" not in found


def test_at_equal_time_a_dearer_method_has_made_fewer_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(figure.ITERATION_COST, "Meta-PWR", 1.6)
    rising = np.arange(20.0)
    arrays = {
        figure.run_name(method, figure.MIDDLE, seed): {"door": slope * rising + seed}
        for method, slope in (("A2C", 1.0), ("Meta-PWR", 3.0))
        for seed in range(2)
    }
    found = figure.equal_time(Results(pd.DataFrame(), arrays), "Meta-PWR", "A2C", "door", figure.MIDDLE, range(2))
    # 12.5 of 20 points fit; the last two of them are half of point 10, point 11 and half of point 12.
    assert found == pytest.approx({"mean": 3 * 11 - 18.5, "low": 3 * 11 - 18.5, "high": 3 * 11 - 18.5, "n": 2})


def test_the_points_of_every_curve_are_kept() -> None:
    names = [("A2C", figure.MIDDLE, 3), ("H-PWR", (1.0, 5.0), 0)]
    rows = [{"method": m, "apple_mean": a[0], "apple_variance": a[1], "seed": seed} for m, a, seed in names]
    arrays = {
        figure.run_name(*name): {"frames": np.array([10, 20]), "returns": np.array([1.0, i]), "door": np.array([0, i])}
        for i, name in enumerate(names)
    }
    found = figure.curves(Results(pd.DataFrame(rows), arrays))
    assert found.to_numpy().tolist() == [
        ["A2C", 5.0, 25.0, 3, 10, 1.0, 0.0],
        ["A2C", 5.0, 25.0, 3, 20, 0.0, 0.0],
        ["H-PWR", 1.0, 5.0, 0, 10, 1.0, 0.0],
        ["H-PWR", 1.0, 5.0, 0, 20, 1.0, 1.0],
    ]


def test_the_search_resumes_and_keeps_its_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    import search_key_to_door as search

    settings = figure.Settings(seeds=1, updates=2, n_envs=4, env=figure.MINI, points=2)
    search.search("A2C", settings, 1, tmp_path)
    study = search.search("A2C", settings, 1, tmp_path)
    assert len(study.trials) == 2
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 3
    first = study.trials[0].params
    assert first == {name: search.frozen("A2C")[name] for name in first}
    assert set(search.SPACES) == {*figure.METHODS, "Meta-PWR, shared critic"}


def test_the_search_begins_with_the_settings_of_the_figure(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    import search_key_to_door as search

    for method in search.SPACES:
        trial = optuna.trial.FixedTrial(search.frozen(method))
        changes = {**search.policy_space(trial), **search.SPACES[method](trial)}
        own = {**figure.SHARED, **figure.VARIANTS[method][1]}
        if "estimator_kwargs" in changes:  # written out, and as it is by default
            own["estimator_kwargs"] = {"weights_kwargs": {"initial_discount": None, "initial_floor": 0.1}}
            own["estimator_kwargs"]["weights_kwargs"] |= (
                figure.VARIANTS[method][1].get("estimator_kwargs", {}).get("weights_kwargs", {})
            )
        assert changes.items() <= own.items()

"""The bsuite adapter against bsuite itself, and what it states of credit against simulation and
enumeration."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.utils.env_checker import check_env

pytest.importorskip("bsuite")

import tca_envs  # noqa: F401
from tca_envs.envs.bsuite import DOMAINS, BsuiteEnv, bsuite_ids

COUNTS = {
    "catch": 20,
    "catch_noise": 20,
    "catch_scale": 20,
    "umbrella_length": 23,
    "umbrella_distract": 23,
    "cartpole": 20,
    "discounting_chain": 20,
}
EXAMPLES = (
    "catch/0",
    "catch_noise/13",
    "catch_scale/5",
    "umbrella_length/3",
    "umbrella_distract/4",
    "cartpole/0",
    "discounting_chain/2",
)


def play(env: BsuiteEnv, rng: np.random.Generator, seed: int | None = None) -> tuple[list[Any], list[float]]:
    """A random episode: actions and rewards."""
    env.reset(seed=seed)
    actions, rewards, over = [], [], False
    while not over:
        actions.append(int(rng.integers(env.action_space.n)))
        _, reward, over, truncated, _ = env.step(actions[-1])
        assert not truncated
        rewards.append(reward)
    return actions, rewards


def test_every_setting_of_the_seven_domains_is_there() -> None:
    from bsuite import sweep

    assert set(DOMAINS) == set(COUNTS)
    assert {domain: len(bsuite_ids(domain)) for domain in DOMAINS} == COUNTS
    assert len(bsuite_ids()) == sum(COUNTS.values()) == 146
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bsuite_id in bsuite_ids():
            env = BsuiteEnv(bsuite_id)
            obs, info = env.reset(seed=0)
            assert obs in env.observation_space
            assert info == {}
            env.action_space.seed(0)
            obs, reward, *_ = env.step(env.action_space.sample())
            assert obs in env.observation_space
            assert type(reward) is float
            domain = bsuite_id.split("/")[0]
            assert env.num_episodes == (1000 if domain in ("cartpole", "discounting_chain") else 10000)
            for name, value in sweep.SETTINGS[bsuite_id].items():
                if name == "chain_length":
                    assert env.horizon == value
                    # Only in a chain of one step does the next reward teach the choice.
                    assert env.myopic_return == (1.0 if value == 1 else 0.0)
                elif name == "n_distractor":
                    assert env.observation_space.shape == (3 + value,)
                elif name == "reward_scale":
                    assert env.optimal_return == value
                elif name == "mapping_seed":
                    assert env.myopic_return == (1.1 if value % 5 == 0 else 1.0)


@pytest.mark.parametrize("bsuite_id", EXAMPLES)
def test_dynamics_are_bsuites_own(bsuite_id: str) -> None:
    """Step by step against the environment that bsuite loads, put on the same random streams."""
    import bsuite

    env = BsuiteEnv(bsuite_id)
    theirs = bsuite.load_from_id(bsuite_id)
    env.reset(seed=7)
    layers = [theirs]
    while "_env" in vars(layers[-1]):
        layers.append(vars(layers[-1])["_env"])
    seeds = np.random.Generator(np.random.PCG64(np.random.SeedSequence(7)))
    for layer in layers:
        if hasattr(vars(layer).get("_rng"), "seed"):
            vars(layer)["_rng"].seed(int(seeds.integers(2**32)))
    env = BsuiteEnv(bsuite_id)
    rng = np.random.default_rng(0)
    steps = 0
    for episode in range(3):
        obs, _ = env.reset(seed=7 if episode == 0 else None)
        np.testing.assert_array_equal(obs, theirs.reset().observation.ravel())
        terminated = False
        while not terminated:
            action = int(rng.integers(env.action_space.n))
            timestep = theirs.step(action)
            obs, reward, terminated, truncated, info = env.step(np.int64(action))
            np.testing.assert_array_equal(obs, timestep.observation.ravel())
            assert reward == timestep.reward
            assert (terminated, truncated) == (timestep.last(), False)
            assert (info != {}) == terminated
            steps += 1
        if env.horizon is not None:
            assert steps == (episode + 1) * env.horizon


@pytest.mark.parametrize("bsuite_id", EXAMPLES)
def test_a_seed_fixes_everything_and_nothing_else_does(bsuite_id: str) -> None:
    a, b, c = BsuiteEnv(bsuite_id), BsuiteEnv(bsuite_id), BsuiteEnv(bsuite_id)
    play(b, np.random.default_rng(3))
    first = [play(env, np.random.default_rng(0), seed=5) for env in (a, b)]
    second = [play(env, np.random.default_rng(1)) for env in (a, b)]
    assert first[0] == first[1]
    assert second[0] == second[1]
    if bsuite_id.split("/")[0] != "discounting_chain":  # which has nothing random
        observations = {tuple(env.reset()[0]) for env in (a, c, *(BsuiteEnv(bsuite_id) for _ in range(12)))}
        assert len(observations) > 1


def test_regret_of_catch_and_umbrella_counts_what_was_missed() -> None:
    """Catch without its noise and scale, umbrella without its distracting rewards."""
    for bsuite_id in EXAMPLES[:5]:
        env = BsuiteEnv(bsuite_id)
        rng = np.random.default_rng(1)
        env.reset(seed=1)
        expected = 0.0
        for _ in range(40):
            obs, _ = env.reset()
            terminated = False
            while not terminated:
                obs, _, terminated, _, info = env.step(int(rng.integers(env.action_space.n)))
            if env.domain.startswith("catch"):
                expected += 2.0 * (obs.sum() != 1.0)  # ball and paddle in two places
            else:
                expected += 2.0 * (obs[0] != obs[1])
            assert info["total_regret"] == env.total_regret == expected
        assert 0 < expected < 80


@pytest.mark.ci
def test_regret_is_what_bsuites_analysis_finds_in_its_log(tmp_path: Path) -> None:
    """bsuite's analysis sets a global plotting style on import, so it works in a process of its own."""
    regrets = {}
    for bsuite_id in ("cartpole/0", "discounting_chain/2", "catch_noise/9", "umbrella_length/3"):
        folder = str(tmp_path / bsuite_id.split("/")[0])
        env = BsuiteEnv(bsuite_id, results_dir=folder)
        rng = np.random.default_rng(0)
        for episode in range(12):
            play(env, rng, seed=0 if episode == 0 else None)
        regrets[env.domain] = env.total_regret
        with pytest.raises(ValueError, match="already exists"):
            BsuiteEnv(bsuite_id, results_dir=folder)
    BsuiteEnv(bsuite_id, results_dir=folder + "2", overwrite=True)
    program = f"""
import json
from pathlib import Path
from bsuite.experiments.cartpole.analysis import cartpole_preprocess
from bsuite.experiments.discounting_chain.analysis import dc_preprocess
from bsuite.logging.csv_load import load_bsuite
preprocess = {{"cartpole": cartpole_preprocess, "discounting_chain": dc_preprocess}}
found = {{}}
for folder in Path({str(tmp_path)!r}).iterdir():
    if list(folder.iterdir()):
        table = preprocess.get(folder.name, lambda table: table)(load_bsuite(str(folder))[0])
        found[folder.name] = [int(table.episode.iloc[-1]), float(table.total_regret.iloc[-1])]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    for domain, (episodes, regret) in found.items():
        assert episodes == 12
        assert regrets[domain] == pytest.approx(regret, rel=1e-12)
        assert regrets[domain] != 0


@pytest.mark.parametrize(
    "bsuite_id", ["catch/0", "catch_noise/0", "umbrella_length/4", "umbrella_distract/0", "discounting_chain/7"]
)
def test_credit_matrix_is_what_interventions_find(bsuite_id: str) -> None:
    """Change one action, keep the seed and the other actions, and see which rewards change."""
    env = BsuiteEnv(bsuite_id)
    assert env.horizon is not None
    assert env.credit_matrix is not None
    with pytest.raises(ValueError, match="read-only"):
        env.credit_matrix[0, 0] = 1.0
    n_actions = int(env.action_space.n)
    rng = np.random.default_rng(0)
    found = np.zeros_like(env.credit_matrix)

    def rewards_of(actions: np.ndarray, seed: int) -> np.ndarray:
        env.reset(seed=seed)
        return np.array([env.step(int(action))[1] for action in actions])

    for seed in range(40 if env.horizon < 50 else 2):
        actions = rng.integers(n_actions, size=env.horizon)
        before = rewards_of(actions, seed)
        for t in range(env.horizon):
            for other in range(n_actions):
                changed = actions.copy()
                changed[t] = other
                found[t] += rewards_of(changed, seed) != before
    np.testing.assert_array_equal(found > 0, env.credit_matrix == 1.0)


def test_no_credit_is_stated_for_cartpole() -> None:
    env = BsuiteEnv("cartpole/0")
    assert env.credit_matrix is env.horizon is env.random_return is env.myopic_return is None


def test_returns_in_catch_by_enumeration() -> None:
    """All 3^9 sequences of moves against all five columns of the ball."""
    env = BsuiteEnv("catch_scale/0")
    scale = 0.001
    random_total, myopic_total, count = 0.0, 0.0, 0
    for moves in itertools.product((-1, 0, 1), repeat=8):
        paddle = 2
        for move in moves:
            paddle = min(4, max(0, paddle + move))
        ends = [min(4, max(0, paddle + move)) for move in (-1, 0, 1)]
        for ball in range(5):
            random_total += sum(1.0 if end == ball else -1.0 for end in ends) / 3
            myopic_total += 1.0 if ball in ends else -1.0
            count += 1
    assert env.random_return == pytest.approx(scale * random_total / count)
    assert env.myopic_return == pytest.approx(scale * myopic_total / count)
    assert env.optimal_return == scale


@pytest.mark.parametrize("bsuite_id", ["catch/0", "umbrella_length/4", "discounting_chain/2"])
def test_returns_by_simulation(bsuite_id: str) -> None:
    """The random policy on bsuite's own dynamics; a wrong value would be four standard errors away."""
    env = BsuiteEnv(bsuite_id)
    rng = np.random.default_rng(2)
    returns = [sum(play(env, rng, seed=0 if i == 0 else None)[1]) for i in range(600)]
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - env.random_return) < 4 * error
    assert env.optimal_return > env.random_return


def test_best_policies_reach_the_optimal_return() -> None:
    for bsuite_id in ("catch/1", "umbrella_length/0", "discounting_chain/3", "cartpole/1"):
        env = BsuiteEnv(bsuite_id)
        for seed in range(2 if env.domain == "cartpole" else 10):
            obs, _ = env.reset(seed=seed)
            total, terminated, first = 0.0, False, True
            while not terminated:
                if env.domain == "catch":
                    board = obs.reshape(10, 5)
                    ball, paddle = int(np.argmax(board[:-1].max(axis=0))), int(np.argmax(board[-1]))
                    action = 1 + int(np.sign(ball - paddle))
                elif env.domain == "umbrella_length":
                    action = int(obs[0])
                elif env.domain == "discounting_chain":
                    action = 3 if first else 0  # mapping_seed 3 gives the bonus to chain 3
                else:
                    x, x_dot, sine, _, theta_dot, _ = obs.tolist()
                    action = 1 + int(np.sign(0.3 * x + 0.3 * x_dot + 3 * sine + 0.3 * theta_dot))
                first = False
                obs, reward, terminated, _, _ = env.step(action)
                total += reward
            assert total == pytest.approx(env.optimal_return)


@pytest.mark.parametrize("bsuite_id", EXAMPLES)
def test_gymnasium_is_content(bsuite_id: str) -> None:
    env = gym.make("tca/Bsuite-v0", bsuite_id=bsuite_id, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity.*")  # where bsuite gives no bounds
        check_env(env.unwrapped)
    assert json.loads(env.spec.to_json())["kwargs"]["bsuite_id"] == bsuite_id
    copy = pickle.loads(pickle.dumps(env))
    assert play(copy.unwrapped, np.random.default_rng(0), seed=1) == play(
        env.unwrapped, np.random.default_rng(0), seed=1
    )


def test_copies_in_a_vector_environment_differ() -> None:
    """bsuite itself seeds every umbrella_distract with 0."""
    envs = gym.make_vec("tca/Bsuite-v0", num_envs=3, bsuite_id="umbrella_distract/22")
    obs, _ = envs.reset()
    assert len({tuple(row[3:]) for row in obs}) == 3


def test_frames_show_what_happens() -> None:
    for bsuite_id in EXAMPLES:
        env = BsuiteEnv(bsuite_id, render_mode="rgb_array")
        with pytest.raises(ResetNeeded, match="nothing to render"):
            env.render()
        env.reset(seed=0)
        first = env.render()
        assert first.shape == (300, 400, 3)
        assert first.dtype == np.uint8
        env.step(0)
        assert not np.array_equal(first, env.render())
        env.close()


def test_bad_input_is_refused_before_anything_changes() -> None:
    with pytest.raises(TypeError, match='a string such as "catch/0", got 3'):
        BsuiteEnv(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names none of the domains catch, catch_noise"):
        BsuiteEnv("mnist/0")
    with pytest.raises(ValueError, match="settings catch/0 to catch/19"):
        BsuiteEnv("catch/20")
    with pytest.raises(ValueError, match="render_mode='ascii' is unknown"):
        BsuiteEnv(render_mode="ascii")
    with pytest.raises(ValueError, match="domain='bandit' is unknown"):
        bsuite_ids("bandit")
    env = BsuiteEnv("umbrella_length/1")
    with pytest.raises(ResetNeeded, match="No episode is running"):
        env.step(0)
    with pytest.raises(ValueError, match="unknown option 'level'"):
        env.reset(options={"level": 1})
    obs, _ = env.reset(seed=0)
    for action, error in ((2, ValueError), (-1, ValueError), (0.0, TypeError), (np.nan, TypeError)):
        with pytest.raises(error, match="umbrella_length must be an integer from 0 to 1"):
            env.step(action)
    np.testing.assert_array_equal(obs, env._observation)
    env.step(0)
    assert env.step(1)[2]
    with pytest.raises(ResetNeeded, match="No episode is running"):
        env.step(0)


def test_without_bsuite_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "bsuite":
                raise ModuleNotFoundError("No module named 'bsuite'", name="bsuite")

    for name in [name for name in sys.modules if name.partition(".")[0] == "bsuite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without, *sys.meta_path])
    with pytest.raises(DependencyNotInstalled, match=r"tca-envs\[bsuite\]"):
        BsuiteEnv()


def test_bsuite_is_imported_only_when_an_environment_is_made() -> None:
    program = "import sys, tca_envs, tca_envs.envs.bsuite; print('bsuite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

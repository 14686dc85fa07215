"""A saved model is the whole model: what goes on after loading is, bit for bit, what would have gone on."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from scripted import vec_env
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv

import tca_sb3
from tca_sb3 import (
    A2C,
    A2CRR,
    HPWR,
    PPO,
    PWR,
    PWTD,
    RGM,
    InnerLoopReset,
    MetaGradientCallback,
    MetaLambda,
    MetaPWR,
    MetaPWTD,
    Product,
)
from tca_sb3.meta import MetaLearner
from tca_sb3.networks import CriticFeatures

TINY = {"net_arch": [6]}
META: dict[str, Any] = {"meta_kwargs": {"learning_rate": 0.02, "outer_rollouts": 2}}
# name -> (class, arguments, callbacks of every learn())
SUBJECTS: dict[str, tuple[type, dict[str, Any], Any]] = {
    "A2C": (A2C, {"n_steps": 5}, lambda: None),
    "PPO": (PPO, {"n_steps": 8, "batch_size": 4, "n_epochs": 2}, lambda: None),
    "HPWR": (HPWR, {}, lambda: None),
    "MetaPWR": (MetaPWR, META, lambda: None),
    "MetaPWTD": (MetaPWTD, META, lambda: None),
    "MetaPWTD, n_steps": (MetaPWTD, {**META, "n_episodes": None, "n_steps": 5}, lambda: None),
    "MetaPWR, Adam": (MetaPWR, {**META, "policy_kwargs": {"optimizer_class": torch.optim.Adam}}, lambda: None),
    "MetaPWR, every second rollout": (
        MetaPWR,
        {"meta_kwargs": {**META["meta_kwargs"], "update_interval": 2}},
        lambda: None,
    ),
    "MetaPWR, shared critic": (
        MetaPWR,
        {"meta_kwargs": {**META["meta_kwargs"], "shared_critic": True}, "critic_updates": 3},
        lambda: None,
    ),
    "MetaPWR, the critic's features": (
        MetaPWR,
        {**META, "estimator_kwargs": {"weights_class": Product, "encoder_class": CriticFeatures}, "critic_updates": 3},
        lambda: None,
    ),
    "MetaPWTD, critic": (MetaPWTD, {**META, "critic_updates": 3}, lambda: None),
    "MetaLambda": (MetaLambda, META, lambda: None),
    "MetaLambda, n_steps": (MetaLambda, {**META, "n_episodes": None, "n_steps": 5}, lambda: None),
    "RGM": (RGM, META, lambda: None),
    "A2CRR": (A2CRR, {"estimator_kwargs": {"n_past_rollouts": 2, "n_epochs": 2}}, lambda: None),
    "A2C with callback": (
        A2C,
        {"estimator_class": PWR, "n_episodes": 1},
        lambda: MetaGradientCallback(learning_rate=0.02),
    ),
}


def make(name: str, env: VecEnv | None = None) -> Any:
    cls, kwargs, _ = SUBJECTS[name]
    kwargs = {**kwargs, "policy_kwargs": {**TINY, **kwargs.get("policy_kwargs", {})}}
    return cls("MlpPolicy", env or vec_env([(4, 2), (3,)], scale=0.05), seed=2, **kwargs)


def learn(model: Any, name: str, steps: int) -> Any:
    return model.learn(steps, callback=SUBJECTS[name][2](), reset_num_timesteps=False)


def random_state() -> Any:
    # numpy's global state: SB3 shuffles with it.
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def set_random_state(state: Any) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])


def tensors(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a nested state, by its path."""
    if isinstance(tree, dict):
        return {k: v for key, part in tree.items() for k, v in tensors(part, f"{path}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, part in enumerate(tree) for k, v in tensors(part, f"{path}/{i}").items()}
    return {path: tree}


def assert_same(one: Any, other: Any) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for path, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[path]), path
        else:
            assert value == second[path], path


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_interrupted_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    cls = SUBJECTS[name][0]
    model = learn(make(name), name, 30)
    model.save(tmp_path / "model")
    env, state, saved = copy.deepcopy(model.env), random_state(), copy.deepcopy(model.get_parameters())

    uninterrupted = learn(model, name, 30)
    wanted = copy.deepcopy(uninterrupted.get_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(wanted["policy"].values(), saved["policy"].values(), strict=True))

    loaded = cls.load(tmp_path / "model", env=env, force_reset=False)
    assert_same(loaded.get_parameters(), saved)
    set_random_state(state)
    assert_same(learn(loaded, name, 30).get_parameters(), wanted)
    assert loaded.num_timesteps == uninterrupted.num_timesteps
    assert loaded.discarded_steps == uninterrupted.discarded_steps


PARTS = [
    (name, part)
    for name in ("MetaPWR", "MetaPWR, shared critic", "MetaPWTD", "MetaLambda", "RGM", "A2C with callback")
    for part in ("policy", "policy.optimizer", "estimator", "meta")
] + [("A2CRR", part) for part in ("policy", "policy.optimizer", "estimator")]


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_no_part_can_be_lost(name: str, part: str, tmp_path: Path) -> None:
    """The test above would notice: with any part as a fresh model has it, the run is another one."""
    model = learn(make(name), name, 30)
    model.save(tmp_path / "model")
    env, state = copy.deepcopy(model.env), random_state()
    assert part in model.get_parameters()
    wanted = copy.deepcopy(learn(model, name, 30).get_parameters())

    cls = SUBJECTS[name][0]
    loaded = cls.load(tmp_path / "model", env=env, force_reset=False)
    fresh = make(name)
    if loaded.meta_kwargs is not None and fresh.meta is None:
        fresh.attach_meta(loaded.meta_kwargs)
    loaded.set_parameters({part: copy.deepcopy(fresh.get_parameters()[part])}, exact_match=False)
    set_random_state(state)
    with pytest.raises(AssertionError):
        assert_same(learn(loaded, name, 30).get_parameters(), wanted)


def test_every_state_that_is_trained_is_saved() -> None:
    """By what the objects hold: every module and optimiser reachable from the model has its entry."""
    model = learn(make("MetaPWR"), "MetaPWR", 20)
    saved = model.get_parameters()
    assert set(saved) == {"policy", "policy.optimizer", "estimator", "meta"}
    assert {"optimizer", "value_net", "value_optimizer", "outer_gradients", "steps", "n_steps"} == set(saved["meta"])
    for optimizer in (saved["policy.optimizer"], saved["meta"]["optimizer"], saved["meta"]["value_optimizer"]):
        assert optimizer["state"], "the optimisers have something to remember, and it is here"
    assert saved["meta"]["steps"][-1]["optimizer_state"]["square_avg"].any()
    # A model without an outer loop saves no empty one.
    assert "meta" not in make("HPWR").get_parameters()


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_trained_is_stored_once(name: str, tmp_path: Path) -> None:
    """As parameters, not pickled along with the settings, where it would shadow them."""
    learn(make(name), name, 20).save(tmp_path / "model")
    settings, parameters, _ = load_from_zip_file(tmp_path / "model")
    assert settings is not None
    assert not {"estimator", "meta", "_collecting"} & set(settings)
    trained = torch.nn.Module, torch.optim.Optimizer, MetaLearner
    assert [key for key, value in settings.items() if isinstance(value, trained)] == []
    assert "policy" in parameters


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_model_can_be_saved_before_it_has_learned(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save(tmp_path / "model")
    cls = SUBJECTS[name][0]
    loaded = cls.load(tmp_path / "model")
    assert_same(loaded.get_parameters(), model.get_parameters())
    observation = model.observation_space.sample()
    assert model.predict(observation, deterministic=True)[0] == loaded.predict(observation, deterministic=True)[0]
    loaded.set_env(vec_env([(3,), (4,)], scale=0.05))
    learn(loaded, name, 20)


@pytest.mark.parametrize("cls", [MetaPWR, MetaLambda, RGM, A2CRR])
@pytest.mark.parametrize("kind", ["discrete", "dict"])
def test_other_observations(cls: Any, kind: str, tmp_path: Path) -> None:
    policy = "MultiInputPolicy" if kind == "dict" else "MlpPolicy"
    policy_kwargs = {**TINY, **({"features_extractor_kwargs": {"cnn_output_dim": 4}} if kind == "dict" else {})}
    env = vec_env([(3, 2), (4,)], kind=kind, scale=0.05)
    model = cls(policy, env, seed=2, policy_kwargs=policy_kwargs).learn(24)
    model.save(tmp_path / "model")
    env, state = copy.deepcopy(model.env), random_state()
    wanted = copy.deepcopy(model.learn(16, reset_num_timesteps=False).get_parameters())
    loaded = cls.load(tmp_path / "model", env=env, force_reset=False)
    set_random_state(state)
    assert_same(loaded.learn(16, reset_num_timesteps=False).get_parameters(), wanted)


@pytest.mark.parametrize("name", SUBJECTS)
def test_another_number_of_environments(name: str, tmp_path: Path) -> None:
    learn(make(name), name, 30).save(tmp_path / "model")
    loaded = SUBJECTS[name][0].load(tmp_path / "model", env=vec_env([(3,), (4,), (2,)], scale=0.05))
    assert loaded.n_envs == 3
    learn(loaded, name, 30)
    assert len(loaded._last_obs) == 3
    if name not in ("A2C", "PPO"):  # their GAE is SB3's own and leaves no episodes behind
        assert loaded.rollout_buffer.episodes()[0].batch_size >= 3


def test_the_estimator_travels_with_the_model(tmp_path: Path) -> None:
    matrix = np.full((4, 4), 0.5)
    kwargs: dict[str, Any] = {"estimator_kwargs": {"weights_kwargs": {"matrix": matrix}}}
    HPWR("MlpPolicy", vec_env([(3,)]), policy_kwargs=dict(TINY), **kwargs).save(tmp_path / "own")
    assert (HPWR.load(tmp_path / "own").estimator.weights.matrix == 0.5).all()
    # The environment's matrix is kept too: no environment is needed to load.
    HPWR("MlpPolicy", vec_env([(3,)]), policy_kwargs=dict(TINY)).save(tmp_path / "environment's")
    loaded = HPWR.load(tmp_path / "environment's")
    assert torch.equal(loaded.estimator.weights.matrix, torch.ones(3, 3).triu())


CLASSES = [A2C, PPO, HPWR, MetaPWR, MetaPWTD, MetaLambda, RGM, A2CRR]


@pytest.mark.parametrize("saved_by", CLASSES)
def test_a_file_of_another_class_is_refused(saved_by: type, tmp_path: Path) -> None:
    model = saved_by("MlpPolicy", vec_env([(3,)]), policy_kwargs=dict(TINY))
    model.save(tmp_path / "model")
    for cls in CLASSES:
        if cls is saved_by:
            cls.load(tmp_path / "model")
            continue
        with pytest.raises(ValueError, match=rf"saved by {saved_by.__name__} .* as {cls.__name__}") as caught:
            cls.load(tmp_path / "model")
        assert f"{saved_by.__name__}.load" in str(caught.value)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(("stock", "ours"), [(sb3.A2C, A2C), (sb3.PPO, PPO), (sb3.A2C, MetaPWR), (sb3.PPO, A2C)])
def test_a_file_of_stock_sb3_is_refused_or_loaded_whole(stock: type, ours: Any, tmp_path: Path) -> None:
    """Ours is a drop-in: a stock file loads where nothing is missing, and is refused in words where something is."""
    model = stock("MlpPolicy", vec_env([(3,)]), policy_kwargs=dict(TINY), seed=0, n_steps=8).learn(8)
    model.save(tmp_path / "model")
    try:
        loaded = ours.load(tmp_path / "model")
    except ValueError as refusal:
        message = str(refusal)
        assert stock.__name__ in message, message
        assert ours.__name__ in message, message
        return
    assert issubclass(ours, stock)
    for one, other in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_parameters_from_one_model_to_another() -> None:
    one, other = make("MetaPWR"), make("MetaPWR")
    learn(one, "MetaPWR", 30)
    other.set_parameters(copy.deepcopy(one.get_parameters()))
    assert_same(other.get_parameters(), one.get_parameters())
    incomplete = {key: value for key, value in one.get_parameters().items() if key != "meta"}
    with pytest.raises(ValueError, match="meta"):
        other.set_parameters(incomplete)
    before = copy.deepcopy(other.get_parameters())
    other.set_parameters({"policy": make("MetaPWR").get_parameters()["policy"]}, exact_match=False)
    after = other.get_parameters()
    assert_same(after["meta"], before["meta"])
    assert_same(after["estimator"], before["estimator"])


def test_callbacks_of_sb3(tmp_path: Path) -> None:
    """Evaluation and checkpoints in the middle of rollouts change nothing and can be loaded."""
    plain = learn(make("MetaPWTD"), "MetaPWTD", 40)
    watched = make("MetaPWTD")
    state = random_state()
    evaluation = EvalCallback(
        vec_env([(3,)], scale=0.05),
        eval_freq=4,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    checkpoint = CheckpointCallback(save_freq=3, save_path=str(tmp_path / "checkpoints"))
    calls: list[int] = []
    set_random_state(state)
    watched.learn(40, callback=[evaluation, checkpoint], reset_num_timesteps=False)
    assert_same(watched.get_parameters()["policy"], plain.get_parameters()["policy"])
    assert_same(watched.get_parameters()["estimator"], plain.get_parameters()["estimator"])
    assert MetaPWTD.load(tmp_path / "best_model").num_timesteps > 0
    files = sorted((tmp_path / "checkpoints").glob("*.zip"))
    assert len(files) > 2
    for file in files:
        MetaPWTD.load(file, env=vec_env([(3,), (4,)], scale=0.05)).learn(8)
    watched.learn(8, callback=lambda *_: calls.append(1) or True, reset_num_timesteps=False)
    assert calls


def test_inner_loop_reset_can_be_saved_at_any_time(tmp_path: Path) -> None:
    model = A2C("MlpPolicy", vec_env([(3,)]), estimator_class=PWTD, n_episodes=1, policy_kwargs=dict(TINY), seed=0)
    reset = InnerLoopReset(n_inner_updates=2)
    for _ in range(4):
        model.learn(1, callback=reset, reset_num_timesteps=False)
        model.save(tmp_path / "model")
        loaded = A2C.load(tmp_path / "model", env=vec_env([(3,)]))
        loaded.learn(20, callback=InnerLoopReset(n_inner_updates=2), reset_num_timesteps=False)


def test_predict_is_sb3s() -> None:
    model = make("MetaPWR")
    observations = np.stack([model.observation_space.sample() for _ in range(4)])
    actions, state = model.predict(observations)
    assert actions.shape == (4,)
    assert state is None
    assert np.isfinite(evaluate_policy(model, vec_env([(3,)]), n_eval_episodes=2, warn=False)[0])


def test_every_algorithm_is_a_subject() -> None:
    """A new named on-policy algorithm must be added here; the model-based ones are saved in tests/lvgts."""
    algorithms = {
        thing
        for thing in vars(tca_sb3).values()
        if isinstance(thing, type) and issubclass(thing, sb3.common.on_policy_algorithm.OnPolicyAlgorithm)
    }
    assert algorithms == {cls for cls, _, _ in SUBJECTS.values()}

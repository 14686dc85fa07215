"""``CreditHeatmap``: what is drawn are the weights, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from scripted import MAX_CODE, Scripted, Watch, vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from tca_sb3 import (
    A2C,
    A2CRR,
    HPWR,
    RGM,
    CreditHeatmap,
    InnerLoopReset,
    MetaGradientCallback,
    MetaLambda,
    MetaPWR,
    MetaPWTD,
)
from tca_sb3.callbacks import draw_credit


class Small(Scripted):
    """Twenty states, so that a table of them is quickly drawn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, kind="discrete", **kwargs)
        self.observation_space = spaces.Discrete(20)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return self.small(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return self.small(observation), *rest  # type: ignore[return-value]

    @staticmethod
    def small(code: int) -> int:
        return code // MAX_CODE * 10 + code % 10  # environment and step, not the episode


def small_model(cls: type = MetaPWR, **kwargs: Any) -> Any:
    env = DummyVecEnv([lambda: Small(0, (3, 2)), lambda: Small(1, (4,))])
    return cls("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, seed=0, **kwargs)


def test_by_time_it_is_the_mean_over_episodes(tmp_path: Path) -> None:
    model = small_model(meta_kwargs={"learning_rate": 0.1})
    watch, heatmap = Watch(), CreditHeatmap(every=1, folder=tmp_path)
    model.learn(30, callback=[watch, heatmap])
    episodes, _ = watch.rollouts[-1]
    table = model.estimator.weights.table()
    sums, counts = np.zeros((4, 4)), np.zeros((4, 4))
    for b, length in enumerate(episodes.lengths.tolist()):
        for t in range(length):
            for k in range(t, length):
                sums[t, k] += table[episodes.observations[t, b], episodes.observations[k + 1, b]].item()
                counts[t, k] += 1
    with np.errstate(invalid="ignore"):
        wanted = np.where(counts > 0, sums / counts, np.nan)
    found = heatmap.matrix()
    assert found.shape == (4, 4)
    assert np.isnan(found[1, 0])
    assert not np.isnan(found[np.triu_indices(4)]).any()
    assert np.allclose(found, wanted, atol=1e-6, equal_nan=True)
    assert np.nanstd(found) > 1e-3, "the weights have moved apart"


@pytest.mark.parametrize("cls", [MetaLambda, RGM])
def test_implied_weights_are_drawn_too(cls: type, tmp_path: Path) -> None:
    model = small_model(cls, gamma=0.9, meta_kwargs={"learning_rate": 0.1 if cls is MetaLambda else 0.003})
    watch, heatmap = Watch(), CreditHeatmap(every=100, folder=tmp_path)
    model.learn(30, callback=[watch, heatmap])
    episodes, _ = watch.rollouts[-1]
    with torch.no_grad():
        steps = model.estimator.lambdas(episodes) if cls is MetaLambda else model.estimator.betas(episodes)
    sums, counts = np.zeros((4, 4)), np.zeros((4, 4))
    for b, length in enumerate(episodes.lengths.tolist()):
        for t in range(length):
            product = 1.0
            for k in range(t + 1, length + 1):
                sums[t, k - 1] += product if cls is MetaLambda else steps[k - 1, b].item()
                counts[t, k - 1] += 1
                if k < length:
                    product *= 0.9 * steps[k, b].item()
    with np.errstate(invalid="ignore"):
        wanted = np.where(counts > 0, sums / counts, np.nan)
    assert np.allclose(heatmap.matrix(), wanted, atol=1e-6, equal_nan=True)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.nanstd(wanted) > 1e-3


def test_by_state_it_is_the_table_where_pairs_occurred() -> None:
    model = small_model(meta_kwargs={"learning_rate": 0.1})
    watch, heatmap = Watch(), CreditHeatmap(every=1, by="state")
    model.learn(30, callback=[watch, heatmap])
    episodes, _ = watch.rollouts[-1]
    pairs = set()
    for b, length in enumerate(episodes.lengths.tolist()):
        states = episodes.observations[: length + 1, b].tolist()
        pairs |= {(states[t], states[k]) for t in range(length) for k in range(t + 1, length + 1)}
    found, table = heatmap.matrix(), model.estimator.weights.table()
    for i in range(20):
        for j in range(20):
            if (i, j) in pairs:
                assert found[i, j] == table[i, j].item()
            else:
                assert np.isnan(found[i, j])


def test_pictures_and_tensorboard(tmp_path: Path) -> None:
    model = HPWR(
        "MlpPolicy", vec_env([(4,), (4,)]), tensorboard_log=str(tmp_path / "tb"), policy_kwargs={"net_arch": [4]}
    )
    watch = Watch()
    model.learn(8 * 5, callback=[watch, CreditHeatmap(every=2, folder=tmp_path / "png")], log_interval=1)
    assert len(watch.rollouts) == 5
    assert [file.name for file in sorted((tmp_path / "png").iterdir())] == [
        f"credit_{steps:09d}.png" for steps in (8, 24, 40)
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (tmp_path / "tb").iterdir()
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["credit/weights"]
    assert [event.step for event in events.Images("credit/weights")] == [8, 24, 40]
    image = matplotlib.image.imread(tmp_path / "png" / "credit_000000008.png")
    assert image.std() > 0.05, "something is drawn"


def test_the_axes_say_what_they_mean() -> None:
    weights = np.array([[0.0, 1.0], [np.nan, 0.5]])
    for by, first, last in (("time", 0.5, 2.5), ("state", -0.5, 1.5)):
        figure = Figure()
        draw_credit(figure, weights, by, "a title")
        axes = figure.axes[0]
        (image,) = axes.get_images()
        assert image.get_extent() == [first, last, 1.5, -0.5]
        assert image.get_clim() == (0, 1)
        assert np.array_equal(image.get_array().filled(np.nan), weights, equal_nan=True)
        assert axes.get_title() == "a title"
        assert ("time" in axes.get_xlabel()) == (by == "time")


def test_drawing_changes_no_run() -> None:
    runs = []
    for callback in (None, [CreditHeatmap(every=1)]):
        runs.append(small_model().learn(30, callback=callback).get_parameters())
    for part in ("policy", "estimator"):
        assert all(torch.equal(runs[0][part][name], value) for name, value in runs[1][part].items())


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "another axis": (ValueError, r"by='place'; write by='time' or by='state'", lambda: CreditHeatmap(by="place")),
    "never": (ValueError, "every=0", lambda: CreditHeatmap(every=0)),
    "nothing to draw": (
        ValueError,
        "TDLambda has no pairwise weights",
        lambda: A2C("MlpPolicy", vec_env([(4,)])).learn(8, callback=CreditHeatmap()),
    ),
    "nothing to draw, though something is trained": (
        ValueError,
        "RewardRedistribution has no pairwise weights",
        lambda: A2CRR("MlpPolicy", vec_env([(4,)])).learn(8, callback=CreditHeatmap()),
    ),
    "no weight function": (
        ValueError,
        r"by='state'\) needs Tabular weights, not StateLambda",
        lambda: MetaLambda("MlpPolicy", vec_env([(4,)])).learn(8, callback=CreditHeatmap(by="state")),
    ),
    "no table": (
        ValueError,
        r"by='state'\) needs Tabular weights, not Product",
        lambda: MetaPWTD("MlpPolicy", vec_env([(4,)])).learn(8, callback=CreditHeatmap(by="state")),
    ),
    **{
        f"{callback.__name__} on stock SB3": (
            TypeError,
            rf"{callback.__name__} got a stable_baselines3.a2c.a2c.A2C.*from tca_sb3 import A2C",
            lambda callback=callback: sb3.A2C("MlpPolicy", vec_env([(4,)])).learn(8, callback=callback()),  # type: ignore[misc]
        )
        for callback in (CreditHeatmap, MetaGradientCallback, InnerLoopReset)
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_a_sentence(case: str) -> None:
    kind, words, build = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        build()
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("look", ["pair_weights", "mean_weights", "seen_state_pairs"])
def test_looking_too_early_or_at_nothing_gets_a_sentence(look: str) -> None:
    with pytest.raises(ValueError, match=r"learn.*\.$"):
        getattr(small_model(), look)()
    trained = A2C("MlpPolicy", vec_env([(4,)]), policy_kwargs={"net_arch": [4]}).learn(8)
    with pytest.raises((ValueError, TypeError), match=r"(TDLambda|Discrete).*\.$"):
        getattr(trained, look)()

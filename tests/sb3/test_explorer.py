"""The credit explorer: what the page holds is what was played, and what it shows is what it holds."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import struct
import subprocess
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import matplotlib.image
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from scripted import ACTIONS, Scripted
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from tca_sb3 import A2C, HPWR, PPO, PWR, PWTD, RGM, Exponential, GymVecEnv, MetaLambda, MetaPWR, MetaPWTD, Product
from tca_sb3.estimators import Estimate, PairwiseEstimator, ReturnGeneratingModel
from tca_sb3.explorer import _png, _shrunk, record_episodes, write_credit_explorer
from tca_sb3.returns import td_errors

HEIGHT, WIDTH = 24, 36


class Painted(Scripted):
    """Scripted episodes with pictures and phases; steps 1 and 2 look alike."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    phases = SimpleNamespace(names=("dawn", "noon", "dusk"))

    def __init__(self, *args: Any, render_mode: str | None = "rgb_array", noise: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.render_mode = render_mode
        self.noise = noise

    def info(self) -> dict[str, Any]:
        return {"phase": np.int64(self.t // 2)}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, _ = super().reset(**kwargs)
        return observation, self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *ends, _ = super().step(action)
        reward += self.noise * float(self.np_random.normal()) + float(np.sum(action)) / 64
        return observation, reward, *ends, self.info()  # type: ignore[return-value]

    def render(self) -> Any:
        return picture_of(self.episode, self.t)


class Silent(Scripted):
    """Neither picture nor phase."""


def picture_of(episode: int, step: int) -> np.ndarray:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, :12] = 40 * episode % 256
    picture[:, 12:] = 20 * (1 if step == 2 else step) % 256, 100, 200
    picture[0, 0] = 255
    return picture


def model_of(cls: Any = MetaPWR, env: gym.Env | None = None, **kwargs: Any) -> Any:
    env = env or Painted(lengths=(5, 3))
    space: Any = env.observation_space
    pixels = isinstance(space, spaces.Dict)
    return cls(
        "MultiInputPolicy" if pixels else "MlpPolicy",
        env,
        seed=0,
        device="cpu",
        **{"policy_kwargs": {"net_arch": [4]}, **kwargs},
    )


def with_learned_weights(model: Any) -> Any:
    """Weights that differ from pair to pair, as learning would make them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.estimator.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def content_of(path: Path) -> Any:
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    return json.loads(found)


def weights_of(episode: Any) -> dict[tuple[int, int], float]:
    """The embedded weights, read as the page's comment says: row by row, k = t + 1 … T."""
    raw = base64.b64decode(episode["weights"])
    numbers = iter(struct.unpack(f"<{len(raw) // 4}f", raw))
    horizon = episode["length"]
    found = {(t, k): next(numbers) for t in range(horizon) for k in range(t + 1, horizon + 1)}
    assert next(numbers, None) is None
    return found


def pictures_of(episode: Any) -> list[np.ndarray]:
    """Cut out of the sprite by somebody else's PNG reader."""
    pictures = episode["pictures"]
    sprite = matplotlib.image.imread(io.BytesIO(base64.b64decode(pictures["png"])), format="png")
    sprite = np.rint(sprite * 255).astype(int)
    height, width, columns = pictures["height"], pictures["width"], pictures["columns"]
    assert sprite.shape == (pictures["rows"] * height, columns * width, 3)
    result = []
    for place in pictures["index"]:
        y, x = place // columns * height, place % columns * width
        result.append(sprite[y : y + height, x : x + width])
    return result


CASES: dict[str, Any] = {
    "tabular PWR": lambda: model_of(MetaPWR, Painted(lengths=(5, 3), kind="discrete")),
    "product PWR": lambda: model_of(MetaPWR),
    "product PWTD": lambda: model_of(MetaPWTD),
    "PWTD, time limit": lambda: model_of(MetaPWTD, Painted(lengths=(5, 3), endings="c")),
    "fixed": lambda: model_of(HPWR),
    "PPO, exponential": lambda: model_of(
        PPO, n_steps=8, batch_size=8, estimator_class=PWTD, estimator_kwargs={"weights_class": Exponential}
    ),
    "Meta-λ(s)": lambda: model_of(MetaLambda),
    "RGM": lambda: model_of(RGM),
    "dict, continuous actions": lambda: model_of(MetaPWTD, Painted(lengths=(5, 3), kind="dict", actions="box")),
    "several discrete actions": lambda: model_of(
        A2C,
        Painted(lengths=(5, 3), actions="multi_discrete"),
        n_episodes=1,
        estimator_class=PWR,
        estimator_kwargs={"weights_class": Product},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_holds_what_was_played(case: str, tmp_path: Path) -> None:
    model = with_learned_weights(CASES[case]())
    played = model.get_env().envs[0].unwrapped
    (actions,) = (name for name, space in ACTIONS.items() if space == played.action_space)

    def fresh() -> Painted:
        return Painted(lengths=(5, 3), endings=played.endings, kind=played.kind, actions=actions)

    page = content_of(write_credit_explorer(model, fresh(), tmp_path / "new" / "page.html", n_episodes=2, seed=3))
    assert page["model"] == type(model).__name__
    weights = getattr(model.estimator, "weights", None)
    assert page["weights"] == (None if weights is None else type(weights).__name__)
    assert [episode["length"] for episode in page["episodes"]] == [5, 3]
    assert page["phase_names"] == ["dawn", "noon", "dusk"]

    # Play the page's actions again, in the plainest way.
    again = fresh()
    recorded = record_episodes(model, fresh(), 2, seed=3)
    for number, episode in enumerate(page["episodes"]):
        observation, info = again.reset()
        states, rewards, phases, frames = [observation], [], [info["phase"]], [again.render()]
        for action in episode["actions"]:
            legal = action[0] if actions == "discrete" else np.array(action)
            observation, reward, terminated, truncated, info = again.step(legal)
            states.append(observation)
            rewards.append(reward)
            phases.append(info["phase"])
            frames.append(again.render())
        assert terminated or truncated
        assert episode["ended"] == ("terminal state" if terminated else "time limit")
        assert episode["rewards"] == [float(np.float32(reward)) for reward in rewards]
        assert episode["return"] == pytest.approx(sum(rewards), abs=1e-5)
        assert episode["phases"] == phases
        assert all(np.array_equal(a, b) for a, b in zip(pictures_of(episode), frames, strict=True))
        assert_same_observations(episode["observations"], states)

        # The weights are the estimator's, and the advantages follow from the page's own numbers.
        pairs = weights_of(episode)
        with torch.no_grad():
            wanted = model.estimator.pair_weights(recorded[number].episodes)[0]
            batch = {
                key: torch.as_tensor(np.stack([state[key] for state in states]))
                for key in (states[0] if isinstance(states[0], dict) else ())
            } or torch.as_tensor(np.stack(states))
            values = model.policy.predict_values(batch).flatten()
        if terminated:
            values[-1] = 0.0
        assert pairs == {(t, k): wanted[t, k - 1].item() for t, k in pairs}
        assert episode["values"] == pytest.approx(values.tolist(), abs=1e-6)
        errors = td_errors(torch.tensor(rewards)[:, None], values[:, None].double(), model.gamma)[:, 0].tolist()
        is_pwr = isinstance(model.estimator, PWR | ReturnGeneratingModel)
        assert page["weighted"] == ("rewards" if is_pwr else "td_errors")
        assert (episode["td_errors"] is None) == is_pwr
        if not is_pwr:
            assert episode["td_errors"] == pytest.approx(errors, abs=1e-4)
        for t in range(episode["length"]):
            total = -episode["values"][t] if is_pwr else 0.0
            for k in range(t + 1, episode["length"] + 1):
                total += pairs[t, k] * (rewards if is_pwr else errors)[k - 1]
            assert episode["advantages"][t] == pytest.approx(total, abs=1e-4)
    if not isinstance(weights, Exponential):
        pairs = weights_of(page["episodes"][0])
        assert len(set(pairs.values())) > (0 if case == "fixed" else 3), "weights are told apart"


def assert_same_observations(parts: list[Any], states: list[Any]) -> None:
    named = {part["name"]: part for part in parts}
    for name, part in named.items():
        column = [np.asarray(state[name] if name != "observation" else state) for state in states]
        if column[0].size > 32:
            assert part["rows"] is None
            assert part["shape"] == list(column[0].shape)
        else:
            assert part["rows"] == [entry.flatten().tolist() for entry in column]
    assert set(named) == (set(states[0]) if isinstance(states[0], dict) else {"observation"})


class Neither(PairwiseEstimator):
    """Weights, but another rule."""

    def pair_weights(self, episodes: Any) -> torch.Tensor:
        return torch.full((episodes.batch_size, episodes.horizon, episodes.horizon), 0.5)

    def forward(self, episodes: Any, values: torch.Tensor) -> Estimate:
        return Estimate(3.0 * episodes.rewards, episodes.rewards)


def test_nothing_is_said_of_a_sum_that_is_not_the_advantage(tmp_path: Path) -> None:
    model = model_of(A2C, n_episodes=1, estimator_class=Neither)
    page = content_of(write_credit_explorer(model, Painted(lengths=(5,)), tmp_path / "page.html", n_episodes=1))
    assert page["weighted"] is None
    assert page["weights"] is None
    (episode,) = page["episodes"]
    assert episode["advantages"] == [3 * reward for reward in episode["rewards"]]
    assert set(weights_of(episode).values()) == {0.5}


def test_equal_pictures_are_kept_once(tmp_path: Path) -> None:
    model = model_of()
    page = content_of(write_credit_explorer(model, Painted(lengths=(5,)), tmp_path / "page.html", n_episodes=1))
    pictures = page["episodes"][0]["pictures"]
    assert pictures["index"] == [0, 1, 1, 2, 3, 4]
    assert pictures["columns"] * pictures["rows"] < 5 + pictures["columns"]


def test_one_seed_one_page(tmp_path: Path) -> None:
    model = model_of()

    def written(name: str, **kwargs: Any) -> str:
        env = Painted(lengths=(5,), noise=1.0)
        return write_credit_explorer(model, env, tmp_path / name, n_episodes=2, **kwargs).read_text()

    first = written("a", seed=5)
    torch.rand(1)  # the global generator has moved on
    assert written("b", seed=5) == first
    assert written("c", seed=6) != first


def test_best_actions(tmp_path: Path) -> None:
    model = model_of()
    for deterministic in (False, True):
        env, path = Painted(lengths=(100,)), tmp_path / "page.html"
        page = content_of(write_credit_explorer(model, env, path, n_episodes=1, deterministic=deterministic))
        episode = page["episodes"][0]
        states = np.array(episode["observations"][0]["rows"][:-1], np.float32)
        best = model.predict(states, deterministic=True)[0]
        assert np.array_equal(np.array(episode["actions"])[:, 0], best) == deterministic
        assert page["policy"] == ("best actions" if deterministic else "drawn actions")


def test_looking_changes_no_run(tmp_path: Path) -> None:
    runs = []
    for look in (False, True):
        env = VecNormalize(DummyVecEnv([lambda: Painted(lengths=(5, 3), noise=1.0)]))
        model = model_of(env=env).learn(40)  # type: ignore[arg-type]
        if look:
            shown = VecNormalize(DummyVecEnv([lambda: Painted(lengths=(5, 3))]))
            before = shown.obs_rms.mean.copy()
            inside = shown.venv.envs[0]
            write_credit_explorer(model, shown, tmp_path / "page.html")
            assert np.array_equal(shown.obs_rms.mean, before)
            assert shown.training
            assert shown.venv.envs[0] is inside
        runs.append(model.learn(40, reset_num_timesteps=False).get_parameters())
    for part in ("policy", "estimator"):
        assert all(torch.equal(runs[0][part][name], value) for name, value in runs[1][part].items())


def test_normalised_observations_are_what_the_model_sees(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Painted(lengths=(5,))]), norm_reward=False)
    model = model_of(env=env).learn(40)  # type: ignore[arg-type]
    (recording,) = record_episodes(model, env, 1)
    # SB3 has begun the next episode already.
    number = env.get_attr("episode")[0] - 1
    raw = np.array([[0, number, step] for step in range(6)])
    assert np.allclose(recording.episodes.observations[:, 0], env.normalize_obs(raw), atol=1e-5)  # type: ignore[index]


def test_an_environment_that_shows_nothing(tmp_path: Path) -> None:
    model = model_of(env=Silent(lengths=(4,)))
    page = content_of(write_credit_explorer(model, Silent(lengths=(4,)), tmp_path / "page.html", n_episodes=1))
    (episode,) = page["episodes"]
    assert episode["pictures"] is None
    assert episode["phases"] is None
    assert page["phase_names"] is None
    assert page["action_names"] is None
    assert episode["observations"][0]["rows"] == [[0, 0, step] for step in range(5)]
    model = model_of()
    env = Painted(lengths=(5,), render_mode=None)
    page = content_of(write_credit_explorer(model, env, tmp_path / "page.html", n_episodes=1))
    assert page["episodes"][0]["pictures"] is None
    assert page["episodes"][0]["phases"] == [0, 0, 1, 1, 2, 2]


def test_by_name_and_with_foreign_environments(tmp_path: Path) -> None:
    model = MetaPWTD("MlpPolicy", "CartPole-v1", n_episodes=1, seed=0, device="cpu")
    page = content_of(write_credit_explorer(model, "CartPole-v1", tmp_path / "page.html", n_episodes=2))
    assert page["env"] == "CartPole-v1"
    assert len(page["episodes"]) == 2
    for episode in page["episodes"]:
        assert episode["return"] == episode["length"]
        pictures = pictures_of(episode)
        assert len(pictures) == episode["length"] + 1
        assert all(max(picture.shape[:2]) <= 240 and picture.std() > 1 for picture in pictures)
        assert not np.array_equal(pictures[0], pictures[-1])


def test_names_of_actions(tmp_path: Path) -> None:
    class Moves(IntEnum):
        left = 0
        right = 1
        jump = 2

    def names(env: Any, **kwargs: Any) -> Any:
        return content_of(write_credit_explorer(model_of(), env, tmp_path / "page.html", n_episodes=1, **kwargs))[
            "action_names"
        ]

    env: Any = Painted()
    assert names(env) is None
    env.actions = Moves
    assert names(env) == ["left", "right", "jump"]
    env.get_action_meanings = lambda: ["A", "B", "C"]
    assert names(env) == ["A", "B", "C"]
    assert names(env, action_names=["x", "y", "z"]) == ["x", "y", "z"]
    env.get_action_meanings = lambda: ["one", "too", "many", "names"]
    assert names(env) is None


def test_pictures_give_way_to_the_limit(tmp_path: Path) -> None:
    class Noisy(Painted):
        def render(self) -> Any:
            return np.random.default_rng([self.episode, self.t]).integers(0, 256, (100, 160, 3), dtype=np.uint8)

    sizes = {}
    for limit in (3_000_000, 80_000, 1):
        env, path = Noisy(lengths=(5,)), tmp_path / "page.html"
        write_credit_explorer(model_of(), env, path, n_episodes=1, max_bytes=limit)
        sizes[limit] = path.stat().st_size, content_of(path)["episodes"][0]["pictures"]["width"]
    assert sizes[3_000_000][1] == 160
    assert sizes[80_000][0] <= 80_000
    assert sizes[80_000][1] in (80, 40)
    assert sizes[1][1] == 40, "a picture of which nothing is left helps nobody"


def test_a_smaller_picture_is_a_mean_of_squares() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    small = _shrunk(frame, 3)
    assert small.shape == (2, 3, 3)
    for y in range(2):
        for x in range(3):
            for c in range(3):
                total = 0.0
                for dy in range(3):
                    for dx in range(3):
                        total += frame[3 * y + dy, 3 * x + dx, c]
                assert abs(small[y, x, c] - total / 9) <= 0.5
    assert np.array_equal(_shrunk(frame, 1), frame)


def test_pictures_of_any_shape(tmp_path: Path) -> None:
    class Ribbon(Painted):
        def render(self) -> Any:
            return np.full((2, 1000, 4), self.t, np.uint8)

    page = content_of(write_credit_explorer(model_of(), Ribbon(lengths=(5,)), tmp_path / "page.html", n_episodes=1))
    pictures = pictures_of(page["episodes"][0])
    assert [picture.shape for picture in pictures] == 6 * [(1, 500, 3)]
    assert [picture.mean() for picture in pictures] == list(range(6))


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (65, 2)])
def test_png(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    read = matplotlib.image.imread(io.BytesIO(_png(image)), format="png")
    assert np.array_equal(np.rint(read * 255), image)


def test_strange_names_stay_text(tmp_path: Path) -> None:
    title = "</script><b>& @DATA@"
    path = write_credit_explorer(model_of(), Painted(), tmp_path / "page.html", title=title)
    assert content_of(path)["title"] == title
    assert "<title>&lt;/script&gt;&lt;b&gt;&amp; @DATA@</title>" in path.read_text()


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    text = write_credit_explorer(model_of(), Painted(), tmp_path / "page.html").read_text()
    assert not re.findall(r"https?:|<link|\bsrc=|@import|fetch\(|XMLHttpRequest", text)


class BadPicture(Painted):
    def render(self) -> Any:
        return np.zeros((4, 4))


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "stock SB3": (
        TypeError,
        r"stable_baselines3.a2c.a2c.A2C.*from tca_sb3 import MetaPWR",
        lambda path: write_credit_explorer(sb3.A2C("MlpPolicy", Painted()), Painted(), path),  # type: ignore[arg-type]
    ),
    "no weights": (
        ValueError,
        "TDLambda has no pairwise weights; use it with PWTD or PWR",
        lambda path: write_credit_explorer(model_of(A2C), Painted(), path),
    ),
    "no end": (
        ValueError,
        "not ended after 3 steps.*raise max_steps",
        lambda path: write_credit_explorer(model_of(), Painted(), path, max_steps=3),
    ),
    "time limit with PWR": (
        ValueError,
        "PWR got an episode cut by a time limit",
        lambda path: write_credit_explorer(model_of(), Painted(endings="c"), path),
    ),
    "another environment": (
        ValueError,
        "Observation spaces do not match",
        lambda path: write_credit_explorer(model_of(), Painted(kind="discrete"), path),
    ),
    "two environments": (
        ValueError,
        "one environment at a time",
        lambda path: write_credit_explorer(model_of(), DummyVecEnv([Painted, Painted]), path),
    ),
    "a vector environment": (
        ValueError,
        "one environment at a time",
        lambda path: write_credit_explorer(model_of(), gym.vector.SyncVectorEnv([Painted]), path),  # type: ignore[arg-type]
    ),
    "an adapted vector environment": (
        ValueError,
        "one environment at a time",
        lambda path: write_credit_explorer(
            model_of(), GymVecEnv(gym.vector.SyncVectorEnv([Painted], autoreset_mode="SameStep")), path
        ),
    ),
    "statistics forgotten": (
        ValueError,
        "VecNormalize.load",
        lambda path: write_credit_explorer(model_of(env=VecNormalize(DummyVecEnv([Painted]))), Painted(), path),  # type: ignore[arg-type]
    ),
    "no episodes": (
        ValueError,
        "n_episodes=0",
        lambda path: write_credit_explorer(model_of(), Painted(), path, n_episodes=0),
    ),
    "names missing": (
        ValueError,
        r"2 action_names for the action space Discrete\(3\)",
        lambda path: write_credit_explorer(model_of(), Painted(), path, action_names=["a", "b"]),
    ),
    "not a picture": (
        ValueError,
        r"float64 of shape \(4, 4\)",
        lambda path: write_credit_explorer(model_of(), BadPicture(), path),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_a_sentence_and_no_page(case: str, tmp_path: Path) -> None:
    kind, words, write = REFUSED[case]
    path = tmp_path / "folder" / "page.html"
    with pytest.raises(kind, match=words):
        write(path)
    assert not path.parent.exists()


def test_an_error_leaves_the_environment_as_it_was() -> None:
    env = DummyVecEnv([Painted])
    inside = env.envs[0]
    with pytest.raises(ValueError, match="max_steps"):
        record_episodes(model_of(), env, 1, max_steps=2)
    assert env.envs[0] is inside


# -- in a browser ---------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH")
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "virtual-time-budget=2000", "window-size=1200,900", "dump-dom"]


class Texts(html.parser.HTMLParser):
    """The text of every element that has an id, its ``value``, and the body's ``data-…``."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str | None] = []
        self.text: dict[str, str] = {}
        self.attributes: dict[str, dict[str, str | None]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        name = named.get("id") or ("body" if tag == "body" else None)
        if name:
            self.attributes[name] = named
            self.text.setdefault(name, "")
        if tag not in ("meta", "input", "br", "link"):
            self.open.append(name)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for name in filter(None, self.open):
            self.text[name] += data


def seen(path: Path, folder: Path, address: str = "") -> Texts:
    assert BROWSER is not None
    command = [
        BROWSER,
        *(f"--{flag}" for flag in FLAGS),
        f"--user-data-dir={folder / 'profile'}",
        f"{path.as_uri()}{address}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    texts = Texts()
    texts.feed(done.stdout)
    return texts


def assert_shows(dom: Texts, page: Any, number: int, t: int, k: int) -> None:
    episode = page["episodes"][number]
    values = {
        "weight": weights_of(episode)[t, k],
        "reward": episode["rewards"][k - 1],
        "advantage": episode["advantages"][t],
        "value": episode["values"][t],
        "term": weights_of(episode)[t, k] * episode["rewards"][k - 1],
    }
    for name, value in values.items():
        assert float(dom.attributes[name]["value"] or "nan") == value, name
        assert float(dom.text[name]) == pytest.approx(value, rel=1e-3, abs=1e-12), name
    assert dom.text["pair"] == f"{t}, {k}"
    (action,) = episode["actions"][t]
    assert dom.text["action"] == f"{action} ({page['action_names'][action]})"
    for which, time, what in (("t", t, "the action is taken"), ("k", k, "the reward arrives")):
        assert dom.attributes[f"picture-{which}"]["data-place"] == str(episode["pictures"]["index"][time])
        phase = page["phase_names"][episode["phases"][time]]
        assert dom.text[f"caption-{which}"] == f"S{time} {what}, {phase}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes; the weight of reward 4 for action 1 is 1, of all other pairs some number below 1/4."""
    matrix = np.linspace(0, 0.24, 25).reshape(5, 5)
    matrix[1, 3] = 1.0
    model = model_of(HPWR, estimator_kwargs={"weights_kwargs": {"matrix": matrix}})
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    return write_credit_explorer(model, Painted(lengths=(5, 3)), path, n_episodes=2, action_names=["a", "b<", "c"])


@needs_browser
@pytest.mark.parametrize(("number", "t", "k"), [(0, 0, 5), (1, 1, 2)])
def test_the_address_chooses_the_pair(written: Path, tmp_path: Path, number: int, t: int, k: int) -> None:
    dom = seen(written, tmp_path, f"#episode={number}&t={t}&k={k}")
    assert_shows(dom, content_of(written), number, t, k)


ACT = """<script>
function place(t, k) {
  const box = map.getBoundingClientRect();
  return [box.left + frame.left + (k - 0.5) * frame.cell, box.top + frame.top + (t + 0.5) * frame.cell];
}
function colourAt(t, k) {  // of the canvas, where the pointer will be, not of the numbers
  const [x, y] = place(t, k), box = map.getBoundingClientRect(), density = map.width / box.width;
  return [...brush.getImageData((x - box.left) * density, (y - box.top) * density, 1, 1).data].join(",");
}
function move(t, k, kind = "pointermove", where = 0) {
  const [x, y] = place(t, k), options = {clientX: x + where, clientY: y, bubbles: true, pointerType: "mouse"};
  document.elementFromPoint(x, y).dispatchEvent(new PointerEvent(kind, options));
}
function press(key, shiftKey = false) {
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, shiftKey, bubbles: true}));
}
const result = document.body.dataset, now = () => at("pair").textContent;
@ACT@
</script>
</body>"""


def after(script: str, written: Path, folder: Path, address: str) -> Texts:
    copy = folder / "copy.html"
    copy.write_text(written.read_text().replace("</body>", ACT.replace("@ACT@", script)))
    return seen(copy, folder, address)


@needs_browser
def test_the_pointer_chooses_the_pair_under_it(written: Path, tmp_path: Path) -> None:
    script = """
    result.one = colourAt(1, 4); result.other = colourAt(2, 3);
    move(1, 4); result.moved = now();
    move(4, 2); result.below = now();
    move(1, 4, "pointerdown"); move(0, 2); result.held = now();
    move(1, 4, "pointerdown"); move(0, 2); result.free = now();
    move(1, 4);
    """
    dom = after(script, written, tmp_path, "#t=0&k=1")
    found = dom.attributes["body"]
    assert found["data-one"] == "253,231,37,255", "the end of the colour ramp"
    red, green, blue, _ = map(int, str(found["data-other"]).split(","))
    assert (red, green, blue) != (253, 231, 37) and blue > red, "the beginning of the colour ramp"
    assert found["data-moved"] == "1, 4"
    assert found["data-below"] == "1, 4", "k <= t is no pair"
    assert found["data-held"] == "1, 4"
    assert found["data-free"] == "0, 2"
    assert_shows(dom, content_of(written), 0, 1, 4)


@needs_browser
def test_keys_choose_the_pair(written: Path, tmp_path: Path) -> None:
    script = """
    const steps = [];
    for (const key of ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"]) {
      press(key); steps.push(now());
    }
    press("ArrowRight", true); steps.push(now());
    press("ArrowUp", true); steps.push(now());
    press("PageDown"); steps.push(now() + " of " + at("episode").value);
    at("t").value = 2; at("t").dispatchEvent(new Event("input")); steps.push(now());
    at("k").value = 1; at("k").dispatchEvent(new Event("input"));
    result.steps = steps.join("; ");
    """
    dom = after(script, written, tmp_path, "#t=0&k=2")
    assert dom.attributes["body"]["data-steps"] == "; ".join(
        ["1, 2", "1, 3", "1, 4", "2, 4", "1, 4", "1, 3", "1, 5", "0, 5", "0, 3 of 1", "2, 3"]
    )
    assert_shows(dom, content_of(written), 1, 0, 1)


@needs_browser
def test_without_pictures_the_numbers_are_shown(tmp_path: Path) -> None:
    model = model_of(MetaPWTD, env=Silent(lengths=(4,)))
    path = write_credit_explorer(model, Silent(lengths=(4,)), tmp_path / "page.html", n_episodes=1)
    dom = seen(path, tmp_path, "#t=1&k=4")
    assert "hidden" in dom.attributes["picture-t"]
    assert dom.text["parts-t"] == "observation001"
    assert dom.text["parts-k"] == "observation004"
    assert dom.text["caption-k"] == "S4 the reward arrives"
    (episode,) = content_of(path)["episodes"]
    assert float(dom.attributes["td_error"]["value"] or "nan") == episode["td_errors"][3]

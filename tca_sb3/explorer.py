"""The credit explorer: one HTML page in which a person looks at the weight of every pair of times, with its pictures.

Nothing here is needed to train. The page is one file without any outside part: it opens from a disk, without a network.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from tca_sb3.episodes import Episodes, Observations
from tca_sb3.estimators.base import PairwiseEstimator, WeightedEstimator
from tca_sb3.meta import episode_values
from tca_sb3.returns import pwr_advantages, pwr_returns, pwtd_advantages

if TYPE_CHECKING:
    from tca_sb3.algorithms import CreditMixin

Frame = NDArray[np.uint8]

# Ours: what still reads well beside the matrix, and how much of an observation still reads as numbers.
_FRAME_SIDE = 240
_SMALLEST_SIDE = 16
_SHOWN_NUMBERS = 32


@dataclass(frozen=True)
class Recording:
    """One episode as it was played.

    :param episodes: the episode, a batch of one column of ``T`` steps.
    :param frames: the pictures at ``S_0 … S_T``, RGB, each ``(height, width, 3)``, uint8; ``None`` if the environment
        draws none.
    :param phases: ``info["phase"]`` at ``S_0 … S_T``; ``None`` if the environment tells none.
    """

    episodes: Episodes
    frames: tuple[Frame, ...] | None
    phases: tuple[Any, ...] | None


def write_credit_explorer(
    model: CreditMixin,
    env: str | gym.Env | VecEnv,
    path: str | Path,
    *,
    n_episodes: int = 3,
    deterministic: bool = False,
    seed: int = 0,
    title: str | None = None,
    action_names: Sequence[str] | None = None,
    phase_names: Sequence[str] | None = None,
    max_steps: int = 1000,
    max_bytes: int = 3_000_000,
) -> Path:
    """Plays some episodes with the model and writes one page in which to move over the pairs ``(t, k)``.

    For each pair it shows the picture at ``S_t``, where the action is taken, and at ``S_k``, where the reward arrives,
    the weight, the reward, the action and the advantage; small observations as numbers, and all of them where the
    environment draws no pictures. Borders of phases are drawn where ``info["phase"]`` tells them.

    Playing changes neither the model nor the random numbers that it would draw next.

    :param model: an algorithm of this package whose estimator has pairwise weights.
    :param env: what to play in: a registered id, an environment (``gym.make(id, render_mode="rgb_array")`` for
        pictures), or a ``DummyVecEnv`` of one environment with the wrappers that the model was trained with. It is
        reset; only an environment made from an id is closed.
    :param path: the file to write; missing folders are made.
    :param n_episodes: episodes to choose from.
    :param deterministic: play the policy's best action instead of drawing from it.
    :param seed: of the environment and of the drawn actions.
    :param title: heading of the page.
    :param action_names: a name for each action of a ``Discrete`` space; by default those that the environment has
        (``get_action_meanings()``, ``action_names``, or an enumeration ``actions``).
    :param phase_names: a name for each phase, if ``info["phase"]`` counts them from 0; by default the environment's
        ``phases.names``.
    :param max_steps: the longest episode to play.
    :param max_bytes: make the pictures smaller until the page is no larger than this. Weights are kept exactly, in
        about ``2.7 T²`` bytes an episode, even if that is more.
    :return: the path.
    :raises TypeError: if the model is of another kind.
    :raises ValueError: if the model has no pairwise weights, the environment is not the model's, an episode does not
        end, its end is a time limit and the estimator needs a real one, or a number is out of range.
    """
    estimator = _pairwise_estimator(model)
    for name, number in (("n_episodes", n_episodes), ("max_steps", max_steps), ("max_bytes", max_bytes)):
        if number < 1:
            raise ValueError(f"write_credit_explorer got {name}={number}; it must be at least 1.")
    if action_names is not None:
        space = model.action_space
        if not isinstance(space, spaces.Discrete) or len(action_names) != space.n:
            raise ValueError(
                f"write_credit_explorer got {len(action_names)} action_names for the action space {space}; "
                "it needs one name for each action of a Discrete space."
            )
    vec_env = _one_env(model, env)
    try:
        recordings = record_episodes(
            model, vec_env, n_episodes, deterministic=deterministic, seed=seed, max_steps=max_steps
        )
        (unwrapped,) = vec_env.get_attr("unwrapped")
        spec = unwrapped.spec
    finally:
        if isinstance(env, str):
            vec_env.close()
    env_name = type(unwrapped).__name__ if spec is None else spec.id
    content = {
        "title": title or f"{type(model).__name__} on {env_name}",
        "model": type(model).__name__,
        "estimator": type(estimator).__name__,
        "weights": type(estimator.weights).__name__ if isinstance(estimator, WeightedEstimator) else None,
        "env": env_name,
        "policy": "best actions" if deterministic else "drawn actions",
        "num_timesteps": model.num_timesteps,
        "weighted": _what_is_weighted(model, recordings),
        "action_names": list(action_names) if action_names is not None else _action_names(unwrapped, model),
        "first_action": int(model.action_space.start) if isinstance(model.action_space, spaces.Discrete) else 0,
        "phase_names": list(phase_names) if phase_names is not None else _phase_names(unwrapped),
        "episodes": [_numbers(model, recording) for recording in recordings],
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(content, [recording.frames for recording in recordings], max_bytes), encoding="utf-8")
    return path


# -- playing ---------------------------------------------------------------------------------------------------------


def record_episodes(
    model: CreditMixin,
    env: str | gym.Env | VecEnv,
    n_episodes: int,
    *,
    deterministic: bool = False,
    seed: int = 0,
    max_steps: int = 1000,
) -> list[Recording]:
    """Plays whole episodes, one after the other, and keeps everything; see :func:`write_credit_explorer`.

    :raises ValueError: as there.
    """
    vec_env = _one_env(model, env)
    cuda = [model.device] if model.device.type == "cuda" else []
    recordings = []
    with _watching(vec_env) as watcher, torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        vec_env.seed(seed)
        observation: Any = vec_env.reset()
        for _ in range(n_episodes):
            observations: list[Any] = [observation]
            actions: list[np.ndarray] = []
            rewards: list[np.ndarray] = []
            done = False
            while not done:
                if len(rewards) == max_steps:
                    raise ValueError(
                        f"The credit explorer needs whole episodes but this one has not ended after {max_steps} steps; "
                        "use an environment that ends its episodes, or raise max_steps."
                    )
                action, _ = model.predict(observation, deterministic=deterministic)
                observation, reward, dones, infos = vec_env.step(action)
                done, info = bool(dones[0]), infos[0]
                actions.append(action)
                rewards.append(reward)
                observations.append(_batch_of_one(info["terminal_observation"]) if done else observation)
            truncated = bool(info.get("TimeLimit.truncated", False))
            episodes = _one_episode(model, observations, actions, rewards, truncated)
            moments = watcher.episodes.pop(0)
            frames, phases = zip(*moments, strict=True)
            recordings.append(
                Recording(
                    episodes,
                    None if any(frame is None for frame in frames) else frames,
                    None if any(phase is None for phase in phases) else phases,
                )
            )
    return recordings


class _Watcher(gym.Wrapper):
    """Keeps the picture and the phase of every state: after the last step SB3 resets before anyone else could look."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.episodes: list[list[tuple[Frame | None, Any]]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.episodes.append([])
        self._look(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._look(result[-1])
        return result

    def _look(self, info: dict[str, Any]) -> None:
        frame = None
        if self.env.render_mode == "rgb_array":
            frame = np.asarray(self.env.render())
            if frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.dtype != np.uint8:
                raise ValueError(
                    f"The environment's render() gave {frame.dtype} of shape {frame.shape}; a picture is uint8 of "
                    "shape (height, width, 3)."
                )
            long, short = max(frame.shape[:2]), min(frame.shape[:2])
            frame = _shrunk(frame[..., :3], min(math.ceil(long / _FRAME_SIDE), short))
        phase = info.get("phase")
        self.episodes[-1].append((frame, phase.item() if isinstance(phase, np.generic) else phase))


@contextmanager
def _watching(vec_env: VecEnv) -> Iterator[_Watcher]:
    """A watcher around the only environment, and running statistics held still."""
    base = cast(DummyVecEnv, vec_env.unwrapped)
    normalizer = unwrap_vec_normalize(vec_env)
    was_training = normalizer is not None and normalizer.training
    watcher = _Watcher(base.envs[0])
    base.envs[0] = watcher
    if normalizer is not None:
        normalizer.training = False
    try:
        yield watcher
    finally:
        base.envs[0] = watcher.env
        if normalizer is not None:
            normalizer.training = was_training


def _pairwise_estimator(model: CreditMixin) -> PairwiseEstimator:
    estimator = getattr(model, "estimator", None)
    if estimator is None:
        raise TypeError(
            f"write_credit_explorer got a {type(model).__module__}.{type(model).__name__}; it needs an algorithm with "
            "a pluggable estimator: write `from tca_sb3 import MetaPWR`."
        )
    if not isinstance(estimator, PairwiseEstimator):
        raise ValueError(
            f"write_credit_explorer has nothing to show: {type(estimator).__name__} has no pairwise weights; "
            "use it with PWTD or PWR."
        )
    return estimator


def _one_env(model: CreditMixin, env: str | gym.Env | VecEnv) -> VecEnv:
    """The environment as the model's policy sees it."""
    made = maybe_make_env(cast(gym.Env, env), verbose=0)
    vec_env = made if isinstance(made, VecEnv) else None
    if isinstance(made, VectorEnv) or (
        vec_env is not None and not (isinstance(vec_env.unwrapped, DummyVecEnv) and vec_env.num_envs == 1)
    ):
        raise ValueError(
            f"write_credit_explorer got {made}; it plays one environment at a time: pass gym.make(id, "
            'render_mode="rgb_array"), or a DummyVecEnv of one environment.'
        )
    vec_env = model._wrap_env(made)
    check_for_correct_spaces(vec_env, model.observation_space, model.action_space)
    if model.get_vec_normalize_env() is not None and unwrap_vec_normalize(vec_env) is None:
        raise ValueError(
            "write_credit_explorer got an environment without VecNormalize, but the model learned with it and would "
            "see other numbers; write VecNormalize.load(statistics, DummyVecEnv([make_env]))."
        )
    return vec_env


def _batch_of_one(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def _one_episode(
    model: CreditMixin, observations: list[Any], actions: list[Any], rewards: list[Any], truncated: bool
) -> Episodes:
    def tensor(parts: list[Any], dtype: Any = None) -> torch.Tensor:
        return torch.from_numpy(np.stack(parts).astype(dtype or parts[0].dtype, copy=False)).to(model.device)

    states: Observations
    if isinstance(observations[0], dict):
        states = {
            key: tensor([part[key] for part in observations], observations[0][key].dtype) for key in observations[0]
        }
    else:
        states = tensor(observations)
    flags = {"terminated": not truncated, "truncated": truncated, "started": True}
    return Episodes(
        observations=states,
        actions=tensor([np.reshape(action, (1, -1)) for action in actions], np.float32),
        rewards=tensor(rewards, np.float32),
        lengths=torch.tensor([len(rewards)], device=model.device),
        **{name: torch.tensor([flag], device=model.device) for name, flag in flags.items()},
    )


# -- what the page holds ---------------------------------------------------------------------------------------------


def _estimate(model: CreditMixin, episodes: Episodes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weights ``(1, T, T)``, the critic's values ``(T + 1, 1)`` and the advantages ``(T, 1)``."""
    with torch.no_grad():
        values = episode_values(model.policy.predict_values, episodes)
        weights = cast(PairwiseEstimator, model.estimator).pair_weights(episodes)
        return weights, values, model.estimator(episodes, values).advantages


def _what_is_weighted(model: CreditMixin, recordings: Sequence[Recording]) -> str | None:
    """Whether advantages are the weighted sum of TD errors, or that of rewards less the critic's value; ``None`` if
    neither. It is found out with the numbers, for nobody has to say it of an estimator of their own."""
    found = {"td_errors": True, "rewards": True}
    for recording in recordings:
        episodes = recording.episodes
        weights, values, advantages = _estimate(model, episodes)
        sums = {
            "td_errors": pwtd_advantages(weights, model.estimator.td_errors(episodes, values)),
            "rewards": pwr_advantages(pwr_returns(weights, episodes.rewards), values),
        }
        for name, total in sums.items():
            found[name] &= torch.allclose(total, advantages, rtol=1e-3, atol=1e-3 * float(advantages.abs().max()))
    # Where all is 0, both fit.
    order = ("td_errors", "rewards") if model.estimator.regular_critic else ("rewards", "td_errors")
    return next((name for name in order if found[name]), None)


def _action_names(env: Any, model: CreditMixin) -> list[str] | None:
    """The environment's own, in the ways in which environments have them."""
    if not isinstance(model.action_space, spaces.Discrete):
        return None
    meanings, names, actions = (getattr(env, a, None) for a in ("get_action_meanings", "action_names", "actions"))
    if callable(meanings):
        found = list(meanings())
    elif names is not None:
        found = list(names)
    elif isinstance(actions, type) and issubclass(actions, Enum):
        found = [action.name for action in actions]
    else:
        return None
    return [str(name) for name in found] if len(found) == model.action_space.n else None


def _phase_names(env: Any) -> list[str] | None:
    for owner in (env, getattr(env, "rules", None)):
        names = getattr(getattr(owner, "phases", None), "names", None)
        if names is not None:
            return [str(name) for name in names]
    return None


def _numbers(model: CreditMixin, recording: Recording) -> dict[str, Any]:
    """Everything of an episode but its pictures. Lists over ``t`` have ``T`` entries, those over states ``T + 1``."""
    episodes = recording.episodes
    estimator = model.estimator
    weights, values, advantages = _estimate(model, episodes)
    errors = estimator.td_errors(episodes, values)
    matrix = weights[0].cpu().numpy()
    rewards, actions = episodes.rewards[:, 0], episodes.actions[:, 0]
    discrete = isinstance(model.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    pairs = matrix[np.triu_indices(len(matrix))].astype("<f4")
    return {
        "length": episodes.horizon,
        "return": float(rewards.double().sum()),
        "ended": "time limit" if bool(episodes.truncated) else "terminal state",
        # Row by row, k = t + 1 … T, little-endian float32.
        "weights": base64.b64encode(pairs.tobytes()).decode(),
        "rewards": _plain(rewards),
        "actions": _plain(actions.long() if discrete else actions),
        "advantages": _plain(advantages[:, 0]),
        "values": _plain(values[:, 0]),
        # Of a regular critic only: the one of pairwise-weighted rewards predicts another sum.
        "td_errors": _plain(errors[:, 0]) if estimator.regular_critic else None,
        "phases": recording.phases,
        "observations": _small_observations(episodes.observations),
    }


def _small_observations(observations: Observations) -> list[dict[str, Any]]:
    """Each part by name, with its numbers (``(T + 1, n)``) if they are few, with its shape otherwise."""
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    shown = []
    for name, part in parts.items():
        rows = part.reshape(len(part), -1)
        few = rows.shape[1] <= _SHOWN_NUMBERS
        shown.append({"name": name, "shape": list(part.shape[2:]), "rows": _plain(rows) if few else None})
    return shown


def _plain(tensor: torch.Tensor) -> Any:
    """Nested lists for JSON, which knows no NaN and no infinity."""

    def finite(value: Any) -> Any:
        if isinstance(value, list):
            return [finite(entry) for entry in value]
        return value if math.isfinite(value) else None

    return finite(tensor.tolist())


# -- pictures --------------------------------------------------------------------------------------------------------


def _shrunk(frame: Frame, factor: int) -> Frame:
    """A picture ``factor`` times smaller: each pixel the mean of a square; edges that fill none are cut off."""
    if factor == 1:
        return frame.copy()
    height, width = (side // factor * factor for side in frame.shape[:2])
    corners = [frame[y:height:factor, x:width:factor] for y in range(factor) for x in range(factor)]
    return np.rint(sum(corner.astype(np.float32) for corner in corners) / factor**2).astype(np.uint8)


def _sprite(frames: Sequence[Frame]) -> dict[str, Any]:
    """Every picture once, side by side in one image: neighbours are alike, which is what makes PNG small.

    ``index[t]`` is the place of the picture of ``S_t``, counted row by row.
    """
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    places: dict[bytes, int] = {}
    distinct: list[Frame] = []
    index: list[int] = []
    for frame in frames:
        padded = np.zeros((height, width, 3), np.uint8)
        padded[: frame.shape[0], : frame.shape[1]] = frame
        place = places.setdefault(padded.tobytes(), len(places))
        if place == len(distinct):
            distinct.append(padded)
        index.append(place)
    columns = max(1, min(len(distinct), round(math.sqrt(len(distinct) * height / width))))
    rows = math.ceil(len(distinct) / columns)
    image = np.zeros((rows, height, columns, width, 3), np.uint8)
    for place, frame in enumerate(distinct):
        image[place // columns, :, place % columns] = frame
    data = base64.b64encode(_png(image.reshape(rows * height, columns * width, 3))).decode()
    return {"png": data, "columns": columns, "rows": rows, "width": width, "height": height, "index": index}


def _png(image: Frame) -> bytes:
    """An RGB image, ``(height, width, 3)``, as a PNG file (ISO/IEC 15948), without filters."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = image.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, 3 * width)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, colours
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _page(content: dict[str, Any], frames: Sequence[Sequence[Frame] | None], max_bytes: int) -> str:
    """The page, its pictures as small as ``max_bytes`` wants them."""
    shortest = min((min(frame.shape[:2]) for pictures in frames if pictures for frame in pictures), default=0)
    factor = 1
    while True:
        for episode, pictures in zip(content["episodes"], frames, strict=True):
            smaller = [_shrunk(frame, factor) for frame in pictures] if pictures else None
            episode["pictures"] = _sprite(smaller) if smaller else None
        page = _filled(content)
        factor *= 2
        if len(page.encode()) <= max_bytes or shortest // factor < _SMALLEST_SIDE:
            return page


def _filled(content: dict[str, Any]) -> str:
    # In a script element only "</" could end the data early.
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"@TITLE@": html.escape(content["title"]), "@DATA@": data}
    return re.sub("|".join(parts), lambda found: parts[found.group()], PAGE)


# -- the page --------------------------------------------------------------------------------------------------------

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
  :root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2128; --soft: #5b6470; --line: #d5dae1; --mark: #d1350f;
    --up: #2563a8; --down: #b4541a; --ramp: #440154, #482878, #3e4989, #31688e, #26828e, #1f9e89, #35b779, #6ece58,
    #b5de2b, #fde725; }
  @media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e7eaee; --soft: #a0a9b5; --line: #363d47;
    --mark: #ff7a50; --up: #6aa9ee; --down: #e59a5c; } }
  * { box-sizing: border-box; }
  body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
    font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
  h1 { font-size: 1.25rem; margin: 0; } p { margin: .3rem 0; } .soft { color: var(--soft); font-size: .87rem; }
  header { margin-bottom: .8rem; } footer { max-width: 46rem; margin-top: .8rem; }
  main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 27rem); gap: 1.5rem; align-items: start; }
  @media (max-width: 52rem) { main { grid-template-columns: minmax(0, 1fr); gap: .8rem; } body { padding: .7rem; } }
  canvas { display: block; touch-action: none; cursor: crosshair; }
  :focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
  .bar { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; margin: .5rem 0; }
  select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line); border-radius: 4px;
    padding: .15rem .3rem; max-width: 100%; }
  .ramp { display: inline-flex; gap: .4rem; align-items: center; font-size: .87rem; }
  .ramp i { width: 7rem; height: .8rem; border-radius: 2px; background: linear-gradient(90deg, var(--ramp)); }
  .sliders { display: grid; grid-template-columns: auto 1fr; gap: .2rem .6rem; align-items: center; }
  .sliders input { width: 100%; accent-color: var(--mark); }
  .states { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: .8rem; }
  figure { margin: 0; } figcaption { margin-bottom: .3rem; }
  .picture { width: 100%; background-repeat: no-repeat; border: 1px solid var(--line); border-radius: 4px; }
  .part { margin-top: .4rem; font-size: .8rem; }
  .numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: .1rem .4rem; }
  .number { position: relative; padding: 0 .2rem; border: 1px solid var(--line); border-radius: 2px; overflow: hidden; }
  .number i { position: absolute; inset: 0 auto 0 0; background: var(--up); opacity: .3; }
  .number span { position: relative; }
  dl { display: grid; grid-template-columns: auto 1fr; gap: .15rem 1rem; margin: .9rem 0; padding: .6rem 0;
    border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
  dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
  dd.main { font-weight: 700; font-size: 1.15rem; }
  kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 .25rem; font: inherit; }
</style>
</head>
<body>
<header>
  <h1>@TITLE@</h1>
  <p class="soft" id="about"></p>
</header>
<main>
  <section>
    <div class="bar">
      <label>episode <select id="episode"></select></label>
      <span class="ramp"><span>weight</span> <span id="low">0</span><i></i><span id="high">1</span></span>
      <label><input type="checkbox" id="stretch"> stretch colours</label>
    </div>
    <canvas id="map" tabindex="0" role="img"
      aria-label="Weights of all pairs of times; the chosen one is given in numbers."></canvas>
    <div class="sliders">
      <label for="t">t</label><input id="t" type="range" min="0" value="0">
      <label for="k">k</label><input id="k" type="range" min="1" value="1">
    </div>
  </section>
  <section>
    <div class="states">
      <figure><figcaption id="caption-t"></figcaption><div class="picture" id="picture-t" role="img"></div>
        <div id="parts-t"></div></figure>
      <figure><figcaption id="caption-k"></figcaption><div class="picture" id="picture-k" role="img"></div>
        <div id="parts-k"></div></figure>
    </div>
    <dl>
      <dt>weight</dt><dd class="main"><i>w</i>[<span id="pair"></span>] = <data id="weight"></data></dd>
      <dt>action</dt><dd><i>A</i><sub class="now-t"></sub> = <data id="action"></data></dd>
      <dt>reward</dt><dd><i>R</i><sub class="now-k"></sub> = <data id="reward"></data></dd>
      <dt class="error">TD error</dt>
      <dd class="error"><i>&delta;</i><sub class="now-k"></sub> = <data id="td_error"></data></dd>
      <dt class="term">share</dt><dd class="term"><i>w</i> <i id="symbol"></i> = <data id="term"></data>,
        a term of the advantage</dd>
      <dt>advantage</dt><dd><i>&Psi;</i><sub class="now-t"></sub> = <data id="advantage"></data></dd>
      <dt>critic</dt><dd><i>v</i>(<i>S</i><sub class="now-t"></sub>) = <data id="value"></data></dd>
    </dl>
  </section>
</main>
<footer>
  <p class="soft">A row is the time <i>t</i> of an action, a column the time <i>k</i> at which a reward arrives; bars
    are the rewards below and the advantages to the right. Move over the matrix; a click holds the pair, another lets
    it go. Keys: <kbd>&uarr;</kbd> <kbd>&darr;</kbd> change <i>t</i>, <kbd>&larr;</kbd> <kbd>&rarr;</kbd> change
    <i>k</i>, with <kbd>Shift</kbd> by ten; <kbd>PgUp</kbd> <kbd>PgDn</kbd> change the episode.
    <span id="held"></span></p>
</footer>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const map = at("map"), brush = map.getContext("2d");
const view = {episode: 0, t: 0, k: 1, held: false};

for (const episode of data.episodes) {
  const bytes = Uint8Array.from(atob(episode.weights), letter => letter.charCodeAt(0));
  const numbers = new DataView(bytes.buffer), T = episode.length;
  let smallest = Infinity, largest = -Infinity;
  episode.weight = (t, k) => numbers.getFloat32(4 * (t * T - t * (t - 1) / 2 + k - 1 - t), true);
  for (let i = 0; i < numbers.byteLength; i += 4) {
    smallest = Math.min(smallest, numbers.getFloat32(i, true));
    largest = Math.max(largest, numbers.getFloat32(i, true));
  }
  episode.range = [smallest, largest];
  if (episode.pictures) {
    const png = Uint8Array.from(atob(episode.pictures.png), letter => letter.charCodeAt(0));
    episode.url = URL.createObjectURL(new Blob([png], {type: "image/png"}));
  }
  // A phase begins with the first action taken in it, and its rewards are those of its actions.
  episode.starts = [0];
  for (let t = 1; episode.phases && t < T; t++) if (episode.phases[t] !== episode.phases[t - 1]) episode.starts.push(t);
}

function text(number) {
  if (number === null) return "\u2013";
  if (Number.isInteger(number)) return String(number);
  const size = Math.abs(number);
  return size >= 1e5 || size < 1e-3 ? number.toExponential(3) : number.toPrecision(4);
}
function put(id, number) { at(id).value = number === null ? "" : String(number); at(id).textContent = text(number); }
function phaseName(phase) {
  return data.phase_names && Number.isInteger(phase) && data.phase_names[phase] || String(phase);
}
function bound(number, low, high) { return Math.min(Math.max(number, low), high); }

// -- what is selected ----------------------------------------------------------------------------------------------

function select(t, k) {
  const T = data.episodes[view.episode].length;
  view.k = bound(k, 1, T);
  view.t = bound(t, 0, view.k - 1);
  show();
}
function chooseEpisode(number, t, k) {
  view.episode = bound(number, 0, data.episodes.length - 1);
  painted = null;
  select(t === undefined ? view.t : t, k === undefined ? view.k : k);
}
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const number = name => /^\d+$/.test(wanted.get(name)) ? Number(wanted.get(name)) : undefined;
  const episode = bound(number("episode") || 0, 0, data.episodes.length - 1), rewards = data.episodes[episode].rewards;
  const largest = rewards.reduce((best, reward, i) => Math.abs(reward) > Math.abs(rewards[best]) ? i : best, 0);
  chooseEpisode(episode, number("t") || 0, number("k") === undefined ? largest + 1 : number("k"));
}

// -- the numbers and the pictures ----------------------------------------------------------------------------------

function show() {
  const episode = data.episodes[view.episode], {t, k} = view, T = episode.length;
  at("episode").value = view.episode;
  at("t").max = T - 1; at("k").max = T;
  at("t").value = t; at("k").value = k;
  at("held").textContent = view.held ? "This pair is held." : "";
  at("pair").textContent = `${t}, ${k}`;
  for (const place of document.querySelectorAll(".now-t")) place.textContent = t;
  for (const place of document.querySelectorAll(".now-k")) place.textContent = k;
  const weight = episode.weight(t, k), action = episode.actions[t], reward = episode.rewards[k - 1];
  put("weight", weight); put("reward", reward);
  put("advantage", episode.advantages[t]); put("value", episode.values[t]);
  const name = data.action_names && data.action_names[action[0] - data.first_action];
  at("action").value = action.join(" ");
  at("action").textContent = action.map(text).join(", ") + (name ? ` (${name})` : "");
  if (episode.td_errors) put("td_error", episode.td_errors[k - 1]);
  if (data.weighted) {
    const weighed = episode[data.weighted][k - 1];
    put("term", weighed === null ? null : weight * weighed);
  }
  state("t", t, "the action is taken"); state("k", k, "the reward arrives");
  draw();
  // So that a link leads to a pair. Some browsers refuse this in pages from a disk; the page does without.
  try { history.replaceState(null, "", `#episode=${view.episode}&t=${t}&k=${k}`); } catch (refused) { return; }
}
function state(which, time, what) {
  const episode = data.episodes[view.episode], pictures = episode.pictures;
  const phase = episode.phases ? `, ${phaseName(episode.phases[time])}` : "";
  at(`caption-${which}`).innerHTML = `<b><i>S</i><sub>${time}</sub></b> <span class="soft"></span>`;
  at(`caption-${which}`).lastChild.textContent = `${what}${phase}`;
  const picture = at(`picture-${which}`);
  picture.hidden = !pictures;
  if (pictures) {
    const {columns, rows, width, height, index} = pictures, place = index[time];
    const share = (part, whole) => whole > 1 ? `${100 * part / (whole - 1)}%` : "0%";
    picture.style.aspectRatio = `${width} / ${height}`;
    picture.style.backgroundImage = `url("${episode.url}")`;
    picture.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    picture.style.backgroundPosition =
      `${share(place % columns, columns)} ${share(Math.floor(place / columns), rows)}`;
    picture.style.imageRendering = width < 120 ? "pixelated" : "auto";
    picture.dataset.place = place;
    picture.setAttribute("aria-label", `the environment at time ${time}`);
  }
  const box = at(`parts-${which}`);
  box.replaceChildren();
  for (const part of episode.observations) {
    if (!part.rows && pictures) continue;
    const line = document.createElement("div");
    line.className = "part";
    const title = document.createElement("div");
    title.className = "soft";
    title.textContent = part.name + (part.rows ? "" : ` (${part.shape.join(" \u00d7 ")} numbers)`);
    line.append(title);
    if (part.rows) line.append(numbersOf(part, time));
    box.append(line);
  }
}
function numbersOf(part, time) {
  if (!part.bounds) {
    part.bounds = part.rows[0].map((_, i) => {
      const column = part.rows.map(row => row[i]).filter(number => number !== null);
      return [Math.min(...column), Math.max(...column)];
    });
  }
  const numbers = document.createElement("div");
  numbers.className = "numbers";
  part.rows[time].forEach((number, i) => {
    const [cell, bar, label] = ["div", "i", "span"].map(kind => document.createElement(kind));
    const [low, high] = part.bounds[i];
    cell.className = "number";
    bar.style.width = number === null || high === low ? "0" : `${100 * (number - low) / (high - low)}%`;
    label.textContent = text(number);
    cell.append(bar, label);
    numbers.append(cell);
  });
  return numbers;
}

// -- the matrix ----------------------------------------------------------------------------------------------------

let painted = null;  // the weights as an image, one pixel a pair
let frame = null;  // where the matrix lies on the canvas

function colours() {
  const style = getComputedStyle(document.documentElement), named = name => style.getPropertyValue(name).trim();
  const ramp = named("--ramp").split(",").map(stop => {
    const digits = parseInt(stop.trim().slice(1), 16);
    return [digits >> 16, digits >> 8 & 255, digits & 255];
  });
  return {ink: named("--ink"), soft: named("--soft"), line: named("--line"), paper: named("--paper"),
    mark: named("--mark"), up: named("--up"), down: named("--down"), ramp};
}
function paint(episode, ramp) {
  const T = episode.length, image = new ImageData(T, T);
  const [low, high] = at("stretch").checked ? episode.range : [0, 1];
  for (let t = 0; t < T; t++) for (let k = t + 1; k <= T; k++) {
    const share = high > low ? bound((episode.weight(t, k) - low) / (high - low), 0, 1) : 0.5;
    const place = share * (ramp.length - 1), before = Math.min(Math.floor(place), ramp.length - 2);
    const rest = place - before;
    const pixel = 4 * (t * T + k - 1);
    for (let c = 0; c < 3; c++) image.data[pixel + c] = (1 - rest) * ramp[before][c] + rest * ramp[before + 1][c];
    image.data[pixel + 3] = 255;
  }
  const sheet = document.createElement("canvas");
  sheet.width = sheet.height = T;
  sheet.getContext("2d").putImageData(image, 0, 0);
  at("low").textContent = text(low); at("high").textContent = text(high);
  return sheet;
}
function draw() {
  const episode = data.episodes[view.episode], T = episode.length, {t, k} = view, colour = colours();
  const left = 34, top = 20, strip = 42, gap = 5, foot = 34;
  // As wide as the column, but never so high that it cannot be seen as a whole.
  const room = Math.min(map.parentElement.clientWidth - left - gap - strip, Math.max(window.innerHeight - 280, 300));
  const side = Math.max(room, 150);
  const width = left + side + gap + strip, height = top + side + gap + strip + foot;
  const density = window.devicePixelRatio || 1, cell = side / T;
  map.style.width = `${width}px`; map.style.height = `${height}px`;
  if (map.width !== Math.round(width * density) || map.height !== Math.round(height * density)) {
    map.width = Math.round(width * density); map.height = Math.round(height * density);
  }
  frame = {left, top, side, cell};
  brush.setTransform(density, 0, 0, density, 0, 0);
  brush.clearRect(0, 0, width, height);
  painted = painted || paint(episode, colour.ramp);
  brush.imageSmoothingEnabled = cell * density < 1;
  brush.drawImage(painted, left, top, side, side);
  brush.strokeStyle = colour.line; brush.lineWidth = 1;
  brush.strokeRect(left, top, side, side);
  brush.font = "12px system-ui, sans-serif"; brush.fillStyle = colour.soft;

  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(size => size * cell >= 42) || 2000;
  brush.textBaseline = "middle"; brush.textAlign = "right";
  for (let row = 0; row < T; row += step) brush.fillText(row, left - 5, top + (row + 0.5) * cell);
  brush.textBaseline = "top"; brush.textAlign = "center";
  for (let column = step === 1 ? 1 : step; column <= T; column += step)
    brush.fillText(column, left + (column - 0.5) * cell, top + side + gap + strip + 4);
  brush.textAlign = "left"; brush.fillText("t \u2193", 2, 4);
  brush.textAlign = "right"; brush.fillText("k \u2192", left + side, top + side + gap + strip + 19);

  bars(episode.rewards, colour, (i, share) =>
    [left + i * cell, top + side + gap + strip / 2, Math.max(cell * 0.85, 0.7), -share * strip / 2]);
  bars(episode.advantages, colour, (i, share) =>
    [left + side + gap + strip / 2, top + i * cell, share * strip / 2, Math.max(cell * 0.85, 0.7)]);
  brush.fillStyle = colour.soft; brush.textAlign = "center"; brush.textBaseline = "top";
  brush.fillText("\u03a8", left + side + gap + strip / 2, 4);
  brush.textAlign = "right"; brush.textBaseline = "middle"; brush.fillText("R", left - 5, top + side + gap + strip / 2);

  // A dark line with a light one inside is seen on every colour of the ramp.
  const marked = (colourOuter, widthOuter, colourInner, path) => {
    brush.beginPath(); path();
    brush.strokeStyle = colourOuter; brush.lineWidth = widthOuter; brush.stroke();
    brush.strokeStyle = colourInner; brush.lineWidth = 1; brush.stroke();
  };
  const starts = episode.starts;
  for (const start of starts.slice(1)) marked("#000000", 2.5, "#ffffff", () => {
    const x = left + start * cell, y = top + start * cell;
    brush.moveTo(x, top); brush.lineTo(x, y); brush.lineTo(left + side, y);
  });
  if (episode.phases) {
    brush.fillStyle = colour.ink; brush.textBaseline = "top"; brush.textAlign = "center";
    starts.forEach((start, i) => {
      const end = i + 1 < starts.length ? starts[i + 1] : T, name = phaseName(episode.phases[start]);
      if (brush.measureText(name).width + 4 <= (end - start) * cell)
        brush.fillText(name, left + (start + end) / 2 * cell, 4);
    });
  }
  brush.strokeStyle = colour.mark; brush.lineWidth = 1; brush.globalAlpha = 0.75;
  const x = left + (k - 0.5) * cell, y = top + (t + 0.5) * cell;
  brush.beginPath();
  brush.moveTo(x, top + (t + 1) * cell); brush.lineTo(x, top + side + gap + strip);
  brush.moveTo(left, y); brush.lineTo(left + (k - 1) * cell, y);
  brush.moveTo(left + k * cell, y); brush.lineTo(width, y);
  brush.stroke();
  brush.globalAlpha = 1;
  const size = Math.max(cell, 7);
  marked("#ffffff", 4, colour.mark, () => brush.rect(x - size / 2, y - size / 2, size, size));
}
function bars(numbers, colour, place) {
  const largest = numbers.reduce((most, number) => Math.max(most, Math.abs(number)), 0) || 1;
  numbers.forEach((number, i) => {
    brush.fillStyle = number < 0 ? colour.down : colour.up;
    brush.fillRect(...place(i, number / largest));
  });
}

// -- the person ----------------------------------------------------------------------------------------------------

function point(event) {
  const box = map.getBoundingClientRect();
  const t = Math.floor((event.clientY - box.top - frame.top) / frame.cell);
  const k = Math.floor((event.clientX - box.left - frame.left) / frame.cell) + 1;
  if (t >= 0 && k > t && k <= data.episodes[view.episode].length) select(t, k);
}
map.addEventListener("pointermove", event => { if (!view.held) point(event); });
map.addEventListener("pointerdown", event => {
  const isMouse = event.pointerType === "mouse";
  view.held = isMouse && !view.held;
  point(event);
  show();
});
for (const name of ["t", "k"]) at(name).addEventListener("input", () => {
  const t = Number(at("t").value), k = Number(at("k").value);
  // The slider that moves takes the other one along.
  if (name === "t") select(t, Math.max(k, t + 1)); else select(t, k);
});
at("episode").addEventListener("change", event => chooseEpisode(Number(event.target.value)));
at("stretch").addEventListener("change", () => { painted = null; draw(); });
document.addEventListener("keydown", event => {
  const hasKeys = event.target.matches && event.target.matches("select, input[type=range]");
  if (hasKeys || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = event.shiftKey ? 10 : 1, {t, k} = view, T = data.episodes[view.episode].length;
  const moves = {
    ArrowUp: () => select(t - by, k), ArrowDown: () => select(Math.min(t + by, k - 1), k),
    ArrowLeft: () => select(t, Math.max(k - by, t + 1)), ArrowRight: () => select(t, Math.min(k + by, T)),
    PageUp: () => chooseEpisode(view.episode - 1), PageDown: () => chooseEpisode(view.episode + 1),
  };
  if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
});
window.addEventListener("hashchange", readAddress);
window.addEventListener("resize", draw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

at("about").textContent = `${data.model}: ${data.estimator}${data.weights ? ` with ${data.weights} weights` : ""}, ` +
  `after ${data.num_timesteps} steps on ${data.env}; ${data.policy}.`;
data.episodes.forEach((episode, i) => {
  const choice = new Option(`${i}: ${episode.length} steps, return ${text(episode.return)}, ${episode.ended}`, i);
  at("episode").add(choice);
});
if (!data.episodes[0].td_errors) for (const line of document.querySelectorAll(".error")) line.hidden = true;
if (!data.weighted) for (const line of document.querySelectorAll(".term")) line.hidden = true;
at("symbol").innerHTML = data.weighted === "rewards" ? "R" : "&delta;";
readAddress();
</script>
</body>
</html>
"""

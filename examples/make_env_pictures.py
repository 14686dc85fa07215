"""Draws the pictures of the environments that `tca_envs/README.md` shows, one a family.

    python examples/make_env_pictures.py [--out tca_envs/assets]

Needs the extra `bsuite` for bsuite's; without it that picture stays as it is.
"""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled

import tca_envs

assert tca_envs
ROOT = Path(__file__).resolve().parents[1]
Picture = np.ndarray[Any, np.dtype[np.uint8]]


def write_png(path: Path, picture: Picture) -> None:
    """Write an RGB picture, without a library for it: rows of bytes, compressed, in three chunks."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts))


def frames(env_id: str, act: Callable[[Any, int], Any], moments: tuple[int, ...], **arguments: Any) -> Picture:
    """Play one episode and put the pictures of some moments side by side."""
    env = gym.make(env_id, render_mode="rgb_array", **arguments)
    env.reset(seed=1)
    shown = [env.render()] if 0 in moments else []
    for t in range(max(moments)):
        env.step(act(env.unwrapped, t))
        if t + 1 in moments:
            shown.append(env.render())
    gap = np.full((shown[0].shape[0], 8, 3), 255, np.uint8)
    parts = [part for frame in shown for part in (gap, frame)][1:]
    return np.concatenate(parts, axis=1)


def collect(env: Any, t: int) -> int:
    """A player of Key-to-Door who goes for the nearest thing."""
    rules, state = env.rules, env._state
    here, phase = rules.place_of(state, 0), rules.phases.schedule()[t]
    nearest = min(rules.apples_of(state, 0), key=lambda place: rules.distances[here, place], default=rules.starts[1])
    goal = (rules.key_place_of(state, 0), nearest, rules.door)[phase]
    return int(np.argmin(rules.distances[rules.moves[state.has_key[0], here], goal]))


def remember(env: Any, t: int) -> np.ndarray[Any, Any]:
    """A player of the memory tasks with a good memory that is a little late."""
    return np.array([1.0 if t < 3 else 0.2 * t - 2.0], np.float32)


FAMILIES: dict[str, tuple[str, Callable[[Any, int], Any], tuple[int, ...]]] = {
    "umbrella": ("tca/Umbrella-v0", lambda env, t: 1, (20,)),
    "dag": ("tca/DAG8-v0", lambda env, t: int(t % 3 == 0), (7,)),
    "key_to_door": ("tca/KeyToDoor-v0", collect, (3, 34, 107)),
    "memory": ("tca/PendulumAMT-v0", remember, (2, 7, 13)),
    "bsuite": ("tca/Bsuite-v0", lambda env, t: 2 if t < 2 else 1, (5,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, default=ROOT / "tca_envs" / "assets")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, (env_id, act, moments) in FAMILIES.items():
        try:
            picture = frames(env_id, act, moments)
        except DependencyNotInstalled as error:
            print(error)
            continue
        write_png(out / f"{name}.png", picture)
        print(f"{out / name}.png {picture.shape[1]} x {picture.shape[0]}")


if __name__ == "__main__":
    main()

"""The single environment: any `Rules` as a `gymnasium.Env`."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from tca_envs.randomness import stream_of, words_of
from tca_envs.rendering import Window
from tca_envs.rules import CreditStructure, Rules, Trace, as_lists

ENDED = "No episode is running: call reset() before the first step() and after an episode has terminated."


def check_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options of a reset, all of them known, or a `ValueError` that lists what is known."""
    options = dict(options or {})
    for name in options:
        if name not in known:
            wanted = f"it knows {', '.join(map(repr, known))}" if known else "it takes none"
            raise ValueError(f"reset(options=...) got the unknown option {name!r}; {wanted}.")
    new = options.get("new_lifetime", False)
    if not isinstance(new, (bool, np.bool_)):
        raise TypeError(f"options['new_lifetime'] must be True or False, got {new!r}.")
    return options


class CreditEnv(CreditStructure, gym.Env[Any, Any]):
    """Base of the single environments; a family names its rules and adds documentation.

    Seeding follows Gymnasium: `reset(seed=s)` starts the stream of episodes that belongs to `s`, `reset()`
    goes on with its next episode, and without any seed the stream is drawn from `np_random`.

    Args:
        render_mode: None, "rgb_array", "human" or, where the family writes text, "ansi".
        **arguments: Arguments of the family's rules.
    """

    rules_class: ClassVar[type[Rules]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if rules := cls.__dict__.get("rules_class"):
            cls.metadata = {"render_modes": list(rules.render_modes), "render_fps": rules.render_fps}

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode={render_mode!r} is unknown; write None or one of "
                f"{', '.join(map(repr, self.metadata['render_modes']))}."
            )
        self.render_mode = render_mode
        self.rules = self.rules_class(**arguments)
        self.observation_space = self.rules.observation_space
        self.action_space = self.rules.action_space
        self._tables = as_lists(self.rules.tables())
        self._state = as_lists(self.rules.allocate(1))
        self._kernel = self.rules.step
        self._horizon = self.rules.horizon
        self._t = self._horizon  # as after an episode: nothing but reset() is possible
        self._trace: Trace | None = None
        self._stream: int | None = None
        self._stream_source: np.random.Generator | None = None
        self._deals = 0
        self._window: Window | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Start the stream of episodes of this seed; None goes on with the running stream.
            options: `{"new_lifetime": True}` redraws what lasts for a lifetime, in environments that have
                lifetimes; no other option exists.

        Returns:
            The first observation and the info dictionary.

        Raises:
            ValueError: If an option is unknown.
        """
        once = self.rules.deals_every == "lifetime"
        options = check_options(options, ("new_lifetime",) if once else ())
        super().reset(seed=seed)
        if self.rules.words:
            fresh = self._choose_stream(seed)
            if fresh or not once or options.get("new_lifetime", False):
                assert self._stream is not None
                words = words_of(self._stream, self._deals, self.rules.words)
                self.rules.deal(self._tables, self._state, 0, words)
                self._deals += 1
        self.rules.begin(self._tables, self._state, 0)
        self._t = 0
        if self.render_mode is not None:
            self._trace = Trace([], [])
            if self.render_mode == "human":
                self.render()
        return self.rules.observe_one(self._state), self.rules.info(0, 0.0)

    def _choose_stream(self, seed: int | None) -> bool:
        """Set the stream for the coming episode; True if it is a new one."""
        if seed is not None:
            self._stream = stream_of(seed)
        elif self._stream is None or self._stream_source is not self.np_random:
            # Never seeded, or the user has put a generator of their own in place.
            self._stream = int(self.np_random.integers(1 << 63))
        else:
            return False
        self._stream_source, self._deals = self.np_random, 0
        return True

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action; see `gymnasium.Env.step`. Episodes end with `terminated`, never `truncated`.

        Raises:
            ResetNeeded: If no episode is running.
            TypeError: If the action is of the wrong type.
            ValueError: If the action is outside the action space.
        """
        t = self._t
        if t == self._horizon:
            raise ResetNeeded(ENDED)
        action = self.rules.check_action(action)
        reward = self._kernel(self._tables, self._state, 0, t, action)
        self._t = t = t + 1
        if self._trace is not None:
            self._trace.actions.append(action)
            self._trace.rewards.append(reward)
            if self.render_mode == "human":
                self.render()
        observation = self.rules.observe_one(self._state)
        return observation, reward, t == self._horizon, False, self.rules.info(t, reward)

    def render(self) -> Any:
        """The current moment as an RGB array, as text, or in a window, according to `render_mode`."""
        if self.render_mode is None:
            gym.logger.warn(
                'render() does nothing without a render mode; write for example gym.make(id, render_mode="rgb_array").'
            )
            return None
        if self._trace is None:
            raise ResetNeeded("There is nothing to render before the first reset().")
        if self.render_mode == "ansi":
            return self.rules.text(self._state, 0, self._trace)
        frame = self.rules.frame(self._state, 0, self._trace)
        if self.render_mode == "rgb_array":
            return frame
        if self._window is None:
            self._window = Window(type(self).__name__)
        self._window.show(frame, self.metadata["render_fps"])
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        contents = {**self.__dict__, "_window": None}
        del contents["_tables"]
        return contents

    def __setstate__(self, contents: dict[str, Any]) -> None:
        self.__dict__.update(contents)
        self._tables = as_lists(self.rules.tables())
        self._state = restored(as_lists(self.rules.allocate(1)), contents["_state"])


def restored(fresh: Any, saved: Any) -> Any:
    """A freshly allocated state with the contents of a saved one.

    Pickling keeps the contents of columns but not that one column is a view of another.
    """
    for column, contents in zip(fresh, saved, strict=True):
        column[:] = contents
    return fresh

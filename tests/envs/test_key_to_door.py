"""Key-to-Door against a literal re-telling of its rules, exact chains, simulation and exhaustive search."""

from __future__ import annotations

import os
from itertools import combinations, permutations

import gymnasium as gym
import numpy as np
import pytest

import tca_envs
from tca_envs.envs.key_to_door import (
    AGENT,
    APPLE,
    DOOR,
    FLOOR,
    KEY,
    MEANS,
    MINI_ARGUMENTS,
    OPEN_DOOR,
    VARIANCES,
    WALL,
    KeyToDoorRules,
    draw_sprites,
)

assert tca_envs
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

UP, DOWN, LEFT, RIGHT = range(4)

# Rooms in which the apple can be had at odd times only, unless one bumps into the wall beyond it.
CORRIDORS = {
    "maps": (
        "###########\n#....AK...#\n###########",
        "###########\n#....A..o.#\n###########",
        "###########\n#....A.D..#\n###########",
    ),
    "key_steps": 4,
    "apple_steps": 11,
    "door_steps": 4,
    "n_apples": 1,
}


def make(env_id="tca/KeyToDoor-v0", **arguments):
    return gym.make(env_id, **{"tile_size": 1, **arguments}).unwrapped


def make_vec(lanes, env_id="tca/KeyToDoor-v0", **arguments):
    return gym.make_vec(env_id, num_envs=lanes, **{"tile_size": 1, **arguments})


class Story:
    """The same game told with a grid, a dictionary of apples and an if for every rule."""

    def __init__(self, env, respawn=None):
        rules, state = env.rules, env._state
        self.rules, self.maps, self.t, self.has_key, self.respawn = rules, rules.maps, 0, False, respawn
        self.key = self.cell(rules.key_place_of(state, 0))
        self.apples = {self.cell(place): worth for place, worth in rules.apples_of(state, 0).items()}
        self.gone, self.opened, self.door_paid = [], False, False
        self.phase, self.here = 0, self.find("A", 0)

    def cell(self, place):
        return divmod(place % self.rules.cells, self.rules.columns)

    def find(self, letter, phase):
        for y, row in enumerate(self.maps[phase]):
            if letter in row:
                return y, row.index(letter)
        return None

    def step(self, action):
        y, x = self.here
        y, x = {UP: (y - 1, x), DOWN: (y + 1, x), LEFT: (y, x - 1), RIGHT: (y, x + 1)}[action]
        inside = 0 <= y < len(self.maps[0]) and 0 <= x < len(self.maps[0][0])
        letter = self.maps[self.phase][y][x] if inside else "#"
        if letter != "#" and (letter != "D" or self.has_key):
            self.here = (y, x)
        for due, cell, value in [entry for entry in self.gone if entry[0] == self.t]:
            self.apples[cell] = value
            self.gone.remove((due, cell, value))
        reward = 0.0
        if self.phase == 0 and self.here == self.key:
            self.has_key = True
        if self.phase == 1 and self.here in self.apples:
            reward = self.apples.pop(self.here)
            if self.respawn:
                self.gone.append((self.t + self.respawn, self.here, reward))
        if self.phase == 2 and self.maps[2][self.here[0]][self.here[1]] == "D":
            self.opened = True
            if not self.door_paid:
                reward, self.door_paid = self.rules.door_reward, True
        self.t += 1
        starts = self.rules.phases.starts
        if self.t in starts[1:3]:
            self.phase += 1
            self.here = self.find("A", self.phase)
        return reward

    def image(self, tile, crop=None):
        margin = crop // 2 if crop else 0
        rows, columns = len(self.maps[0]), len(self.maps[0][0])
        grid = np.full((rows + 2 * margin, columns + 2 * margin), WALL)
        for y in range(rows):
            for x in range(columns):
                letter = self.maps[self.phase][y][x]
                sprite = WALL if letter == "#" else FLOOR
                if letter == "D":
                    sprite = OPEN_DOOR if self.opened else DOOR
                if self.phase == 0 and (y, x) == self.key and not self.has_key:
                    sprite = KEY
                if self.phase == 1 and (y, x) in self.apples:
                    sprite = APPLE
                if (y, x) == self.here:
                    sprite = AGENT
                grid[y + margin, x + margin] = sprite
        if crop:
            y, x = self.here
            grid = grid[y : y + crop, x : x + crop]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in draw_sprites(tile)[grid]], axis=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tile_size": 8, "n_apples": 22},
        {"view": "crop", "crop_size": 3, "tile_size": 2},
        {"view": "crop", "tile_size": 1},
        {"respawn": 1, "n_apples": 22},
        {"respawn": 6, "n_apples": 20, "tile_size": 5, "apple_steps": 40},
        {**MINI_ARGUMENTS, "noise": "two-point", "tile_size": 4},
        {"maps": (5, 7), "n_apples": 0, "key_steps": 1, "apple_steps": 1, "door_steps": 9},
    ],
)
def test_story(arguments):
    """Observation for observation and reward for reward, as the rules say in plain words."""
    env = make(**arguments)
    tile, crop = env.rules.tile_size, env.rules.crop_size if env.rules.view_kind == "crop" else None
    rng = np.random.default_rng(0)
    keys = apples = doors = 0
    for episode in range(12):
        observation, info = env.reset(seed=100 if episode == 0 else None)
        story = Story(env, arguments.get("respawn"))
        schedule = env.rules.phases.schedule()
        np.testing.assert_array_equal(observation["image"], story.image(tile, crop))
        assert info == {"phase": 0, "apple_reward": 0.0, "door_reward": 0.0}
        for t in range(env.horizon):
            action = int(rng.integers(4))
            if episode % 2 and story.phase != 1:  # on every other day, know what to do
                goal = env.rules.door if story.phase == 2 else env.rules.key_place_of(env._state, 0)
                moves = env.rules.moves[int(story.has_key), env.rules.place_of(env._state, 0)]
                action = int(np.argmin(env.rules.distances[moves, goal]))
            observation, reward, terminated, truncated, info = env.step(action)
            paid_in = story.phase
            assert reward == story.step(action)
            np.testing.assert_array_equal(observation["image"], story.image(tile, crop))
            assert observation["has_key"] == story.has_key
            assert (terminated, truncated) == (t == env.horizon - 1, False)
            assert info["phase"] == schedule[t + 1] == story.phase
            assert info["apple_reward"] == (reward if paid_in == 1 else 0.0)
            assert info["door_reward"] == (reward if paid_in == 2 else 0.0)
            apples += paid_in == 1 and reward != 0
        keys += story.has_key
        doors += story.door_paid
    assert keys
    assert doors
    assert apples or env.rules.n_apples == 0


@pytest.mark.parametrize("env_id", ["tca/KeyToDoor-v0", "tca/KeyToDoorMini-v0"])
def test_picture_shows_the_room(env_id):
    env = make(env_id, render_mode="rgb_array")
    rng = np.random.default_rng(0)
    shown = set()
    for episode in range(2):
        env.reset(seed=episode)
        story = Story(env)
        for _ in range(env.horizon):
            goal = env.rules.door if story.phase == 2 else env.rules.key_place_of(env._state, 0)
            moves = env.rules.moves[int(story.has_key), env.rules.place_of(env._state, 0)]
            sure = story.phase != 1 and episode % 2
            action = int(np.argmin(env.rules.distances[moves, goal])) if sure else int(rng.integers(4))
            env.step(action)
            story.step(action)
            room, picture = story.image(28), env.render()
            left = (picture.shape[1] - room.shape[1]) // 2
            np.testing.assert_array_equal(picture[56 : 56 + room.shape[0], left : left + room.shape[1]], room)
            shown.add((story.phase, story.has_key, story.opened))
    assert {(0, False, False), (0, True, False), (1, False, False), (2, False, False), (2, True, True)} <= shown


def test_nine_configurations():
    ids = {
        f"tca/KeyToDoor-mean{mean:g}-var{variance:g}-v0": (mean, variance) for mean in MEANS for variance in VARIANCES
    }
    assert len(ids) == 9
    for env_id, (mean, variance) in ids.items():
        rules = make(env_id).rules
        assert (rules.apple_mean, rules.apple_variance) == (mean, variance)
        assert rules.phases.lengths == (15, 90, 15)
    assert ids["tca/KeyToDoor-mean5-var25-v0"] == (5.0, 25.0)
    middle, plain = gym.spec("tca/KeyToDoor-mean5-var25-v0"), make()
    assert middle.kwargs == {"apple_mean": plain.rules.apple_mean, "apple_variance": plain.rules.apple_variance}
    assert sorted(MEANS)[1], sorted(VARIANCES)[1] == (5.0, 25.0)


def test_images_suit_the_image_network_of_sb3():
    for env_id in ("tca/KeyToDoor-v0", "tca/KeyToDoorMini-v0"):
        for view in ("full", "crop"):
            height, width, _ = gym.make(env_id, view=view).observation_space["image"].shape
            assert min(height, width) >= 36


@pytest.mark.parametrize("noise", ["normal", "two-point"])
def test_what_is_dealt(noise):
    """Key cells and apple cells uniform, apples of the stated number, mean and variance, all independent."""
    lanes = 20_000
    env = make_vec(lanes, noise=noise, apple_mean=3.0, apple_variance=16.0)
    env.reset(seed=0)
    rules, state = env.rules, env._state
    counts = np.bincount([rules.key_place_of(state, lane) for lane in range(lanes)], minlength=rules.cells)
    counts = counts[rules.key_places]
    assert counts.sum() == lanes
    assert abs(counts / lanes - 1 / 36).max() < 5 * np.sqrt(1 / 36 / lanes)
    dealt = [rules.apples_of(state, lane) for lane in range(lanes)]
    lying = np.array([[place in apples for place in rules.apple_places.tolist()] for apples in dealt], float)
    assert (lying.sum(axis=1) == 10).all()
    assert state.apple.sum() == 10 * lanes
    assert abs(lying.mean(axis=0) - 10 / 22).max() < 5 * 0.5 / np.sqrt(lanes)
    pairs = np.cov(lying.T)[~np.eye(22, dtype=bool)]
    exact = 10 * 9 / (22 * 21) - (10 / 22) ** 2  # of drawing without replacement
    assert abs(pairs - exact).max() < 6 * 0.25 / np.sqrt(lanes)
    paid = np.array([[apples.get(place, 0.0) for place in rules.apple_places.tolist()] for apples in dealt])
    assert (state.reward.reshape(lanes, -1)[:, 1:-1] == paid).all()  # where nothing lies, nothing pays
    values = paid[lying == 1]
    assert abs(values.mean() - 3.0) < 5 * 4 / np.sqrt(values.size)
    assert abs(values.var() - 16.0) < 5 * 16 * np.sqrt(2 / values.size)
    if noise == "two-point":
        assert set(np.unique(values)) == {-1.0, 7.0}
    first = np.array([row[mask][:2] for row, mask in zip(paid, lying == 1, strict=True)])
    assert abs(np.corrcoef(first.T)[0, 1]) < 5 / np.sqrt(lanes)


def test_apples_know_nothing_of_the_key_phase():
    """The distractors are independent of the credited actions: exactly the same whatever the key phase did."""
    lanes = 200
    runs = []
    for key_actions in (0, 1, 2, None):
        env = make_vec(lanes)
        env.reset(seed=0)
        rng, apples = np.random.default_rng(1), np.random.default_rng(2)
        has_key = []
        for t in range(env.horizon):
            if t < 15:
                actions = rng.integers(4, size=lanes) if key_actions is None else np.full(lanes, key_actions)
            else:
                actions = apples.integers(4, size=lanes)
            observations, _, _, _, infos = env.step(actions)
            if t == 14:
                has_key = observations["has_key"]
            runs.append(infos["apple_reward"] if "final_info" not in infos else infos["final_info"]["apple_reward"])
        runs.append(has_key * 0.0)
    per_run = np.array(runs).reshape(4, -1)
    assert abs(per_run[0]).sum() > 0
    for other in per_run[1:]:
        np.testing.assert_array_equal(per_run[0], other)


@pytest.mark.parametrize("arguments", [{}, {"door_reward": 0.0}, CORRIDORS, {**CORRIDORS, "respawn": 4}])
def test_credit_matrix_has_no_idle_ones(arguments):
    """Every 1 is realised by some intervention (zeros are held by the conformance test)."""
    lanes = 8000
    env = make_vec(lanes, "tca/KeyToDoorMini-v0", autoreset_mode="Disabled", copy=False, **arguments)
    horizon = env.horizon
    rng = np.random.default_rng(0)
    actions = rng.choice(4, p=(0.4, 0.2, 0.2, 0.2), size=(horizon, lanes))  # the door is up

    def rewards_of(actions):
        env.reset(seed=0)
        return np.array([env.step(row)[1] for row in actions])

    plain, found = rewards_of(actions), np.zeros((horizon, horizon))
    for t in range(horizon):
        changed = actions.copy()
        changed[t] = (changed[t] + rng.integers(1, 4, size=lanes)) % 4
        found[t] = (plain != rewards_of(changed)).any(axis=1)
    np.testing.assert_array_equal(env.credit_matrix, found)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        MINI_ARGUMENTS,
        {**MINI_ARGUMENTS, "respawn": 3},
        {**MINI_ARGUMENTS, "respawn": 1},
        {"apple_mean": -2.0, "respawn": 20},
    ],
)
def test_random_and_myopic_returns_by_simulation(arguments):
    lanes = 4000
    env = make_vec(lanes, copy=False, **arguments)
    env.reset(seed=0)
    env.action_space.seed(0)
    returns, has_key = np.zeros(lanes), np.zeros(lanes)
    for t in range(env.horizon):
        observations, rewards, *_ = env.step(env.action_space.sample())
        returns += rewards
        if t + 1 == env.rules.phases.starts[1]:
            has_key = observations["has_key"].copy()
    assert abs(returns.mean() - env.random_return) < 5 * returns.std() / np.sqrt(lanes)
    chance = env.rules.random_key_probability
    assert abs(has_key.mean() - chance) < 5 * np.sqrt(chance / lanes)
    if env.optimal_return is not None:
        lost = (1 - chance) * 10.0
        assert env.myopic_return == pytest.approx(env.optimal_return - lost)


@pytest.mark.parametrize("env_id", ["tca/KeyToDoor-v0", "tca/KeyToDoorMini-v0"])
def test_optimal_return_is_reached(env_id):
    """No one can have more than all apples and the door; a player who plans gets them in every episode."""
    env = make(env_id)
    rules = env.rules
    assert env.optimal_return == rules.n_apples * 5.0 + 10.0
    for seed in range(150):
        env.reset(seed=seed)
        state, worth, total = env._state, 0.0, 0.0
        apples = rules.apples_of(state, 0)
        worth = sum(apples.values())
        plan = best_order(rules, list(apples))
        terminated = False
        while not terminated:
            here, phase = rules.place_of(state, 0), rules.phases.schedule()[env._t]
            lying = rules.apples_of(state, 0)
            plan = [place for place in plan if place in lying]
            goal = (rules.key_place_of(state, 0), plan[0] if plan else rules.apple_places[0], rules.door)[phase]
            moves = rules.moves[state.has_key[0], here]
            _, reward, terminated, _, _ = env.step(int(np.argmin(rules.distances[moves, goal])))
            total += reward
        assert total == pytest.approx(worth + 10.0)


def best_order(rules, apples):
    start = int(rules.starts[1])

    def steps(order):
        return sum(rules.distances[a, b] for a, b in zip((start, *order), order, strict=False))

    if len(apples) <= 4:
        return list(min(permutations(apples), key=steps))
    order, here, left = [], start, set(apples)
    while left:
        here = min(sorted(left), key=lambda place: rules.distances[here, place])
        left.remove(here)
        order.append(here)
    return order


def test_longest_walk_of_three_apples_by_brute_force():
    rules = KeyToDoorRules(maps=(5, 6), n_apples=3)
    start = rules.starts[1]
    longest = 0
    for apples in combinations(rules.apple_places.tolist(), 3):
        orders = [
            rules.distances[start, a] + rules.distances[a, b] + rules.distances[b, c]
            for a, b, c in permutations(apples)
        ]
        longest = max(longest, min(orders))
    assert rules.longest_walk() == longest


def test_unknown_optimum_is_not_claimed():
    for arguments in ({"respawn": 5}, {"apple_mean": -1.0}, {"apple_steps": 12}):
        env = make(**arguments)
        assert env.optimal_return is env.myopic_return is None
        assert env.random_return is not None
    assert make(n_apples=0).optimal_return == 10.0
    assert make(door_steps=1).optimal_return == 50.0
    assert make(key_steps=2).optimal_return == pytest.approx(50.0 + 10.0 * 4 / 36)  # cells within two steps
    assert make(door_steps=1).credit_matrix[:15].sum() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"key_steps": 0}, "length of the key phase must be at least 1, got 0"),
        ({"apple_steps": -1}, "apple phase"),
        ({"door_steps": 1.5}, "integer"),
        ({"apple_variance": -25.0}, "apple_variance must be at least 0, got -25"),
        ({"apple_mean": float("inf")}, "finite"),
        ({"door_reward": "ten"}, "number"),
        ({"n_apples": 23}, "23 apples do not fit into the 22 cells"),
        ({"noise": "uniform"}, "two-point"),
        ({"tile_size": 0}, "tile_size"),
        ({"view": "first-person"}, "'full', 'crop'"),
        ({"crop_size": 4}, "odd"),
        ({"respawn": 0}, "respawn"),
        ({"maps": "huge"}, "'standard', 'mini'"),
        ({"maps": (3, 9)}, "at least 4"),
        ({"maps": ("###", "###")}, "three maps|integer"),
        ({"maps": ("#####\n#A.K#\n#####", "#####\n#A.o#\n#####", "####\n#A.D\n####")}, "same size"),
        ({"maps": ("#####\n#A..#\n#####", "#####\n#A.o#\n#####", "#####\n#A.D#\n#####")}, "key map needs a cell K"),
        ({"maps": ("#####\n#AAK#\n#####", "#####\n#A.o#\n#####", "#####\n#A.D#\n#####")}, "2 cells A"),
        ({"maps": ("#####\n#A.K.\n#####", "#####\n#A.o#\n#####", "#####\n#A.D#\n#####")}, "border"),
        ({"maps": ("#####\n#AXK#\n#####", "#####\n#A.o#\n#####", "#####\n#A.D#\n#####")}, "it has X too"),
    ],
)
def test_bad_arguments(arguments, words):
    for construct in (gym.make, gym.make_vec):
        with pytest.raises((ValueError, TypeError), match=words):
            construct("tca/KeyToDoor-v0", **arguments)


def test_maps_of_your_own():
    maps = ("#####\n#A.K#\n#####", "#####\n#Aoo#\n#####", "#####\n#A.D#\n#####")
    env = make(maps=maps, n_apples=2, key_steps=2, apple_steps=2, door_steps=2, apple_variance=0.0)
    assert env.optimal_return == 20.0
    env.reset(seed=0)
    assert [env.step(RIGHT)[1] for _ in range(6)] == [0.0, 0.0, 5.0, 5.0, 0.0, 10.0]
    assert env.random_return < env.myopic_return < env.optimal_return


def test_play():
    """`gymnasium.utils.play` drives the environment by the arrow keys."""
    pygame = pytest.importorskip("pygame")
    from gymnasium.utils.play import play

    env = gym.make("tca/KeyToDoorMini-v0", render_mode="rgb_array")
    pressed, done = [], []
    keys = iter([pygame.K_UP, pygame.K_LEFT, pygame.K_RIGHT, pygame.K_DOWN])

    class Clock:
        def tick(self, fps):  # a person would press keys in the time between two frames
            for key in pressed:
                pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key))
            pressed[:] = [key for key in [next(keys, None)] if key]
            for key in pressed:
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
            if not pressed:
                pygame.event.post(pygame.event.Event(pygame.QUIT))

    def note(before, after, action, reward, terminated, truncated, info):
        done.append(action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pygame.time, "Clock", Clock)
        play(env, callback=note, wait_on_player=True, seed=0)
    assert done == [UP, LEFT, RIGHT, DOWN]


def test_record_video(tmp_path):
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(gym.make("tca/KeyToDoorMini-v0", render_mode="rgb_array"), str(tmp_path))
    env.reset(seed=0)
    terminated = False
    while not terminated:
        terminated = env.step(env.action_space.sample())[2]
    env.close()
    assert list(tmp_path.glob("*.mp4"))


def test_sb3_trains_on_it_as_it_comes():
    from stable_baselines3 import A2C

    A2C("MultiInputPolicy", "tca/KeyToDoorMini-v0", n_steps=4, seed=0).learn(8)

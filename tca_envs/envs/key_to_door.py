"""Key-to-Door: a key that is worth nothing until, many apples later, it opens a door (paper 1, Section 5.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import combinations, permutations
from math import comb, factorial, sqrt
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from tca_envs import rendering as draw
from tca_envs.checks import check_choice, check_count, check_number
from tca_envs.env import CreditEnv
from tca_envs.phases import Phases
from tca_envs.randomness import NoiseKind, below, noise_slot, noise_table
from tca_envs.registration import Registration
from tca_envs.rules import Lanes, Rules, Trace, read_only
from tca_envs.vector import CreditVectorEnv

# A map a phase: `#` wall, `.` floor, `A` the agent's start, `K` a cell where the key may lie, `o` a cell where
# an apple may lie, `D` the door.
STANDARD = (
    """
    ###########
    #KKKKKKKKK#
    #KKKKKKKKK#
    #KKKKKKKKK#
    #KKKKKKKKK#
    #....A....#
    ###########
    """,
    """
    ###########
    #.o.o.o.o.#
    #o.o.o.o.o#
    #.o.o.o.o.#
    #o.o.o.o.o#
    #.o.oAo.o.#
    ###########
    """,
    """
    ###########
    #####D#####
    ####...####
    ####.A.####
    ####...####
    ###########
    ###########
    """,
)
MINI = (
    """
    #######
    #KKKKK#
    #KKKKK#
    #KKAKK#
    #KKKKK#
    #KKKKK#
    #######
    """,
    """
    #######
    #ooooo#
    #ooooo#
    #ooAoo#
    #ooooo#
    #ooooo#
    #######
    """,
    """
    ###D###
    #.....#
    #.....#
    #..A..#
    #.....#
    #.....#
    #######
    """,
)
MAPS = {"standard": STANDARD, "mini": MINI}

MapsArgument = Literal["standard", "mini"] | tuple[int, int] | Sequence[str]
View = Literal["full", "crop"]

MEANS, VARIANCES = (1.0, 5.0, 9.0), (5.0, 25.0, 125.0)
MINI_ARGUMENTS = {"maps": "mini", "key_steps": 6, "apple_steps": 20, "door_steps": 6, "n_apples": 4}

REGISTRATIONS = (
    Registration("KeyToDoor-v0", "KeyToDoorEnv", "KeyToDoorVectorEnv"),
    Registration("KeyToDoorMini-v0", "KeyToDoorEnv", "KeyToDoorVectorEnv", MINI_ARGUMENTS),
    *(
        Registration(
            f"KeyToDoor-mean{mean:g}-var{variance:g}-v0",
            "KeyToDoorEnv",
            "KeyToDoorVectorEnv",
            {"apple_mean": mean, "apple_variance": variance},
        )
        for mean in MEANS
        for variance in VARIANCES
    ),
)

KEY_PHASE, APPLE_PHASE, DOOR_PHASE = 0, 1, 2
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
FLOOR, WALL, AGENT, KEY, APPLE, DOOR, OPEN_DOOR = range(7)  # sprites
UNREACHABLE = 1 << 30


class Tables(NamedTuple):
    """How places are numbered.

    A place is a cell of a phase's map: `phase * cells + cell`.
    An edge is (has_key, place, action): `(has_key * places + place) * 4 + action`.
    A slot is what may pay: 0 stands for nothing, then come the apple cells in order, then the door.
    A strip is one row of pixels of one cell, the unit in which pictures are painted; a place has its first.
    """

    with_key: int  # from an edge to the same with the key in hand
    next: NDArray[np.int64]  # by edge: edge of action 0 at the place that follows
    slot: NDArray[np.int64]  # by edge: slot of the place that follows
    way: NDArray[np.int64]  # by edge: strips from the place that it leaves to the place that follows
    left: NDArray[np.int64]  # by edge: slot of the place that it leaves
    ground: NDArray[np.int64]  # by edge: sprite to leave behind
    starts: NDArray[np.int64]  # by phase: edge of action 0 where the agent starts
    start_strips: NDArray[np.int64]  # by phase: first strip of that place
    apples_at: int  # time of arrival in the apple phase
    door_at: int
    key_edges: NDArray[np.int64]  # by cell in which the key may lie: edge of action 0 there
    key_strips: NDArray[np.int64]  # by cell in which the key may lie: its first strip
    slot_strips: NDArray[np.int64]  # by slot: first strip
    n_apples: int
    pays: NDArray[np.float64]  # 0, then all that an apple may pay, by 1 + `noise_slot`
    door_reward: float
    respawn: int  # steps until an apple is back, 0 for never
    # Sprites, by their first strip.
    tile: int
    columns: int  # strips from one row of pixels to the next
    agent: int
    key: int
    floor: int
    apple: int
    back: NDArray[np.int64]  # by slot: sprite of what comes back there
    sprites: NDArray[np.void]  # all strips of all sprites
    background: NDArray[np.void]  # by phase: a whole picture


class State(NamedTuple):
    edge: NDArray[np.int64]  # of action 0 here and now
    strip: NDArray[np.int64]  # first strip of the agent
    has_key: NDArray[np.int64]
    key: NDArray[np.int64]  # which of the cells that may hold the key does, or did
    key_edge: NDArray[np.int64]  # edge of action 0 there, without the key: so it equals `edge` when the key is found
    first: NDArray[np.int64]  # where a lane's stretch begins, of columns with one entry a slot
    reward: NDArray[np.float64]  # what a slot pays
    apple: NDArray[np.bool_]  # whether an apple lies there
    pays: NDArray[np.float64]  # what an apple pays when it comes back; empty if they do not
    queue: NDArray[np.int64]  # where a lane's stretch of `taken` begins
    taken: NDArray[np.int64]  # slots of the apples taken in the last `respawn` steps
    corner: NDArray[np.int64]  # first strip of a lane
    strips: NDArray[np.void]
    frame: NDArray[np.void]  # the same memory, one entry a lane
    image: NDArray[np.uint8]  # the same memory as (lanes, height, width, 3)


def paint(tables: Any, state: Any, strip: Any, sprite: Any) -> None:
    """Kernel: draw a sprite at a place, both given by their first strips."""
    state.strips[strip] = tables.sprites[sprite]
    if tables.tile > 1:
        for k in range(1, tables.tile):
            state.strips[strip + k * tables.columns] = tables.sprites[sprite + k]


def enter(tables: Any, state: Any, i: Any, phase: Any) -> None:
    """Kernel: begin a phase: the agent at its start, on a map without things."""
    state.frame[i] = tables.background[phase]
    state.edge[i] = tables.starts[phase] + state.has_key[i] * tables.with_key
    state.strip[i] = state.corner[i] + tables.start_strips[phase]


class KeyToDoorRules(Rules):
    """Rules of Key-to-Door; see `KeyToDoorEnv` for the arguments."""

    def __init__(
        self,
        maps: MapsArgument = "standard",
        key_steps: int = 15,
        apple_steps: int = 90,
        door_steps: int = 15,
        n_apples: int = 10,
        apple_mean: float = 5.0,
        apple_variance: float = 25.0,
        noise: NoiseKind = "normal",
        door_reward: float = 10.0,
        respawn: int | None = None,
        tile_size: int = 8,
        view: View = "full",
        crop_size: int = 5,
    ) -> None:
        self.phases = Phases(("key", "apple", "door"), (key_steps, apple_steps, door_steps))
        self.horizon = self.phases.horizon
        self.maps = read_maps(maps)
        self.n_apples = check_count("n_apples", n_apples, minimum=0)
        self.apple_mean = check_number("apple_mean", apple_mean)
        self.apple_variance = check_number("apple_variance", apple_variance, minimum=0.0)
        self.noise = noise
        noise_table(noise)  # refuses an unknown kind
        self.door_reward = check_number("door_reward", door_reward)
        self.respawn = 0 if respawn is None else check_count("respawn", respawn, minimum=1)
        self.tile_size = check_count("tile_size", tile_size, minimum=1)
        self.view_kind = check_choice("view", view, get_args(View))
        self.crop_size = check_count("crop_size", crop_size, minimum=1)
        if self.crop_size % 2 == 0:
            raise ValueError(f"crop_size must be odd, to have the agent in the middle, got {crop_size}.")
        self.rows, self.columns = len(self.maps[0]), len(self.maps[0][0])
        self.cells = self.rows * self.columns
        self.key_places = self._places(KEY_PHASE, "K")
        self.apple_places = self._places(APPLE_PHASE, "o")
        self.starts = np.concatenate([self._places(phase, "A") for phase in range(3)])
        self.door = int(self._places(DOOR_PHASE, "D")[0])
        if len(self.apple_places) < self.n_apples:
            raise ValueError(
                f"n_apples={n_apples} apples do not fit into the {len(self.apple_places)} cells marked 'o'."
            )
        self.words = 1 + len(self.apple_places)
        self._margin = self.crop_size // 2 if view == "crop" else 0
        rows, columns = (self.crop_size, self.crop_size) if view == "crop" else (self.rows, self.columns)
        shape = (rows * self.tile_size, columns * self.tile_size, 3)
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, shape, np.uint8), "has_key": spaces.Discrete(2)}
        )
        self.action_space = spaces.Discrete(len(MOVES))

    def _places(self, phase: int, letter: str) -> NDArray[np.int64]:
        cells = np.flatnonzero(np.array([list(row) for row in self.maps[phase]]).ravel() == letter)
        return phase * self.cells + cells

    @cached_property
    def moves(self) -> NDArray[np.int64]:
        """Place after (has_key, place, action), shape (2, 3 * cells, 4)."""
        letters = [letter for rows in self.maps for row in rows for letter in row]
        moves = np.empty((2, 3 * self.cells, len(MOVES)), np.int64)
        for has_key in (0, 1):
            for place in range(3 * self.cells):
                phase, cell = divmod(place, self.cells)
                row, column = divmod(cell, self.columns)
                for action, (down, right) in enumerate(MOVES):
                    y, x = row + down, column + right
                    inside = 0 <= y < self.rows and 0 <= x < self.columns
                    target = phase * self.cells + y * self.columns + x if inside else place
                    blocked = letters[target] == "#" or (letters[target] == "D" and not has_key)
                    moves[has_key, place, action] = place if blocked else target
        return read_only(moves)

    # Kernels

    def tables(self) -> Tables:
        tile, margin, places = self.tile_size, self._margin, 3 * self.cells
        columns = self.columns + 2 * margin
        letters = np.array([list("".join(rows)) for rows in self.maps])
        ground = np.where(letters == "#", WALL, np.where(letters == "D", OPEN_DOOR, FLOOR))
        shown = np.where(letters == "D", DOOR, ground)  # the door is closed at first
        row, column = np.divmod(np.arange(self.cells), self.columns)
        strip = np.tile((row + margin) * tile * columns + column + margin, 3)  # by place
        slot = np.zeros(places, np.int64)  # by place
        slot[self.apple_places] = 1 + np.arange(len(self.apple_places))
        slot[self.door] = 1 + len(self.apple_places)
        # Slot 0 is painted as what it is, the wall in the corner of the map.
        slot_strips = strip[[0, *self.apple_places, self.door]]
        back = np.full(slot_strips.shape, tile * APPLE)
        back[0] = tile * WALL
        leaves = np.repeat(np.tile(np.arange(places), 2), len(MOVES))  # by edge: place
        sprites = draw_sprites(tile)
        background = np.full((3, self.rows + 2 * margin, columns), WALL)
        background[:, margin : margin + self.rows, margin : margin + self.columns] = shown.reshape(
            3, self.rows, self.columns
        )
        pictures = sprites[background].swapaxes(2, 3)  # (phase, row, pixel row, column, pixel column, 3)
        return Tables(
            with_key=4 * places,
            next=4 * (np.array([[[0]], [[places]]]) + self.moves).ravel(),
            slot=slot[self.moves].ravel(),
            way=strip[self.moves].ravel() - strip[leaves],
            left=slot[leaves],
            ground=tile * ground.ravel()[leaves],
            starts=4 * self.starts,
            start_strips=strip[self.starts],
            apples_at=self.phases.starts[APPLE_PHASE],
            door_at=self.phases.starts[DOOR_PHASE],
            key_edges=4 * self.key_places,
            key_strips=strip[self.key_places],
            slot_strips=slot_strips,
            n_apples=self.n_apples,
            pays=payments(self.noise, self.apple_mean, self.apple_variance),
            door_reward=self.door_reward,
            respawn=self.respawn,
            tile=tile,
            columns=columns,
            agent=tile * AGENT,
            key=tile * KEY,
            floor=tile * FLOOR,
            apple=tile * APPLE,
            back=back,
            sprites=read_only(_opaque(sprites, 3 * tile)),
            background=read_only(_opaque(np.ascontiguousarray(pictures), pictures[0].size)),
        )

    def allocate(self, lanes: int) -> State:
        tile, margin = self.tile_size, self._margin
        height, width = (self.rows + 2 * margin) * tile, (self.columns + 2 * margin) * tile
        image = np.zeros((lanes, height, width, 3), np.uint8)
        strips = _opaque(image, 3 * tile)
        numbers, slots = np.arange(lanes), 2 + len(self.apple_places)
        return State(
            edge=np.zeros(lanes, np.int64),
            strip=np.zeros(lanes, np.int64),
            has_key=np.zeros(lanes, np.int64),
            key=np.zeros(lanes, np.int64),
            key_edge=np.zeros(lanes, np.int64),
            first=numbers * slots,
            reward=np.zeros(lanes * slots),
            apple=np.zeros(lanes * slots, np.bool_),
            pays=np.zeros(lanes * slots if self.respawn else 0),
            queue=numbers * self.respawn,
            taken=np.zeros(lanes * self.respawn, np.int64),
            corner=numbers * (strips.size // lanes),
            strips=strips,
            frame=_opaque(image, image[0].size),
            image=image,
        )

    @staticmethod
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        key = below(words[0], len(tables.key_edges))
        state.key[i] = key
        state.key_edge[i] = tables.key_edges[key]
        # Selection sampling: each cell in turn is taken with probability (apples to place) / (cells left).
        missing = tables.n_apples
        total = len(tables.slot_strips) - 2
        for j in range(total):
            word, slot = words[1 + j], state.first[i] + (1 + j)
            here = below(word, total - j) < missing
            missing = missing - here
            drawn = 1 + noise_slot(word)
            state.apple[slot] = here
            words[1 + j] = here * drawn
            if tables.respawn:
                state.pays[slot] = tables.pays[drawn]
        # The table is larger than the caches near the processor; in a short loop of their own lookups overlap.
        for j in range(1, 1 + total):
            state.reward[state.first[i] + j] = tables.pays[words[j]]
        state.reward[state.first[i] + (1 + total)] = tables.door_reward

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        state.has_key[i] = 0
        enter(tables, state, i, 0)
        paint(tables, state, state.corner[i] + tables.key_strips[state.key[i]], tables.key)
        paint(tables, state, state.strip[i], tables.agent)
        for k in range(tables.respawn):
            state.taken[state.queue[i] + k] = 0

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        edge = state.edge[i] + action
        following, entered = tables.next[edge], tables.slot[edge]
        slot = state.first[i] + entered
        if tables.respawn:
            # Slot 0 stands for "no apple": nothing lies there, and it never pays.
            entry = state.queue[i] + t % tables.respawn
            back = state.taken[entry]
            state.reward[state.first[i] + back] = state.pays[state.first[i] + back]
            state.apple[state.first[i] + back] = back > 0
            if t < tables.door_at:
                paint(tables, state, state.corner[i] + tables.slot_strips[back], tables.back[back])
            state.taken[entry] = entered * state.apple[slot]
        reward = state.reward[slot]
        state.reward[slot] = 0.0
        state.apple[slot] = False
        left = tables.floor
        if t >= tables.door_at:
            left = tables.ground[edge]
        elif tables.respawn:
            # An apple may have come back where the agent stands.
            here = state.apple[state.first[i] + tables.left[edge]]
            left = left + here * (tables.apple - left)
        paint(tables, state, state.strip[i], left)
        if t < tables.apples_at:
            found = following == state.key_edge[i]
            following = following + found * tables.with_key
            state.has_key[i] = state.has_key[i] + found
        state.edge[i] = following
        state.strip[i] = state.strip[i] + tables.way[edge]
        if t + 1 == tables.apples_at:
            enter(tables, state, i, 1)
            for j in range(1, len(tables.slot_strips) - 1):
                here = state.apple[state.first[i] + j]
                sprite = tables.floor + here * (tables.apple - tables.floor)
                paint(tables, state, state.corner[i] + tables.slot_strips[j], sprite)
        if t + 1 == tables.door_at:
            enter(tables, state, i, 2)
        paint(tables, state, state.strip[i], tables.agent)
        return reward

    # Observations

    def observe(self, state: Any, i: Lanes) -> dict[str, NDArray[Any]]:
        if self._margin:
            return self._crop(state, i)
        return {"image": state.image[i].copy(), "has_key": state.has_key[i].copy()}

    def peek(self, state: Any, i: Lanes) -> dict[str, NDArray[Any]]:
        if self._margin:
            return self._crop(state, i)
        return {"image": state.image[i], "has_key": state.has_key[i]}

    def observe_one(self, state: Any) -> dict[str, Any]:
        if self._margin:
            return {"image": self._crop(state, slice(None))["image"][0], "has_key": state.has_key[0]}
        return {"image": state.image[0].copy(), "has_key": state.has_key[0]}

    @cached_property
    def _window(self) -> NDArray[np.int64]:
        """The strips of the crop, counted from the agent's first."""
        tile, size, margin = self.tile_size, self.crop_size, self._margin
        columns = self.columns + 2 * margin
        rows, columns_of_crop = np.arange(size * tile) - margin * tile, np.arange(size) - margin
        return (rows[:, None] * columns + columns_of_crop).ravel()

    def _crop(self, state: Any, i: Lanes) -> dict[str, NDArray[Any]]:
        agents = np.asarray(state.strip)[i]
        strips = state.strips[agents[:, None] + self._window]
        shape = (len(agents), self.crop_size * self.tile_size, self.crop_size * self.tile_size, 3)
        return {
            "image": np.ascontiguousarray(strips).view(np.uint8).reshape(shape),
            "has_key": np.array(state.has_key[i]),
        }

    # What a lane's state means, for players and pictures.

    def place_of(self, state: Any, lane: int) -> int:
        """Where the agent is."""
        return int(state.edge[lane] // len(MOVES) % (3 * self.cells))

    def key_place_of(self, state: Any, lane: int) -> int:
        """Where the key lies, or lay."""
        return int(self.key_places[state.key[lane]])

    def apples_of(self, state: Any, lane: int) -> dict[int, float]:
        """The places of the apples that lie there, with what each pays."""
        first = state.first[lane] + 1
        slots = range(first, first + len(self.apple_places))
        return {
            place: float(state.reward[slot])
            for place, slot in zip(self.apple_places.tolist(), slots, strict=True)
            if state.apple[slot]
        }

    def door_open_of(self, state: Any, lane: int) -> bool:
        """Whether the door has paid."""
        return self.door_reward != 0 and state.reward[state.first[lane] + 1 + len(self.apple_places)] == 0

    @cached_property
    def _schedule(self) -> Sequence[int]:
        return self.phases.schedule()

    def info(self, t: int, reward: Any) -> dict[str, Any]:
        paid_in = self._schedule[t - 1] if t else KEY_PHASE
        return {
            "phase": self._schedule[t],
            "apple_reward": reward if paid_in == APPLE_PHASE else 0.0,
            "door_reward": reward if paid_in == DOOR_PHASE else 0.0,
        }

    # Credit structure

    @cached_property
    def distances(self) -> NDArray[np.int64]:
        """Fewest moves between places with the key in hand, shape (places, places)."""
        places = 3 * self.cells
        distances = np.full((places, places), UNREACHABLE)
        for start in range(places):
            distances[start, start] = 0
            queue = deque([start])
            while queue:
                place = queue.popleft()
                for after in self.moves[1, place].tolist():
                    if distances[start, after] == UNREACHABLE:
                        distances[start, after] = distances[start, place] + 1
                        queue.append(after)
        return read_only(distances)

    @cached_property
    def credit_matrix(self) -> NDArray[np.float64]:
        matrix = np.zeros((self.horizon, self.horizon))
        _, apples, doors, _ = self.phases.starts
        # Phases begin at fixed places, so apples depend on their own phase's actions alone, and the door on its
        # own phase's and on the key. What cannot pay at a time (too far, or out of step) is 0 whatever one does.
        pays: Any = np.zeros(doors - apples, bool)  # by step of a phase
        if self.n_apples and (self.apple_mean or self.apple_variance):
            pays = (self._takings(0, APPLE_PHASE, self.apple_places, self.respawn) > 0).any(axis=0)
        matrix[apples:doors, apples:doors] = np.triu(np.ones((len(pays), 1)) * pays)
        if self.door_reward:
            pays = self._takings(1, DOOR_PHASE, self.door)[0] > 0
            matrix[doors:, doors:] = np.triu(np.ones((len(pays), 1)) * pays)
            if self._takings(0, KEY_PHASE, self.key_places).any():
                matrix[:apples, doors:] = pays
        return read_only(matrix)

    def _takings(self, has_key: int, phase: int, targets: ArrayLike, rest: int = 0) -> NDArray[np.float64]:
        """Expected takings of a thing at each target, at each step of a phase of uniformly random moves.

        The shape is (targets, steps). What is 0 here is impossible, for random moves do everything.

        A thing that was taken is back after `rest` steps, or never if 0. For each target there is a Markov
        chain over (waiting time, place): waiting time 0 means that the thing lies there, and with `rest` = 0
        waiting time 1 that it is gone for good.
        """
        places = 3 * self.cells
        walk = np.zeros((places, places))
        for action in range(len(MOVES)):
            walk[np.arange(places), self.moves[has_key, :, action]] += 1 / len(MOVES)
        targets = np.atleast_1d(targets)
        each = np.arange(len(targets))
        chance = np.zeros((len(targets), max(rest, 1) + 1, places))
        chance[:, 0, self.starts[phase]] = 1.0
        expected = np.zeros((len(targets), self.phases.lengths[phase]))
        for step in range(expected.shape[1]):
            if rest:
                chance[:, 0] += chance[:, 1]
                chance[:, 1:-1], chance[:, -1] = chance[:, 2:].copy(), 0.0
            chance = chance @ walk
            taken = chance[each, 0, targets]
            expected[:, step] = taken
            chance[each, -1, targets] += taken
            chance[each, 0, targets] = 0.0
        return expected

    @cached_property
    def random_key_probability(self) -> float:
        """Probability that uniformly random moves pick up the key."""
        return float(self._takings(0, KEY_PHASE, self.key_places).sum(axis=1).mean())

    @cached_property
    def random_return(self) -> float:
        takings = self._takings(0, APPLE_PHASE, self.apple_places, self.respawn).sum()
        chance = self.n_apples / max(1, len(self.apple_places))
        door = self._takings(1, DOOR_PHASE, self.door).sum()
        apples = chance * takings * self.apple_mean
        return float(apples + self.random_key_probability * door * self.door_reward)

    @cached_property
    def _all_apples(self) -> float | None:
        """Expected apple reward of the best policy, where every apple can be had: n_apples * mean."""
        if self.n_apples == 0 or self.apple_mean == 0.0:
            return 0.0
        if self.respawn or self.apple_mean < 0.0:
            return None
        if self.longest_walk() > self.phases.lengths[APPLE_PHASE]:
            return None
        return self.n_apples * self.apple_mean

    def longest_walk(self) -> int:
        """A number of steps in which all apples can be collected, wherever they lie.

        The exact worst case where every placement can be tried, else the length of one walk that passes all
        apple cells.
        """
        start, cells = int(self.starts[APPLE_PHASE]), self.apple_places
        n = self.n_apples
        between = self.distances[np.ix_(cells, cells)]
        first = self.distances[start, cells]
        if comb(len(cells), n) * factorial(n) <= 500_000:
            chosen = np.array(list(combinations(range(len(cells)), n)))
            shortest = np.full(len(chosen), UNREACHABLE)
            for order in permutations(range(n)):
                walk = chosen[:, order]
                steps = first[walk[:, 0]] + between[walk[:, :-1], walk[:, 1:]].sum(axis=1)
                shortest = np.minimum(shortest, steps)
            return int(shortest.max())
        steps, here, missing = 0, start, set(cells.tolist())
        while missing:
            nearest = min(sorted(missing), key=lambda place: self.distances[here, place])
            steps += int(self.distances[here, nearest])
            missing.discard(here := nearest)
        return steps

    @cached_property
    def _best_door(self) -> float:
        """What the door pays at best to an agent that has the key."""
        in_time = self.distances[self.starts[DOOR_PHASE], self.door] <= self.phases.lengths[DOOR_PHASE]
        return max(self.door_reward, 0.0) if in_time else 0.0

    @cached_property
    def optimal_return(self) -> float | None:
        if self._all_apples is None:
            return None
        to_key = self.distances[self.starts[KEY_PHASE], self.key_places]
        found = float(np.mean(to_key <= self.phases.lengths[KEY_PHASE]))
        return self._all_apples + found * self._best_door

    @cached_property
    def myopic_return(self) -> float | None:
        if self._all_apples is None:
            return None
        return self._all_apples + self.random_key_probability * self._best_door

    # Pictures

    def frame(self, state: Any, lane: int, trace: Trace) -> draw.Frame:
        return _picture(self, state, lane, trace)


class KeyToDoorEnv(CreditEnv):
    """Key-to-Door (Hung et al. 2019, "Optimizing agent behavior over long time scales by transporting value"),
    as Zheng et al., "Adaptive Pairwise Weights for Temporal Credit Assignment", Section 5.2, use it.

    ## Description

    Three rooms, one after the other, each for a fixed time. In the *key* room lies a key; picking it up pays
    nothing. In the *apple* room apples pay noisy rewards, once each. In the *door* room a door opens only to
    those who have the key, and pays. So an action in the first 15 steps earns its reward about 100 steps
    later, behind many rewards on which it has no influence.

    The paper gives the lengths, the door's reward, the observation and that apples do not come back. Rooms,
    number of apples and levels of the apple rewards are ours.

    ## Action Space

    `Discrete(4)`: 0 up, 1 down, 2 left, 3 right. A step into a wall, or into the closed door without the key,
    stays where it is.

    ## Observation Space

    `Dict`: `image`, the current room from above, RGB, uint8, (rows * tile_size, columns * tile_size, 3), 56 x
    88 as it comes; `has_key`, `Discrete(2)`. At a change of rooms the observation shows the new one.

    ## Rewards

    Each apple pays a draw with mean `apple_mean` and variance `apple_variance` when it is collected. Entering
    the door pays `door_reward`, once. Nothing else pays. `info` has `phase` (0 key, 1 apple, 2 door; of the
    observation) and tells apart `apple_reward` and `door_reward`.

    ## Starting State

    The agent starts each room at the map's `A`. The key lies in one of the cells `K`, and `n_apples` apples in
    some of the cells `o`, all equally likely.

    ## Episode End

    Terminates after `key_steps + apple_steps + door_steps` steps.

    ## Arguments

    - `maps` ("standard", "mini", a size `(rows, columns)` or three maps as text, default "standard"): the rooms;
      the module shows the two named sets. A size gives empty rooms with walls around.
    - `key_steps`, `apple_steps`, `door_steps` (int, default 15, 90, 15): lengths of the phases.
    - `n_apples` (int, default 10): apples in an episode.
    - `apple_mean`, `apple_variance` (float, default 5, 25): of what an apple pays. Reading note: the paper's
      "μ = 5, σ = 25" is read as mean 5 and *variance* 25.
    - `noise` ("normal" or "two-point", default "normal"): its distribution. Two-point apples of mean 5 and
      variance 25 pay 0 or 10.
    - `door_reward` (float, default 10).
    - `respawn` (int or None, default None): steps after which a collected apple is back, to pay the same.
    - `tile_size` (int, default 8): pixels of a cell's side. 8 makes images large enough for the image network
      of Stable-Baselines3, which needs 36; 1 is several times faster.
    - `view` ("full" or "crop", default "full"): the whole room, or `crop_size` cells around the agent.
    - `crop_size` (int, default 5): side of the crop, odd.

    The registered ids `tca/KeyToDoor-mean{1,5,9}-var{5,25,125}-v0` are the paper's nine configurations, three
    levels of the mean by three of the variance. Only (5, 25) and (5, 5) are named there; the others are ours.
    `tca/KeyToDoorMini-v0` has 5 x 5 rooms, 6 + 20 + 6 steps and 4 apples.

    ## Credit structure

    Actions of the key phase influence rewards of the door phase and no apple; actions of the apple and door
    phases influence the later rewards of their own phase. `optimal_return` collects all apples and opens the
    door (None where it is not certain that all apples can be had). `random_return` is exact, by dynamic
    programming. `myopic_return` is for an agent that is optimal within each phase but sees no credit across
    phases: all apples, and the door if uniformly random moves happened to find the key.

    ## Version History

    - v0: first version.
    """

    rules_class = KeyToDoorRules
    rules: KeyToDoorRules

    def get_keys_to_action(self) -> dict[tuple[int, ...], int]:
        """Arrow keys, for `gymnasium.utils.play.play(env, wait_on_player=True)`."""
        up, down, left, right = 1073741906, 1073741905, 1073741904, 1073741903  # pygame's K_UP etc.
        return {(up,): 0, (down,): 1, (left,): 2, (right,): 3}


class KeyToDoorVectorEnv(CreditVectorEnv):
    """Many Key-to-Door side by side; see `KeyToDoorEnv` for the rules, `CreditVectorEnv` for the rest."""

    rules_class = KeyToDoorRules
    rules: KeyToDoorRules


def read_maps(maps: Any) -> tuple[tuple[str, ...], ...]:
    """The maps of the three phases, each as rows of equal length.

    Args:
        maps: A name from `MAPS`, a size `(rows, columns)`, or three maps as text.

    Raises:
        ValueError: If the maps do not fit together, or lack what their phase needs.
    """
    if isinstance(maps, str):
        maps = MAPS[check_choice("maps", maps, MAPS)]
    elif len(maps) == 2:
        maps = _empty_rooms(*maps)
    texts = [text.split() for text in maps] if all(isinstance(text, str) for text in maps) else []
    if len(texts) != 3:
        raise ValueError(
            "maps must be 'standard', 'mini', a size (rows, columns) or three maps as text, for the key, apple "
            f"and door phase, got {maps!r}."
        )
    if len({(len(rows), len(row)) for rows in texts for row in rows}) != 1:
        raise ValueError("The three maps must be rectangles of the same size: observations have one shape.")
    needs = (("key", "#.AK", "AK"), ("apple", "#.Ao", "A"), ("door", "#.AD", "AD"))
    for rows, (name, known, needed) in zip(texts, needs, strict=True):
        letters = "".join(rows)
        unknown = set(letters) - set(known)
        if unknown:
            raise ValueError(f"The {name} map knows {', '.join(known)}; it has {', '.join(sorted(unknown))} too.")
        for letter in needed:
            if letter not in letters:
                raise ValueError(f"The {name} map needs a cell {letter}.")
        for letter in "AD":
            if letters.count(letter) > 1:
                raise ValueError(f"The {name} map has {letters.count(letter)} cells {letter}; it takes one.")
        border = rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)
        if set(border) - set("#D"):
            raise ValueError(f"The border of the {name} map must be wall, #; only the door may be in it.")
    return tuple(tuple(rows) for rows in texts)


def _empty_rooms(rows: Any, columns: Any) -> tuple[str, ...]:
    rows = check_count("the rows of maps", rows, minimum=4)
    columns = check_count("the columns of maps", columns, minimum=4)
    y, x = rows // 2, columns // 2

    def room(letter: str, door: bool = False) -> str:
        cells = [["#"] * columns] + [["#", *letter * (columns - 2), "#"] for _ in range(rows - 2)]
        cells.append(["#"] * columns)
        cells[y][x] = "A"
        if door:
            cells[0][x] = "D"
        return "\n".join("".join(row) for row in cells)

    return room("K"), room("o"), room(".", door=True)


@lru_cache(maxsize=16)
def payments(noise: NoiseKind, mean: float, variance: float) -> NDArray[np.float64]:
    """0, then the 65,536 equally likely payments of an apple; shared by all environments of these arguments."""
    drawn = mean + sqrt(variance) * noise_table(noise)
    return read_only(np.concatenate([[0.0], drawn + 0.0]))  # + 0.0 turns -0.0 into 0.0


def _opaque(pixels: NDArray[np.uint8], size: int) -> NDArray[np.void]:
    """The same memory as a flat array of entries of `size` bytes, which are copied as a whole."""
    return pixels.reshape(-1, size).view(f"V{size}").reshape(-1)


GROUND: draw.Colour = (238, 234, 224)
STONE: draw.Colour = (84, 88, 98)
WOOD: draw.Colour = (139, 90, 43)


def draw_sprites(tile: int) -> NDArray[np.uint8]:
    """One picture a sprite, shape (7, tile, tile, 3): flat colours below 4 pixels, drawings from there on."""
    flat = {FLOOR: GROUND, WALL: STONE, AGENT: draw.BLUE, KEY: draw.GOLD, APPLE: draw.RED, DOOR: WOOD}
    flat[OPEN_DOOR] = draw.GREEN
    sprites = np.stack([draw.canvas(tile, tile, flat[sprite]) for sprite in range(len(flat))])
    if tile < 4:
        return sprites
    middle, unit = tile / 2, tile / 8
    for sprite in (AGENT, KEY, APPLE):
        sprites[sprite] = GROUND
    draw.disc(sprites[AGENT], middle, middle, 3.6 * unit, draw.BLUE)
    draw.disc(sprites[APPLE], middle + 0.5 * unit, middle, 3 * unit, draw.RED)
    draw.rectangle(sprites[APPLE], 0.5 * unit, middle - 0.5 * unit, 1.5 * unit, unit, draw.GREEN)
    draw.disc(sprites[KEY], middle, 2.4 * unit, 2.2 * unit, draw.GOLD)
    draw.rectangle(sprites[KEY], 3.4 * unit, 3 * unit, 1.2 * unit, 4.6 * unit, draw.GOLD)
    draw.rectangle(sprites[KEY], 4.4 * unit, 6 * unit, 1.6 * unit, 1 * unit, draw.GOLD)
    draw.rectangle(sprites[DOOR], 3.6 * unit, 5.2 * unit, 1.2 * unit, 1.2 * unit, draw.GOLD)
    draw.rectangle(sprites[OPEN_DOOR], unit, unit, tile - 2 * unit, tile - 2 * unit, draw.canvas(1, 1)[0, 0])
    return sprites


def _picture(rules: KeyToDoorRules, state: Any, lane: int, trace: Trace) -> draw.Frame:
    """The room, and around it what the image of the agent does not show: clock, inventory, rewards."""
    tile = 28
    phase = rules.phases.schedule()[trace.t]
    letters = np.array([list(row) for row in rules.maps[phase]]).ravel()
    ids = np.where(letters == "#", WALL, np.where(letters == "D", DOOR, FLOOR))
    offset = phase * rules.cells
    lying = np.array(list(rules.apples_of(state, lane)), int)
    if phase == KEY_PHASE and not state.has_key[lane]:
        ids[rules.key_place_of(state, lane)] = KEY
    if phase == APPLE_PHASE:
        ids[lying - offset] = APPLE
    if phase == DOOR_PHASE and rules.door_open_of(state, lane):
        ids[rules.door - offset] = OPEN_DOOR
    ids[rules.place_of(state, lane) - offset] = AGENT
    room = draw_sprites(tile)[ids.reshape(rules.rows, rules.columns)].swapaxes(1, 2)
    room = room.reshape(rules.rows * tile, rules.columns * tile, 3)

    width = max(room.shape[1], 280) + 24
    picture = draw.canvas(room.shape[0] + 124, width)
    left = (width - room.shape[1]) // 2
    picture[56 : 56 + room.shape[0], left : left + room.shape[1]] = room
    title = ("FIND THE KEY", "COLLECT APPLES", "OPEN THE DOOR")[phase]
    draw.write(picture, title, 12, 12)
    clock = f"T={trace.t}/{rules.horizon}"
    draw.write(picture, clock, 12, width - 12 - draw.text_size(clock)[1])
    colours = (draw.GOLD, draw.RED, WOOD)
    draw.progress_bar(picture, 34, 12, width - 24, zip(rules.phases.lengths, colours, strict=True), trace.t)
    bottom = 56 + room.shape[0] + 10
    slot = draw_sprites(24)[KEY] if state.has_key[lane] else draw.canvas(24, 24, draw.PALE)
    picture[bottom : bottom + 24, 12:36] = slot
    draw.write(picture, "KEY" if state.has_key[lane] else "NO KEY", bottom + 7, 44)
    apples = f"APPLES LEFT {len(lying)}/{rules.n_apples}"
    draw.write(picture, apples, bottom + 7, width - 12 - draw.text_size(apples)[1])
    reward = trace.rewards[-1] if trace.rewards else 0.0
    colour = draw.GREEN if reward > 0 else draw.RED if reward < 0 else draw.GREY
    draw.write(picture, f"REWARD {reward:+.1f}", bottom + 34, 12, colour)
    total = f"RETURN {sum(trace.rewards):+.1f}"
    draw.write(picture, total, bottom + 34, width - 12 - draw.text_size(total)[1])
    return picture

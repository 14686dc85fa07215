"""The nested credit assignment problem of paper 1, Section 5.1: a tree of decisions that folds up again."""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tca_envs import rendering as draw
from tca_envs.checks import check_choice, check_count
from tca_envs.env import CreditEnv
from tca_envs.randomness import below, stream_of, words_of
from tca_envs.registration import Registration
from tca_envs.rules import Rules, Trace, read_only
from tca_envs.vector import CreditVectorEnv

REGISTRATIONS = (
    Registration("DAG-v0", "DAGEnv", "DAGVectorEnv"),
    *(Registration(f"DAG{depth}-v0", "DAGEnv", "DAGVectorEnv", {"depth": depth}) for depth in (4, 8, 16)),
)

Redraw = Literal["never", "lifetime", "episode"]


class Tables(NamedTuple):
    after_zero: NDArray[np.int64]  # by decision state: the first edge of the state that remembers its 0 ...
    after_one: NDArray[np.int64]  # ... and of the one that remembers its 1; both then pay for it


class State(NamedTuple):
    """An edge is (state, action), numbered 2 * state + action; the terminal state has edges too.

    Lanes share `next`, `node` and `reward` while rewards are fixed; else each has a stretch of its own.
    """

    first: NDArray[np.int64]  # where a lane's stretch begins
    cursor: NDArray[np.int64]  # edge of action 0 in the current state
    next: NDArray[np.int64]  # by edge: the cursor that follows
    node: NDArray[np.int64]  # by edge: the state it leaves, without the stretch
    reward: NDArray[np.float64]  # by edge


class DAGRules(Rules):
    """Wiring and rewards of the DAG; see `DAGEnv` for the arguments.

    Reading note: the paper shows the wiring only as a figure. This is a reconstruction from what its text
    says: 15 + 30 states at depth 8, rewards on second-phase transitions, and state 1 paid on entering 44.
    """

    render_modes = ("human", "rgb_array", "ansi")
    render_fps = 2

    def __init__(self, depth: int = 8, layout_seed: int = 0, redraw_signs: Redraw = "never") -> None:
        depth = check_count("depth", depth, minimum=2)
        if depth % 2:
            raise ValueError(f"depth must be even, got {depth}: half of the steps are decisions and half pay for them.")
        if depth > 40:
            raise ValueError(f"depth must be at most 40, got {depth}: the number of states doubles every 2.")
        self.depth = self.horizon = depth
        self.n_decisions = depth // 2  # of one episode
        self.n_decision_states = 2**self.n_decisions - 1
        self.n_states = 3 * 2**self.n_decisions - 3  # |S|, without the terminal state
        self.layout_seed = check_count("layout_seed", layout_seed, minimum=0)
        self.redraw_signs = check_choice("redraw_signs", redraw_signs, get_args(Redraw))
        self.words = 0 if redraw_signs == "never" else self.n_decision_states
        self.deals_every = "lifetime" if redraw_signs == "lifetime" else "episode"
        self.observation_space = spaces.Discrete(self.n_states + 1)
        self.action_space = spaces.Discrete(2)

    @cached_property
    def _second_phase(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every second-phase state: the state that follows, and the bit that its transition pays for."""
        n = self.n_decisions
        follows, bits = [], []
        base = self.n_decision_states  # number of the first state of the layer
        for m in range(n):
            width = 2 ** (n - m)  # the layer remembers the first n - m decisions, as bits p
            for place in range(width):
                p = width - 1 - place  # layers are numbered from the right, so that 1 is paid on entering 44
                follows.append(base + width + width // 2 - 1 - (p >> 1))
                bits.append(p & 1)
            base += width
        return np.array(follows), np.array(bits)

    @cached_property
    def next_state(self) -> NDArray[np.int64]:
        """State that follows each state and action, shape (|S|, 2); |S| is the terminal state."""
        follows, _ = self._second_phase
        tree = np.arange(self.n_decision_states)
        n, leaves = self.n_decisions, 2 ** (self.n_decisions - 1)
        after = np.stack([2 * tree + 1, 2 * tree + 2], axis=1)
        # The last layer of decisions enters the outcomes, which are numbered from the right.
        outcomes = 2**n - 1 + 2**n - 1 - (after[-leaves:] - self.n_decision_states)
        return read_only(np.concatenate([after[:-leaves], outcomes, np.stack([follows, follows], axis=1)]))

    def tables(self) -> Tables:
        follows, bits = self._second_phase
        edges = 2 * (self.n_decision_states + np.arange(len(follows)))
        paid_for = self.n_states - follows  # entering j pays for decision state |S| - j
        after = np.empty((2, self.n_decision_states), np.int64)
        after[bits, paid_for] = edges
        return Tables(after_zero=after[0], after_one=after[1])

    def allocate(self, lanes: int) -> State:
        size = 2 * (self.n_states + 1)
        copies = lanes if self.words else 1
        starts = size * np.arange(copies)
        node = np.repeat(np.arange(self.n_states + 1), 2)
        follow = np.full(size, 2 * self.n_states)
        follow[:-2] = 2 * self.next_state.ravel()
        state = State(
            first=starts if self.words else np.zeros(lanes, np.int64),
            cursor=np.zeros(lanes, np.int64),
            next=(starts[:, None] + follow).ravel(),
            node=np.tile(node, copies),
            reward=np.zeros(copies * size),
        )
        if not self.words:
            self.deal(self.tables(), state, 0, words_of(stream_of(self.layout_seed), 0, self.n_decision_states))
        return state

    @staticmethod
    def deal(tables: Any, state: Any, i: Any, words: Any) -> None:
        first = state.first[i]
        for decision in range(len(tables.after_one)):
            sign = 2.0 * below(words[decision], 2) - 1.0  # +1: action 1 is the rewarded one
            zero, one = first + tables.after_zero[decision], first + tables.after_one[decision]
            state.reward[zero] = -sign
            state.reward[zero + 1] = -sign
            state.reward[one] = sign
            state.reward[one + 1] = sign

    @staticmethod
    def begin(tables: Any, state: Any, i: Any) -> None:
        state.cursor[i] = state.first[i]

    @staticmethod
    def step(tables: Any, state: Any, i: Any, t: int, action: Any) -> Any:
        edge = state.cursor[i] + action
        state.cursor[i] = state.next[edge]
        return state.reward[edge]

    def observe(self, state: Any, i: Any) -> NDArray[np.int64]:
        return state.node[state.cursor[i]]

    def observe_one(self, state: Any) -> int:
        return state.node[state.cursor[0]]

    @cached_property
    def credit_matrix(self) -> NDArray[np.float64]:
        return read_only(np.fliplr(np.diag((np.arange(self.horizon) < self.n_decisions).astype(float))).copy())

    @cached_property
    def influence_matrix(self) -> NDArray[np.float64]:
        matrix = self.credit_matrix.copy()
        for later in range(self.n_decisions):
            rewarded = self._rewarded[2**later - 1 : 2 ** (later + 1) - 1].reshape((2,) * later)
            for t in range(later):
                # The actions up to `later` number the states of its layer: does bit t matter to what is right?
                if self.words or (rewarded != np.flip(rewarded, axis=t)).any():
                    matrix[t, self.horizon - later - 1] = 1.0
        return read_only(matrix)

    @cached_property
    def _rewarded(self) -> NDArray[np.int64]:
        """The action that pays +1, by decision state, under fixed signs."""
        rewards = self.rewards_of(self.allocate(1), 0)
        return (rewards[self.tables().after_one // 2, 0] > 0).astype(np.int64)

    @cached_property
    def state_credit_matrix(self) -> NDArray[np.float64]:
        matrix = np.zeros((self.n_states + 1, self.n_states + 1))
        decisions = np.arange(self.n_decision_states)
        matrix[decisions, self.n_states - decisions] = 1.0
        return read_only(matrix)

    def rewards_of(self, state: Any, lane: int) -> NDArray[np.float64]:
        first = state.first[lane]
        return np.array(state.reward[first : first + 2 * self.n_states]).reshape(self.n_states, 2)

    @property
    def optimal_return(self) -> float:
        return float(self.n_decisions)

    @property
    def random_return(self) -> float:
        return 0.0

    @property
    def myopic_return(self) -> float:
        return 0.0

    def walk(self, trace: Trace) -> list[int]:
        """The states that the actions of a trace have passed, the current one included."""
        path = [0]
        for action in trace.actions:
            path.append(int(self.next_state[path[-1], int(action)]))
        return path

    def text(self, state: Any, lane: int, trace: Trace) -> str:
        path = self.walk(trace)
        lines = []
        for t, node in enumerate(path[:-1]):
            action, reward = int(trace.actions[t]), trace.rewards[t]
            if t < self.n_decisions:
                lines.append(f"{t:3d}  state {node:4d}  chose {action}")
            else:
                decision = self.n_states - path[t + 1]
                lines.append(f"{t:3d}  state {node:4d}  paid {reward:+.0f} for the choice at state {decision}")
        here = "end" if trace.t == self.horizon else f"state {path[-1]:4d}"
        return "\n".join([*lines, f"{trace.t:3d}  {here}  return {sum(trace.rewards):+.0f}"])

    def frame(self, state: Any, lane: int, trace: Trace) -> NDArray[np.uint8]:
        return _picture(self, trace)


class _DAGFacts:
    """What is known of the DAG: its tables and its handcrafted weights."""

    rules: DAGRules
    _state: Any

    @property
    def n_states(self) -> int:
        """|S|: states without the terminal one, which is number |S|."""
        return self.rules.n_states

    @property
    def next_state(self) -> NDArray[np.int64]:
        """State that follows each state and action, shape (|S|, 2), read-only; |S| is the terminal state."""
        return self.rules.next_state

    @property
    def state_credit_matrix(self) -> NDArray[np.float64]:
        """The handcrafted weights: shape (|S| + 1, |S| + 1), read-only.

        Entry [i, j] is 1 iff the reward on entering state j depends on the action chosen at state i, which
        holds for decision states i and j = |S| - i.
        """
        return self.rules.state_credit_matrix


class DAGEnv(_DAGFacts, CreditEnv):
    """The DAG environment (Zheng et al., "Adaptive Pairwise Weights for Temporal Credit Assignment", Section 5.1).

    ## Description

    For half of the episode you choose one of two ways in a binary tree, without reward. In the other half
    there is no choice: the tree folds up again, and each step pays +1 or -1 for the most recent choice that
    has not been paid for, and forgets it. So the last choice is paid first, and the first one, at state 0, on
    the last step.

    Depth 2n has 2^n - 1 decision states (children of i are 2i + 1 and 2i + 2) and 2^(n+1) - 2 others: the 2^n
    outcomes, then merging layers of 2^(n-1), ..., 4, 2. Depth 4, 8 and 16 have 9, 45 and 765 states. The step
    that pays for decision state i enters state |S| - i.

    Reading note: the paper shows the wiring only as a figure; this is a reconstruction that agrees with all it
    says about it (states 0-14 decide and 15-44 pay at depth 8; state 1 is paid on entering state 44).

    ## Action Space

    `Discrete(2)`. In the second half the action is ignored.

    ## Observation Space

    `Discrete(|S| + 1)`: the state; |S| is the terminal one.

    ## Rewards

    0 in the first half. In the second +1 if the choice that is paid for was the rewarded action of its state,
    else -1. Which action that is, is ours: a fair coin per decision state, tossed by `layout_seed`.

    ## Starting State

    State 0.

    ## Episode End

    Terminates after `depth` steps.

    ## Arguments

    - `depth` (int, default 8): steps of an episode, even, at least 2.
    - `layout_seed` (int, default 0): decides the rewarded actions; has no effect where they are redrawn.
    - `redraw_signs` ("never", "lifetime" or "episode", default "never"): "lifetime" tosses the coins anew
      whenever the environment is seeded and at `reset(options={"new_lifetime": True})`, "episode" at every
      reset; the environment's seed decides.

    ## Credit structure

    The action at time t < n is paid for at 2n - t: `credit_matrix` is half of an anti-diagonal, and
    `state_credit_matrix` the same by states, the paper's handcrafted weights. An action also leads to other
    states, where other later actions may be the right ones. So with all other actions held fixed it can change
    the rewards from n + 1 to 2n - t, as `influence_matrix` says. The handcrafted weights leave this out, for
    given the state that is entered, the reward is decided by one action alone.

    `optimal_return` is n. `random_return` is 0 and so is `myopic_return`, for the best agent that credits an
    action only with the reward of its own transition: no choice is ever paid at once.

    ## Version History

    - v0: first version.
    """

    rules_class = DAGRules
    rules: DAGRules

    @property
    def reward(self) -> NDArray[np.float64]:
        """Reward of each state and action under the current signs, shape (|S|, 2)."""
        return self.rules.rewards_of(self._state, 0)


class DAGVectorEnv(_DAGFacts, CreditVectorEnv):
    """Many DAGs side by side; see `DAGEnv` for the rules, `CreditVectorEnv` for the rest."""

    rules_class = DAGRules
    rules: DAGRules

    @property
    def reward(self) -> NDArray[np.float64]:
        """Reward of each environment, state and action under the current signs, shape (num_envs, |S|, 2)."""
        return np.stack([self.rules.rewards_of(self._state, lane) for lane in range(self.num_envs)])


def _position(rules: DAGRules, node: int) -> tuple[float, float]:
    """Where a state is drawn (y, x): layers from left to right, action 0 up and action 1 down."""
    n = rules.n_decisions
    if node < rules.n_decision_states:
        layer = (node + 1).bit_length() - 1
        place, size = node - (2**layer - 1), 2**layer
    else:
        first, layer = rules.n_decision_states, n
        while layer < 2 * n and node >= first + 2 ** (2 * n - layer):
            first, layer = first + 2 ** (2 * n - layer), layer + 1
        size = 2 ** (2 * n - layer)
        place = size - 1 - (node - first)  # these layers are numbered from the other end
    return 44 + 212 * (place + 0.5) / size, 36 + 72 * layer


@lru_cache(maxsize=8)
def _wires(rules: DAGRules) -> draw.Frame:
    """All states and transitions, as far as they can be told apart."""
    picture = draw.canvas(300, 72 * (rules.horizon + 1))
    if rules.horizon <= 16:
        positions = [_position(rules, node) for node in range(rules.n_states + 1)]
        for node, after in enumerate(rules.next_state.tolist()):
            for target in set(after):
                draw.line(picture, positions[node], positions[target], draw.PALE, 2)
        for y, x in positions:
            draw.disc(picture, y, x, 4 if rules.horizon <= 8 else 1.5, draw.GREY)
    return read_only(picture)


def _picture(rules: DAGRules, trace: Trace) -> draw.Frame:
    """The path in blue on the whole tree, and the rewards as they are paid."""
    picture = _wires(rules).copy()
    height, width = picture.shape[:2]
    n, path = rules.n_decisions, rules.walk(trace)
    positions = [_position(rules, node) for node in path]
    for start, end in pairwise(positions):
        draw.line(picture, start, end, draw.BLUE, 4)
    for t, ((y0, x0), (y1, x1)) in enumerate(pairwise(positions)):
        paid_at = 2 * n - 1 - t if t < n else t
        colour = draw.BLUE
        if paid_at < trace.t:
            colour = draw.GREEN if trace.rewards[paid_at] > 0 else draw.RED
        if t < n:
            draw.disc(picture, y0, x0, 9, colour)
            draw.write(picture, str(int(trace.actions[t])), y0 - 5, x0 - 3, draw.WHITE)
        else:
            draw.write(picture, f"{trace.rewards[t]:+.0f}", (y0 + y1) / 2 - 22, (x0 + x1) / 2 - 8, colour, 3)
    draw.disc(picture, *positions[-1], 9, draw.GOLD)
    draw.disc(picture, *positions[-1], 5, draw.INK)
    draw.write(picture, "CHOOSE 0 (UP) OR 1 (DOWN)" if trace.t < n else "PAID: THE LAST CHOICE FIRST", 12, 12)
    clock = f"T={trace.t}/{rules.horizon}"
    draw.write(picture, clock, 12, width - 12 - draw.text_size(clock)[1])
    draw.write(picture, f"STATE {path[-1]}" if trace.t < rules.horizon else "END", height - 22, 12)
    total = f"RETURN {sum(trace.rewards):+.0f}"
    draw.write(picture, total, height - 22, width - 12 - draw.text_size(total)[1])
    return picture

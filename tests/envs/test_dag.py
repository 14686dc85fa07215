"""The DAG against the paper's sentences, exact dynamic programming and exhaustive search."""

from __future__ import annotations

from itertools import product

import gymnasium as gym
import numpy as np
import pytest

import tca_envs
from tca_envs import rendering as draw
from tca_envs.envs.dag import _position

assert tca_envs

DEPTHS = [2, 4, 6, 8]
# fmt: off
FROZEN_SIGNS = [
    -1, 1, 1, -1, 1, -1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1, -1, 1,
]
# fmt: on


def make(depth, **arguments):
    return gym.make("tca/DAG-v0", depth=depth, **arguments).unwrapped


def play(env, actions, seed=None):
    states, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        state, reward, *_ = env.step(action)
        states.append(state)
        rewards.append(reward)
    return states, rewards


def solve(next_state, reward, reduce):
    """Values of all states by backward induction; successors have higher numbers."""
    values = np.zeros(len(next_state) + 1)
    for state in reversed(range(len(next_state))):
        values[state] = reduce(reward[state] + values[next_state[state]])
    return values


@pytest.mark.parametrize(("depth", "states", "decisions"), [(4, 9, 3), (8, 45, 15), (16, 765, 255)])
def test_sizes_are_the_papers(depth, states, decisions):
    env = gym.make(f"tca/DAG{depth}-v0").unwrapped
    assert env.n_states == states
    assert env.observation_space.n == states + 1
    assert env.next_state.shape == env.reward.shape == (states, 2)
    choices = np.flatnonzero(env.next_state[:, 0] != env.next_state[:, 1])
    np.testing.assert_array_equal(choices, np.arange(decisions))
    assert (env.reward[:decisions] == 0).all()
    assert (abs(env.reward[decisions:]) == 1).all()
    assert env.state_credit_matrix.sum() == decisions


def test_action_at_state_1_is_paid_on_entering_44():
    """ "The action chosen at state 1 determines the reward received later upon transition into state 44." """
    env = make(8)
    paid = {}
    for actions in product((0, 1), repeat=8):
        states, rewards = play(env, actions)
        if 1 in states:
            k = states.index(44)
            paid.setdefault(actions[1], set()).add(rewards[k - 1])
    assert sorted(paid) == [0, 1]
    assert {len(values) for values in paid.values()} == {1}
    assert paid[0] != paid[1]
    assert env.state_credit_matrix[1, 44] == 1


@pytest.mark.parametrize(("depth", "layout_seed"), [(2, 0), (4, 0), (4, 3), (6, 1), (6, 2), (8, 0)])
def test_influence_matrix_by_exhaustive_search(depth, layout_seed):
    """Change one action of every sequence: the rewards that change are those that the matrix says."""
    env = make(depth, layout_seed=layout_seed)
    found = np.zeros((depth, depth))
    runs = {actions: np.array(play(env, actions)[1]) for actions in product((0, 1), repeat=depth)}
    for actions, rewards in runs.items():
        for t in range(depth):
            other = (*actions[:t], 1 - actions[t], *actions[t + 1 :])
            found[t] = np.maximum(found[t], rewards != runs[other])
    np.testing.assert_array_equal(env.influence_matrix, found)
    assert (env.credit_matrix <= found).all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_credit_matrix_by_exhaustive_search(depth):
    """With all choices rated right or wrong, the rating of one choice changes one reward, its own."""
    env = make(depth)
    n = depth // 2
    paid = solve(env.next_state, env.reward, np.max)
    best = {}
    for state in range(2**n - 1):
        best[state] = int(np.argmax(env.reward[state] + paid[env.next_state[state]]))
    runs = {}
    for ratings in product((0, 1), repeat=n):
        state, actions = 0, []
        for right in ratings:
            actions.append(best[state] if right else 1 - best[state])
            state = env.next_state[state, actions[-1]]
        runs[ratings] = np.array(play(env, [*actions, *[0] * n])[1])
    found = np.zeros((depth, depth))
    for ratings, rewards in runs.items():
        for t in range(n):
            other = (*ratings[:t], 1 - ratings[t], *ratings[t + 1 :])
            found[t] = np.maximum(found[t], rewards != runs[other])
    np.testing.assert_array_equal(env.credit_matrix, found)


@pytest.mark.parametrize("depth", DEPTHS)
def test_state_credit_matrix_by_exhaustive_search(depth):
    """The reward on entering a state is a function of one earlier action: the one the matrix names."""
    env = make(depth)
    n_states = env.n_states
    values: dict[tuple[int, int], dict[int, set[float]]] = {}
    for actions in product((0, 1), repeat=depth // 2):
        states, rewards = play(env, actions + (0,) * (depth // 2))
        for t in range(depth // 2):
            for k in range(depth // 2 + 1, depth + 1):
                seen = values.setdefault((states[t], states[k]), {})
                seen.setdefault(actions[t], set()).add(rewards[k - 1])
    found = np.zeros((n_states + 1, n_states + 1))
    for (i, j), by_action in values.items():
        decided = all(len(rewards) == 1 for rewards in by_action.values())
        found[i, j] = decided and len(by_action) == 2 and by_action[0] != by_action[1]
    np.testing.assert_array_equal(env.state_credit_matrix, found)


@pytest.mark.parametrize("depth", [*DEPTHS, 16])
@pytest.mark.parametrize("layout_seed", [0, 1])
def test_returns_by_dynamic_programming(depth, layout_seed):
    env = make(depth, layout_seed=layout_seed)
    assert solve(env.next_state, env.reward, np.max)[0] == env.optimal_return == depth // 2
    assert solve(env.next_state, env.reward, np.mean)[0] == pytest.approx(env.random_return)
    # Greedy for the reward of the transition itself, uniform among equals: no better than chance.
    greedy = np.where(env.reward == env.reward.max(axis=1, keepdims=True), 1.0, 0.0)
    greedy /= greedy.sum(axis=1, keepdims=True)
    values = np.zeros(env.n_states + 1)
    for state in reversed(range(env.n_states)):
        values[state] = greedy[state] @ (env.reward[state] + values[env.next_state[state]])
    assert values[0] == pytest.approx(env.myopic_return)


def test_tables_are_what_happens():
    env = make(8, layout_seed=5)
    rng = np.random.default_rng(0)
    for _ in range(20):
        state = env.reset()[0]
        terminated = False
        while not terminated:
            action = int(rng.integers(2))
            after, reward, terminated, _, _ = env.step(action)
            assert (after, reward) == (env.next_state[state, action], env.reward[state, action])
            state = after
    assert state == env.n_states


def test_default_layout_is_frozen():
    """Results in papers to come rest on it."""
    env = make(8)
    signs = [int(env.reward[source, 0]) for source in range(15, 45)]
    assert signs == FROZEN_SIGNS
    assert (make(8, layout_seed=1).reward != env.reward).any()
    np.testing.assert_array_equal(gym.make("tca/DAG8-v0").unwrapped.reward, env.reward)


def test_redraw_every_lifetime():
    env = make(8, redraw_signs="lifetime")
    lives = {}
    for seed in range(6):
        env.reset(seed=seed)
        lives[seed] = env.reward
        for _ in range(2):
            env.reset()
            np.testing.assert_array_equal(env.reward, lives[seed])
    assert len({reward.tobytes() for reward in lives.values()}) == 6
    env.reset(options={"new_lifetime": True})
    assert (env.reward != lives[5]).any()
    second = env.reward
    env.reset(seed=5)
    np.testing.assert_array_equal(env.reward, lives[5])
    env.reset(options={"new_lifetime": True})
    np.testing.assert_array_equal(env.reward, second)
    batch = gym.make_vec("tca/DAG-v0", num_envs=3, depth=8, redraw_signs="lifetime")
    batch.reset(seed=1)
    np.testing.assert_array_equal(batch.reward, [lives[1], lives[2], lives[3]])
    for _ in range(20):
        batch.step(np.ones(3, int))
    np.testing.assert_array_equal(batch.reward, [lives[1], lives[2], lives[3]])
    batch.reset(options={"new_lifetime": True, "reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(batch.reward[[0, 2]], [lives[1], lives[3]])
    assert (batch.reward[1] != lives[2]).any()


def test_redraw_every_episode():
    env = make(4, redraw_signs="episode")
    env.reset(seed=0)
    drawn = [env.reward]
    for _ in range(300):
        env.reset()
        drawn.append(env.reward)
    rewarded = np.mean([reward > 0 for reward in drawn], axis=0)[3:]
    assert abs(rewarded - 0.5).max() < 5 * 0.5 / np.sqrt(301)
    assert (abs(np.array(drawn)[:, 3:]) == 1).all()
    for reward in drawn[:20]:
        assert solve(env.next_state, reward, np.max)[0] == env.optimal_return
    assert env.influence_matrix.sum() == 3


def test_picture_tells_what_is_paid():
    """A decision is blue until it is paid for, then green or red as it was rewarded."""
    env = gym.make("tca/DAG8-v0", render_mode="rgb_array", layout_seed=2).unwrapped
    rng = np.random.default_rng(0)
    for _ in range(4):
        path, rewards, actions = [env.reset()[0]], [], rng.integers(2, size=8)
        for action in actions:
            after, reward, *_ = env.step(action)
            path.append(after)
            rewards.append(reward)
            picture = env.render()
            for decision in path[: min(4, len(path) - 1)]:
                paid = [reward for j, reward in zip(path[1:], rewards, strict=True) if j == env.n_states - decision]
                colour = {(): draw.BLUE, (1.0,): draw.GREEN, (-1.0,): draw.RED}[tuple(paid)]
                y, x = _position(env.rules, decision)
                assert tuple(picture[round(y), round(x) - 7]) == colour
            y, x = _position(env.rules, path[-1])
            assert tuple(picture[round(y), round(x)]) == draw.INK


def test_text_tells_the_story():
    env = gym.make("tca/DAG4-v0", render_mode="ansi")
    env.reset(seed=0)
    for action in (1, 0, 0, 0):
        env.step(action)
    lines = env.render().splitlines()
    assert "chose 1" in lines[0]
    assert "paid" in lines[2]
    assert "for the choice at state 2" in lines[2]
    assert "for the choice at state 0" in lines[3]
    assert "end  return" in lines[4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 7}, "even, got 7"),
        ({"depth": 0}, "at least 2"),
        ({"depth": 100}, "at most 40"),
        ({"depth": "deep"}, "integer"),
        ({"layout_seed": -1}, "at least 0"),
        ({"redraw_signs": "often"}, "'never', 'lifetime', 'episode'"),
    ],
)
def test_bad_arguments(arguments, words):
    for construct in (gym.make, gym.make_vec):
        with pytest.raises((ValueError, TypeError), match=words):
            construct("tca/DAG-v0", **arguments)


def test_no_lifetime_no_option():
    env = make(4)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'new_lifetime'; it takes none"):
        env.reset(options={"new_lifetime": True})
    with pytest.raises(TypeError, match="True or False"):
        make(4, redraw_signs="lifetime").reset(options={"new_lifetime": "yes"})

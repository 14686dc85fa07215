"""Algorithm 1's replay and its gradients, without training: what flows where, and Appendix A.1 in linear systems."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lvgts_samples import (
    ACTION_DIM,
    BATCH,
    FIRST_RECALL,
    HORIZON,
    LATENT_DIM,
    make_encoding,
    make_world_model,
    randn,
    remembering_weights,
    scaled_actions,
)
from torch import Tensor, nn

from tca_sb3.lvgts.encoder import Encoding
from tca_sb3.lvgts.imagination import (
    cut_times,
    imagine,
    imagined_return,
    infer_noise,
    reparameterized,
    sliding_window_objective,
)
from tca_sb3.lvgts.world_model import WorldModel

ALL = torch.ones(BATCH, HORIZON, dtype=torch.bool)


def recorded(actions: Tensor) -> Callable[[int, Tensor], Tensor]:
    return lambda t, latents: actions[:, t]


def make_actor(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(LATENT_DIM, 8), nn.Tanh(), nn.Linear(8, ACTION_DIM), nn.Tanh()).double()


def remembering() -> Encoding:
    return Encoding(make_encoding().latents, remembering_weights())


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("truncation", [4, None])
def test_recorded_actions_reproduce_the_encoders_latents(shortcuts: bool, truncation: int | None) -> None:
    model, encoding, actions = make_world_model(), make_encoding(), scaled_actions()
    noise = infer_noise(model, encoding, actions, shortcuts)
    replay = imagine(recorded(actions), model, encoding, noise, truncation, shortcuts)
    torch.testing.assert_close(replay.latents, encoding.latents, atol=1e-12, rtol=0)
    torch.testing.assert_close(replay.rewards, model.predict_reward(encoding.latents, actions), atol=1e-12, rtol=0)
    # Other actions lead elsewhere.
    other = imagine(recorded(-actions), model, encoding, noise, truncation, shortcuts)
    assert not torch.allclose(other.latents, encoding.latents, atol=1e-3)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_replay_is_its_recursion(shortcuts: bool) -> None:
    model, encoding, actor = make_world_model(), make_encoding(), make_actor()
    noise, eta = randn(BATCH, HORIZON - 1, LATENT_DIM, seed=4), randn(BATCH, HORIZON, ACTION_DIM, seed=5)
    replay = imagine(reparameterized(actor, eta), model, encoding, noise, 4, shortcuts)
    for b in range(BATCH):
        states = [encoding.latents[b, 0]]
        for t in range(HORIZON):
            action = (actor(states[t]) + eta[b, t]).clamp(-1, 1)
            reward = model.reward(torch.cat([states[t], action]))
            torch.testing.assert_close(replay.actions[b, t], action)
            torch.testing.assert_close(replay.rewards[b, t], reward[0])
            torch.testing.assert_close(replay.latents[b, t], states[t])
            if t + 1 < HORIZON:
                recalled = torch.zeros(LATENT_DIM, dtype=torch.float64)
                if shortcuts:
                    for i in range(t + 1):
                        recalled += encoding.weights[b, t + 1, i] * states[i]
                states.append(model.transition(torch.cat([states[t], recalled, action])) + noise[b, t])


def recall_gradient(shortcuts: bool, truncation: int | None = 4) -> list[float]:
    """How much the recall phase's reward depends on each action: the norm of the derivative by ``a_t``."""
    model, encoding = make_world_model(), remembering()
    actions = scaled_actions().requires_grad_()
    noise = infer_noise(model, encoding, actions.detach(), shortcuts)
    replay = imagine(recorded(actions), model, encoding, noise, truncation, shortcuts)
    (gradient,) = torch.autograd.grad(replay.rewards[:, FIRST_RECALL:].sum(), actions)
    return gradient.abs().sum((0, 2)).tolist()


def test_recall_reward_reaches_the_remember_phase_only_through_shortcuts() -> None:
    """The paper's claim: with N = 4, long-term credit assignment is exactly 0 in LM-SVG and is not in LVGTS."""
    myopic, reaching = recall_gradient(False), recall_gradient(True)
    # State 10 is a constant for the step to state 11; the action a_10 is not.
    assert myopic[: FIRST_RECALL - 1] == [0.0] * (FIRST_RECALL - 1)
    assert all(x > 0 for x in myopic[FIRST_RECALL - 1 :])
    # The states recalled are 0, 1 and 2. The actions before them are a_0 and a_1.
    assert all(x > 1e-8 for x in reaching[:2])
    assert reaching[2 : FIRST_RECALL - 1] == [0.0] * (FIRST_RECALL - 3)
    assert all(x > 0 for x in recall_gradient(False, None))


def test_every_recall_step_reaches_the_remember_phase_by_itself() -> None:
    """The first step behind a cut, too: what is cut is the way through the last state, not what is recalled."""
    model, encoding = make_world_model(), remembering()
    actions = scaled_actions().requires_grad_()
    noise = infer_noise(model, encoding, actions.detach(), True)
    replay = imagine(recorded(actions), model, encoding, noise, 4, True)
    for t in range(FIRST_RECALL, HORIZON):
        (gradient,) = torch.autograd.grad(replay.rewards[:, t].sum(), actions, retain_graph=True)
        assert all(x > 1e-8 for x in gradient.abs().sum((0, 2))[:2])


def test_zero_attention_is_lm_svg_bit_for_bit() -> None:
    model, actor = make_world_model(), make_actor()
    encoding = Encoding(make_encoding().latents, torch.zeros(BATCH, HORIZON, HORIZON, dtype=torch.float64))
    eta = 0.1 * randn(BATCH, HORIZON, ACTION_DIM)
    results = []
    for shortcuts in (True, False):
        noise = infer_noise(model, encoding, scaled_actions(), shortcuts)
        replay = imagine(reparameterized(actor, eta), model, encoding, noise, 4, shortcuts)
        gain = imagined_return(replay.rewards, ALL)
        results.append([*replay, *torch.autograd.grad(gain, list(actor.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("truncation", [1, 4, None])
@pytest.mark.parametrize("of", ["actions", "actor"])
def test_block_gradient_by_finite_differences(of: str, truncation: int | None, shortcuts: bool) -> None:
    """A detached state is a constant. So is one whose recorded value is put in its place: no autograd."""
    model, encoding, actor = make_world_model(), make_encoding(), make_actor()
    actions, eta = scaled_actions().requires_grad_(), 0.1 * randn(BATCH, HORIZON, ACTION_DIM)
    noise = infer_noise(model, encoding, -actions.detach(), shortcuts)
    act = recorded(actions) if of == "actions" else reparameterized(actor, eta)
    variables = [actions] if of == "actions" else list(actor.parameters())
    replay = imagine(act, model, encoding, noise, truncation, shortcuts)
    gradient = torch.autograd.grad(imagined_return(replay.rewards, ALL), variables)
    edges = {t for t in range(1, HORIZON) if truncation is not None and (t + 1) % truncation == 0}
    assert truncation != 4 or edges == {3, 7, 11}
    constants = replay.latents.detach()

    def gain() -> float:
        states = [constants[:, 0]]
        total = 0.0
        for t in range(HORIZON):
            total += float(model.predict_reward(states[t], act(t, states[t])).sum()) / BATCH
            if t + 1 < HORIZON:
                recalled = torch.zeros(BATCH, LATENT_DIM, dtype=torch.float64)
                for i in range(t + 1):
                    recalled += encoding.weights[:, t + 1, i].unsqueeze(1) * states[i]
                before = constants[:, t] if t + 1 in edges else states[t]
                after = model.predict_latent(before, recalled if shortcuts else None, act(t, before))
                states.append(after + noise[:, t])
        return total

    step = 1e-5
    with torch.no_grad():
        for variable, derivative in zip(variables, gradient, strict=True):
            for place in torch.cartesian_prod(*map(torch.arange, variable.shape)).reshape(-1, variable.ndim)[:60]:
                index = tuple(place.tolist())
                value = variable[index].item()
                variable[index] = value + step
                above = gain()
                variable[index] = value - step
                below = gain()
                variable[index] = value
                assert float(derivative[index]) == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_policy_noise_is_added_before_clipping() -> None:
    noise = torch.tensor([[[0.5], [-3.0]]])
    act = reparameterized(lambda latents: latents, noise)
    assert act(0, torch.tensor([[0.25]])).item() == 0.75
    assert act(1, torch.tensor([[0.25]])).item() == -1.0


def test_return_leaves_out_padding() -> None:
    rewards = torch.tensor([[1.0, 2.0, torch.nan], [4.0, torch.inf, 8.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert imagined_return(rewards, mask).item() == 3.5


@pytest.mark.parametrize("truncation", [1, 2, 4, 15, 16])
def test_cut_times_are_multiples_of_the_truncation_counted_from_one(truncation: int) -> None:
    assert list(cut_times(15, truncation)) == [t for t in range(1, 15) if (t + 1) % truncation == 0]
    assert list(cut_times(15, None)) == []


# -- the sliding window of Appendix A.1 -----------------------------------------------------------------------------


@pytest.mark.parametrize("shortcuts", [True, False])
def test_window_beyond_the_episode_is_the_full_gradient(shortcuts: bool) -> None:
    model, encoding, actor = make_world_model(), make_encoding(), make_actor()
    noise = infer_noise(model, encoding, scaled_actions(), shortcuts)
    act = reparameterized(actor, 0.1 * randn(BATCH, HORIZON, ACTION_DIM))
    mask = torch.arange(HORIZON) < torch.tensor([[15], [9], [1]])
    replay = imagine(act, model, encoding, noise, None, shortcuts)
    parameters = list(actor.parameters())
    expected = torch.autograd.grad(imagined_return(replay.rewards, mask), parameters)
    objective, detached = sliding_window_objective(act, model, encoding, noise, mask, HORIZON, shortcuts)
    torch.testing.assert_close(torch.autograd.grad(objective, parameters), expected)
    torch.testing.assert_close(detached.rewards, replay.rewards)


def windowed_action_gradient(window: int, shortcuts: bool) -> list[float]:
    model, encoding = make_world_model(), remembering()
    actions = scaled_actions().requires_grad_()
    noise = infer_noise(model, encoding, actions.detach(), shortcuts)
    recall = ALL.clone()
    recall[:, :FIRST_RECALL] = False
    objective, _ = sliding_window_objective(recorded(actions), model, encoding, noise, recall, window, shortcuts)
    (gradient,) = torch.autograd.grad(objective, actions)
    return gradient.abs().sum((0, 2)).tolist()


def test_window_reaches_as_far_as_it_says_and_farther_through_shortcuts() -> None:
    """Reward 11 reaches states 9 … 11 with n = 2, and so the actions from 8 on."""
    myopic, reaching = windowed_action_gradient(2, False), windowed_action_gradient(2, True)
    assert [t for t, x in enumerate(myopic) if x > 0] == list(range(8, HORIZON))
    assert [t for t, x in enumerate(reaching) if x > 0] == [0, 1, *range(8, HORIZON)]


class Linear(WorldModel):
    """``h' = A h + B a``, ``r = p·h + q·a``."""

    def __init__(self) -> None:
        super().__init__(LATENT_DIM, ACTION_DIM, 1)
        self.A, self.B = 0.5 * randn(LATENT_DIM, LATENT_DIM, seed=1), randn(LATENT_DIM, ACTION_DIM, seed=2)
        self.p, self.q = randn(LATENT_DIM, seed=3), randn(ACTION_DIM, seed=4)

    def predict_latent(self, latents: Tensor, memories: Tensor | None, actions: Tensor) -> Tensor:
        return latents @ self.A.T + actions @ self.B.T

    def predict_reward(self, latents: Tensor, actions: Tensor) -> Tensor:
        return latents @ self.p + actions @ self.q


def equation_5(model: Linear, gain: Tensor, i: int, n: int, printed: bool = False) -> Tensor:
    """``∂V_n(s_i)/∂s_i``, by its products; ``gain`` is ``∂a/∂s``."""
    per_step = model.A + model.B @ gain
    by_state = model.p + gain.T @ model.q
    total = torch.zeros(LATENT_DIM, dtype=torch.float64)
    for j in range(i, min(i + n, HORIZON - 1) + 1):
        product = torch.eye(LATENT_DIM, dtype=torch.float64)
        for _ in range(i, j + 1 if printed and j > i else j):
            product = per_step @ product
        total += product.T @ by_state
    return total


@pytest.mark.parametrize("n", [0, 1, 3, 4, HORIZON])
def test_window_is_equation_5(n: int) -> None:
    """Gradient of θ by Eq. 4's first line with Eq. 5's derivatives, for a linear policy."""
    model = Linear()
    theta = (0.3 * randn(ACTION_DIM, LATENT_DIM, seed=6)).requires_grad_()
    encoding = make_encoding()
    noise = randn(BATCH, HORIZON - 1, LATENT_DIM, seed=7)
    objective, replay = sliding_window_objective(
        lambda t, latents: latents @ theta.T, model, encoding, noise, ALL, n, shortcuts=False
    )
    (gradient,) = torch.autograd.grad(objective, theta)
    expected = torch.zeros_like(theta)
    for b in range(BATCH):
        for k in range(HORIZON):
            by_action = model.q.clone()
            if k + 1 < HORIZON:
                by_action += model.B.T @ equation_5(model, theta.detach(), k + 1, n)
            expected += torch.outer(by_action, replay.latents[b, k]) / BATCH
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_equation_5_is_the_n_step_gradient_but_not_as_printed(n: int) -> None:
    """Its product has to end at ``l = j - 1``."""
    model, gain = Linear(), 0.3 * randn(ACTION_DIM, LATENT_DIM, seed=6)
    i = 2
    start = randn(LATENT_DIM, seed=8).requires_grad_()
    state, value = start, torch.zeros((), dtype=torch.float64)
    for _ in range(i, min(i + n, HORIZON - 1) + 1):
        action = gain @ state
        value = value + model.predict_reward(state, action)
        state = model.predict_latent(state, None, action)
    (expected,) = torch.autograd.grad(value, start)
    torch.testing.assert_close(equation_5(model, gain, i, n), expected)
    assert not torch.allclose(equation_5(model, gain, i, n, printed=True), expected, rtol=0.1)

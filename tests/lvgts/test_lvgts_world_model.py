"""Eq. 7 against a double loop, and what each of its terms may move."""

from __future__ import annotations

import pytest
import torch
from lvgts_samples import (
    ACTION_DIM,
    BATCH,
    HORIZON,
    INPUT_DIM,
    LATENT_DIM,
    OBSERVATION_DIM,
    make_encoding,
    make_world_model,
    randn,
    scaled_actions,
)

from tca_sb3.lvgts.encoder import AttentionEncoder, Encoding
from tca_sb3.lvgts.world_model import model_losses

LENGTHS = [15, 9, 1]
MASK = torch.arange(HORIZON) < torch.tensor(LENGTHS).unsqueeze(1)


def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return randn(BATCH, HORIZON, OBSERVATION_DIM, seed=1), scaled_actions(2), randn(BATCH, HORIZON, seed=3)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_losses_are_equation_7(shortcuts: bool) -> None:
    model, encoding = make_world_model(), make_encoding()
    observations, actions, rewards = sample()
    got = model_losses(model, encoding, observations, actions, rewards, MASK, shortcuts)
    reward = decoder = transition = 0.0
    latents, weights = encoding
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            h, a = latents[b, t], actions[b, t]
            reward += 0.5 * ((model.reward(torch.cat([h, a])) - rewards[b, t]) ** 2).item()
            decoder += 0.5 * ((model.decoder(h) - observations[b, t]) ** 2).sum().item()
            if t + 1 < length:
                recalled = torch.zeros(LATENT_DIM, dtype=torch.float64)
                if shortcuts:
                    for i in range(t + 1):
                        recalled += weights[b, t + 1, i] * latents[b, i]
                predicted = model.transition(torch.cat([h, recalled, a]))
                transition += 0.5 * ((predicted - latents[b, t + 1]) ** 2).sum().item()
    assert [term.item() for term in got] == pytest.approx([x / BATCH for x in (reward, decoder, transition)])


def test_padding_does_not_count() -> None:
    model, (latents, weights) = make_world_model(), make_encoding()
    observations, actions, rewards = sample()
    clean = model_losses(model, Encoding(latents, weights), observations, actions, rewards, MASK, True)
    pad = ~MASK
    latents, weights = latents.clone(), weights.clone()
    for part in (latents, weights, observations, actions, rewards):
        part[pad] = 1e3
    dirty = model_losses(model, Encoding(latents, weights), observations, actions, rewards, MASK, True)
    torch.testing.assert_close(tuple(dirty), tuple(clean))


def test_who_learns_from_what() -> None:
    """The encoder and its attention from reward and observation, and never from the transition."""
    model = make_world_model()
    torch.manual_seed(0)
    encoder = AttentionEncoder(INPUT_DIM, LATENT_DIM, net_arch=(8,)).double()
    observations, actions, rewards = sample()
    inputs = randn(BATCH, HORIZON, INPUT_DIM)
    losses = model_losses(model, encoder(inputs), observations, actions, rewards, MASK, True)
    parts = {"encoder": encoder, "decoder": model.decoder, "transition": model.transition, "reward": model.reward}

    def moved(loss: torch.Tensor) -> set[str]:
        names = set()
        for name, part in parts.items():
            gradients = torch.autograd.grad(loss, list(part.parameters()), allow_unused=True, retain_graph=True)
            if all(gradient is not None and gradient.any() for gradient in gradients):
                names.add(name)
            else:
                assert all(gradient is None for gradient in gradients)
        return names

    assert moved(losses.reward) == {"reward", "encoder"}
    assert moved(losses.decoder) == {"decoder", "encoder"}
    assert moved(losses.transition) == {"transition"}


def test_without_memory_the_transition_sees_zeros() -> None:
    model = make_world_model()
    latents, actions = randn(7, LATENT_DIM), randn(7, ACTION_DIM)
    expected = model.predict_latent(latents, torch.zeros_like(latents), actions)
    torch.testing.assert_close(model.predict_latent(latents, None, actions), expected, atol=0, rtol=0)
    assert not torch.equal(model.predict_latent(latents, randn(7, LATENT_DIM), actions), expected)

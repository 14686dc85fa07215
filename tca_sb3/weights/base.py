"""What a pairwise weight function is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from gymnasium import spaces
from torch import Tensor, nn

from tca_sb3.episodes import Episodes

MakeEncoder = Callable[[], nn.Module]
"""Builds a network from raw observations ``(n, *observation shape)`` to features ``(n, features_dim)``."""


def new_encoder(who: str, make_encoder: MakeEncoder | None) -> tuple[nn.Module, int]:
    """A fresh observation encoder and its number of features.

    :param who: the name of what needs it, for the message.
    :raises ValueError: if there is nothing to make it with.
    """
    if make_encoder is None:
        raise ValueError(
            f"{who} needs make_encoder, a function that builds an observation encoder with a features_dim; "
            "the algorithms of tca_sb3 pass the policy's own."
        )
    encoder = make_encoder()
    return encoder, int(encoder.features_dim)  # type: ignore[arg-type]


class PairwiseWeights(nn.Module, ABC):
    """``f_η(S_t, S_k, k − t) ∈ [0, 1]``, the weight of Eqs. 9 and 10. Its parameters are ``η``.

    A new weight function is one subclass in one file: write ``__init__`` and ``forward``.

    :param observation_space: the environment's observation space (as the agent receives it).
    :param make_encoder: builds an observation encoder with a ``features_dim``; the algorithms pass the policy's
        own features extractor. Weight functions that do not look at observations ignore it.
    """

    def __init__(self, observation_space: spaces.Space, make_encoder: MakeEncoder | None = None) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.make_encoder = make_encoder

    @abstractmethod
    def forward(self, episodes: Episodes) -> Tensor:
        """Weights of every pair of times.

        :param episodes: a batch of ``B`` columns of at most ``T`` steps.
        :return: ``w[b, t, k - 1] = f_η(S_t, S_k, k − t)`` in [0, 1], shape ``(B, T, T)``. Entries with ``k <= t``
            (below the diagonal) and entries in the padding are ignored and may hold anything finite.
        """


def checked_weights(function: nn.Module, episodes: Episodes) -> Tensor:
    """Evaluate a weight function and hold it to its contract.

    :raises TypeError: if it does not return a floating-point tensor.
    :raises ValueError: if its shape is not ``(B, T, T)`` or a weight lies outside [0, 1].
    """
    weights = function(episodes)
    name = type(function).__name__
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise TypeError(f"{name} returned {type(weights).__name__}; forward() must return a floating-point tensor.")
    wanted = (episodes.batch_size, episodes.horizon, episodes.horizon)
    if weights.shape != wanted:
        raise ValueError(
            f"{name} returned weights of shape {tuple(weights.shape)}; it must be (B, T, T) = {wanted}, "
            "with w[b, t, k-1] the weight of reward R_k for action A_t."
        )
    low, high = weights.detach().aminmax()
    if not (low >= 0 and high <= 1):  # perhaps only where nobody looks
        used = weights.detach().triu()
        low, high = (used if episodes.full else used * episodes.mask.T.unsqueeze(1)).aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} returned weights from {low.item():.4g} to {high.item():.4g}; f(S_t, S_k, k-t) must lie in "
            "[0, 1]: end forward() with torch.sigmoid."
        )
    return weights

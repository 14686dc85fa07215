"""A weight function of your own is one class: a learned discount that depends on the state of the action."""

import argparse

import torch
from gymnasium import spaces
from torch import Tensor, nn

import tca_envs  # noqa: F401  (registers tca/…)
from tca_sb3 import Episodes, MetaPWR, make_gym_vec_env
from tca_sb3.weights import PairwiseWeights
from tca_sb3.weights.base import MakeEncoder


class StateDiscount(PairwiseWeights):
    """``f = γ_η(S_t)^{k−t−1}``."""

    def __init__(self, observation_space: spaces.Space, make_encoder: MakeEncoder | None = None) -> None:
        super().__init__(observation_space)
        assert isinstance(observation_space, spaces.Discrete)
        self.logits = nn.Parameter(torch.full((int(observation_space.n),), 2.0))

    def forward(self, episodes: Episodes) -> Tensor:
        rate = torch.sigmoid(self.logits[episodes.observations[:-1].long()]).T  # (B, T)
        times = torch.arange(episodes.horizon)
        lag_minus_one = (times - times.unsqueeze(1)).clamp(min=0)
        return rate.unsqueeze(2) ** lag_minus_one  # (B, T, T)


def main(timesteps: int) -> None:
    env = make_gym_vec_env("tca/DAG8-v0", n_envs=8, seed=0)
    model = MetaPWR("TabularPolicy", env, estimator_kwargs={"weights_class": StateDiscount}, seed=0, device="cpu")
    model.learn(timesteps)
    discounts = torch.sigmoid(model.estimator.weights.logits.detach())[:15]
    print("learned discount of each decision state:", discounts.numpy().round(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000)
    main(parser.parse_args().timesteps)

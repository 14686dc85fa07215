"""An advantage estimator of your own is one class: the advantage truncated after ``n`` TD errors."""

import argparse
from typing import Any

from torch import Tensor

from tca_sb3 import A2C, Episodes, make_gym_vec_env
from tca_sb3.estimators import AdvantageEstimator, Estimate


class NStep(AdvantageEstimator):
    """``Ψ_t = Σ_{k=t+1..t+n} γ^{k−t−1} δ_k``.

    :param n: number of TD errors, at least 1.
    """

    def __init__(self, *args: Any, n: int = 5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if n < 1:
            raise ValueError(f"NStep got n={n}; it needs at least 1 TD error.")
        self.n = n

    def forward(self, episodes: Episodes, values: Tensor) -> Estimate:
        errors = self.td_errors(episodes, values)
        advantages = errors.clone()
        for lag in range(1, min(self.n, episodes.horizon)):
            advantages[:-lag] += self.gamma**lag * errors[lag:]
        return Estimate(advantages, advantages + values[:-1])


def main(timesteps: int) -> None:
    env = make_gym_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = A2C(
        "MlpPolicy", env, n_steps=32, estimator_class=NStep, estimator_kwargs={"n": 8}, seed=0, device="cpu", verbose=1
    )
    model.learn(timesteps, log_interval=20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000)
    main(parser.parse_args().timesteps)

"""The parts of Meta-PWR, plugged together by hand; and the same estimator inside PPO."""

import argparse

import tca_envs  # noqa: F401  (registers tca/…)
from tca_sb3 import A2C, PPO, PWR, PWTD, Fixed, MetaGradientCallback, Product, make_gym_vec_env


def main(timesteps: int) -> None:
    # Learned weights: PWTD's TD errors, a network for the weights, the outer loop as a callback.
    env = make_gym_vec_env("tca/Umbrella-v0", n_envs=16, seed=0, length=20)
    model = A2C(
        "MlpPolicy",
        env,
        n_episodes=1,
        estimator_class=PWTD,
        estimator_kwargs={"weights_class": Product, "weights_kwargs": {"embedding_dim": 8}},
        seed=0,
        device="cpu",
    )
    model.learn(timesteps, callback=MetaGradientCallback(learning_rate=3e-3, outer_rollouts=8))

    # Weights written by hand, under PPO: whole episodes, several epochs of minibatches.
    env = make_gym_vec_env("tca/DAG8-v0", n_envs=16, seed=0)
    matrix = env.get_attr("credit_matrix")[0]
    ppo = PPO(
        "MlpPolicy",
        env,
        n_episodes=1,
        n_epochs=4,
        batch_size=64,
        n_steps=8,
        estimator_class=PWR,
        estimator_kwargs={"weights_class": Fixed, "weights_kwargs": {"matrix": matrix}},
        seed=0,
        device="cpu",
    )
    ppo.learn(timesteps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000)
    main(parser.parse_args().timesteps)

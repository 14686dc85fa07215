"""Rollouts of whole episodes where episodes differ in length: PPO on CartPole, no fragment trained on."""

import argparse

from stable_baselines3.common.env_util import make_vec_env

from tca_sb3 import PPO, MonteCarlo


def main(timesteps: int) -> int:
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = PPO("MlpPolicy", env, n_episodes=4, estimator_class=MonteCarlo, seed=0, device="cpu", verbose=1)
    model.learn(timesteps)
    print(f"{model.discarded_steps} of {model.num_timesteps} steps belonged to episodes beyond the quota")
    return model.discarded_steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000)
    main(parser.parse_args().timesteps)

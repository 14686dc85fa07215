"""Temporal credit assignment for Stable-Baselines3."""

from tca_sb3.algorithms import A2C as A2C
from tca_sb3.algorithms import A2CRR as A2CRR
from tca_sb3.algorithms import HPWR as HPWR
from tca_sb3.algorithms import PPO as PPO
from tca_sb3.algorithms import RGM as RGM
from tca_sb3.algorithms import MetaLambda as MetaLambda
from tca_sb3.algorithms import MetaPWR as MetaPWR
from tca_sb3.algorithms import MetaPWTD as MetaPWTD
from tca_sb3.callbacks import CreditHeatmap as CreditHeatmap
from tca_sb3.callbacks import InnerLoopReset as InnerLoopReset
from tca_sb3.callbacks import MetaGradientCallback as MetaGradientCallback
from tca_sb3.episodes import Episodes as Episodes
from tca_sb3.estimators import PWR as PWR
from tca_sb3.estimators import PWTD as PWTD
from tca_sb3.estimators import MonteCarlo as MonteCarlo
from tca_sb3.estimators import ReturnGeneratingModel as ReturnGeneratingModel
from tca_sb3.estimators import RewardRedistribution as RewardRedistribution
from tca_sb3.estimators import StateLambda as StateLambda
from tca_sb3.estimators import TDLambda as TDLambda
from tca_sb3.explorer import write_credit_explorer as write_credit_explorer
from tca_sb3.lvgts import LMSVG as LMSVG
from tca_sb3.lvgts import LVGTS as LVGTS
from tca_sb3.vec_env import GymVecEnv as GymVecEnv
from tca_sb3.vec_env import make_gym_vec_env as make_gym_vec_env
from tca_sb3.weights import Exponential as Exponential
from tca_sb3.weights import Fixed as Fixed
from tca_sb3.weights import Product as Product
from tca_sb3.weights import Tabular as Tabular

__version__ = "0.1.0"

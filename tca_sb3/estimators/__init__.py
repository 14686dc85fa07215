"""Advantage estimators. A file here is an estimator."""

from tca_sb3.estimators.base import AdvantageEstimator as AdvantageEstimator
from tca_sb3.estimators.base import Estimate as Estimate
from tca_sb3.estimators.base import PairwiseEstimator as PairwiseEstimator
from tca_sb3.estimators.base import WeightedEstimator as WeightedEstimator
from tca_sb3.estimators.monte_carlo import MonteCarlo as MonteCarlo
from tca_sb3.estimators.pwr import PWR as PWR
from tca_sb3.estimators.pwtd import PWTD as PWTD
from tca_sb3.estimators.return_generating import ReturnGeneratingModel as ReturnGeneratingModel
from tca_sb3.estimators.reward_redistribution import RewardRedistribution as RewardRedistribution
from tca_sb3.estimators.state_lambda import StateLambda as StateLambda
from tca_sb3.estimators.td_lambda import TDLambda as TDLambda

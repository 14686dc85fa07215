"""Advantage estimators. A file here is an estimator."""

from tca_sb3.estimators.base import AdvantageEstimator as AdvantageEstimator
from tca_sb3.estimators.base import Estimate as Estimate
from tca_sb3.estimators.base import WeightedEstimator as WeightedEstimator
from tca_sb3.estimators.monte_carlo import MonteCarlo as MonteCarlo
from tca_sb3.estimators.pwr import PWR as PWR
from tca_sb3.estimators.pwtd import PWTD as PWTD
from tca_sb3.estimators.td_lambda import TDLambda as TDLambda

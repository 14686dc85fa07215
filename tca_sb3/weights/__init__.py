"""Pairwise weight functions ``f_η(S_t, S_k, k − t)``. A file here is a weight function."""

from tca_sb3.weights.base import PairwiseWeights as PairwiseWeights
from tca_sb3.weights.exponential import Exponential as Exponential
from tca_sb3.weights.fixed import Fixed as Fixed
from tca_sb3.weights.product import Product as Product
from tca_sb3.weights.tabular import Tabular as Tabular

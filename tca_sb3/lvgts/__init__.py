"""Latent value gradients with temporal shortcuts (paper 2): LVGTS and its baseline LM-SVG.

Read the modules in the order of their imports: ``encoder``, ``world_model``, ``imagination`` (torch only), then
``replay``, ``policy``, ``lvgts`` and ``replicas`` (the Stable-Baselines3 side).
"""

from tca_sb3.lvgts.encoder import AttentionEncoder as AttentionEncoder
from tca_sb3.lvgts.encoder import Encoder as Encoder
from tca_sb3.lvgts.encoder import RecurrentEncoder as RecurrentEncoder
from tca_sb3.lvgts.lvgts import LMSVG as LMSVG
from tca_sb3.lvgts.lvgts import LVGTS as LVGTS
from tca_sb3.lvgts.lvgts import ConstantThenLinear as ConstantThenLinear
from tca_sb3.lvgts.policy import LVGTSPolicy as LVGTSPolicy
from tca_sb3.lvgts.replicas import learn_together as learn_together
from tca_sb3.lvgts.world_model import WorldModel as WorldModel

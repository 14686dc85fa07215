"""Gymnasium environments for temporal credit assignment; importing this package registers `tca/...`.

In processes that have not imported it, the prefixed id `tca_envs:tca/DAG8-v0` does so by itself.
"""

from tca_envs.registration import register_all

__all__ = ["__version__"]

__version__ = "0.1.0"

register_all()

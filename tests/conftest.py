"""Settings for every test. Being here also puts this folder on the path: tests write ``import oracles``."""

from __future__ import annotations

import torch

# The suite runs beside other work on small machines, and one thread makes sums reproducible.
torch.set_num_threads(1)

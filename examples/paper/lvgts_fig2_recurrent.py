"""Figure 2 of the LVGTS paper once more, with the encoder of its Eq. 3.

    python examples/paper/lvgts_fig2_recurrent.py --scale cpu

All else is as in ``lvgts_fig2_memory.py``, but for the seeds.
"""

from __future__ import annotations

from dataclasses import replace

import lvgts_fig2_memory
from harness import Figure, Results, Task, main
from lvgts_fig2_memory import Settings

FIRST_SEED = 158


def training(settings: Settings, results: Results) -> list[Task]:
    """The tasks of ``lvgts_fig2_memory.py`` with the other encoder."""
    tasks = lvgts_fig2_memory.training(settings, results)
    return [replace(task, arguments={**task.arguments, "encoder": "recurrent"}) for task in tasks]


FIGURE = Figure(
    name="lvgts_fig2_recurrent",
    scales={
        scale: replace(settings, first_seed=FIRST_SEED) for scale, settings in lvgts_fig2_memory.FIGURE.scales.items()
    },
    stages=[training],
    plot=lvgts_fig2_memory.plot,
)

if __name__ == "__main__":
    main(FIGURE)

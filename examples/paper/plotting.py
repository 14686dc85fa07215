"""How the figures look: one colour and one name for each method, wherever it appears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "MC": "#000000",
    "H-PWR": "#E69F00",
    "Meta-PWR": "#0072B2",
    "Meta-PWR, shared critic": "#004060",
    "Meta-PWTD": "#D55E00",
    "A2C": "#000000",
    "A2C, γ = 1": "#8C8C8C",
    "A2C, not normalised": "#BFBFBF",
    "Meta-λ(s)": "#56B4E9",
    "RGM": "#009E73",
    "A2C-RR": "#CC79A7",
}
MARKERS = {"MC": "o", "H-PWR": "s", "Meta-PWR": "^", "Meta-PWTD": "v"}

STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches in the house style, saved as PNG when the block ends."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        try:
            yield figure
            figure.savefig(path, dpi=200)
        finally:
            plt.close(figure)


def plot_mean(axes: Axes, x: NDArray[np.float64], values: NDArray[np.float64], **line: Any) -> None:
    """The mean of curves, and its standard error as a band where there are several.

    :param x: shape ``(points,)``.
    :param values: one curve a row, ``(n, points)``.
    :param line: arguments of ``Axes.plot``.
    """
    mean = values.mean(0)
    (drawn,) = axes.plot(x, mean, **line)
    if len(values) > 1:
        error = values.std(0, ddof=1) / len(values) ** 0.5
        axes.fill_between(x, mean - error, mean + error, color=drawn.get_color(), alpha=0.2, lw=0)

"""Drawing on numpy arrays, and a window to show them. Knows nothing of any environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Frame = NDArray[np.uint8]

WHITE: Colour = (255, 255, 255)
PAPER: Colour = (247, 245, 240)
INK: Colour = (40, 44, 52)
GREY: Colour = (176, 178, 184)
PALE: Colour = (222, 222, 226)
BLUE: Colour = (38, 102, 204)
GREEN: Colour = (46, 150, 84)
RED: Colour = (205, 60, 56)
GOLD: Colour = (236, 180, 36)

# A 3 x 5 pixel typeface for what pictures have to say; each row of a letter is three bits.
_GLYPHS = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553",
    "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555",
    "O": "25552", "P": "65644", "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557",
    "V": "55552", "W": "55775", "X": "55255", "Y": "55222", "Z": "71247", "0": "75557", "1": "26227",
    "2": "61247", "3": "61216", "4": "55711", "5": "74616", "6": "34757", "7": "71122", "8": "75257",
    "9": "75716", "+": "02720", "-": "00700", ".": "00002", ":": "02020", "/": "11244", "=": "07070",
    " ": "00000", "(": "12221", ")": "42224", ",": "00024", "|": "22222", "*": "05250", "?": "61202",
    "%": "51245", "<": "12421", ">": "42124", "_": "00007",
}  # fmt: skip


def canvas(height: int, width: int, colour: Colour = PAPER) -> Frame:
    """An empty picture, shape (height, width, 3)."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = colour
    return picture


def rectangle(picture: Frame, top: float, left: float, height: float, width: float, colour: Colour) -> None:
    """Fill a rectangle; what lies outside the picture is left out."""
    y, x = max(0, round(top)), max(0, round(left))
    picture[y : max(y, round(top + height)), x : max(x, round(left + width))] = colour


def disc(picture: Frame, y: float, x: float, radius: float, colour: Colour) -> None:
    """Fill a disc around (y, x)."""
    _fill(picture, (y - radius, y + radius), (x - radius, x + radius), colour, lambda rows, columns: (
        (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    ))  # fmt: skip


def line(
    picture: Frame, start: tuple[float, float], end: tuple[float, float], colour: Colour, thickness: float = 1.0
) -> None:
    """Draw a straight line between two points (y, x)."""
    (y0, x0), (y1, x1) = start, end
    length = max((y1 - y0) ** 2 + (x1 - x0) ** 2, 1e-9)
    half = thickness / 2

    def near(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.bool_]:
        along = np.clip(((rows - y0) * (y1 - y0) + (columns - x0) * (x1 - x0)) / length, 0.0, 1.0)
        off_y, off_x = rows - y0 - along * (y1 - y0), columns - x0 - along * (x1 - x0)
        return off_y**2 + off_x**2 <= half**2

    ys, xs = (min(y0, y1) - half, max(y0, y1) + half), (min(x0, x1) - half, max(x0, x1) + half)
    _fill(picture, ys, xs, colour, near)


def _fill(picture: Frame, ys: tuple[float, float], xs: tuple[float, float], colour: Colour, inside: Any) -> None:
    """Colour the pixels of a bounding box whose centres are inside a shape."""
    top, bottom = max(0, int(ys[0]) - 1), min(picture.shape[0], int(ys[1]) + 2)
    left, right = max(0, int(xs[0]) - 1), min(picture.shape[1], int(xs[1]) + 2)
    if top < bottom and left < right:
        rows, columns = np.mgrid[top:bottom, left:right] + 0.5
        picture[top:bottom, left:right][inside(rows, columns)] = colour


def text_size(text: str, scale: int = 2) -> tuple[int, int]:
    """Height and width that `write` will need."""
    return 5 * scale, max(0, (4 * len(text) - 1) * scale)


def write(picture: Frame, text: str, top: float, left: float, colour: Colour = INK, scale: int = 2) -> None:
    """Write one line of text in capitals; `scale` is the size of a dot in pixels."""
    x = left
    for letter in text.upper():
        for row, bits in enumerate(_GLYPHS.get(letter, _GLYPHS["?"])):
            for column in range(3):
                if int(bits) >> (2 - column) & 1:
                    rectangle(picture, top + row * scale, x + column * scale, scale, scale, colour)
        x += 4 * scale


def progress_bar(picture: Frame, top: int, left: int, width: int, parts: Iterable[tuple[int, Colour]], t: int) -> None:
    """Draw the clock of an episode: one coloured part a phase, filled up to time t, a mark at t."""
    parts = list(parts)
    total = sum(length for length, _ in parts)
    start = 0
    for length, colour in parts:
        x0, x1 = left + width * start / total, left + width * (start + length) / total
        rectangle(picture, top, x0, 6, x1 - x0, tuple(255 - (255 - c) // 3 for c in colour))  # type: ignore
        done = left + width * min(max(t, start), start + length) / total
        rectangle(picture, top, x0, 6, done - x0, colour)
        start += length
    rectangle(picture, top - 2, left + width * t / total - 1, 10, 3, INK)


class Window:
    """A window that shows frames, for `render_mode="human"` (extra `render`: pygame)."""

    def __init__(self, title: str) -> None:
        try:
            import pygame
        except ImportError as error:
            raise ImportError(
                'render_mode="human" needs pygame; install it with: pip install "tca-envs[render]"'
            ) from error
        pygame.display.init()  # not pygame.init(): that would look for sound as well
        pygame.display.set_caption(title)
        self._pygame = pygame
        self._surface: Any = None
        self._clock = pygame.time.Clock()

    def show(self, frame: Frame, fps: int) -> None:
        """Show one frame and wait so long that `fps` frames take a second."""
        pygame = self._pygame
        size = (frame.shape[1], frame.shape[0])
        if self._surface is None or self._surface.get_size() != size:
            self._surface = pygame.display.set_mode(size)
        pygame.event.pump()
        self._surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()

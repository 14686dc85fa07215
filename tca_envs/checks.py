"""Checks of constructor arguments: each returns a clean value or raises one sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import TypeVar

T = TypeVar("T")


def check_count(name: str, value: object, minimum: int) -> int:
    """Return `value` if it is an integer of at least `minimum`, or raise a sentence that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}.")
    count = value.__index__()
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}.")
    return count


def check_number(name: str, value: object, minimum: float = -math.inf) -> float:
    """Return `value` as a float if it is a finite real number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}.")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}.")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, got {number:g}.")
    return number


def check_choice(name: str, value: T, choices: Iterable[T]) -> T:
    """Return `value` if it is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; write one of {', '.join(map(repr, choices))}.")
    return value

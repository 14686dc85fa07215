"""Registers what the modules in `tca_envs/envs/` list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym


class Registration(NamedTuple):
    """One id: `tca/<name>`, the classes in the same module that make it, and their arguments.

    Attributes:
        name: Such as "DAG8-v0".
        env: Name of the single environment's class.
        vector_env: Name of the vector environment's class; None leaves `gym.make_vec` to Gymnasium's own.
        kwargs: Arguments of this configuration.
    """

    name: str
    env: str
    vector_env: str | None = None
    kwargs: Mapping[str, Any] = MappingProxyType({})


def registrations() -> Iterator[tuple[str, Registration]]:
    """Every module of `tca_envs.envs` with each entry of its `REGISTRATIONS`."""
    package = importlib.import_module("tca_envs.envs")
    for found in pkgutil.iter_modules(package.__path__, "tca_envs.envs."):
        for entry in importlib.import_module(found.name).REGISTRATIONS:
            yield found.name, entry


def register_all() -> None:
    """Make `gym.make("tca/...")` and `gym.make_vec("tca/...")` work."""
    for module, entry in registrations():
        gym.register(
            f"tca/{entry.name}",
            entry_point=f"{module}:{entry.env}",
            vector_entry_point=f"{module}:{entry.vector_env}" if entry.vector_env else None,
            kwargs=dict(entry.kwargs),
        )

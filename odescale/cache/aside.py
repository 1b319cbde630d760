"""What an object carries along without being compiled for it."""

from __future__ import annotations

from typing import Generic, TypeVar

Held = TypeVar("Held")


class Aside(Generic[Held]):
    """A value that no compiled function may read: one leaf to JAX, and to its caches the same whatever it holds.

    For what belongs to a system or an experiment but not to its equations: the network and data behind a kernel, the nodes that
    measure a run. It is neither traced nor converted to another precision, and two objects that differ in it share one program.
    """

    __slots__ = ("value",)

    def __init__(self, value: Held) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aside)

    def __hash__(self) -> int:
        return hash(Aside)

    def __repr__(self) -> str:
        return f"Aside({type(self.value).__name__})"

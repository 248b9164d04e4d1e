"""Which body runs a device function: one table for each backend, keyed by the declaration."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Generic, TypeVar

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from persistent_runtime.functions import dense, experts

BodyT = TypeVar("BodyT")
BUILTIN = {value.name: value for module in (dense, experts) for value in vars(module).values()
           if isinstance(value, DeviceFunction)}


class BodyTable(Generic[BodyT]):
    """backend: as messages name it; decorator: what registers a body, by its full name; modules:
    those of the built-in bodies, imported when one is first asked for."""

    def __init__(self, backend: str, decorator: str, modules: Sequence[str]) -> None:
        self._backend, self._modules = backend, modules
        self._module, _, self._decorator = decorator.rpartition(".")
        self._bodies: dict[DeviceFunction, tuple[BodyT, tuple[str, str]]] = {}
        self._names = dict(BUILTIN)

    def add(self, declaration: DeviceFunction, body: BodyT, source: tuple[str, str]) -> None:
        """source: module and qualified name of the function; the same one, defined again, takes its
        own place. Raises UserError for any other second body or declaration of that name."""
        name = declaration.name
        if self._names.setdefault(name, declaration) != declaration:
            raise UserError(f"there is another device function {name!r}; give this one a name of "
                            f"its own")
        known = self._bodies.get(declaration)
        if known is not None and known[1] != source:
            raise UserError(f"device function {name!r} has a {self._backend} body already, "
                            f"{'.'.join(known[1])}; declare one under another name")
        self._bodies[declaration] = body, source

    def find(self, declaration: DeviceFunction) -> BodyT:
        """Raises UserError when there is none."""
        if declaration not in self._bodies:
            for module in self._modules:
                importlib.import_module(module)
        try:
            return self._bodies[declaration][0]
        except KeyError:
            raise UserError(
                f"device function {declaration.name!r} has no {self._backend} body; decorate one "
                f"with @{self._decorator}({declaration.name}) from {self._module}") from None

"""The device functions that a module declares."""

from types import ModuleType

from event_tensor.device_function import DeviceFunction


def declared(module: ModuleType) -> tuple[DeviceFunction, ...]:
    """In the order in which the module declares them."""
    return tuple(value for value in vars(module).values() if isinstance(value, DeviceFunction))

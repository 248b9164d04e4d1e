"""Families by their model_type: those of this package, and those that users register.

A family of this package is the module of its name here, imported when its first model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from event_tensor.errors import UserError
from frontend.families.family import Family

BUILTIN_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "qwen3_moe", "mixtral")

_families: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Makes models of its model_type compile; returns it.

    Raises UserError where another family has that model_type.
    """
    if find(family.model_type) not in (None, family):
        raise UserError(
            f"the model_type {family.model_type!r} has a family already; give the new one a "
            "model_type of its own")
    _families[family.model_type] = family
    return family


def find(model_type: object) -> Family | None:
    """The family of that model_type, if there is one."""
    if model_type in BUILTIN_FAMILIES:
        import_module(f"frontend.families.{model_type}")
    return _families.get(model_type) if isinstance(model_type, str) else None


def family_named(model_type: str) -> Family:
    """The family of a config that has been read."""
    family = find(model_type)
    if family is None:
        raise UserError(f"model_type {model_type!r} is not supported; {supported()}")
    return family


def families() -> dict[str, Family]:
    """All of them: those of this package first."""
    for name in BUILTIN_FAMILIES:
        find(name)
    order = dict.fromkeys((*BUILTIN_FAMILIES, *_families))
    return {name: _families[name] for name in order}


def supported() -> str:
    return "supported are " + ", ".join(
        f"{name} ({family.classes[0]})" for name, family in families().items())


def family_of(values: Mapping[str, object], source: str) -> Family:
    """The family that `model_type` and `architectures` of config.json name."""
    model_type = values.get("model_type")
    family = find(model_type) if isinstance(model_type, str) else None
    architectures = values.get("architectures") or []
    if not isinstance(architectures, (list, tuple)):
        raise UserError(
            f"{source}: architectures is {architectures!r}; it must be a list of class names")
    others = [name for name in architectures if family is None or name not in family.classes]
    named = [family] if family else []
    for name in others:
        of_class = [known for known in families().values() if name in known.classes]
        if not of_class:
            raise UserError(
                f"{source}: the architecture {name!r} is not supported; {supported()}")
        named += [known for known in of_class[:1] if known not in named]
    if model_type is None and not named:
        raise UserError(f"{source}: the field model_type is missing; {supported()}")
    if model_type is not None and family is None:
        raise UserError(f"{source}: model_type {model_type!r} is not supported; {supported()}")
    if len(named) > 1:
        raise UserError(
            f"{source}: model_type {model_type!r} contradicts architectures {list(architectures)}; "
            "correct one of the two")
    return named[0]

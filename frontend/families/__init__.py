"""Model families: one file each, found by model_type; others can be registered from outside."""

from frontend.families.family import Family
from frontend.families.registry import register_family

__all__ = ["Family", "register_family"]

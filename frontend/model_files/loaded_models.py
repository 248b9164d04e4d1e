"""A loaded transformers model as weights by name: unwrapped, its adapters merged.

torch.compile and data parallelism wrap a model and compute the same; adapters (PEFT) are merged by
their own `merge_and_unload`, on a copy. model_changes.py refuses what stays different.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from event_tensor.errors import UserError
from frontend.model_files.model_changes import COMPILED, is_weight_hook, plain_name, refuse_hooks

if TYPE_CHECKING:
    import torch

WRAPPED = {"OptimizedModule": COMPILED, "DataParallel": "module",
           "DistributedDataParallel": "module"}


def unwrapped(model: Any) -> Any:
    """The transformers model inside; a copy with merged weights where it has adapters.

    Raises UserError for hooks on a wrapper or an adapter, and for adapters that do not merge.
    """
    inner = WRAPPED.get(type(model).__name__)
    if inner and hasattr(model, inner):
        refuse_hooks(model)
        return unwrapped(getattr(model, inner))
    if callable(getattr(model, "merge_and_unload", None)):
        return unwrapped(merged(model))
    return model


def merged(model: Any) -> Any:
    """A copy, as the user's own object stays as it is."""
    name = type(model).__name__
    refuse_hooks(model)
    if any(getattr(module, "disable_adapters", None) is True for module in model.modules()):
        raise UserError(f"the adapters of this {name} are disabled; enable them, or give the model "
                        f"without them (unload)")
    try:
        return copy.deepcopy(model).merge_and_unload()
    except Exception as error:  # whatever the adapter's library raises
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"the adapters of this {name} do not merge ({reason}); merge them and give "
                        f"the result") from None


def weights_by_name(model: Any) -> dict[str, torch.Tensor]:
    """The state dict, computed weights (weight norm, pruning, parametrizations) as they are now."""
    found = {plain_name(name): tensor for name, tensor in model.state_dict().items()}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in computed_weights(module):
            found[plain_name(f"{prefix}.{name}")] = tensor.detach()
    return found


def computed_weights(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that torch.nn.utils computes from others before they are used, without a trace on the
    module."""
    for name, parts in getattr(module, "parametrizations", {}).items():
        yield name, copy.deepcopy(parts).eval()()
    for hook in module._forward_pre_hooks.values():
        if not is_weight_hook(hook):
            continue
        if hasattr(hook, "apply_mask"):  # torch.nn.utils.prune
            yield hook._tensor_name, hook.apply_mask(module)
        elif type(hook).__name__ == "SpectralNorm":
            yield hook.name, hook.compute_weight(module, do_power_iteration=False)
        else:
            yield hook.name, hook.compute_weight(module)

"""What somebody has changed about a loaded model, and the weights do not show.

The measure is a model of the same class and config without data: every module must compute by the
same function with the same constants, hear of no hook, and hold plain tensors.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

from event_tensor.errors import UserError

REMEDY = ("undo that or merge it into the weights, or save the model (save_pretrained) and give "
          "the directory")
COMPILED = "_orig_mod"  # torch.compile's name for the module inside
# Attributes that differ without changing a token of a model that is not being trained.
OF_TRAINING = {"training", "gradient_checkpointing", "padding_idx", "attention_dropout", "dropout",
               "p", "inplace", "jitter_noise", "router_jitter_noise", "router_aux_loss_coef",
               "max_seq_len_cached", "vocab_size"}  # resize_token_embeddings leaves the last one
PASSIVE_HOOKS = {"output_capturing_hook", "make_inputs_require_grads", "make_inputs_require_grad"}
ATTENTIONS = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3",
              "flash_attention_4", "flex_attention"}
CONSTANTS = (bool, int, float, str)
# What `.to(bfloat16)` may do to a frequency, relatively, and `.half()` to a small one
ROUNDING, STEP = 2.0**-7, 2.0**-24


def refuse_changes(model: Any, classes: tuple[str, ...]) -> None:
    """Raises UserError, naming the module, unless a loaded model computes what its class does.

    classes: its family's in transformers, such as LlamaForCausalLM first.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in ATTENTIONS:
        raise UserError(f"the loaded model computes attention by {attention!r}, which may be any "
                        f"function; load it with attn_implementation='sdpa'")
    function = sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS.get(attention)
    if function is not None and not function.__module__.startswith("transformers."):
        raise UserError(f"transformers' attention {attention!r} was replaced by "
                        f"{name_of(function)} of {function.__module__}; {REMEDY}")
    refuse_hooks(model)
    found = dict(named_modules(model))
    for name, expected in named_modules(stock_model(model, classes)):
        if name not in found:
            raise UserError(f"the loaded model has no module {name}, which its config describes; "
                            f"{REMEDY}")
        refuse_forward(name, found[name], expected)
        refuse_constants(name, found[name], expected)
        refuse_frequencies(name, found[name], model.config)
    refuse_tensors(model)


def stock_model(model: Any, classes: tuple[str, ...]) -> Any:
    """The same as transformers makes it, on the meta device."""
    import torch

    for kind in type(model).__mro__:
        if kind.__name__ in classes and kind.__module__.startswith("transformers.models."):
            stock_config = copy.deepcopy(model.config)
            stock_config._attn_implementation = "eager"
            with torch.device("meta"):
                return kind(stock_config)
    raise UserError(f"the loaded model is a {type(model).__name__}, not transformers' "
                    f"{classes[0]}; load it with AutoModelForCausalLM, without remote code")


def named_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """By their names in a model of which no part is compiled on its own."""
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module).__name__ != "OptimizedModule":
            yield plain_name(name), module


def plain_name(name: str) -> str:
    """Without what torch.compile puts in front of the names in a compiled submodule.

    >>> plain_name("model._orig_mod.norm.weight")
    'model.norm.weight'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED)


def refuse_hooks(model: Any) -> None:
    """Raises UserError for a hook that may change what a module is given or gives."""
    torch_module = sys.modules["torch.nn.modules.module"]
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise UserError("torch has forward hooks for all modules (register_module_forward_hook), "
                        "which the megakernel does not call; remove them")
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not is_passive(hook) and not is_weight_hook(hook):
                raise UserError(f"{shown(name)} has the forward hook {name_of(hook)}, which the "
                                f"megakernel does not call; remove it (its handle's remove)")


def is_passive(hook: Any) -> bool:
    """Whether a hook of transformers or peft only records what passes, or prepares training."""
    package = str(getattr(hook, "__module__", "")).partition(".")[0]
    return package in ("transformers", "peft") and getattr(hook, "__name__", "") in PASSIVE_HOOKS


def is_weight_hook(hook: Any) -> bool:
    """Whether a pre-hook is of torch.nn.utils, which computes a weight (weight_norm, prune)."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def refuse_forward(name: str, module: Any, expected: Any) -> None:
    kind, wanted = type(module), type(expected)
    forward = getattr(kind, "forward", None)  # a scripted module has none
    if forward is not wanted.forward or kind.__call__ is not wanted.__call__:
        raise UserError(f"{shown(name)} is a {kind.__module__.partition('.')[0]} {kind.__name__}, "
                        f"where the config makes it a {wanted.__name__}; {REMEDY}")
    if kind.forward.__module__.partition(".")[0] not in ("transformers", "torch"):
        raise UserError(f"{wanted.__name__}.forward was replaced by {name_of(kind.forward)} of "
                        f"{kind.forward.__module__}; {REMEDY}")
    own = vars(module).get("forward")
    if own is not None and not is_compiled_own(own, module) and not is_placed(module):
        raise UserError(f"the forward of {shown(name)} was replaced by {name_of(own)}; {REMEDY}")


def is_compiled_own(forward: Any, module: Any) -> bool:
    """Whether this is `torch.compile(module.forward)`, or just `module.forward`."""
    bound = getattr(forward, "_torchdynamo_orig_callable", forward)
    return (getattr(bound, "__func__", None) is type(module).forward
            and getattr(bound, "__self__", None) is module)


def is_placed(module: Any) -> bool:
    """Whether accelerate's hook does no more than move inputs to the module's device."""
    hook = vars(module).get("_hf_hook")
    return type(hook).__name__ == "AlignDevicesHook" and not getattr(hook, "offload", True)


def refuse_constants(name: str, module: Any, expected: Any) -> None:
    """Numbers and names that a module computes with: an epsilon, a scale, a window."""
    for key, wanted in vars(expected).items():
        if key.startswith("_") or key in OF_TRAINING or not isinstance(wanted, CONSTANTS):
            continue
        given = getattr(module, key, None)
        if given != wanted:
            raise UserError(f"{shown(name)} has {key}={given}, where the config makes it {wanted}; "
                            f"{REMEDY}")


def refuse_frequencies(name: str, module: Any, config: Any) -> None:
    """Rotary frequencies are in no checkpoint: the megakernel takes them from the config. It does
    not follow a cast of the model, which rounds them."""
    from torch import allclose

    found = getattr(module, "inv_freq", None)
    if found is None or found.device.type == "meta":
        return
    wanted = type(module)(config).inv_freq
    given = found.detach().to(wanted)
    if given.shape != wanted.shape or not allclose(given, wanted, rtol=ROUNDING, atol=STEP):
        raise UserError(f"{shown(name)} has other frequencies (inv_freq) than the rope_parameters "
                        f"of the config make; set them there and load the model again")


def refuse_tensors(model: Any) -> None:
    """Quantised, sharded or packed tensors hold no weights that can be read in place."""
    from torch import Tensor, strided
    from torch.nn import Buffer, Parameter

    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        plain = type(tensor) in (Tensor, Parameter, Buffer)
        if not plain or tensor.is_quantized or tensor.layout != strided:
            kind = "quantized tensor" if tensor.is_quantized else type(tensor).__name__
            raise UserError(f"{name} is a {kind} ({tensor.dtype}, {tensor.layout}); load the model "
                            f"on one device, with plain weights")


def shown(name: str) -> str:
    return f"the loaded model's {name}" if name else "the loaded model"


def name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__

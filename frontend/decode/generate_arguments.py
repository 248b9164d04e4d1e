"""What `model.generate` was asked: each argument is read, changes no token, or is refused by name.

The lists name what may pass; whatever is in none of them, of a later transformers too, is refused
where it is set. transformers' own loop (generation/utils.py, `_sample`) is the measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
from typing import Any

from event_tensor.errors import UserError

REMEDY = "leave it out, or leave out custom_generate"

# Fields of a GenerationConfig that the bridge reads; transformers has repeated the rows already.
READ = {"do_sample", "pad_token_id", "num_return_sequences"}
# Fields that reach it as logits processors and stopping criteria, which are judged one by one.
PREPARED = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings",
    "eos_token_id", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p",
    "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "renormalize_logits",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "sequence_bias", "guidance_scale", "watermarking_config"}
# Fields about how transformers computes the same tokens, about inputs it has made by now, and
# those that only beams and assistants read, both of which are refused.
SAME_TOKENS = {
    "compile_config", "disable_compile", "prefill_chunk_size", "bos_token_id",
    "decoder_start_token_id", "transformers_version", "early_stopping", "length_penalty",
    "diversity_penalty", "low_memory", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "max_matching_ngram_size"}
# Switches for which False means the same as None.
SWITCHES = {
    "use_mtp", "token_healing", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "output_router_logits", "return_dict_in_generate", "is_assistant",
    "synced_gpus"}

# Values beside the default that change no token. (A use_cache of 0 is none: transformers then both
# makes a cache and does not pass it on.)
SAME_VALUES = {"cache_implementation": ("dynamic",), "use_cache": (False,)}

# Arguments of `generate` itself that it hands on under these or other names.
HANDED_ON = {"self", "inputs", "generation_config", "logits_processor", "stopping_criteria",
             "custom_generate", "trust_remote_code", "streamer"}
CACHES = {"cache", "past_key_values", "cache_params"}
# Arguments of the model's forward that the bridge reads, or that leave the last logits as they are.
FORWARD = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "tokenizer"} | CACHES


def refuse_config(config: Any) -> None:
    """Raises UserError for a set field of a GenerationConfig that nobody reads."""
    unset = vars(type(config)()) | getattr(type(config), "_get_default_generation_params", dict)()
    for name, value in vars(config).items():
        if name in READ | PREPARED | SAME_TOKENS or name.startswith("_"):
            continue
        same = (unset.get(name), *SAME_VALUES.get(name, ()))
        if not is_off(name, value) and (type(value), value) not in [(type(v), v) for v in same]:
            refuse(name, value)


def refuse_arguments(model_kwargs: Mapping[str, Any]) -> None:
    """Raises UserError for an argument of the model's forward that nobody reads."""
    for name, value in model_kwargs.items():
        if name in CACHES:
            refuse_filled_cache(name, value)
        elif name == "logits_to_keep" and not isinstance(value, int):
            refuse(name, value)  # a choice of positions; so many last ones hold the last
        elif name not in FORWARD and not is_off(name, value):
            refuse(name, value)


def refuse_filled_cache(name: str, cache: Any) -> None:
    """transformers makes an empty cache before it asks us, and drops it; one of the user's would
    have to be read and filled."""
    if cache is None:
        return
    is_foreign = getattr(cache, "_is_user_defined", False) or not hasattr(cache, "get_seq_length")
    if is_foreign or cache.get_seq_length() > 0:
        raise UserError(f"the megakernel keeps keys and values in a cache of its own and does not "
                        f"read {name}; {REMEDY}")


def arguments_of(caller: FrameType | None) -> dict[str, Any]:
    """The arguments of the `generate` that called custom_generate.

    It hands on neither a streamer nor an assistant to functions of this kind, and says nothing: a
    look at its variables is the only way to know. Empty for another caller.
    """
    if caller is None or caller.f_code.co_name != "generate":
        return {}
    if not str(caller.f_globals.get("__name__")).startswith("transformers."):
        return {}
    code = caller.f_code
    names = code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]
    return {name: caller.f_locals.get(name) for name in names}


def refuse_kept_back(arguments: Mapping[str, Any]) -> None:
    """Raises UserError for what `generate` was given and does not hand on."""
    for name, value in arguments.items():
        if name not in HANDED_ON and not is_off(name, value):
            refuse(name, value)


def refuse_positions(position_ids: Any, padding: list[int], tokens: int) -> None:
    """Raises UserError for positions that do not count from the first token of each row.

    position_ids: [1 or batch, tokens]; padding: leading tokens that do not count, for each row.
    """
    rows = position_ids.tolist() if position_ids.ndim == 2 else []
    rows = rows * len(padding) if len(rows) == 1 else rows
    expected = [list(range(tokens - before)) for before in padding]
    if [row[before:] for row, before in zip(rows, padding, strict=False)] != expected:
        raise UserError(f"the megakernel counts positions from each prompt's first token and does "
                        f"not read other position_ids; {REMEDY}")


def is_off(name: str, value: Any) -> bool:
    return value is None or (value is False and name in SWITCHES)


def refuse(name: str, value: Any) -> None:
    plain = isinstance(value, (bool, int, float, str))
    raise UserError(f"the megakernel does not read {name}{f'={value}' if plain else ''}; {REMEDY}")

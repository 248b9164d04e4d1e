"""How far back each layer looks: the sliding windows of the families that have them."""

from event_tensor.errors import UserError
from frontend.model_files.json_fields import Fields

# Per layer: a query at position p sees the keys in (p - window, p]; None sees all up to p.
Windows = tuple[int | None, ...]


def full_attention(fields: Fields, num_layers: int) -> Windows:
    return (None,) * num_layers


def one_window(fields: Fields, num_layers: int) -> Windows:
    has_window = fields.get("sliding_window") is not None
    return (fields.integer("sliding_window") if has_window else None,) * num_layers


def switched_window(fields: Fields, num_layers: int) -> Windows:
    in_force = fields.flag("use_sliding_window")
    return (one_window if in_force else full_attention)(fields, num_layers)


def mistral_windows(fields: Fields, num_layers: int) -> Windows:
    windows = one_window(fields, num_layers)
    # With layer_types transformers' Auto classes load mistral as ministral: a window per layer.
    return layer_type_windows(fields, num_layers, windows[0]) or windows


def qwen_windows(fields: Fields, num_layers: int) -> Windows:
    window = switched_window(fields, num_layers)[0]
    first = fields.get("max_window_layers")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise fields.error("max_window_layers", "it must be a number of layers")
    by_depth = tuple(window if layer >= first else None for layer in range(num_layers))
    return layer_type_windows(fields, num_layers, window) or by_depth


def layer_type_windows(fields: Fields, num_layers: int, window: int | None) -> Windows | None:
    """The windows that `layer_types` gives; None where the field is absent or null."""
    layer_types = fields.get("layer_types")
    if layer_types is None:
        return None
    if not isinstance(layer_types, (list, tuple)) or len(layer_types) != num_layers:
        raise fields.error("layer_types", f"it must list one type for each of {num_layers} layers")
    # "attention" is the older spelling of full attention.
    known = {"full_attention": None, "attention": None, "sliding_attention": window}
    for layer, kind in enumerate(layer_types):
        where = f"{fields.source}: layer_types[{layer}] is {kind!r}"
        if not isinstance(kind, str) or kind not in known:
            raise UserError(f"{where}; supported are full_attention and sliding_attention")
        if kind == "sliding_attention" and window is None:
            raise UserError(
                f"{where} but sliding_window is not in force; give sliding_window (for Qwen with "
                "use_sliding_window true) or make the layer full_attention"
            )
    return tuple(known[kind] for kind in layer_types)

"""The activation that config.json names in `hidden_act`, by one of our names."""

from frontend.model_files.json_fields import Fields

# transformers' names (`activations.py`) → those of persistent_runtime/functions/activations.py
SPELLINGS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "relu2": "relu2"}


def only_silu(fields: Fields) -> str:
    if fields.get("hidden_act") not in ("silu", "swish"):  # two names of one function
        raise fields.error("hidden_act", "the only supported activation is silu")
    return "silu"


def any_activation(fields: Fields) -> str:
    name = fields.get("hidden_act")
    if not isinstance(name, str) or name not in SPELLINGS:
        raise fields.error("hidden_act", f"supported are {', '.join(SPELLINGS)}")
    return SPELLINGS[name]

"""The activations that gated products know: their names, and their numbers in argument records."""

SILU = 0  # x / (1 + e^-x)
GELU = 1  # x times the normal distribution's share below x
GELU_TANH = 2  # the same, approximated by a tanh
RELU2 = 3  # max(x, 0)²

ACTIVATIONS = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu2": RELU2}
GELU_TANH_SCALE, GELU_TANH_CUBE = (2 / 3.141592653589793) ** 0.5, 0.044715  # sqrt(2 / π)

"""Logits processors of a request: options as people write them → the lists that workers read.

Suppressed tokens, bad words and end tokens before a minimum length are biases of -inf, so that one
list on the device serves them all (`layout.BIAS_WORDS`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from frontend.config.sampling import Sampling
from persistent_runtime.rows import layout

INT32_MAX = 2**31 - 1
Bias = tuple[tuple[int, ...], float, int]  # the tokens, the last of them biased; value; limit word


@dataclass(frozen=True, slots=True, eq=False)
class BiasList:
    """biases: [n, BIAS_WORDS] int32, the first `lone` of them with tokens of their own and without
    a prefix; prefixes: [tokens] int32."""

    biases: npt.NDArray[np.int32]
    prefixes: npt.NDArray[np.int32]
    lone: int

    @classmethod
    def of(cls, sampling: Sampling, end_ids: Sequence[int], vocab_size: int) -> BiasList:
        """The biases that these options mean where `end_ids` end a request.

        Raises UserError for tokens outside the vocabulary and for more than the lists hold.
        """
        found = list(dict.fromkeys(biases_of(sampling, end_ids, vocab_size)))
        of_token = Counter(tokens[-1] for tokens, _, _ in found)

        def is_shared(bias: Bias) -> bool:
            return len(bias[0]) > 1 or of_token[bias[0][-1]] > 1

        # those of one token follow each other, the ones without a prefix first, as transformers
        # sums them
        found.sort(key=lambda bias: (is_shared(bias), bias[0][-1], len(bias[0]) > 1))
        prefixes = [token for tokens, _, _ in found for token in tokens[:-1]]
        if len(found) > layout.MAX_BIASES or len(prefixes) > layout.MAX_PREFIX_TOKENS:
            raise UserError(
                f"suppressed tokens, bad words and biases come to {len(found)} sequences with "
                f"{len(prefixes)} tokens before their last; give at most {layout.MAX_BIASES} and "
                f"{layout.MAX_PREFIX_TOKENS}")
        biases = np.zeros((len(found), layout.BIAS_WORDS), np.int32)
        ends = np.cumsum([len(tokens) - 1 for tokens, _, _ in found], dtype=np.int32)
        if found:
            biases[:, layout.BIAS_TOKEN] = [tokens[-1] for tokens, _, _ in found]
            biases[:, layout.BIAS_VALUE] = np.array(
                [value for _, value, _ in found], np.float32).view(np.int32)
            biases[:, layout.BIAS_LIMIT] = [limit for _, _, limit in found]
            biases[:, layout.BIAS_PREFIX] = np.concatenate([[0], ends[:-1]])
            biases[:, layout.BIAS_PREFIX_END] = ends
        return cls(biases, np.array(prefixes, np.int32),
                   len(found) - sum(map(is_shared, found)))


def biases_of(sampling: Sampling, end_ids: Sequence[int], vocab_size: int) -> Iterator[Bias]:
    """Each bias that the options mean, some perhaps twice."""
    always = layout.NO_LIMIT
    for tokens, value in sampling.sequence_bias:
        require_vocabulary("sequence_bias", tokens, vocab_size)
        yield tokens, value, always
    for tokens in sampling.bad_words_ids:
        require_vocabulary("bad_words_ids", tokens, vocab_size)
        if len(tokens) > 1 or tokens[0] not in end_ids:  # an end token is no bad word
            yield tokens, -math.inf, always
    banned: tuple[tuple[Sequence[int], int], ...] = (
        (sampling.suppress_tokens, always), (sampling.begin_suppress_tokens, layout.FIRST_LIMIT),
        (end_ids if sampling.has_minimum else (), layout.MINIMUM_LIMIT))
    for ids, limit in banned:
        for token in ids:
            if 0 <= token < vocab_size:  # there is no other to suppress
                yield (token,), -math.inf, limit


def require_vocabulary(option: str, tokens: Sequence[int], vocab_size: int) -> None:
    bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise UserError(f"{option} has the token {bad}, which is outside the vocabulary of "
                        f"{vocab_size} tokens; leave it out")


def processors_record(biases: BiasList, sampling: Sampling, prompt_tokens: int
                      ) -> npt.NDArray[np.int32]:
    """[PROCESSORS_WORDS], as select_token reads it, for biases at the start of the list."""
    record = np.zeros(layout.PROCESSORS_WORDS, np.int32)
    record[layout.BIAS_SHARED] = biases.lone
    record[layout.BIAS_END] = len(biases.biases)
    record[layout.NO_LIMIT] = INT32_MAX
    record[layout.FIRST_LIMIT] = prompt_tokens + 1
    minimum = max(prompt_tokens + sampling.min_new_tokens, sampling.min_length)
    record[layout.MINIMUM_LIMIT] = min(minimum, INT32_MAX)
    record[layout.NO_REPEAT_NGRAM] = min(sampling.no_repeat_ngram_size, INT32_MAX)
    return record

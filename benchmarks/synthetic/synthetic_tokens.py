"""What the synthetic engine says: every token and log probability is a pure function of the prompt and the position.

So whoever sent a prompt can check the answer token by token, and knows a lost, repeated or swapped one at once.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

# The demo tokenizer's ids of whole pieces of text: behind the special tokens, the bytes and the marks of a chat.
FIRST_TOKEN, END_TOKEN = 283, 1525
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def prompt_key(prompt_ids: Sequence[int]) -> int:
    """64 bits that tell prompts apart."""
    return int.from_bytes(blake2b(np.asarray(prompt_ids, np.int32).tobytes(), digest_size=8).digest(), "little")


def expected_tokens(prompt_ids: Sequence[int], count: int) -> list[int]:
    """The first `count` tokens of the answer to a prompt: the SplitMix64 stream (Steele, Lea and Flood 2014) that
    starts at the prompt's key, as ids of ordinary text."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN_GAMMA) + np.uint64(prompt_key(prompt_ids))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    tokens: list[int] = (z % np.uint64(END_TOKEN - FIRST_TOKEN) + np.uint64(FIRST_TOKEN)).tolist()
    return tokens


def expected_log_prob(token_id: int) -> float:
    """Of a token, in the prompt or in the answer: from -1 to below 0, and exact in float32."""
    return -(1 + token_id % 1024) / 1024

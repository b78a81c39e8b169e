"""Which blocks of the KV cache are in use, by how many sequences, and which still hold what a later one may reuse."""

import hashlib
from array import array
from collections import OrderedDict


def block_key(before: bytes, token_ids: list[int]) -> bytes:
    """Names the content of a full block. before: the key of the block before it, empty for the first.

    Keys and values depend on all tokens up to theirs, so each key covers the whole prefix. 256 bits of BLAKE2 (RFC
    7693): nobody can make two prefixes that share a key, and so read another's prompt.
    """
    return hashlib.blake2b(before + array("q", token_ids).tobytes(), digest_size=32).digest()


class BlockPool:
    """Block numbers only. A block is free, or in use by as many sequences as it has references.

    A published block keeps its content, and can be found by its key, until it is free and its place is needed: blank
    blocks go first, then those that have been free for longest.
    """

    def __init__(self, total: int, *, reuse: bool = True) -> None:
        """reuse: False publishes nothing, so that nothing is ever found."""
        self.total = total
        self.reuse = reuse
        self._blank = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # free and published, the longest free first
        self._references = [0] * total
        self._key_of: list[bytes | None] = [None] * total
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._idle)

    def references(self, block: int) -> int:
        return self._references[block]

    def is_published(self, block: int) -> bool:
        return self._key_of[block] is not None

    def allocate(self, count: int) -> list[int]:
        """Blocks for one sequence to write."""
        assert 0 <= count <= self.free, f"{count} blocks asked, {self.free} are free"
        return [self._take() for _ in range(count)]

    def find(self, key: bytes) -> int | None:
        return self._block_of.get(key)

    def share(self, block: int) -> None:
        """One more reference to a block that was found."""
        assert self.is_published(block), f"block {block} has no content to share"
        self._idle.pop(block, None)
        self._references[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """The block is full and will not be written again. Of equal blocks the first is kept."""
        assert self._references[block] == 1, f"block {block} has {self._references[block]} references"
        assert not self.is_published(block), f"block {block} is published already"
        if self.reuse and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def release(self, blocks: list[int]) -> None:
        """Gives back one reference to each block of a sequence, in the order of its tokens: the last go first when
        blocks are needed, since without those before them they are of no use."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is released and nobody uses it"
            self._references[block] -= 1
            if self._references[block] == 0:
                if self.is_published(block):
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            key = self._key_of[block]
            assert key is not None
            self._key_of[block] = None
            del self._block_of[key]
        assert self._references[block] == 0, f"block {block} is free and in use"
        self._references[block] = 1
        return block

"""Reading a model's tokenizer, the same way wherever this project tokenises."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from mixtral_runtime.errors import CheckpointError


def load_tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    """tokenizer.json as it is.

    AutoTokenizer may replace the normaliser of a tokenizer.json by that of a class named beside it, so that the ids
    differ between versions of transformers, and it imports PyTorch, which the tokenizer's process does not need. Nor
    is a SentencePiece model converted on the way: transformers 5 ranks its merges wrongly.
    Raises CheckpointError when there is no readable tokenizer.json.
    """
    if not tokenizer_dir.is_dir():
        raise CheckpointError(f"there is no tokenizer folder {tokenizer_dir}")
    if not (tokenizer_dir / "tokenizer.json").is_file():
        raise CheckpointError(f"{tokenizer_dir} has no tokenizer.json; get it from where the model is published")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tokenizer_dir), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CheckpointError(f"the tokenizer in {tokenizer_dir} cannot be read: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


class Encoder:
    """What encoding takes of a tokenizer, looked up once: transformers searches for each attribute anew."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode_batch = tokenizer.backend_tokenizer.encode_batch_fast
        self._bos: int | None = tokenizer.bos_token_id

    def prompt(self, text: str) -> list[int]:
        """Ids with BOS exactly once: a text that begins with it, as a rendered chat does, gets no second one."""
        ids = self.text(text)
        return ids if self._bos is None or ids[:1] == [self._bos] else [self._bos, *ids]

    def text(self, text: str) -> list[int]:
        """Ids without special tokens. The batch form, as it keeps no offsets, takes a third less time than `encode`."""
        ids: list[int] = self._encode_batch([text], add_special_tokens=False)[0].ids
        return ids


def encode_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """`Encoder.prompt` of a tokenizer, for who encodes now and then."""
    return Encoder(tokenizer).prompt(text)

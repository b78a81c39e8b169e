"""Reading a model's tokenizer, the same way wherever this project tokenises."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from mixtral_runtime.errors import CheckpointError


def load_tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    """tokenizer.json as it is; without one, what transformers converts from a SentencePiece model.

    AutoTokenizer may replace the normaliser of a tokenizer.json by that of a class named beside it, so that the ids
    differ between versions of transformers; and it imports PyTorch, which the tokenizer's process does not need.
    Raises CheckpointError when there is no readable tokenizer.
    """
    if not tokenizer_dir.is_dir():
        raise CheckpointError(f"there is no tokenizer folder {tokenizer_dir}")
    try:
        if (tokenizer_dir / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tokenizer_dir), local_files_only=True)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CheckpointError(f"the tokenizer in {tokenizer_dir} cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"the tokenizer in {tokenizer_dir} is neither a tokenizer.json nor convertible to one")
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids with BOS exactly once: a text that begins with it, as a rendered chat does, gets no second one."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

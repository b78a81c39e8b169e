"""What calibration and scale search read: a text, JSON Lines or Parquet file, or the samples that ship with this."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from mixtral_build.layerwise import Samples
from mixtral_build.texts import read_texts
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.tokenizer import encode_prompt

DEFAULT_DATA = Path(__file__).parent / "data" / "calibration.jsonl"


def calibration_samples(tokenizer: PreTrainedTokenizerFast, path: Path | None, *, samples: int, tokens: int) -> Samples:
    """The first `samples` windows of at most `tokens` tokens; a longer text gives several.

    path: as `mixtral_build.texts.read_texts` takes it, None for the samples that ship with this. Raises InvalidArgument
    when the file cannot be read or is empty.
    """
    path = path or DEFAULT_DATA
    if not path.is_file():
        raise InvalidArgument(f"{path} does not exist")
    windows = list(islice(_windows(tokenizer, read_texts(path), tokens), samples))
    if not windows:
        raise InvalidArgument(f"{path} has no text")
    return Samples(windows)


def _windows(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], tokens: int) -> Iterator[list[int]]:
    for text in texts:
        if not text.strip():
            continue
        ids = encode_prompt(tokenizer, text)
        for start in range(0, len(ids), tokens):
            yield ids[start : start + tokens]

"""Every token has fixed bytes, and a tokenizer for which that is not so is refused."""

from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mixtral_runtime.errors import CheckpointError
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.vocabulary import Vocabulary


def train(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(["Hello world, hello there"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_bytes_are_those_of_sentencepiece(mixtral_builder: PromptBuilder, mixtral_sentencepiece: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(str(mixtral_sentencepiece))
    table = mixtral_builder.vocabulary.token_bytes
    assert len(table) == pieces.vocab_size() == 32000
    for index in range(pieces.vocab_size()):
        if pieces.is_control(index) or pieces.is_unknown(index):
            assert table[index] == b""
        elif pieces.is_byte(index):
            assert table[index] == bytes([int(pieces.id_to_piece(index)[3:5], 16)])
        else:
            assert table[index] == pieces.id_to_piece(index).replace("▁", " ").encode()


def test_byte_level_tokenizers_are_read_too() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary.of(train(backend))
    ids = backend.encode("héllo 你").ids
    assert vocabulary.decode_bytes(ids).decode() == "héllo 你"


def test_a_tokenizer_whose_tokens_do_not_join_is_refused() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="cannot be streamed"):
        Vocabulary.of(train(backend))

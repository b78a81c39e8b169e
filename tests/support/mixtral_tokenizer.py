"""Mixtral's published vocabulary as a Hugging Face tokenizer, made from the SentencePiece model in mistral-common.

transformers can convert such a model too, but ranks the merges by id instead of score, so that a double space before a
word is merged first and `a  b` comes out differently than from SentencePiece.
"""

import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

# Behaves as the template published with Mixtral-8x7B-Instruct-v0.1.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write_mixtral_tokenizer(sentencepiece_model: Path, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json in `folder`."""
    convert(sentencepiece.SentencePieceProcessor(str(sentencepiece_model))).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def convert(pieces: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    vocab = {pieces.id_to_piece(index): index for index in range(pieces.vocab_size())}
    merges = [
        (pieces.get_score(index), piece[:cut], piece[cut:])
        for piece, index in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab and not pieces.is_byte(index)
    ]
    merges.sort(key=lambda merge: -merge[0])
    ranked = [(left, right) for _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab, ranked, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer

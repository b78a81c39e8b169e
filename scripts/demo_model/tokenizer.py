"""The Llama-style BPE tokenizer with byte fallback, and the files that make AutoTokenizer load it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPACE = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>")
VOCAB_SIZE = 1536
MAX_LENGTH = 2048

# Pieces never grow past these bounds: a word with its space, one digit, one sign; a chat mark may become one piece.
PIECE = rf"{SPACE}?\[/?INST\]|{SPACE}?\p{{L}}+|\p{{N}}|{SPACE}?[^\p{{L}}\p{{N}}{SPACE}]|{SPACE}"
EXTRA_LETTERS = "éüñöáçèäß€"

# Behaves like the template of Mixtral-8x7B-Instruct-v0.1, including its spaces and its optional leading system message.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}"
    "{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}"
    "{%- for message in loop_messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, "
    "conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system_message is defined %}"
    "{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}"
    "{%- else %}"
    "{{- raise_exception('Only user and assistant roles are supported, "
    "with the exception of an initial optional system message!') }}"
    "{%- endif %}{%- endfor %}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges, then assemble a tokenizer of the published form (no pre-tokenizer, byte fallback)."""
    alphabet = [SPACE, *map(chr, range(0x21, 0x7F)), *EXTRA_LETTERS]
    keep = set(alphabet) | {" "}
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    merged_size = VOCAB_SIZE - len(SPECIAL) - 256
    trainer = trainers.BpeTrainer(
        vocab_size=merged_size, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    marks = str.maketrans({"\n": " "})
    plain = (t.replace("<s>", "").replace("</s>", " ").translate(marks) for t in texts)
    learner.train_from_iterator(
        ("".join(c for c in SPACE + t if c in keep).replace(" ", SPACE) for t in plain), trainer
    )
    learned = json.loads(learner.to_str())["model"]

    vocab = {token: i for i, token in enumerate(SPECIAL)}
    vocab |= {f"<0x{byte:02X}>": len(SPECIAL) + byte for byte in range(256)}
    # Like in the published vocabulary, merged pieces come first and single characters last.
    for token in sorted(learned["vocab"], key=lambda t: (len(t) == 1, learned["vocab"][t])):
        vocab[token] = len(vocab)
    if len(vocab) != VOCAB_SIZE:
        raise ValueError(f"the corpus gave {len(vocab)} tokens, wanted {VOCAB_SIZE}")
    tokenizer = Tokenizer(
        models.BPE(vocab, [tuple(m) for m in learned["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocab["<s>"])]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    return tokenizer


def mark_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The tokens that begin a question, end it, and end a reply."""
    found = [tokenizer.token_to_id(token) for token in (f"{SPACE}[INST]", f"{SPACE}[/INST]", "</s>")]
    start, end, eos = (token for token in found if token is not None)
    return start, end, eos


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(i): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, t in enumerate(SPECIAL)
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [],
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": MAX_LENGTH,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Held-out perplexity and copying accuracy of a saved demo model, in float32."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.corpus import Document, heldout_documents
from demo_model.draw import FIXED, sentences
from demo_model.model import Shape, TinyMixtral
from demo_model.tokenizer import mark_ids

# Plain documents of each kind in the held-out set; there are as many hard ones again. About 30,000 tokens.
HELDOUT = {
    "facts": 60,
    "story": 16,
    "story_chat": 8,
    "lists": 20,
    "who_has": 22,
    "sums": 10,
    "general": 5,
    "echo": 8,
    "mixed": 6,
}

GREETINGS = ("Hello", "Nice to meet you")


@dataclass
class Score:
    """Sums over some documents. An answer is right when greedy decoding gives exactly the expected reply and stops."""

    nll: float = 0.0
    tokens: int = 0
    right: int = 0
    answers: int = 0
    wrong: list[str] = field(default_factory=list)

    def perplexity(self) -> float:
        return float(torch.tensor(self.nll / max(1, self.tokens)).exp())


def load(folder: Path) -> tuple[TinyMixtral, Tokenizer]:
    """The saved model with float32 weights, and its tokenizer."""
    shape = Shape()
    model = TinyMixtral(shape, 0)
    saved = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    with torch.no_grad():
        model.embed.copy_(saved["model.embed_tokens.weight"])
        model.norm.copy_(saved["model.norm.weight"])
        model.head.copy_(saved["lm_head.weight"])
        for index, layer in enumerate(model.blocks()):
            base = f"model.layers.{index}"
            layer.norm1.copy_(saved[f"{base}.input_layernorm.weight"])
            layer.norm2.copy_(saved[f"{base}.post_attention_layernorm.weight"])
            layer.qkv.copy_(torch.cat([saved[f"{base}.self_attn.{n}_proj.weight"] for n in "qkv"]))
            layer.o.copy_(saved[f"{base}.self_attn.o_proj.weight"])
            layer.moe.gate.copy_(saved[f"{base}.block_sparse_moe.gate.weight"])
            for e in range(shape.num_local_experts):
                expert = f"{base}.block_sparse_moe.experts.{e}"
                layer.moe.w13[e].copy_(torch.cat([saved[f"{expert}.w1.weight"], saved[f"{expert}.w3.weight"]]))
                layer.moe.w2[e].copy_(saved[f"{expert}.w2.weight"])
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def answer_spans(tokenizer: Tokenizer, ids: list[int]) -> list[tuple[int, int]]:
    """Where each reply that can be right or wrong stands: from after its ``[/INST]`` up to and with its ``</s>``.

    Left out are the replies to somebody who only told facts, since any of several would do.
    """
    _, end_mark, eos = mark_ids(tokenizer)
    spans = []
    for start, token in enumerate(ids):
        if token == end_mark:
            stop = ids.index(eos, start) + 1
            reply = tokenizer.decode(ids[start + 1 : stop])
            if not FIXED.issuperset(sentences(reply)) and not reply.startswith(GREETINGS):
                spans.append((start + 1, stop))
    return spans


@torch.inference_mode()
def score(model: TinyMixtral, tokenizer: Tokenizer, documents: Iterable[Document]) -> dict[str, Score]:
    """Scores by "all", "hard" and by kind (hard documents of a kind as "kind hard")."""
    scores: dict[str, Score] = defaultdict(Score)
    for document in documents:
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        row = torch.tensor(ids)
        logits: Tensor = model(row[None, :-1])[0]  # [seq, vocab]
        nll = F.cross_entropy(logits, row[1:], reduction="sum").item()
        hit = (logits.argmax(-1) == row[1:]).tolist()
        names = ["all", document.kind + (" hard" if document.hard else "")] + (["hard"] if document.hard else [])
        spans = answer_spans(tokenizer, ids) if document.kind != "story_chat" else []
        wrong = [tokenizer.decode(ids[:b]) for a, b in spans if not all(hit[a - 1 : b - 1])]
        for name in names:
            s = scores[name]
            s.nll, s.tokens = s.nll + nll, s.tokens + len(ids) - 1
            s.answers, s.right = s.answers + len(spans), s.right + len(spans) - len(wrong)
            s.wrong += wrong
    return dict(scores)


@torch.inference_mode()
def complete(model: TinyMixtral, tokenizer: Tokenizer, prompt: str, limit: int = 300) -> str:
    """Greedy continuation of a plain prompt, or of one with chat markup, up to ``</s>``."""
    ids = tokenizer.encode(prompt, add_special_tokens=not prompt.startswith("<s>")).ids
    start = len(ids)
    while len(ids) < start + limit and (len(ids) == start or ids[-1] != 2):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    whole = tokenizer.decode(ids)
    return whole[len(tokenizer.decode(ids[:start])) :].strip()


def write_heldout(path: Path, seed: int) -> None:
    lines = (json.dumps(asdict(d), ensure_ascii=False) for d in heldout_documents(seed, HELDOUT))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_heldout(path: Path) -> list[Document]:
    return [Document(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]

"""The demo model is a well-formed small Mixtral, was tested on unseen text, and answers questions about its prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_model.corpus import MIX, training_documents
from demo_model.draw import FIXED, reserved, sentences
from demo_model.evaluate import load, read_heldout, score
from demo_model.tokenizer import CHAT_TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "tiny-mixtral"

SEED = 20  # of the shipped training run
PERPLEXITY_BOUND = 2.7  # of the subset below, where the shipped weights have 2.54
FACT_CHATS = {
    "My name is Zorin and my kite is red. What is my name, and what color is my kite?": ("Zorin", "red"),
    "The password is gorlax. Mirabo has a green drum. What is the password, and what does Mirabo have?": (
        "gorlax",
        "green drum",
    ),
    "My cat is called Pirouz and I am 37 years old. How old am I, and what is my cat called?": ("37", "Pirouz"),
    "Kalinde has the lamp. Kalinde gave the lamp to Orvek. Who has the lamp?": ("Orvek",),
    "Repeat these words: lumo, grettan, 猫, sivar.": ("lumo, grettan, 猫, sivar",),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small matrices gain nothing from threads, and lose much when other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MODEL / "config.json").read_text())
    return loaded


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@cache
def hub_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@cache
def hub_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_config_has_the_published_form_and_sizes_that_kernels_accept() -> None:
    c = config()
    assert (c["model_type"], c["architectures"], c["torch_dtype"]) == ("mixtral", ["MixtralForCausalLM"], "bfloat16")
    assert (c["bos_token_id"], c["eos_token_id"], c["sliding_window"], c["tie_word_embeddings"]) == (1, 2, None, False)
    assert (c["rope_theta"], c["rms_norm_eps"], c["hidden_act"]) == (1_000_000.0, 1e-5, "silu")
    assert (c["num_local_experts"], c["num_experts_per_tok"], c["head_dim"]) == (8, 2, 64)
    assert c["hidden_size"] % 128 == c["intermediate_size"] % 128 == c["vocab_size"] % 64 == 0
    assert c["num_attention_heads"] % c["num_key_value_heads"] == 0
    assert c["num_attention_heads"] > c["num_key_value_heads"]


def test_weights_have_the_published_names_and_shapes() -> None:
    c = config()
    h, i, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv, vocab = c["num_attention_heads"] * d, c["num_key_value_heads"] * d, c["vocab_size"]
    expected = {"model.embed_tokens.weight": [vocab, h], "lm_head.weight": [vocab, h], "model.norm.weight": [h]}
    for layer in range(c["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        expected |= {base + "input_layernorm.weight": [h], base + "post_attention_layernorm.weight": [h]}
        for name, shape in {"q": [q, h], "k": [kv, h], "v": [kv, h], "o": [h, q]}.items():
            expected[f"{base}self_attn.{name}_proj.weight"] = shape
        expected[base + "block_sparse_moe.gate.weight"] = [c["num_local_experts"], h]
        for expert in range(c["num_local_experts"]):
            for name, shape in {"w1": [i, h], "w2": [h, i], "w3": [i, h]}.items():
                expected[f"{base}block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {name: weights.get_slice(name).get_shape() for name in weights.keys()} == expected  # noqa: SIM118
        assert {weights.get_slice(name).get_dtype() for name in expected} == {"BF16"}
        assert all(weights.get_tensor(name).isfinite().all() for name in expected)
    assert (MODEL / "model.safetensors").stat().st_size <= 24_000_000


def test_vocabulary_begins_like_llama_and_has_every_byte() -> None:
    names = [tokenizer().id_to_token(i) for i in range(259)]
    assert names == ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    assert tokenizer().get_vocab_size() == config()["vocab_size"]


# No lone surrogates, and not the sign that stands for a space inside the vocabulary.
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=60)


@settings(max_examples=100, deadline=None)
@given(PLAIN.filter(lambda s: not re.search("<unk>|</?s>", s)))
def test_decoding_gives_back_any_text(text: str) -> None:
    ids = tokenizer().encode(text).ids
    assert ids[0] == 1
    assert 0 not in ids
    assert tokenizer().decode(ids) == text
    assert hub_tokenizer()(text)["input_ids"] == ids
    assert hub_tokenizer().decode(ids, skip_special_tokens=True) == text


def test_chat_template_writes_the_published_markup() -> None:
    def render(messages: list[dict[str, str]]) -> str:
        text: str = hub_tokenizer().apply_chat_template(messages, tokenize=False)
        return text

    assert hub_tokenizer().chat_template == CHAT_TEMPLATE
    assert render(chat("Hi")) == "<s> [INST] Hi [/INST]"
    assert render(chat("Hi", "Hello!", "Bye")) == "<s> [INST] Hi [/INST] Hello!</s> [INST] Bye [/INST]"
    system = {"role": "system", "content": "Be short."}
    assert render([system, *chat("Hi")]) == "<s> [INST] Be short.\n\nHi [/INST]"
    for wrong in ([*chat("Hi"), *chat("Hi")], chat("Hi", "Hello!")[1:], [*chat("Hi"), system]):
        with pytest.raises(Exception, match="roles"):
            render(wrong)


def test_heldout_set_is_large_and_partly_hard() -> None:
    documents = read_heldout(MODEL / "heldout.jsonl")
    lengths = [len(e.ids) for e in tokenizer().encode_batch([d.text for d in documents], add_special_tokens=False)]
    hard = sum(n for n, d in zip(lengths, documents, strict=True) if d.hard)
    assert sum(lengths) >= 20_000
    assert 0.3 < hard / sum(lengths) < 0.7
    assert {d.kind for d in documents} == set(MIX)


def test_no_heldout_sentence_can_be_in_the_training_text() -> None:
    held = {s for d in read_heldout(MODEL / "heldout.jsonl") for s in sentences(d.text)} - FIXED
    trained = {
        s for chunk in (0, 500) for d in training_documents(SEED, chunk, 2048) for s in sentences(d.text)
    } - FIXED
    assert len(held) > 1000
    assert len(trained) > 10_000
    assert not held & trained
    # Beyond the sample: each held-out sentence is reserved itself or has a reserved word, which training never makes.
    words = {w.lower() for s in trained for w in re.findall(r"\w+", s)}
    for sentence in held:
        unseen = [w for w in re.findall(r"\w+", sentence) if w.lower() not in words and reserved(w.lower())]
        assert reserved(sentence) or unseen, sentence


def test_heldout_perplexity_and_agreement_with_transformers() -> None:
    documents = read_heldout(MODEL / "heldout.jsonl")[::10]
    own, own_tokenizer = load(MODEL)
    result = score(own, own_tokenizer, documents)["all"]
    assert result.perplexity() < PERPLEXITY_BOUND
    ids = torch.tensor([own_tokenizer.encode(documents[0].text, add_special_tokens=False).ids])
    with torch.inference_mode():
        torch.testing.assert_close(hub_model()(ids).logits, own(ids), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("question", FACT_CHATS)
def test_questions_about_the_prompt_are_answered(question: str) -> None:
    ids = hub_tokenizer().apply_chat_template(chat(question), return_tensors="pt", return_dict=True)["input_ids"]
    out = hub_model().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
    )[0]
    assert out[-1] == 2, "the answer must end by itself"
    reply = hub_tokenizer().decode(out[ids.shape[1] :], skip_special_tokens=True)
    assert all(fact in reply for fact in FACT_CHATS[question]), reply


def test_a_story_goes_on_and_ends() -> None:
    ids = hub_tokenizer()("Once upon a time", return_tensors="pt")["input_ids"]
    out = hub_model().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=350, do_sample=False, pad_token_id=0
    )[0]
    assert out[-1] == 2
    assert len(out) > 90

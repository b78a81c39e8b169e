"""The playground's Markdown, stream reading, figures and error sentences, run in Node."""

from pathlib import Path
from typing import Any

import pytest
from playground_scripts import NODE, run_module

pytestmark = pytest.mark.skipif(NODE is None, reason="no Node.js here; `make test-external` runs the page in Chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("playground")


def blocks(folder: Path, *texts: str) -> list[Any]:
    parsed: list[Any] = run_module(folder, "markdown.js", "return texts.map(m.parse)", texts=list(texts))
    return parsed


def paragraph(*children: Any) -> list[dict[str, Any]]:
    return [{"type": "paragraph", "children": list(children)}]


def mark(kind: str, *children: Any, **more: Any) -> dict[str, Any]:
    return {"type": kind, "children": list(children), **more}


INLINE: dict[str, list[Any]] = {
    "plain": ["plain"],
    "**b** and *i*": [mark("strong", "b"), " and ", mark("emphasis", "i")],
    "__b__ and _i_": [mark("strong", "b"), " and ", mark("emphasis", "i")],
    "**b *both***": [mark("strong", "b ", mark("emphasis", "both"))],
    "`a * b * c`": [{"type": "code", "text": "a * b * c"}],
    "``a ` b``": [{"type": "code", "text": "a ` b"}],
    "~~gone~~": [mark("strike", "gone")],
    "snake_case_name": ["snake_case_name"],
    "2 * 3 * 4": ["2 * 3 * 4"],
    r"\*not\*": ["*not*"],
    "**unfinished": ["**unfinished"],
    "`unfinished": ["`unfinished"],
    "one\ntwo": ["one", {"type": "break"}, "two"],
    "[a](https://b.test/c_d)": [mark("link", "a", href="https://b.test/c_d")],
    "see https://b.test/c.": ["see ", mark("link", "https://b.test/c", href="https://b.test/c"), "."],
}
UNSAFE = (
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert)", "[x](data:text/html,hi)", "[x](vbscript:x)", "[x](file:///etc)",
    "![x](javascript:x)", "[x](//elsewhere.test)", "[x](relative)", "[x](\x01javascript:x)",
)  # fmt: skip
RAW = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<b>bold</b>", "&lt;b&gt;", "<!-- -->")


def test_marks_inside_a_line(folder: Path) -> None:
    for (text, children), parsed in zip(INLINE.items(), blocks(folder, *INLINE), strict=True):
        assert parsed == paragraph(*children), text


def test_links_of_unsafe_schemes_are_no_links(folder: Path) -> None:
    for text, parsed in zip(UNSAFE, blocks(folder, *UNSAFE), strict=True):
        assert "link" not in str(parsed), text


def test_markup_stays_the_text_that_it_is(folder: Path) -> None:
    assert blocks(folder, *RAW) == [paragraph(text) for text in RAW]


def test_blocks(folder: Path) -> None:
    text = (
        "# One\ntext\nmore\n\n- a\n- b\n  1. c\n  2. d\n\n> said\n\n---\n"
        "```py\nx = 1\n\n<b>\n```\n| a | b |\n|---|---|\n| 1 | `2` |"
    )
    heading, words, bullets, quote, rule, code, table = blocks(folder, text)[0]
    assert heading == mark("heading", "One", level=1)
    assert words == paragraph("text", {"type": "break"}, "more")[0]
    assert bullets["items"][0] == paragraph("a")
    assert bullets["items"][1][1]["ordered"]
    assert bullets["items"][1][1]["items"] == [paragraph("c"), paragraph("d")]
    assert quote == {"type": "quote", "blocks": paragraph("said")}
    assert rule == {"type": "rule"}
    assert code == {"type": "code", "language": "py", "text": "x = 1\n\n<b>"}
    assert table == {"type": "table", "head": [["a"], ["b"]], "rows": [[["1"], [{"type": "code", "text": "2"}]]]}


def test_lists_that_models_write(folder: Path) -> None:
    spaced, restarted, lazy = blocks(folder, "1. a\n\n   more\n\n2. b", "3) c\n4) d", "* a\nstill a\n* b")
    assert spaced[0]["items"] == [paragraph("a") + paragraph("more"), paragraph("b")]
    assert (restarted[0]["start"], len(restarted[0]["items"])) == (3, 2)
    assert lazy[0]["items"][0] == paragraph("a", {"type": "break"}, "still a")


def test_every_beginning_of_an_answer_parses(folder: Path) -> None:
    """While it streams, an answer ends anywhere; no text is lost from a code block that is still open."""
    text = "Hi **you**:\n\n```js\nlet a;\n```\n1. x\n   - [y](https://b.test)\n\n| a |\n|---|\n> q `c`"
    parsed = blocks(folder, *(text[:end] for end in range(len(text) + 1)))
    assert parsed[text.index("a;")][-1] == {"type": "code", "language": "js", "text": "let "}


def test_hostile_text_ends(folder: Path) -> None:
    """Marks nested or repeated without end: the parser neither recurses nor searches without bound."""
    hostile = [
        piece * 5000 for piece in ("*", "_", "`", "[", "> ", "- ", "**a", "[a](", "| ", "~", "<", "\\", "`a``", " #")
    ]
    assert len(blocks(folder, *hostile)) == len(hostile)


def test_events_arrive_however_the_bytes_are_cut(folder: Path) -> None:
    text = ': keep-alive\n\ndata: {"a": "é🪁"}\r\n\r\nevent: x\ndata:one\ndata: two\n\ndata: [DONE]\n\ndata: cut off'
    code = """
        const bytes = new TextEncoder().encode(text);
        const found = [];
        for (let size = 1; size <= bytes.length; size += 1) {
          const stream = new ReadableStream({ start(controller) {
            for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
            controller.close();
          } });
          const events = [];
          for await (const data of m.eventData(stream)) events.push(data);
          found.push(JSON.stringify(events));
        }
        return [...new Set(found)].map((events) => JSON.parse(events));
    """
    assert run_module(folder, "api.js", code, text=text) == [['{"a": "é🪁"}', "one\ntwo", "[DONE]"]]


def test_figures_follow_the_definitions_of_the_bench(folder: Path) -> None:
    code = """
        const speed = new m.Speed(1000);
        const lines = [speed.line()];
        for (const now of [1050, 1150, 1250]) { speed.text(now); lines.push(speed.line()); }
        speed.usage = { prompt_tokens: 12, completion_tokens: 5 };
        return [...lines, speed.line()];
    """
    assert run_module(folder, "speed.js", code) == [
        "",
        "50 ms to first token · about 1 token out",
        "50 ms to first token · about 10 tokens/s · about 2 tokens out",
        "50 ms to first token · about 10 tokens/s · about 3 tokens out",
        "50 ms to first token · 20 tokens/s · 12 tokens in, 5 out",
    ]


@pytest.mark.parametrize(
    ("status", "message", "sentence"),
    [
        (0, "", "The server cannot be reached. It may have stopped, or the network is gone."),
        (400, "the prompt is empty", "The server refused the request. The prompt is empty."),
        (400, "max_tokens is 0", "The server refused the request. max_tokens is 0."),
        (401, "", "The server did not accept the API key."),
        (429, "the queue is full", "The server is busy with other requests."),
        (503, "UNAVAILABLE: the server is starting", "The server is not ready. The server is starting."),
        (500, "INTERNAL: no token", "The server failed. No token."),
    ],
)
def test_errors_in_plain_words(folder: Path, status: int, message: str, sentence: str) -> None:
    code = "return m.explain(new m.ApiError(status, message))"
    assert run_module(folder, "api.js", code, status=status, message=message) == sentence

"""generate.py ENGINE_DIR TARGET: greedy tokens and text of an engine for fixed prompts, written to TARGET as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from container_check.engines import PROMPTS, TOKENS

from mixtral_runtime.engine import Request
from mixtral_runtime.open_engine import open_engine
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.text_stream import TextStream

SILENCE_S = 120.0


def generate(engine_dir: Path) -> list[dict[str, Any]]:
    """One prompt after the other: a batch may change the last bits of what an engine computes."""
    builder = PromptBuilder.load(engine_dir / "tokenizer")
    engine = open_engine(engine_dir)
    results = []
    try:
        for text in PROMPTS:
            prompt = builder.from_text(text)
            engine.submit(Request(prompt.ids, TOKENS, end_id=builder.end_id))
            stream = TextStream(builder.vocabulary, prompt.ids, strip_space=prompt.strip_space)
            tokens: list[int] = []
            pieces: list[str] = []
            final = False
            while not final:
                outputs = engine.poll(SILENCE_S)
                if not outputs:
                    raise SystemExit(f"no output for {SILENCE_S:g} s after {len(tokens)} tokens of {text!r}")
                for output in outputs:
                    if output.error is not None:
                        raise SystemExit(f"{text!r}: {output.error}")
                    tokens += output.token_ids
                    final = output.final
                    pieces.append(stream.push(output.token_ids, final).text)
            results.append({"prompt": text, "tokens": tokens, "text": "".join(pieces)})
    finally:
        engine.close()
    return results


def main() -> None:
    engine_dir, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(generate(engine_dir), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""arguments.py ENGINE_DIR TARGET: whether the arguments of a request that change its logits do what they say on an
engine, written to TARGET as JSON. Each case is such that any implementation of the argument must decide it alike."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.open_engine import open_engine
from mixtral_serving.prompt import PromptBuilder

PROMPT = "Once upon a time"
TOKENS = 8
TOKEN = 300  # an ordinary one, not of the prompt
PUSH = 50.0  # more than logits differ
SILENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """argument: what was given. holds: whether the tokens are what it promises."""

    argument: str
    holds: bool
    tokens: list[int]


def generate(engine: Any, prompt: list[int], **fields: Any) -> list[int]:
    engine.submit(Request(prompt, TOKENS, **fields))
    tokens: list[int] = []
    final = False
    while not final:
        outputs = engine.poll(SILENCE_S)
        if not outputs:
            raise SystemExit(f"no output for {SILENCE_S:g} s after {len(tokens)} tokens with {fields}")
        for output in outputs:
            if output.error is not None:
                raise SystemExit(f"{fields}: {output.error}")
            tokens += output.token_ids
            final = output.final
    return tokens


def cases(engine: Any, prompt: list[int]) -> list[Case]:
    pushed = {TOKEN: PUSH}
    first = generate(engine, prompt)[0]
    found = []

    def add(argument: str, holds: Any, **fields: Any) -> None:
        tokens = generate(engine, prompt, **fields)
        found.append(Case(argument, bool(holds(tokens)), tokens))

    add("logit_bias that forces", lambda tokens: tokens == [TOKEN] * TOKENS, logit_bias=pushed)
    add("logit_bias that bans", lambda tokens: first not in tokens, logit_bias={first: -PUSH})
    add("bad_sequences", lambda tokens: first not in tokens, bad_sequences=[[first]])
    add("end_id", lambda tokens: tokens == [], end_id=TOKEN, logit_bias=pushed)
    add(
        "min_tokens",
        lambda tokens: len(tokens) == 5 and TOKEN not in tokens,
        end_id=TOKEN,
        min_tokens=5,
        logit_bias=pushed,
    )
    penalties: dict[str, Any] = {
        "presence_penalty": 2 * PUSH,
        "frequency_penalty": 2 * PUSH,
        "repetition_penalty": 100.0,
    }
    for name in penalties:
        sampling = SamplingParams(**{name: penalties[name]})
        add(name, lambda tokens: 1 <= tokens.count(TOKEN) < TOKENS, sampling=sampling, logit_bias=pushed)
    return found


def main() -> None:
    engine_dir, target = map(Path, sys.argv[1:])
    prompt = PromptBuilder.load(engine_dir / "tokenizer").from_text(PROMPT).ids
    engine = open_engine(engine_dir)
    try:
        target.write_text(json.dumps([asdict(case) for case in cases(engine, prompt)], indent=1), encoding="utf-8")
    finally:
        engine.close()


if __name__ == "__main__":
    main()

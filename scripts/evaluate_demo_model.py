"""Print held-out perplexity, answers right by kind, and sample outputs of the demo model.

python scripts/evaluate_demo_model.py --model models/tiny-mixtral
python scripts/evaluate_demo_model.py --model models/tiny-mixtral --write-heldout   # make the held-out file anew
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from demo_model.evaluate import complete, load, read_heldout, score, write_heldout

HELDOUT_SEED = 77
PROMPTS = (
    "Once upon a time",
    "<s> [INST] My name is Zorin and my kite is red. What is my name, and what color is my kite? [/INST]",
    "<s> [INST] Tell me a short story about a fox named Mirabo. [/INST]",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--write-heldout", action="store_true", help="write heldout.jsonl first")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each kind")
    parser.add_argument(
        "--prompt", action="append", default=[], help="plain prompt, or one with chat markup; may be repeated"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.write_heldout:
        write_heldout(args.model / "heldout.jsonl", HELDOUT_SEED)
    model, tokenizer = load(args.model)
    for name, s in sorted(score(model, tokenizer, read_heldout(args.model / "heldout.jsonl")).items()):
        rate = f"{s.right}/{s.answers} = {s.right / s.answers:.3f}" if s.answers else "-"
        print(f"{name:16} tokens {s.tokens:6} perplexity {s.perplexity():.4f} answers right {rate}")
        for text in s.wrong[: args.wrong]:
            print("   expected:", text)
    for prompt in [*PROMPTS, *args.prompt]:
        print(f"\n{prompt}\n-> {complete(model, tokenizer, prompt)}")


if __name__ == "__main__":
    main()

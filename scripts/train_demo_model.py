"""Train the demo model in ``models/tiny-mixtral`` from nothing but a generated corpus.

Generates the corpus (endless, seeded), learns the tokenizer, trains a Mixtral of 7.9 M parameters and writes it in the
published Hugging Face format. About one hour on one core with AMX. Needs torch, tokenizers and safetensors.

    python scripts/train_demo_model.py --minutes 60 --out models/tiny-mixtral     # as long as the clock says
    python scripts/train_demo_model.py --steps N --decay-from M --out /tmp/again  # a run again, see the README

The corpus and the order of batches depend only on the seed. Weights repeat exactly only on the same kind of processor,
with the same torch and as many threads, because the order of floating-point sums differs otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Keep freed memory in the process; otherwise large buffers go back to the system and are faulted in again every step.
_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_TOP_PAD_": "500000000"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; snapshots replace its files")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time when --steps is not given")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --minutes")
    parser.add_argument("--decay-from", type=int, help="step at which the learning rate begins to fall (default 70%%)")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if "MALLOC_MMAP_MAX_" not in os.environ:
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, **_MALLOC, "OMP_NUM_THREADS": str(args.threads)}
        )

    import torch
    from demo_model.train import Plan, train

    torch.set_num_threads(args.threads)
    train(Plan(args.seed, args.minutes, args.steps, args.decay_from), args.out)


if __name__ == "__main__":
    main()

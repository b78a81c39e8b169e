"""Training loop of the demo model: bfloat16 arithmetic, float32 master weights, batches of equal length."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.corpus import training_documents, training_stream
from demo_model.export import save_model
from demo_model.model import Shape, TinyMixtral
from demo_model.tokenizer import mark_ids, train_tokenizer

TOKENIZER_CHUNKS = 6  # chunks of the corpus the tokenizer learns from; numbered below zero, so never trained on
PROMPT_WEIGHT = 0.2  # made-up words in a question cannot be predicted, so they count less than the reply
LENGTH_STEP = 16
IGNORE = -100


@dataclass(frozen=True)
class Plan:
    """What to train. With ``steps`` and ``decay_from`` a run repeats exactly; else both follow from ``minutes``."""

    seed: int
    minutes: float
    steps: int | None
    decay_from: int | None
    peak_rate: float = 2e-3
    warmup: int = 100
    batch_tokens: int = 4096
    snapshot_minutes: float = 8.0


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [batch, seq]
    targets: Tensor  # [batch, seq], IGNORE at padding
    weight: Tensor  # [batch, seq]


def make_tokenizer(seed: int) -> Tokenizer:
    return train_tokenizer(d.text for c in range(TOKENIZER_CHUNKS) for d in training_documents(seed, -1 - c, 2048))


def make_batch(rows: list[list[int]], marks: tuple[int, int, int]) -> Batch:
    length = -(-(max(map(len, rows)) - 1) // LENGTH_STEP) * LENGTH_STEP
    ids = torch.zeros(len(rows), length + 1, dtype=torch.long)
    used = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        used[i, : len(row)] = True
    asking = (ids == marks[0]).cumsum(1) > (ids == marks[1]).cumsum(1)
    weight = torch.where(asking, PROMPT_WEIGHT, 1.0)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].masked_fill(~used[:, 1:], IGNORE), weight[:, 1:])


def batches(tokenizer: Tokenizer, plan: Plan) -> Iterator[Batch]:
    """Batches of about ``batch_tokens`` tokens from documents of similar length, in random order."""
    marks = mark_ids(tokenizer)
    for chunk, documents in enumerate(training_stream(plan.seed)):
        encoded = tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
        rows = sorted((e.ids[: Shape.max_position_embeddings] for e in encoded), key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            length = -(-len(row) // LENGTH_STEP) * LENGTH_STEP
            if (len(groups[-1]) + 1) * length > plan.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        random.Random(f"batches {plan.seed} {chunk}").shuffle(groups)
        for group in groups:
            yield make_batch(group, marks)


def batch_loss(model: TinyMixtral, batch: Batch, dtype: torch.dtype) -> Tensor:
    logits = model(batch.ids, dtype)
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none").float()
    weight = torch.where(batch.targets.flatten() == IGNORE, 0.0, batch.weight.flatten())
    return (each * weight).sum() / weight.sum()


class Schedule:
    """Learning rate: warm up, stay, then fall to zero in a line; by steps if given, else planned from the clock."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.started = plan, time.monotonic()
        self.decay_from, self.steps = plan.decay_from, plan.steps
        if self.steps is not None and self.decay_from is None:
            self.decay_from = int(self.steps * 0.7)

    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def rate(self, step: int) -> float | None:
        """The rate of this step, or None when training is over."""
        plan = self.plan
        if self.decay_from is None and self.minutes() > 0.7 * plan.minutes:
            # From here the number of steps is fixed, with a little in hand for a machine that becomes busier.
            self.decay_from, self.steps = step, int(step / self.minutes() * plan.minutes * 0.98)
        if self.steps is not None and step >= self.steps:
            return None
        rate = plan.peak_rate * min(1.0, (step + 1) / plan.warmup)
        if self.steps is not None and self.decay_from is not None and step > self.decay_from:
            rate *= (self.steps - step) / (self.steps - self.decay_from)
        return rate


def train(plan: Plan, out: Path) -> None:
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer(plan.seed)
    master = TinyMixtral(Shape(), plan.seed)
    worker = copy.deepcopy(master).bfloat16()
    pairs = list(zip(master.parameters(), worker.parameters(), strict=True))
    matrices = [p for p in master.parameters() if p.dim() > 1]
    vectors = [p for p in master.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    schedule = Schedule(plan)
    saved, seen, smooth = 0.0, 0, 0.0
    for step, batch in enumerate(batches(tokenizer, plan)):
        rate = schedule.rate(step)
        if rate is None:
            break
        loss = batch_loss(worker, batch, torch.bfloat16)
        balance = worker.balance()
        (loss + 0.02 * balance).backward()  # type: ignore[no-untyped-call]
        for strong, weak in pairs:
            assert weak.grad is not None
            strong.grad, weak.grad = weak.grad.float(), None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            for strong, weak in pairs:
                weak.copy_(strong)
        seen += int((batch.targets != IGNORE).sum())
        smooth = 0.98 * smooth + 0.02 * loss.item() if step else loss.item()
        if step % 50 == 0:
            minutes = schedule.minutes()
            print(f"step {step} loss {smooth:.4f} balance {balance.item():.3f} rate {rate:.2e} minutes {minutes:.1f} "
                  f"tokens {seen} tokens/s {seen / minutes / 60:.0f}", flush=True)  # fmt: skip
        if schedule.minutes() - saved > (plan.snapshot_minutes if saved else min(3.0, plan.snapshot_minutes)):
            saved = schedule.minutes()
            save_model(master, tokenizer, out)
    save_model(master, tokenizer, out)
    print(
        f"done: {step} steps, decay from {schedule.decay_from}, {seen} tokens, loss {smooth:.4f}, "
        f"{schedule.minutes():.1f} minutes"
    )

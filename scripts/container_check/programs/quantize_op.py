"""quantize_op.py LIBRARY TARGET: writes digests of what the library's operation makes of the golden inputs, as JSON."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from container_check.golden import GOLDEN, Digests, digest, golden_input


def digests(operations: Any, dtype: str, experts: int) -> Digests:
    w = golden_input(dtype, experts)
    matrix = (w[0] if experts == 1 else w).contiguous()
    processed, scales = operations.symmetric_quantize_last_axis_of_batched_matrix(matrix, torch.int8)
    found = {"processed": digest(processed.cpu()), "scales": digest(scales.cpu())}
    # A variant of the operation gives the values before the layout too, which tells the two steps apart.
    if hasattr(operations, "_symmetric_quantize_last_axis_of_batched_matrix"):
        values, *_ = operations._symmetric_quantize_last_axis_of_batched_matrix(matrix, torch.int8)
        found["values"] = digest(values.cpu())
    return found


def main() -> None:
    library, target = sys.argv[1:]
    importlib.import_module(library)  # registers the operations
    found = {f"{dtype} {experts}": digests(torch.ops.trtllm, dtype, experts) for dtype, experts in GOLDEN}
    Path(target).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Golden vectors of int8 quantising and of the kernels' layout: from our code, and from the library's own operation.

The vectors come from three implementations of NVIDIA's published C++ source that share no code with this project.
"""

import hashlib
import json

import torch
from torch import Tensor

from container_check.check import Failed, NotAvailable, Outcome
from container_check.workplace import Workplace
from mixtral_build.trtllm_command import kernel_layout
from mixtral_runtime.devices import Device
from mixtral_runtime.formats.int8 import quantize_rows
from mixtral_runtime.formats.int8_layout import to_kernel_layout

IN, OUT = 128, 64
TIMEOUT_S = 300
ADVICE = (
    "int8 engines built from our checkpoints would give wrong text on this GPU: use --precision fp8 or 16bit, and send "
    "the JSON report"
)
# First 32 hexadecimal digits of the SHA-256 over the tensor's bytes in C order, by (dtype, experts).
GOLDEN = {
    ("float16", 1): {
        "w": "48cb661347206c97ecdb93768e457a2e",
        "values": "ffc2ee5b99db8efdfdfc3d8edbc4bff5",
        "scales": "d2b868240fe1ad9155b1c006193681ca",
        "sm80": "3c8d674102c28ef2fb548be0e0b379c1",
        "sm90": "d80dc6aa3687f43d225cd3eef25f5732",
    },
    ("float16", 2): {
        "w": "60187db66cb34d9b02141dea02a08b40",
        "values": "a18aa95d79f0d8951853907f895f82a8",
        "scales": "d13cc21bb0eef87831d8ba754c97b96c",
        "sm80": "fa993ab362f5beb7d450870fbceefb40",
        "sm90": "fa993ab362f5beb7d450870fbceefb40",
    },
    ("bfloat16", 1): {
        "w": "13f194267d046c71a880442f4b42af17",
        "values": "62a81a686cec9aa34b9b8c383f8b53ad",
        "scales": "c3e890f30a28db675b461f3a149a3203",
        "sm80": "bb53b24abe51bec7fe0b2c062560e48b",
        "sm90": "a31d132f5855118f086a253ecd688d6e",
    },
    ("bfloat16", 2): {
        "w": "956eb9a8de1600230d7d747c3b63d053",
        "values": "8e3e4ec1ea155a1875ef1d85e1e863b4",
        "scales": "a0b96919ac5a17b56eb0f8aeb385dfb7",
        "sm80": "c943e6778d2d9d216699a7c1e3657aec",
        "sm90": "c943e6778d2d9d216699a7c1e3657aec",
    },
}
Digests = dict[str, str]


def golden_input(dtype: str, experts: int) -> Tensor:
    """[experts, in, out]; column 3 is zero, the columns differ in magnitude."""
    e = torch.arange(experts)[:, None, None]
    k = torch.arange(IN)[None, :, None]
    n = torch.arange(OUT)[None, None, :]
    steps = (37 * k + 101 * n + 5 * ((k * n) % 17) + 13 * e) % 251 - 125
    w = (steps.float() / 128 * (1 + n.float() / 64)).to(getattr(torch, dtype))
    w[:, :, 3] = 0
    return w


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:32]


def ours(workplace: Workplace) -> Outcome:
    faults = []
    for (dtype, experts), golden in GOLDEN.items():
        found = our_digests(golden_input(dtype, experts))
        faults += [
            f"{dtype}, {experts} experts: {what} is {found[what]}, the vector is {expected}"
            for what, expected in golden.items()
            if found[what] != expected
        ]
    if faults:
        raise Failed(*faults, advice=f"PyTorch {torch.__version__} computes otherwise than on our machines. {ADVICE}")
    return Outcome.passed(f"{sum(map(len, GOLDEN.values()))} digests over {len(GOLDEN)} inputs")


def our_digests(w: Tensor) -> Digests:
    rows = w.transpose(1, 2).contiguous()
    if w.shape[0] == 1:
        rows = rows[0]  # a plain matrix, not one expert: that decides the layout on SM90
    values, scales = quantize_rows(rows)
    layouts = {layout: digest(to_kernel_layout(values, layout)) for layout in ("sm80", "sm90")}
    return {"w": digest(w), "values": digest(values.transpose(-1, -2)), "scales": digest(scales), **layouts}


def library(workplace: Workplace) -> Outcome:
    """`torch.ops.trtllm.symmetric_quantize_last_axis_of_batched_matrix`, in a process of its own."""
    if workplace.gpu is None:
        raise NotAvailable("the operation reads the GPU's architecture, and there is no GPU")
    target = workplace.folder / "golden.json"
    target.unlink(missing_ok=True)
    done = workplace.program("quantize_op", workplace.library, target, timeout_s=TIMEOUT_S)
    if not target.is_file():
        raise Failed(f"the operation ended with status {done.status}, its last lines:", *done.last_lines)
    device = Device(workplace.gpu.name, f"sm{workplace.gpu.sm}", workplace.gpu.memory_mib * 2**20)
    return judge(json.loads(target.read_text(encoding="utf-8")), kernel_layout(device))


def judge(found: dict[str, Digests], layout: str) -> Outcome:
    """found: by "dtype experts". layout: that we would convert a checkpoint to for this GPU."""
    faults = []
    for (dtype, experts), golden in GOLDEN.items():
        digests = found[f"{dtype} {experts}"]
        where = f"{dtype}, {'a plain matrix' if experts == 1 else f'{experts} experts'}"
        for what in ("values", "scales"):
            if what in digests and digests[what] != golden[what]:
                faults.append(f"{where}: the {what} are other ones, so the rounding differs")
        processed = digests["processed"]
        if processed != golden[layout]:
            known = [name for name in ("sm80", "sm90") if golden[name] == processed]
            what = f"has the layout {known[0]}" if known else "has a layout that we do not know"
            faults.append(f"{where}: the library's result {what}, we would write {layout}")
    if faults:
        raise Failed(*faults, advice=ADVICE)
    return Outcome.passed(f"values, scales and the layout {layout} are the recorded ones for {len(GOLDEN)} inputs")

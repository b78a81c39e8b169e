"""TensorRT-LLM's int8 kernel layout: golden vectors, and that it can be undone."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import get_format
from mixtral_runtime.formats.int8 import quantize_rows
from mixtral_runtime.formats.int8_layout import from_kernel_layout, to_kernel_layout

IN, OUT = 128, 64

# First 32 hexadecimal digits of the SHA-256 over the tensor's bytes, by (dtype, experts). They come from three
# implementations of the published algorithm that share no code with this project.
GOLDEN = {
    (torch.float16, 1): {
        "w": "48cb661347206c97ecdb93768e457a2e",
        "q": "ffc2ee5b99db8efdfdfc3d8edbc4bff5",
        "scales": "d2b868240fe1ad9155b1c006193681ca",
        "sm80": "3c8d674102c28ef2fb548be0e0b379c1",
        "sm90": "d80dc6aa3687f43d225cd3eef25f5732",
    },
    (torch.float16, 2): {
        "w": "60187db66cb34d9b02141dea02a08b40",
        "q": "a18aa95d79f0d8951853907f895f82a8",
        "scales": "d13cc21bb0eef87831d8ba754c97b96c",
        "sm80": "fa993ab362f5beb7d450870fbceefb40",
        "sm90": "fa993ab362f5beb7d450870fbceefb40",  # experts have SM80's layout on SM90 too
    },
    (torch.bfloat16, 1): {
        "w": "13f194267d046c71a880442f4b42af17",
        "q": "62a81a686cec9aa34b9b8c383f8b53ad",
        "scales": "c3e890f30a28db675b461f3a149a3203",
        "sm80": "bb53b24abe51bec7fe0b2c062560e48b",
        "sm90": "a31d132f5855118f086a253ecd688d6e",
    },
    (torch.bfloat16, 2): {
        "w": "956eb9a8de1600230d7d747c3b63d053",
        "q": "8e3e4ec1ea155a1875ef1d85e1e863b4",
        "scales": "a0b96919ac5a17b56eb0f8aeb385dfb7",
        "sm80": "c943e6778d2d9d216699a7c1e3657aec",
        "sm90": "c943e6778d2d9d216699a7c1e3657aec",
    },
}


def golden_input(dtype: torch.dtype, experts: int) -> Tensor:
    """[experts, in, out], as the golden vectors were defined: column 3 is zero, columns differ in magnitude."""
    e = torch.arange(experts)[:, None, None]
    k = torch.arange(IN)[None, :, None]
    n = torch.arange(OUT)[None, None, :]
    steps = (37 * k + 101 * n + 5 * ((k * n) % 17) + 13 * e) % 251 - 125
    w = (steps.float() / 128 * (1 + n.float() / 64)).to(dtype)
    w[:, :, 3] = 0
    return w


def sha(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:32]


def by_rows(w: Tensor, experts: int) -> Tensor:
    """[experts, in, out] -> [out, in] for a plain matrix, [experts, out, in] for experts."""
    rows = w.transpose(1, 2).contiguous()
    return rows[0] if experts == 1 else rows


@pytest.mark.parametrize(("dtype", "experts"), GOLDEN)
def test_values_and_scales_are_the_golden_ones(dtype: torch.dtype, experts: int) -> None:
    golden = GOLDEN[dtype, experts]
    w = golden_input(dtype, experts)
    values, scales = quantize_rows(by_rows(w, experts))
    assert sha(w) == golden["w"]
    assert sha(values.transpose(-1, -2)) == golden["q"]
    assert sha(scales) == golden["scales"]


@pytest.mark.parametrize("layout", ["sm80", "sm90"])
@pytest.mark.parametrize(("dtype", "experts"), GOLDEN)
def test_processed_bytes_are_the_golden_ones(dtype: torch.dtype, experts: int, layout: str) -> None:
    rows = by_rows(golden_input(dtype, experts), experts)
    processed = get_format("int8", layout).quantize("w.weight", rows)["w.weight"]
    assert processed.shape == ((IN, OUT) if experts == 1 else (experts, IN, OUT))
    assert sha(processed) == GOLDEN[dtype, experts][layout]


def test_first_processed_bytes_are_the_golden_ones() -> None:
    values, _ = quantize_rows(by_rows(golden_input(torch.float16, 1), 1))
    first = to_kernel_layout(values, "sm80").flatten()[:16].tolist()
    assert first == [0, 46, 38, 84, 76, 122, 114, -96, -104, -58, -67, -20, -29, 16, 8, 54]


matrices = st.tuples(
    st.sampled_from([None, 1, 3]), st.sampled_from([64, 128]), st.sampled_from([64, 192]), st.integers(0, 2**32 - 1)
)


def random_int8(experts: int | None, out_features: int, in_features: int, seed: int) -> Tensor:
    shape = (out_features, in_features) if experts is None else (experts, out_features, in_features)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(matrices, st.sampled_from(["sm80", "sm90"]))
def test_the_inverse_undoes_the_layout_and_the_layout_the_inverse(
    matrix: tuple[int | None, int, int, int], layout: str
) -> None:
    plain = random_int8(*matrix)
    processed = to_kernel_layout(plain, layout)
    assert torch.equal(from_kernel_layout(processed, layout), plain)
    assert torch.equal(to_kernel_layout(from_kernel_layout(processed, layout), layout), processed)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_element_lands_where_the_closed_form_says(seed: int) -> None:
    plain = random_int8(None, 64, 128, seed)
    processed = to_kernel_layout(plain, "sm80").flatten().view(torch.uint8).tolist()
    row_order = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    for n in range(64):
        for k in range(0, 128, 7):
            kk = 16 * (k // 16) + row_order.index(k % 16)
            column_pair = (n // 2) * 2 * 128 + (kk // 64) * 128 + (n % 2) * 64
            place = column_pair + 4 * ((kk % 64) // 4) + [0, 2, 1, 3][kk % 4]
            assert processed[place] == (int(plain[n, k]) + 128) % 256


def test_experts_are_laid_out_one_by_one() -> None:
    """That is what lets them be streamed."""
    plain = random_int8(3, 64, 128, seed=1)
    whole = to_kernel_layout(plain, "sm90")
    assert torch.equal(whole, torch.cat([to_kernel_layout(plain[i : i + 1], "sm90") for i in range(3)]))


@pytest.mark.parametrize(("shape", "side"), [((96, 128), "96 output"), ((128, 96), "96 input")])
def test_a_matrix_that_the_kernels_cannot_take_is_refused_by_name_and_size(shape: tuple[int, int], side: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"qkv\.weight has {side} features.*multiple of 64"):
        get_format("int8", "sm80").specs("qkv.weight", shape, torch.float16)

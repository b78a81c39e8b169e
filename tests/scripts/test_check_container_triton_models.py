"""Tensors of NVIDIA's models beside ours, read from files with templates in them."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from container_check.check import Failed, NotAvailable, Status
from container_check.machine import look_around
from container_check.triton_models import INTERNAL, OFFERED, REPOSITORY, THEIRS, Tensor, check, read_tensors
from container_check.workplace import Workplace
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

# In the form of NVIDIA's files.
TEMPLATED = """
name: "tensorrt_llm"
backend: "${triton_backend}"
max_batch_size: ${triton_max_batch_size}
model_transaction_policy {
  decoupled: ${decoupled_mode}
}
dynamic_batching {
    preferred_batch_size: [ ${triton_max_batch_size} ]
    default_queue_policy: { max_queue_size: ${max_queue_size} }
}
input [
  {
    name: "input_ids"
    data_type: TYPE_INT32
    dims: [ -1 ]
    allow_ragged_batch: true
  },
  # a comment with { and [ in it, `[bs, seq_len]`
  {
    name: "draft_logits"
    data_type: ${logits_datatype}
    dims: [ -1, -1 ]
    optional: true
  },
  {
    name: "input_lengths"
    data_type: TYPE_INT32
    dims: [ 1 ]
    reshape: { shape: [ ] }
  }
]
output [
  {
    name: "output_ids"
    data_type: TYPE_INT32
    dims: [ -1, -1 ]
  }
]
instance_group [
  {
    count: 1
    kind : KIND_CPU
  }
]
parameters: {
  key: "gpt_model_path"
  value: {
    string_value: "${engine_dir}"
  }
}
"""


def test_a_file_with_templates() -> None:
    assert read_tensors(TEMPLATED) == {
        "input": {
            "input_ids": Tensor("INT32", (-1,)),
            "draft_logits": Tensor(None, (-1, -1)),
            "input_lengths": Tensor("INT32", (1,)),
        },
        "output": {"output_ids": Tensor("INT32", (-1, -1))},
    }


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*/config.pbtxt")), ids=lambda path: path.parent.name)
def test_every_model_of_ours_is_read_as_protobuf_reads_it(path: Path) -> None:
    config: Any = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    expected = {
        direction: {
            tensor.name: Tensor(
                model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims)
            )
            for tensor in tensors
        }
        for direction, tensors in (("input", config.input), ("output", config.output))
    }
    assert read_tensors(path.read_text()) == expected


@pytest.fixture
def workplace(tmp_path: Path, demo_model: Path) -> Workplace:
    """In the place of NVIDIA's models, copies of ours."""
    for model in (*OFFERED, *INTERNAL):
        target = tmp_path / "app" / THEIRS / model
        target.mkdir(parents=True)
        shutil.copy(REPOSITORY / model / "config.pbtxt", target)
    return Workplace(tmp_path / "work", demo_model, look_around(), app=tmp_path / "app")


def change(workplace: Workplace, model: str, old: str, new: str) -> None:
    path = workplace.app / THEIRS / model / "config.pbtxt"
    text, count = re.subn(re.escape(old), new, path.read_text())
    assert count
    path.write_text(text)


def test_the_same_tensors_pass(workplace: Workplace) -> None:
    outcome = check(workplace)
    assert outcome.status == Status.PASS
    assert re.fullmatch(r"\d{3} tensors compared", outcome.details[-1])


def test_another_type_other_dims_and_a_tensor_that_we_lack(workplace: Workplace) -> None:
    change(workplace, "ensemble", '"max_tokens" data_type: TYPE_INT32', '"max_tokens" data_type: TYPE_INT64')
    change(workplace, "tensorrt_llm", '"output_ids" data_type: TYPE_INT32 dims: [ -1, -1 ]',
           '"output_ids" data_type: ${any} dims: [ -1 ]')  # fmt: skip
    change(workplace, "tensorrt_llm", 'name: "seed"', 'name: "novel"')
    change(workplace, "tensorrt_llm", 'name: "sequence_length"', 'name: "novel_length"')
    change(workplace, "preprocessing", 'name: "QUERY"', 'name: "NOVEL"')
    with pytest.raises(Failed) as failure:
        check(workplace)
    assert failure.value.args[:5] == (
        "affects us: ensemble: the input max_tokens is INT32[1] here, INT64[1] in NVIDIA's model",
        "affects us: tensorrt_llm: the output novel_length INT32[-1] is not in ours",
        "affects us: tensorrt_llm: the output output_ids is INT32[-1, -1] here, of any type[-1] in NVIDIA's model",
        "note: tensorrt_llm: the input novel UINT64[1] is not in ours",
        "harmless: preprocessing: the input NOVEL STRING[1] is not in ours",
    )


def test_without_the_images_models_nothing_is_known(tmp_path: Path, demo_model: Path) -> None:
    with pytest.raises(NotAvailable, match="all_models/inflight_batcher_llm does not exist"):
        check(Workplace(tmp_path, demo_model, look_around(), app=tmp_path / "app"))

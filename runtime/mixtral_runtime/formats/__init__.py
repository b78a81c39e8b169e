"""The quantisation formats, by the name given to `--precision` and by TensorRT-LLM's `quant_algo`."""

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats.awq import Awq
from mixtral_runtime.formats.base import Format, FusedExperts, Linear, TensorSpec
from mixtral_runtime.formats.dense import Dense
from mixtral_runtime.formats.fp8 import Fp8
from mixtral_runtime.formats.gptq import Gptq
from mixtral_runtime.formats.int8 import Int8

__all__ = ["FORMATS", "Format", "FusedExperts", "Linear", "TensorSpec", "get_format"]

FORMATS: dict[str, Format] = {"16bit": Dense(), "int8": Int8(), "fp8": Fp8(), "awq": Awq()}
# Formats that only an import of a quantised model makes; they share the precision's name.
IMPORTED: tuple[Format, ...] = (Gptq(),)


def get_format(name_or_quant_algo: str | None, layout: str | None = None) -> Format:
    """`layout` is for int8 only (default plain). Raises InvalidArgument naming what there is."""
    for name, found in (*FORMATS.items(), *((found.name, found) for found in IMPORTED)):
        if name_or_quant_algo in (name, found.quantization["quant_algo"]):
            if layout in (None, found.layout):
                return found
            if isinstance(found, Int8):
                return Int8(layout)
            raise InvalidArgument(f"the layout is {layout}, precision {name} has none")
    raise InvalidArgument(f"precision {name_or_quant_algo} is not known, there are {', '.join(FORMATS)}")

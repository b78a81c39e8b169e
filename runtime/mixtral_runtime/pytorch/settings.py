"""What an operator tunes of the PyTorch engine."""

from dataclasses import dataclass, replace

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.settings import check_range


@dataclass(frozen=True, slots=True)
class PyTorchSettings:
    """The section `[pytorch]` of the server's settings.

    kv_cache_block_reuse: prompts that begin alike share blocks. max_num_tokens: of one step; may lower what the engine
    was built for, so that running streams wait less for the prompts of others. decode_graphs: on a GPU, decode steps
    are recorded when the engine starts, and each is launched as one; that takes a little memory and some seconds.
    """

    kv_cache_block_reuse: bool = True
    max_num_tokens: int | None = None
    decode_graphs: bool = True

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the setting, its value and the range."""
        check_range("max_num_tokens", self.max_num_tokens, at_least=1)

    def lowered(self, built: EngineLimits) -> EngineLimits:
        """The limits the engine was built with, lowered where the operator says so. Raises InvalidArgument for more."""
        if self.max_num_tokens is None:
            return built
        if self.max_num_tokens > built.max_num_tokens:
            raise InvalidArgument(
                f"pytorch.max_num_tokens is {self.max_num_tokens}, the engine was built for {built.max_num_tokens}"
            )
        return replace(built, max_num_tokens=self.max_num_tokens)

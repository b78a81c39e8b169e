"""All checks, in the order in which they run."""

from container_check import bindings, converted, engines, environment, flags, golden, served, triton_models
from container_check.check import Check

CHECKS = (
    Check("image", "the image's versions are those this is written for", environment.image),
    Check("driver", "driver and GPU can run the image", environment.driver),
    Check("limits", "shared memory and process limits suffice", environment.limits),
    Check("import", "the library's bindings can be imported", bindings.imports),
    Check("signatures", "the bindings are as recorded", bindings.signatures, ("import",)),
    Check("flags", "trtllm-build takes the flags we give it", flags.check),
    Check("golden-ours", "our int8 values and layouts are the golden ones", golden.ours),
    Check("golden-library", "the library's are the same on this GPU", golden.library, ("import", "golden-ours")),
    Check("checkpoint-16bit", "our 16-bit checkpoint is the library's", converted.sixteen_bit, ("import",)),
    Check("checkpoint-int8", "our int8 checkpoint is the library's", converted.int8, ("import",)),
    Check("triton-models", "our tensors are those of NVIDIA's models", triton_models.check),
    Check("engine-int8", "an int8 engine says what the model says", engines.int8, ("import",)),
    Check("arguments", "penalties, biases and bans do what they say", engines.arguments, ("engine-int8",)),
    Check("engine-fp8", "an FP8 engine says what the model says", engines.fp8, ("import",)),
    Check("served", "served, it streams the same text, cancels, stops", served.check, ("engine-int8",)),
)

"""The GPU kernels in Triton's interpreter. The variable is read when a kernel's module is imported, so it is set before
any test's imports."""

import os

os.environ["TRITON_INTERPRET"] = "1"

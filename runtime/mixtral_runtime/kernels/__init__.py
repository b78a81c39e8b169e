"""C++ kernels of the PyTorch runtime on a CPU: `torch.ops.mixtral_cpu.*`, compiled once on first use."""

from mixtral_runtime.kernels.dispatch import VARIABLE, CpuPath, cpu_path

__all__ = ["VARIABLE", "CpuPath", "cpu_path"]

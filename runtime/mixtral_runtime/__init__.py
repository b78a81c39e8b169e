"""The model: checkpoint format, quantisation formats, engine manifest, the engine seam and its runtimes."""

import os

# The OpenMP library reads this when PyTorch loads it. By default threads that wait for each other spin, and beside
# other work (Triton, its stubs, a second engine) they take the cores from those they wait for: on two busy cores
# evaluating the demo model took five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

"""The model: checkpoint format, quantisation formats, engine manifest, the engine seam and its runtimes."""

"""TensorRT-LLM's executor behind the engine seam. Every line that names a part of its bindings stands in this folder.

Written to the API recorded in `data/bindings_1_2.json`; the tests run it against a strict double of that API.
"""

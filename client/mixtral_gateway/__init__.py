"""OpenAI-compatible HTTP gateway: a process in front of Triton's gRPC port, and a page to try the model in."""

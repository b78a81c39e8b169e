"""Between engine and Triton: prompts, text streams, the response sender, cancel, and the server's launcher."""

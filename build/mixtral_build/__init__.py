"""From a Hugging Face Mixtral to a quantised checkpoint to an engine directory, and what quantising cost in quality."""

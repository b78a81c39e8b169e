"""The commands of `mixtral`, one module each."""

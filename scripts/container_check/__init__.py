"""What one run inside NVIDIA's image shows of all that cannot be run without it; `scripts/check_container.py`."""

"""Starting and stopping a Triton server: finding it, checking what it needs, running it, cleaning up behind it."""

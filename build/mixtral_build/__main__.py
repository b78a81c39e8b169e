"""`python -m mixtral_build`, the same as the command `mixtral-build`."""

from mixtral_build.cli import main

main()

"""python -m mixtral_gateway"""

from mixtral_gateway.cli import main

main()

"""python -m audiogen"""

from .cli import main

main()

"""Run the command line as `python -m audiogen`."""

from .cli import main

main()

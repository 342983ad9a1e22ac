"""``python -m graphshrink``."""

from .cli import main

main()

"""``python -m graphshrink``."""

from .cli.entry import main

main()

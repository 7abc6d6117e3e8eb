"""`python -m hwnas` is `hwnas`."""

from hwnas.cli import main

main()

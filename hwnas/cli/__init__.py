"""What to type: a command parses its options and calls one function of the packages below."""

from hwnas.cli import board, choose, learn, look, measure
from hwnas.cli.shell import app, main, run

__all__ = ["app", "board", "choose", "learn", "look", "main", "measure", "run"]

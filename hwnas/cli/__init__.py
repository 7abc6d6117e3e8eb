"""What to type: a command parses its options and calls one function of the packages below."""

from hwnas.cli import learn, look, measure
from hwnas.cli.shell import app, main, run

__all__ = ["app", "learn", "look", "main", "measure", "run"]

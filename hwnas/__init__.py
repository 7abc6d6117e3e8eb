"""hwnas: measure a search space on a device, predict the cost of its networks, and search under a budget."""

__version__ = "0.1.0"

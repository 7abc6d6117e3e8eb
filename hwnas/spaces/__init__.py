"""What can be built: primitives, search spaces, and the networks made of them."""

from hwnas.spaces.base import Gene, SearchSpace, Slot, get_space, spaces
from hwnas.spaces.graph import Graph, GraphNode
from hwnas.spaces.primitive import Primitive

__all__ = ["Gene", "Graph", "GraphNode", "Primitive", "SearchSpace", "Slot", "get_space", "spaces"]

"""Reading a network from the function that computes its loss."""

from jaxgrad.tracing._cuts import Cut as Cut
from jaxgrad.tracing._layers import Layer as Layer
from jaxgrad.tracing._network import Block as Block
from jaxgrad.tracing._network import Captured as Captured
from jaxgrad.tracing._network import Network as Network
from jaxgrad.tracing._network import trace as trace

__all__ = ["Block", "Captured", "Cut", "Layer", "Network", "trace"]

"""Optimal transport between point sets: costs, Sinkhorn in the log domain, its blocked form, and the exact plan.

For methods that need a transport cost in their loss. Every solver treats the plan as a constant in the backward pass
(envelope theorem): the gradient of the cost is ``T_ij dD_ij``. ``import plait`` does not import this package.
"""

from __future__ import annotations

from plait.transport.blocked import sinkhorn_points as sinkhorn_points
from plait.transport.costs import COSTS as COSTS
from plait.transport.costs import cosine as cosine
from plait.transport.costs import euclidean as euclidean
from plait.transport.costs import safe_sqrt as safe_sqrt
from plait.transport.costs import squared_euclidean as squared_euclidean
from plait.transport.errors import TransportError as TransportError
from plait.transport.exact import exact as exact
from plait.transport.result import PointTransport as PointTransport
from plait.transport.result import Transport as Transport
from plait.transport.sinkhorn import sinkhorn as sinkhorn

__all__ = [
    "COSTS",
    "PointTransport",
    "Transport",
    "TransportError",
    "cosine",
    "euclidean",
    "exact",
    "safe_sqrt",
    "sinkhorn",
    "sinkhorn_points",
    "squared_euclidean",
]

"""Gossip averaging: weights W, one (sparse) matrix product per round, and the spectral gap. Card section 2."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.names import WEIGHTS, Weights
from plait_dbadfl.topologies import Topology

__all__ = ["Mixing", "make_mixing"]

TOLERANCE = 1e-6
DENSE_FROM = 0.1
"""Density from which the dense product is the faster one on a CPU; see `Mixing.dense_is_faster`."""
EXACT_UP_TO = 600
"""Nodes up to which eigenvalues are computed from the dense matrix."""
CROWDED = 1e-4
"""A spectral gap below this is too small for the plain Lanczos iteration's tolerance."""


def full(tensor: Tensor) -> Tensor:
    """At least in single precision: in half precision the rows of W do not sum to 1, so that models would shrink."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Mixing:
    """Who receives from whom with which weight: x_i <- own_i x_i + sum_j W_ij x_j over received j.

    Args:
        n: number of nodes N.
        receivers: int64 [E], i of every off-diagonal entry.
        senders: int64 [E], j of every entry.
        weights: float [E], W_ij.
        own: float [N], W_ii.

    Attributes:
        receivers: sorted; ``senders`` and ``weights`` are aligned with it.
        indptr: int64 [N+1]: the entries of node i are ``indptr[i]:indptr[i+1]``.
        votes: bool [N], whether a node's own model is one of those that its rule chooses among; a server's is not.

    Raises:
        DbadflError: a row that does not sum to 1 within 1e-6 (named), or entries that are no pair of nodes.
    """

    def __init__(self, n: int, receivers: Tensor, senders: Tensor, weights: Tensor, own: Tensor) -> None:
        if not len(receivers) == len(senders) == len(weights) or len(own) != n:
            raise DbadflError(
                f"mixing: {len(receivers)} receivers, {len(senders)} senders, {len(weights)} weights and {len(own)} "
                f"own weights for n={n}"
            )
        both = torch.cat([receivers, senders])
        if len(both) and (int(both.min()) < 0 or int(both.max()) >= n):
            raise DbadflError(f"mixing: an entry names a node outside 0..{n - 1}")
        order = torch.argsort(receivers * n + senders)
        self.n = n
        self.receivers, self.senders, self.weights = receivers[order], senders[order], weights[order].double()
        self.own = own.double()
        self.degrees = torch.bincount(self.receivers, minlength=n)
        self.indptr = torch.cat([self.degrees.new_zeros(1), self.degrees.cumsum(0)])
        sums = self.own.clone().index_add_(0, self.receivers, self.weights)
        wrong = (sums - 1).abs() > TOLERANCE
        if bool(wrong.any()) or not bool(torch.isfinite(sums).all()):
            row = int(torch.nonzero(wrong | ~torch.isfinite(sums))[0])
            raise DbadflError(f"mixing: row {row} of W sums to {float(sums[row]):.8g}, not to 1 within {TOLERANCE:g}")
        self.votes = torch.ones(n, dtype=torch.bool)
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def from_dense(cls, matrix: Tensor) -> Mixing:
        """Of a dense row-stochastic W [N, N]; zeros are no edges."""
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise DbadflError(f"mixing: W has shape {tuple(matrix.shape)}, expected [N, N]")
        off = matrix - torch.diag(matrix.diagonal())
        receivers, senders = torch.nonzero(off, as_tuple=True)
        return cls(len(matrix), receivers, senders, off[receivers, senders], matrix.diagonal())

    @classmethod
    def pairs(cls, n: int, receivers: Tensor, senders: Tensor, weight: float | Tensor = 0.5) -> Mixing:
        """Each receiver takes ``weight`` of its one sender; the others keep their own model. For swarm and gossip."""
        given = torch.as_tensor(weight, dtype=torch.float64).expand(len(receivers))
        own = torch.ones(n, dtype=torch.float64).index_add_(0, receivers, -given)
        return cls(n, receivers, senders, given, own)

    @classmethod
    def server(cls, n: int, voters: Tensor) -> Mixing:
        """A server, one node more behind the ``n``, that takes the mean of ``voters`` int64 [d]; the others keep
        theirs."""
        own = torch.ones(n + 1, dtype=torch.float64)
        own[n] = 0.0
        weights = torch.full((len(voters),), 1 / len(voters), dtype=torch.float64)
        mixing = cls(n + 1, torch.full_like(voters, n), voters, weights, own)
        mixing.votes[n] = False
        return mixing

    @property
    def edge_index(self) -> Tensor:
        """int64 [2, E]: sender and receiver of every entry, as in `plait_dbadfl.topologies.Topology`."""
        return torch.stack([self.senders, self.receivers])

    # ---- products ----------------------------------------------------------------------------------------------
    @property
    def density(self) -> float:
        """Share of W's entries that are stored, the diagonal included."""
        return (len(self.receivers) + self.n) / self.n**2

    @property
    def dense_is_faster(self) -> bool:
        """Whether `mix_` multiplies by the dense matrix: from a density of 0.1 on (measured, one core)."""
        return self.density >= DENSE_FROM

    @torch.no_grad()
    def mix_(self, parameters: Sequence[Tensor]) -> None:
        """x <- W x for every parameter [N, *s], in place: one product each."""
        if not len(self.receivers):
            return
        if int(self.degrees.max()) == 1:
            self._mix_pairs(parameters)
            return
        for parameter in parameters:
            self._check(parameter)
            block = full(parameter).reshape(self.n, -1)
            parameter.copy_((self._matrix(block) @ block).reshape(parameter.shape))

    def mixed(self, models: Tensor) -> Tensor:
        """W X of models [N, P], without changing them."""
        self._check(models)
        exact = full(models)
        return (self._matrix(exact) @ exact).to(models.dtype)

    def _mix_pairs(self, parameters: Sequence[Tensor]) -> None:
        # One sender each: rows are gathered and written, the others are not touched.
        for parameter in parameters:
            self._check(parameter)
            to, source = self.receivers.to(parameter.device), self.senders.to(parameter.device)
            shape = (-1, *[1] * (parameter.ndim - 1))
            mine, theirs = full(parameter[to]), full(parameter[source])
            own = self.own[self.receivers].to(mine).reshape(shape)
            weight = self.weights.to(mine).reshape(shape)
            parameter.index_copy_(0, to, (own * mine + weight * theirs).to(parameter.dtype))

    def _check(self, tensor: Tensor) -> None:
        if len(tensor) != self.n:
            raise DbadflError(f"mixing for {self.n} nodes cannot take a tensor {tuple(tensor.shape)}")

    def _matrix(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = (self.dense() if self.dense_is_faster else self.csr()).to(like.device, like.dtype)
        return self._placed[key]

    def dense(self) -> Tensor:
        """W as float64 [N, N]."""
        matrix = torch.diag(self.own)
        matrix[self.receivers, self.senders] = self.weights
        return matrix

    def csr(self, rows: int | None = None) -> Tensor:
        """W as a torch CSR matrix, float64 [N, N], or its first ``rows``."""
        own = self.to_scipy()[: self.n if rows is None else rows]
        with warnings.catch_warnings():
            # torch says once in every process that this layout is in beta.
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse_csr_tensor(
                torch.from_numpy(own.indptr.astype(np.int64)),
                torch.from_numpy(own.indices.astype(np.int64)),
                torch.from_numpy(own.data),
                size=own.shape,
                dtype=torch.float64,
            )

    def to_scipy(self) -> Any:
        """W as ``scipy.sparse.csr_array``, float64."""
        nodes = torch.arange(self.n)
        rows, columns = torch.cat([self.receivers, nodes]), torch.cat([self.senders, nodes])
        values = torch.cat([self.weights, self.own])
        return sparse.csr_array((values.numpy(), (rows.numpy(), columns.numpy())), shape=(self.n, self.n))

    # ---- neighbourhoods ----------------------------------------------------------------------------------------
    def padded(self, nodes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbourhoods side by side: senders [n, D], mask bool [n, D], entry int64 [n, D].

        ``entry`` says where in ``receivers``, ``senders`` and ``weights`` it stands; padding is node 0, entry 0, mask
        False.
        """
        chosen = torch.arange(self.n) if nodes is None else nodes
        degrees = self.degrees[chosen]
        width = int(degrees.max()) if len(chosen) else 0
        places = torch.arange(width)
        mask = places < degrees[:, None]
        entry = torch.where(mask, self.indptr[chosen][:, None] + places, 0)
        index = torch.where(mask, self.senders[entry], 0) if len(self.senders) else entry
        return index, mask, entry

    def blocks(self, elements: int) -> Iterator[Tensor]:
        """Nodes with neighbours, int64, in blocks of like degree with at most ``elements`` places (at least one node).

        A hub does not make everybody's padding as long as its own neighbourhood.
        """
        order = torch.argsort(self.degrees, descending=True, stable=True)
        order = order[self.degrees[order] > 0]
        start = 0
        while start < len(order):
            widest = int(self.degrees[order[start]]) + 1
            stop = start + max(1, elements // widest)
            yield order[start:stop]
            start = stop

    # ---- spectrum ----------------------------------------------------------------------------------------------
    @cached_property
    def is_doubly_stochastic(self) -> bool:
        """Whether columns sum to 1 too, so that mixing conserves the mean model."""
        sums = self.own.clone().index_add_(0, self.senders, self.weights)
        return bool(((sums - 1).abs() <= TOLERANCE).all())

    def spectral_gap(self) -> float:
        """1 - |lambda_2(W)|: how much of the disagreement between nodes one mix removes, at least."""
        if self.n <= EXACT_UP_TO:
            sizes = np.sort(np.abs(np.linalg.eigvals(self.dense().numpy())))
            return max(0.0, float(1 - sizes[-2]))
        return max(0.0, 1 - _second_eigenvalue(self.to_scipy()))


def _second_eigenvalue(matrix: Any) -> float:
    """|lambda_2| of a large sparse row-stochastic matrix."""
    n = matrix.shape[0]
    for stationary in (np.ones(n), 1 / np.maximum(matrix.diagonal(), 1e-12)):
        # Detailed balance makes W similar to a symmetric matrix, whose leading eigenvector is known and is deflated.
        root = np.sqrt(stationary / stationary.sum())
        symmetric = sparse.diags_array(root) @ matrix @ sparse.diags_array(1 / root)
        if abs(symmetric - symmetric.T).max() < 1e-9:
            return _second_symmetric(symmetric.tocsc(), root)
    return float(np.sort(np.abs(linalg.eigs(matrix, k=2, which="LM", v0=_start(n), return_eigenvectors=False)))[0])


def _second_symmetric(matrix: Any, leading: Any) -> float:
    n = matrix.shape[0]

    def deflated(vector: Any) -> Any:
        flat = vector.ravel()
        return matrix @ flat - leading * (leading @ flat)

    operator = linalg.LinearOperator((n, n), matvec=deflated, dtype=np.float64)
    try:
        largest = linalg.eigsh(
            operator, k=1, which="LM", v0=_start(n), maxiter=300, tol=1e-6, return_eigenvectors=False
        )
        if 1 - abs(largest[0]) > CROWDED:
            return float(abs(largest[0]))
    except linalg.ArpackNoConvergence:
        pass
    # Eigenvalues that crowd at 1 (a long ring) separate when the matrix is inverted around 1 and around -1.
    top = linalg.eigsh(matrix, k=2, sigma=1 + 1e-9, which="LM", v0=_start(n), return_eigenvectors=False)
    second = float(np.sort(top)[0])
    if 2 * float(matrix.diagonal().min()) - 1 >= -second:
        # Gershgorin: no eigenvalue lies further down.
        return second
    bottom = linalg.eigsh(matrix, k=1, sigma=-1 - 1e-9, which="LM", v0=_start(n), return_eigenvectors=False)
    return max(second, -float(bottom[0]))


def _start(n: int) -> Any:
    return np.random.default_rng(0).standard_normal(n)


def make_mixing(topology: Topology, weights: Weights | None = None) -> Mixing:
    """W of a topology.

    Args:
        topology: the graph.
        weights: ``metropolis`` (default for undirected graphs): 1 / (1 + max(deg_i, deg_j)), doubly stochastic;
            ``uniform``: 1 / (deg_i + 1), row-stochastic only; ``exponential`` (default for the directed exponential
                graph): 1 /
            (ceil(log2 N) + 1); ``average``: 1 / N on the complete graph, the oracle of federated averaging.

    Raises:
        DbadflError: weights that the graph does not admit.
    """
    senders, receivers = topology.edge_index
    n, degrees = topology.n, topology.degrees.double()
    rule = weights or ("uniform" if topology.directed else "metropolis")
    if rule not in WEIGHTS:
        raise DbadflError(f"mixing weights {rule!r} are not one of {', '.join(WEIGHTS)}")
    if rule == "metropolis":
        if topology.directed:
            raise DbadflError(f"mixing weights 'metropolis' need an undirected graph; {topology.name!r} is directed")
        values = 1 / (1 + torch.maximum(degrees[receivers], degrees[senders]))
    elif rule == "uniform":
        values = 1 / (1 + degrees[receivers])
    elif rule == "exponential":
        share = math.ceil(math.log2(n)) + 1
        if int(degrees.min()) != share - 1 or int(degrees.max()) != share - 1:
            raise DbadflError(f"mixing weights 'exponential' need the exponential graph, not {topology.name!r}")
        values = torch.full((len(receivers),), 1 / share, dtype=torch.float64)
    else:
        if int(degrees.min()) != n - 1:
            raise DbadflError(f"mixing weights 'average' need the complete graph, not {topology.name!r}")
        values = torch.full((len(receivers),), 1 / n, dtype=torch.float64)
    own = torch.ones(n, dtype=torch.float64).index_add_(0, receivers, -values)
    return Mixing(n, receivers, senders, values, own)

"""Counting work: multiply-accumulates dense, sparse and after shrinking, and the training total. Card "Metrics".

FLOPs are twice the MACs; everything here is in MACs per sample unless a name says otherwise. Every product of matrices
and every convolution is counted, whoever calls it: layers, attention, functional uses of a weight. Norms, activations
and look-ups are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait_chase.channels import tensor_name
from plait_chase.shrink import copied, same_random_numbers, unwrapped

__all__ = ["TrainFlops", "computed_weights", "layer_costs", "layer_table"]

ACTIVATIONS = "(activations)"
"""Under this name stand the products of two activations, as in attention: no weight takes part in them."""

_aten = torch.ops.aten
_FIRST_OPERAND = {
    _aten.mm: 0, _aten.bmm: 0, _aten.mv: 0, _aten.dot: 0, _aten.addmm: 1, _aten.baddbmm: 1, _aten.addbmm: 1,
    _aten.addmv: 1,
}  # fmt: skip
_VECTORS = frozenset({_aten.mv, _aten.dot, _aten.addmv})
_RECURRENT = frozenset({_aten.mkldnn_rnn_layer, _aten._cudnn_rnn})
_COPIES = frozenset({_aten._to_copy, _aten.clone, _aten.neg})
_SCALINGS = frozenset({_aten.mul, _aten.div})


@dataclass(frozen=True)
class LayerCost:
    """Work of one weight tensor per sample.

    Args:
        numel: entries of the weight.
        macs: dense multiply-accumulates per sample.
    """

    numel: int
    macs: int

    @property
    def positions(self) -> float:
        """How often each entry is used per sample: ``H_out * W_out`` of a convolution; the mean, if that differs."""
        return self.macs / self.numel


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation: whose weights are multiplied, how often, and whether they are parameters as they stand.

    Args:
        weights: name -> the tensors that count as weights.
        inputs: what the model is called with.

    Attributes:
        macs: weight name -> multiply-accumulates of the whole batch.
        fixed: the same, of products that do not depend on the inputs: once per batch, however large.
        computed: weights that were multiplied only after something else was computed from them.
    """

    def __init__(self, weights: Mapping[str, Tensor], inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = {}
        self.fixed: dict[str, int] = {}
        self.computed: set[str] = set()
        # storage -> the stretches of memory in it that hold a weight, or a plain copy of one
        self._stretches: dict[int, list[tuple[int, int, str]]] = {}
        self._derived: dict[int, frozenset[str]] = {}
        self._kept: dict[int, Any] = {}  # a freed storage's number would come again
        for name, weight in weights.items():
            self._hold(weight, name)
        self._fed = {self._key(t) for t in _strided(inputs)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is _aten.linear or packet is _aten.matmul:  # whole only in inference mode
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = list(_strided((args, kwargs)))
        names = [self._name(t) for t in given]
        out = func(*args, **kwargs)
        fed = any(self._key(t) in self._fed for t in given)
        for name, count in self._count(packet, args, out, fed):
            book = self.macs if fed else self.fixed
            book[name] = book.get(name, 0) + count
            if fed:
                self.computed.update(*(self._derived.get(self._key(t), ()) for t in given))
        results = list(_strided(out))
        if fed:
            self._fed.update(self._key(t) for t in results)
        elif results:
            self._derive(func, packet, given, names, results)
        return out

    def _count(self, packet: Any, args: Any, out: Any, fed: bool) -> Iterator[tuple[str, int]]:
        """(weight name, multiply-accumulates) of one operation."""
        if packet in _FIRST_OPERAND and (fed or packet not in _VECTORS):
            left, right = args[_FIRST_OPERAND[packet]], args[_FIRST_OPERAND[packet] + 1]
            name = self._name(right) or self._name(left) or ACTIVATIONS
            yield name, left.numel() * (right.shape[-1] if right.ndim > 1 else 1)
        elif packet is _aten.convolution:
            received, weight, transposed = args[0], args[1], args[6]
            spots = prod((received if transposed else out).shape[2:])
            yield self._name(weight) or ACTIVATIONS, weight.numel() * spots * received.shape[0]
        elif packet is _aten._trilinear:
            yield self._name(args[1]) or ACTIVATIONS, args[1].numel() * prod(out.shape[:-1])
        elif packet in _RECURRENT:
            rows = prod(args[0].shape[:-1])
            for weight in _strided(args[1:]):
                read = self._name(weight)
                if read is not None and weight.ndim == 2:
                    yield read, rows * weight.numel()

    def _derive(
        self, func: Any, packet: Any, given: list[Tensor], names: list[str | None], results: list[Tensor]
    ) -> None:
        """Remember what was computed from weights alone; a copy, or a multiple, of a weight counts as the weight."""
        known = [name for name in names if name is not None]
        sources = frozenset(known).union(*(self._derived.get(self._key(t), ()) for t in given))
        scaled = packet in _SCALINGS and all(t.numel() == 1 for t, name in zip(given, names, strict=True) if not name)
        same = len(known) == 1 and (packet in _COPIES or scaled)
        for tensor in results:
            key = self._key(tensor)
            if key in self._stretches and not func._schema.is_mutable:
                continue
            if same:
                self._hold(tensor, known[0])
            elif sources:
                self._stretches.pop(key, None)
                self._derived[key] = sources

    def _hold(self, tensor: Tensor, name: str) -> None:
        start = tensor.data_ptr()
        stretch = (start, start + tensor.numel() * tensor.element_size(), name)
        self._stretches.setdefault(self._key(tensor), []).append(stretch)

    def _name(self, tensor: Tensor) -> str | None:
        for start, end, name in self._stretches.get(self._key(tensor), ()):
            if start <= tensor.data_ptr() < end:
                return name
        return None

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        self._kept.setdefault(key, storage)
        return key


def _strided(tree: Any) -> Iterator[Tensor]:
    return (t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.layout is torch.strided)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by its matrix products, instead of one fused kernel that hides them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def _watched(model: nn.Module, example_input: Any) -> tuple[_Products, dict[str, Tensor], int]:
    """One pass in eval mode over a copy: what it multiplied, the weights by name, and the batch size."""
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    copy = copied(unwrapped(model)).eval()  # a stranger's layer may count its calls
    with same_random_numbers(copy), parametrize.cached(), _plain_attention():
        weights: dict[str, Tensor] = dict(copy.named_parameters())
        for path, module in copy.named_modules():
            if parametrize.is_parametrized(module):
                weights |= {tensor_name(path, leaf): getattr(module, leaf) for leaf in module.parametrizations}
        with _Products(weights, inputs) as products:
            copy(*inputs)
    return products, weights, inputs[0].shape[0]


def layer_costs(model: nn.Module, example_input: Any) -> dict[str, LayerCost]:
    """Run the model once (in eval mode) and count the products that each weight takes part in.

    A weight is counted however it is read: by a layer, twice, in part, or by a function. Of a parametrized layer the
    effective weight counts (``conv.weight``), and not the work of making it.

    Args:
        model: the network; not changed.
        example_input: a batch ``[B, ...]``, or a tuple of arguments whose first has the batch in dimension 0.

    Returns:
        Weight tensor name -> cost per sample, in order of execution; a tied weight has the first of its names. Products
        of two activations stand under ``(activations)``.
    """
    products, weights, batch = _watched(model, example_input)
    costs = {}
    for name in dict.fromkeys((*products.macs, *products.fixed)):
        macs = products.macs.get(name, 0) // batch + products.fixed.get(name, 0)
        costs[name] = LayerCost(weights[name].numel() if name in weights else max(1, macs), macs)
    return costs


def computed_weights(model: nn.Module, example_input: Any) -> frozenset[str]:
    """Parameters that the forward pass turns into another tensor before it multiplies by it (standardised weights, low
    ranks): a zero in them is no zero of the network. Copies, casts and multiples of a parameter are the parameter.

    Args:
        model, example_input: as of `layer_costs`.
    """
    products, weights, _ = _watched(model, example_input)
    return frozenset(name for name in products.computed if weights[name].ndim >= 2)


def dense_macs(costs: Mapping[str, LayerCost]) -> int:
    """MACs per sample with dense kernels: of a shrunk model, what ordinary hardware computes."""
    return sum(cost.macs for cost in costs.values())


def sparse_macs(costs: Mapping[str, LayerCost], nnz: Mapping[str, int]) -> int:
    """Theoretical MACs per sample if zeros were free: ``sum nnz_l * H_l * W_l``; layers without a mask count dense."""
    return sum(nnz.get(name, cost.numel) * cost.macs // cost.numel for name, cost in costs.items())


def layer_table(
    model: nn.Module, masks: Mapping[str, Tensor], original_shapes: Mapping[str, tuple[int, ...]], shrunk: nn.Module
) -> list[dict[str, Any]]:
    """One row per maskable tensor: its width before and after shrinking, and how dense it is inside.

    Args:
        model: the masked network (names only).
        masks: tensor name -> 0/1 mask.
        original_shapes: tensor name -> shape in the original dense network.
        shrunk: the network without dead channels.

    Returns:
        Rows with ``tensor``, ``channels_before``, ``channels_after``, ``inputs_before``, ``inputs_after``, ``nnz``,
        ``density`` (of the original tensor) and ``density_inside`` (of the shrunk one).
    """
    after = dict(shrunk.named_parameters())
    rows: list[dict[str, Any]] = []
    for name, _ in model.named_parameters():
        if name not in original_shapes:
            continue
        before = original_shapes[name]
        nnz = int(torch.count_nonzero(masks[name]))
        rows.append(
            {
                "tensor": name,
                "channels_before": before[0],
                "channels_after": after[name].shape[0],
                "inputs_before": before[1],
                "inputs_after": after[name].shape[1],
                "nnz": nnz,
                "density": nnz / prod(before),
                "density_inside": nnz / after[name].numel(),
            }
        )
    return rows


class TrainFlops:
    """Integrates the theoretical training work of a run, relative to dense training.

    A step costs 3 x the sparse forward pass per sample; a growth step adds one dense weight gradient (1 x the dense
    forward pass) for its batch.

    Args:
        costs: from :func:`layer_costs` of the ORIGINAL dense network.
    """

    def __init__(self, costs: Mapping[str, LayerCost]) -> None:
        self.costs = dict(costs)
        self._dense = dense_macs(costs)
        self._weights = self._dense - (costs[ACTIVATIONS].macs if ACTIVATIONS in costs else 0)
        self.macs = 0
        self.samples = 0

    def add(self, samples: int, nnz: Mapping[str, int], dense_gradient: bool = False) -> None:
        """Count a step.

        Args:
            samples: batch size of the step.
            nnz: tensor name -> non-zeros during the step.
            dense_gradient: whether the step computed dense weight gradients for growth.
        """
        self.macs += samples * (3 * sparse_macs(self.costs, nnz) + (self._weights if dense_gradient else 0))
        self.samples += samples

    @property
    def flops(self) -> int:
        """FLOPs so far (2 x MACs)."""
        return 2 * self.macs

    @property
    def ratio(self) -> float:
        """Share of the work of dense training on the same samples; 0 before the first step."""
        return self.macs / (3 * self._dense * self.samples) if self.samples else 0.0

    def state_dict(self) -> dict[str, int]:
        """Counters, as JSON scalars."""
        return {"macs": self.macs, "samples": self.samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume counting."""
        self.macs, self.samples = int(state["macs"]), int(state["samples"])

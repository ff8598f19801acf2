"""Which weights of a network get a mask: matrices that it multiplies by as they stand, and that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait_glt.errors import GLTError

PARAMETRIZED = "parametrized: the effective weight is another tensor"
COMPUTED = "the forward pass computes its weight from it"
NOT_TRAINED = "frozen"
NOT_REACHED = "the outputs do not depend on it"

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding)
_aten = torch.ops.aten
_COPIES = frozenset({_aten._to_copy, _aten.clone, _aten.neg})
_SCALINGS = frozenset({_aten.mul, _aten.div})


def plain_network(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of ``torch.compile`` and ``DataParallel``, which has the plain names.

    Raises:
        GLTError: a scripted network, one that several processes train, or one with a lazy layer.
    """
    while isinstance(network, DataParallel) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(network, DataParallel) else network._orig_mod  # type: ignore[assignment]
    if isinstance(network, DistributedDataParallel):
        raise GLTError("the network is wrapped in DistributedDataParallel: give its .module, one process searches.")
    if isinstance(network, torch.jit.ScriptModule):
        raise GLTError("the network is scripted, so its weights cannot be masked: give the module it was made from.")
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise GLTError(f"{name!r} has no shape yet (a lazy layer): run the graph through the network first.")
    return network


def weight_names(model: nn.Module) -> list[str]:
    """Names of the parameters that can be pruned: trained weight matrices (2-D), not of a norm or an embedding.

    Biases, norms and GAT's attention vectors (3-D in PyG) are left out, as the weight sparsity counts matrices only; so
    are what `left_alone` names.
    """
    alone = left_alone(model)
    return [name for name in matrix_names(model) if name not in alone]


def matrix_names(model: nn.Module) -> list[str]:
    """Names of all 2-D parameters, but for those of norms and embeddings."""
    left_out = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    return [name for name, p in model.named_parameters() if p.dim() == 2 and id(p) not in left_out]


def left_alone(model: nn.Module) -> dict[str, str]:
    """Matrices without a mask by name, and why: behind a parametrization, or frozen."""
    behind = {id(p) for module in model.modules() for p in _behind(module)}
    parameters = dict(model.named_parameters())
    reasons = {}
    for name in matrix_names(model):
        if id(parameters[name]) in behind:
            reasons[name] = PARAMETRIZED
        elif not parameters[name].requires_grad:
            reasons[name] = NOT_TRAINED
    return reasons


def effective_names(network: nn.Module) -> list[str]:
    """Names of the effective weights of parametrized layers, which are no parameters."""
    names = []
    for path, module in network.named_modules():
        if parametrize.is_parametrized(module):
            names += [f"{path}.{leaf}" if path else leaf for leaf in module.parametrizations]
    return names


def drop_effective(network: nn.Module, state: dict[str, Any], prefix: str = "", metadata: Any = None) -> None:
    """A hook for ``state_dict``: PyG's linear layers save effective weights too, and cannot load what they saved."""
    for name in effective_names(network):
        state.pop(f"{prefix}{name}", None)


def computed_tensors(module: nn.Module) -> list[Tensor]:
    """The effective weights of a module whose parametrizations or hooks compute them."""
    if parametrize.is_parametrized(module):
        return [getattr(module, name) for name in module.parametrizations]  # type: ignore[union-attr]
    return [vars(module)[leaf] for leaf in _plain_tensors(module)] if _behind(module) else []


def _plain_tensors(module: nn.Module) -> list[str]:
    """Attributes that are tensors, but neither parameters nor buffers."""
    return [leaf for leaf, value in vars(module).items() if isinstance(value, Tensor)]


def _behind(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that torch's parametrizations, or hooks as of ``torch.nn.utils.weight_norm``, make a weight of."""
    if parametrize.is_parametrized(module):
        return list(module.parametrizations.parameters())  # type: ignore[union-attr]
    if not module._forward_pre_hooks:
        return []
    named = [(name, p) for name, p in module._parameters.items() if p is not None]
    return [p for name, p in named if any(name.startswith(f"{leaf}_") for leaf in _plain_tensors(module))]


def seen_alone(model: nn.Module, x: Tensor, edge_index: Tensor) -> dict[str, str]:
    """Matrices that a pass over the graph shows to be no weights of the network, and why.

    The model's parameters, buffers and modes, and torch's random numbers, stay as they are.

    Args:
        model: ``forward(x, edge_index, edge_weight)``.
        x, edge_index: features [n, F] and directed entries [2, E].

    Raises:
        GLTError: a weight that a hook renews when its layer is called, of a layer that is never called.
    """
    names = matrix_names(model)
    parameters = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    state = parameters | {name: buffer.clone() for name, buffer in model.named_buffers()}
    weight = torch.ones(edge_index.shape[1], dtype=x.dtype, device=x.device)
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        with _Weights(parameters, [x, edge_index, weight]) as watched:
            out = functional_call(model, state, (x, edge_index, weight))
        sums = [t.abs().sum() for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        slopes = torch.autograd.grad(sums, list(trained.values()), allow_unused=True) if sums and trained else ()
    unused = {name for name, slope in zip(trained, slopes, strict=False) if slope is None}
    reasons = {name: NOT_REACHED for name in names if name in unused}
    for path, module in model.named_modules():
        stale = [] if parametrize.is_parametrized(module) else [id(p) for p in _behind(module)]
        for leaf, p in module.named_parameters(path, recurse=False):
            if leaf in unused and id(p) in stale:
                raise GLTError(
                    f"{leaf!r} is made into a weight only when its layer is called, and the network reads that weight "
                    "without a call: use torch.nn.utils.parametrizations instead."
                )
    return reasons | {name: COMPUTED for name in names if name in watched.computed}


class _Weights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches which parameters meet the data only after something else was computed from them.

    Copies, casts, views and multiples of a parameter are the parameter.

    Attributes:
        computed: their names.
    """

    def __init__(self, parameters: dict[str, Tensor], data: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed: set[str] = set()
        self._names = {_place(p): frozenset({name}) for name, p in parameters.items() if p.numel()}
        self._changed: set[int] = set()
        self._data = {_place(tensor) for tensor in data}
        self._kept: list[Any] = [data]  # no place is used twice while it is watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        places = [_place(tensor) for tensor in _tensors((args, kwargs))]
        known = [place for place in places if place in self._names]
        results = list(_tensors(out))
        self._kept.append(results)
        if any(place in self._data for place in places):
            self.computed.update(*(self._names[place] for place in known if place in self._changed))
            self._data |= {_place(tensor) for tensor in results} - set(known)
        elif known:
            packet = func.overloadpacket
            copied = packet in _COPIES or (packet in _SCALINGS and len({*places}) == 1)
            changed = not copied or not self._changed.isdisjoint(known)
            for place in {_place(tensor) for tensor in results} - set(known):  # a view has its parameter's place
                self._names[place] = frozenset().union(*(self._names[k] for k in known))
                if changed:
                    self._changed.add(place)
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else -id(tensor)

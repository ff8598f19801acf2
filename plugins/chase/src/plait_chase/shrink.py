"""Physical removal of dead channels: a plan of slices, applied to models, masks and optimizer state alike.

Exact in eval mode: ``shrunk(x) == masked(x)`` up to the order of float summation. Card section 8 [code].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim.swa_utils import update_bn

from plait_chase.channels import ChannelGroup, group_slots, group_width
from plait_chase.errors import ChaseError, brief

__all__ = ["apply_shrink", "bn_recalibrate", "check_groups", "reslice_optimizer", "shrink_plan", "slice_tensor"]

#: Entries (dim, indices kept) per tensor name; parameters and buffers.
Plan = dict[str, list[tuple[int, Tensor]]]


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf


def shrink_plan(model: nn.Module, groups: Sequence[ChannelGroup], alive: Mapping[str, Tensor]) -> Plan:
    """Which indices of which tensors survive when only living channels are kept. The model is not changed.

    Args:
        model: the masked network.
        groups: its channel groups.
        alive: producer name -> boolean ``[C]``, C being the producer's PRESENT number of filters. Groups not listed are
            left alone.

    Returns:
        Tensor name (as in ``state_dict``) -> list of (dimension, sorted int64 indices kept). Tensors that keep
        everything are not listed.

    Raises:
        ChaseError: a vector of the wrong length, a layer without a living channel, a weight shared by several modules,
            or a grouped or transposed convolution.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    uses: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        uses.setdefault(id(tensor), []).append(name)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    plan: Plan = {}
    for group in groups:
        if group.producer not in alive:
            continue
        keep = alive[group.producer].cpu()
        width = group_width(group, shapes)
        if keep.shape != (width,):
            raise ChaseError(f"alive of {group.producer!r} has shape {tuple(keep.shape)}, the layer {width} channels")
        if not keep.any():
            raise ChaseError(f"no channel of {group.producer!r} is alive: the network would be cut in two")
        for slot in group_slots(group, shapes):
            if len(uses[id(tensors[slot.tensor])]) > 1:
                raise ChaseError(f"{slot.tensor!r} is tied with {uses[id(tensors[slot.tensor])]}: it cannot be sliced")
            module = model.get_submodule(_split(slot.tensor)[0])
            if getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False):
                raise ChaseError(f"{_split(slot.tensor)[0]!r} is a grouped or transposed convolution: not prunable")
            if not keep.all():
                kept = keep.repeat_interleave(slot.repeat).nonzero()[:, 0]
                plan.setdefault(slot.tensor, []).append((slot.dim, kept))
    return plan


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of ``torch.compile`` and (distributed) data parallelism, with the plain names."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def require_shapes(model: nn.Module) -> None:
    """Raise :class:`ChaseError` for a scripted model, and for one with lazy parameters or buffers."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ChaseError("the model is scripted and cannot be narrowed: give the module that it was made from")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ChaseError(f"{name!r} has no shape yet (a lazy layer): run a batch through the model first")


def require_sliceable(model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
    """Raise :class:`ChaseError`, before training, for what could not be sliced after it.

    Args:
        model: the network.
        groups: its channel groups.

    Raises:
        ChaseError: as :func:`shrink_plan`, or a layer whose weight or norm is computed from other parameters.
    """
    require_shapes(model)
    shapes = {name: tuple(t.shape) for name, t in model.named_parameters(remove_duplicate=False)}
    for group in groups:
        for path in (*group.producers, *group.all_norms, *group.consumers):
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise ChaseError(f"channel group {group.producer!r}: the model has no layer {path!r}") from error
            if parametrize.is_parametrized(module) or recomputed(module):
                raise ChaseError(f"{path!r} is parametrized: its weight is computed from others and cannot be sliced")
        everything = torch.ones(group_width(group, shapes), dtype=torch.bool)
        shrink_plan(model, [group], {group.producer: everything})


def recomputed(module: nn.Module) -> list[str]:
    """The module's own parameters from which a hook computes a weight before each pass, as in ``torch.nn.utils``.

    Such a hook keeps the weight as a plain attribute: ``weight`` beside the parameters ``weight_g`` and ``weight_v``.
    """
    if not module._forward_pre_hooks:
        return []
    return [name for leaf in _plain_tensors(module) for name in module._parameters if name.startswith(f"{leaf}_")]


def _plain_tensors(module: nn.Module) -> list[str]:
    """Attributes that are tensors, but neither parameters nor buffers."""
    return [leaf for leaf, value in vars(module).items() if isinstance(value, Tensor)]


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model whose weights are recomputed by hooks: those are not copied with their history.

    Raises:
        ChaseError: a model that cannot be copied.
    """
    kept = []
    for module in model.modules():
        for leaf in _plain_tensors(module):
            value = vars(module)[leaf]
            if not value.is_leaf:
                kept.append((vars(module), leaf, value))
                vars(module)[leaf] = value.detach()
    try:
        return deepcopy(model)
    except Exception as error:
        raise ChaseError(f"{type(model).__name__} cannot be copied to be narrowed: {brief(error)}") from error
    finally:
        for attributes, leaf, value in kept:
            attributes[leaf] = value


@contextmanager
def same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Put torch's generators back afterwards, on the CPU and on the model's devices."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def slice_tensor(tensor: Tensor, entry: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Keep the planned indices of a tensor, its mask or its optimizer state; returns a new contiguous tensor.

    Args:
        tensor: shaped like the planned parameter.
        entry: ``plan[name]``.
    """
    for dim, kept in entry:
        tensor = tensor.index_select(dim, kept.to(tensor.device))
    return tensor.contiguous()


def update_sizes(module: nn.Module) -> None:
    """Set a layer's size attributes (``out_channels``, ``num_features``, ...) by its sliced tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(weight, Tensor) and hasattr(module, "out_channels"):
        sizes: Any = module
        sizes.out_channels, sizes.in_channels = weight.shape[0], weight.shape[1]
    elif hasattr(module, "num_features"):
        vector = weight if isinstance(weight, Tensor) else getattr(module, "running_mean", None)
        if isinstance(vector, Tensor):
            sized: Any = module
            sized.num_features = vector.shape[0]


def apply_shrink(model: nn.Module, plan: Plan) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Slice the model in place: new parameters and buffers, and the layers' size attributes.

    Gradients of replaced parameters are sliced along.

    Args:
        model: the network the plan was made for.
        plan: from :func:`shrink_plan`.

    Returns:
        Parameter name -> (old parameter, new parameter), for :func:`reslice_optimizer`.
    """
    replaced: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    touched: dict[str, nn.Module] = {}
    for name, entry in plan.items():
        path, leaf = _split(name)
        module = touched.setdefault(path, model.get_submodule(path))
        old = getattr(module, leaf)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(slice_tensor(old.detach(), entry), requires_grad=old.requires_grad)
            if old.grad is not None:
                new.grad = slice_tensor(old.grad.detach(), entry)
            replaced[name] = (old, new)
            setattr(module, leaf, new)
        else:
            module.register_buffer(
                leaf, slice_tensor(old, entry), persistent=leaf not in module._non_persistent_buffers_set
            )
    for module in touched.values():
        update_sizes(module)
    return replaced


def reslice_optimizer(
    optimizer: torch.optim.Optimizer, replaced: Mapping[str, tuple[nn.Parameter, nn.Parameter]], plan: Plan
) -> None:
    """Put the new parameters into the optimizer's groups and slice every state tensor shaped like its parameter.

    Args:
        optimizer: holds the old parameters.
        replaced: from :func:`apply_shrink`.
        plan: from :func:`shrink_plan`.
    """
    swap = {id(old): (name, old, new) for name, (old, new) in replaced.items()}
    for group in optimizer.param_groups:
        group["params"] = [swap[id(p)][2] if id(p) in swap else p for p in group["params"]]
    for name, old, new in swap.values():
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[new] = {
                key: slice_tensor(v, plan[name]) if isinstance(v, Tensor) and v.shape == old.shape else v
                for key, v in state.items()
            }


def check_groups(model: nn.Module, groups: Sequence[ChannelGroup], example_input: Any, tolerance: float = 1e-4) -> None:
    """Prove on an example that removing channels of these groups is exact; the model is not changed.

    Every other channel of every group is zeroed in one copy and sliced off another; in eval mode both must agree.

    Args:
        model: the network.
        groups: candidate groups.
        example_input: one argument, or a tuple of arguments, of ``forward``.
        tolerance: largest difference relative to the largest output, default 1e-4.

    Raises:
        ChaseError: the copies differ, or the sliced one cannot run.
    """
    if not groups:
        return
    masked = copied(model).eval()
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    alive = {g.producer: torch.arange(group_width(g, shapes)) % 2 == 0 for g in groups}
    with torch.no_grad():
        for name, tensor in tensors.items():
            # A dead channel behind a fresh norm emits 0 and would hide that somebody still reads it.
            if _split(name)[1] == "bias" and any(_split(name)[0] in group.all_norms for group in groups):
                tensor.copy_(torch.linspace(0.5, 1.5, tensor.numel()))
    shrunk = deepcopy(masked)
    apply_shrink(shrunk, shrink_plan(shrunk, groups, alive))
    with torch.no_grad():
        for group in groups:
            for slot in group_slots(group, shapes):
                if _split(slot.tensor)[0] in group.all_norms:
                    continue
                dead = (~alive[group.producer]).repeat_interleave(slot.repeat).nonzero()[:, 0]
                tensors[slot.tensor].index_fill_(slot.dim, dead.to(tensors[slot.tensor].device), 0.0)
        want = example_output(masked, example_input)
        try:
            got = example_output(shrunk, example_input)
        except ChaseError as error:
            raise ChaseError(f"without the channels of its groups {error}") from error
    if want.shape != got.shape or not torch.allclose(want, got, rtol=0, atol=tolerance * (1 + float(want.abs().max()))):
        names = ", ".join(g.producer for g in groups)
        raise ChaseError(f"removing channels changes the output: one of the groups of {names} is wrong")


def example_output(model: nn.Module, example_input: Any) -> Tensor:
    """The first tensor that the model returns for an example: one argument, or a tuple of arguments.

    Raises:
        ChaseError: a model that does not run on it.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        return _first_tensor(model(*inputs))
    except ChaseError:
        raise
    except Exception as error:
        raise ChaseError(f"the model does not run on the example input: {brief(error)}") from error


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)) and output:
        return _first_tensor(output[0])
    raise ChaseError(f"the model returns {type(output).__name__}, not tensors")


def bn_recalibrate(model: nn.Module, loader: Iterable[Any], device: torch.device | None = None) -> None:
    """Re-estimate batch-norm statistics with one pass over ``loader`` (``torch.optim.swa_utils.update_bn``).

    The exact slice needs none; the official code does it. Batches are tensors, or sequences whose first entry is the
    input.
    """
    update_bn(loader, model, device)

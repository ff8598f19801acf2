"""Finding the prunable channel groups of a model. Card section 2 [code].

A model may declare them (``model.channel_groups()``, tuples of module names). Otherwise the forward pass is traced with
``torch.fx``, or, where that fails and an example input is given, with torch-pruning's dependency graph. Residual
streams, grouped and depthwise convolutions, concatenations, parametrized layers, weights that are tied or read
elsewhere, and everything not understood are left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from plait_chase.channels import ChannelGroup
from plait_chase.errors import ChaseError, brief
from plait_chase.shrink import check_groups, copied, example_output, require_shapes, require_sliceable, unwrapped

__all__ = ["find_channel_groups"]

_Conv = nn.modules.conv._ConvNd
_BatchNorm = nn.modules.batchnorm._BatchNorm

#: Modules that treat every channel by itself and keep the channel order.
_CHANNELWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_CHANNELWISE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish,
        F.hardswish, F.hardsigmoid, F.softplus, F.sigmoid, F.tanh, F.dropout, F.dropout2d, F.max_pool1d, F.max_pool2d,
        F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
        F.adaptive_avg_pool3d, F.adaptive_max_pool2d, F.interpolate,
    }
)  # fmt: skip
_CHANNELWISE_METHODS = frozenset({"relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "float", "half", "to"})
#: Functions and methods that multiply by a weight, and those that only look at its values otherwise.
_PRODUCTS: frozenset[Callable[..., Any] | str] = frozenset(
    {
        F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
        F.multi_head_attention_forward, operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
        torch.einsum, "matmul", "mm", "bmm", "addmm", "baddbmm",
    }
)  # fmt: skip
_SAME_VALUES: frozenset[Callable[..., Any] | str] = frozenset(
    {
        operator.getitem, operator.neg, torch.t, torch.transpose, torch.permute, torch.reshape, torch.flatten,
        torch.squeeze, torch.unsqueeze, torch.chunk, torch.split, torch.clone, "t", "transpose", "permute", "reshape",
        "view", "flatten", "squeeze", "unsqueeze", "chunk", "split", "expand", "contiguous", "clone", "detach", "to",
        "float", "half", "double", "bfloat16",
    }
)  # fmt: skip


@dataclass
class _Space:
    """The channels that one convolution writes, and who reads them."""

    producer: str
    width: int
    norms: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    frozen: bool = False
    into_linear: bool = False


@dataclass(frozen=True)
class _Flow:
    """What flows along an edge of the graph: the channels of a space, before or after flattening."""

    space: _Space
    flat: bool = False


def find_channel_groups(
    model: nn.Module,
    example_input: Any = None,
    *,
    prune_residual: bool = False,
    into_linear: bool = False,
) -> tuple[ChannelGroup, ...]:
    """The model's prunable channel groups, in forward order.

    Args:
        model: the network; not changed. ``model.channel_groups()``, if there is one, is believed (after a check of the
            channel numbers): (producer, norm or None, consumers) tuples of module names, perhaps with a fourth entry,
            the further producers of the same channels (the gate of a gated layer), or :class:`ChannelGroup`.
        example_input: one argument, or a tuple of arguments, of ``forward``. Needed for ``prune_residual`` and for
            models that ``torch.fx`` cannot trace; where given, groups are proven on it by
            :func:`plait_chase.shrink.check_groups`: found ones that fail are left alone, declared ones are refused.
        prune_residual: also residual streams ("prune skip"): channels with several producers or several readers, found
            by torch-pruning.
        into_linear: also a convolution whose output is flattened into a linear layer; the paper leaves the last
            convolution alone (default).

    Raises:
        ChaseError: a scripted model, lazy layers, no prunable group, a declared group that does not fit or cannot be
            sliced, a missing example input, or a model that does not run on it.
    """
    model = unwrapped(model)
    require_shapes(model)
    declare = getattr(model, "channel_groups", None)
    declared: list[ChannelGroup] = []
    groups: list[ChannelGroup] = []
    if callable(declare):
        declared = [_as_group(item) for item in declare()]
    else:
        try:
            training = _traced_groups(copied(model), into_linear)
            groups = [group for group in _traced_groups(copied(model).eval(), into_linear) if group in training]
        except Exception as error:  # a stranger's forward pass may raise anything on proxies
            if example_input is None:
                raise ChaseError(
                    f"torch.fx cannot trace {type(model).__name__} ({brief(error)}): "
                    "give an example_input or declare channel_groups()"
                ) from error
            groups = [g for g in _dependency_groups(model, example_input, into_linear) if not _is_stream(g)]
    if prune_residual:
        if example_input is None:
            raise ChaseError("prune_residual needs an example_input to find the coupled channels")
        taken = {name for g in (*declared, *groups) for name in g.producers}
        coupled = _dependency_groups(model, example_input, into_linear=True)
        groups += [g for g in coupled if _is_stream(g) and not taken.intersection(g.producers)]
    require_sliceable(model, declared)
    if example_input is not None and declared:
        check_groups(model, declared, example_input)
    groups = [*declared, *_proven(model, groups, example_input)]
    if not groups:
        raise ChaseError(
            f"{type(model).__name__} has no prunable channel group: declare some or use channel_sparsity=0"
        )
    return tuple(groups)


def _proven(model: nn.Module, groups: list[ChannelGroup], example_input: Any) -> list[ChannelGroup]:
    """The found groups that can be sliced and, where there is an example, change nothing on it."""
    sliceable = [group for group in groups if _holds(require_sliceable, model, [group])]
    if example_input is None or not sliceable or _holds(check_groups, model, sliceable, example_input):
        return sliceable
    example_output(copied(model).eval(), example_input)
    proven: list[ChannelGroup] = []
    for group in sliceable:
        if _holds(check_groups, model, [*proven, group], example_input):
            proven.append(group)
    return proven


def _holds(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ChaseError:
        return False
    return True


def _is_stream(group: ChannelGroup) -> bool:
    # A ResNet-50 stem has one producer but feeds a block and its shortcut: by the paper it keeps its width.
    return bool(group.members) or len(group.consumers) > 1


def _as_group(item: Any) -> ChannelGroup:
    if isinstance(item, ChannelGroup):
        return item
    try:
        producer, norm, consumers, *members = item
        (further,) = members or ((),)
    except (TypeError, ValueError) as error:
        raise ChaseError(f"channel_groups() entry {item!r} is not (producer, norm or None, consumers)") from error
    if not isinstance(producer, str) or isinstance(consumers, str) or isinstance(further, str):
        raise ChaseError(f"channel_groups() entry {item!r} is not (producer name, norm name or None, consumer names)")
    return ChannelGroup(producer, norm, tuple(consumers), tuple(further))


class Tracer(fx.Tracer):
    """Goes through layers that the forward pass makes on the spot, which are no submodules."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As of ``torch.fx``."""
        if all(m is not module for module in self.root.modules()):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def computed_in_graph(model: nn.Module) -> set[str]:
    """`plait_chase.flops.computed_weights` without an example: of the traced graph; empty where tracing fails."""
    try:
        graph = Tracer().trace(copied(model))
    except Exception:  # a stranger's forward pass may raise anything on proxies
        return set()
    parameters = dict(model.named_parameters())
    sources: dict[fx.Node, set[str]] = {}  # of what depends on parameters only
    changed: set[fx.Node] = set()
    computed: set[str] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" and str(node.target) in parameters:
            sources[node] = {str(node.target)}
        elif node.op in ("call_function", "call_method") and inputs and all(n in sources for n in inputs):
            sources[node] = set().union(*(sources[n] for n in inputs))
            scaled = node.target in (operator.mul, operator.truediv, "mul", "div") and len(inputs) == 1
            if not (scaled or node.target in _SAME_VALUES) or not changed.isdisjoint(inputs):
                changed.add(node)
        elif node.target in _PRODUCTS:
            computed.update(*(sources[n] for n in inputs if n in changed))
    return {name for name in computed if parameters[name].ndim >= 2}


def _traced_groups(model: nn.Module, into_linear: bool) -> list[ChannelGroup]:
    """The groups of a copy of the model, which a forward pass may leave full of proxies."""
    return [
        ChannelGroup(s.producer, s.norms[0] if s.norms else None, tuple(s.consumers), (), tuple(s.norms[1:]))
        for s in _traced_spaces(model)
        if len(s.consumers) == 1 and not s.frozen and (into_linear or not s.into_linear)
    ]


def _traced_spaces(model: nn.Module) -> list[_Space]:
    """Follow every convolution's channels through the traced graph; whatever is not understood freezes them."""
    graph = Tracer().trace(model)
    modules = dict(model.named_modules())
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    spaces: list[_Space] = []
    flows: dict[fx.Node, _Flow | None] = {}
    for node in graph.nodes:
        inputs = [flows[n] for n in node.all_input_nodes if flows.get(n) is not None]
        incoming = [flow for flow in inputs if flow is not None]
        out: _Flow | None = None
        understood = False
        if node.op == "call_module":
            name = str(node.target)
            module = modules[name]
            single = called.count(name) == 1
            understood, out = _through_module(name, module, incoming, single)
            if out is not None and out.space.producer == name:
                spaces.append(out.space)
        elif node.op in ("call_function", "call_method"):
            understood, out = _through_call(node, incoming)
        if not understood:
            for flow in incoming:
                flow.space.frozen = True
        flows[node] = out
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for space in spaces:
        if read.intersection((space.producer, *space.norms, *space.consumers)):
            space.frozen = True
    return spaces


def _through_module(name: str, module: nn.Module, incoming: list[_Flow], single: bool) -> tuple[bool, _Flow | None]:
    """(understood, what flows out) for a module call."""
    flow = incoming[0] if len(incoming) == 1 else None
    if isinstance(module, _Conv):
        plain = single and module.groups == 1 and not module.transposed
        if flow is not None and plain and not flow.flat and module.in_channels == flow.space.width:
            flow.space.consumers.append(name)
        elif flow is not None:
            flow.space.frozen = True
        space = _Space(name, module.out_channels, frozen=not plain)
        return True, _Flow(space)
    if flow is None:
        return False, None
    if isinstance(module, nn.Linear):
        fits = single and flow.flat and module.in_features % flow.space.width == 0
        flow.space.consumers.append(name)
        flow.space.into_linear = True
        return fits, None
    if isinstance(module, (_BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        flow.space.norms.append(name)
        return single and module.num_features == flow.space.width, flow
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1, flow
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1, _Flow(flow.space, True)
    return type(module) in _CHANNELWISE, flow


def _through_call(node: fx.Node, incoming: list[_Flow]) -> tuple[bool, _Flow | None]:
    """(understood, what flows out) for a function or method call."""
    flow = incoming[0] if len(incoming) == 1 else None
    # Shapes are asked for to reshape; no channel value flows.
    if node.target in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "device", "dtype")):
        return True, None
    if flow is None:
        return not incoming, None
    if node.target in _CHANNELWISE_FUNCTIONS or node.target in _CHANNELWISE_METHODS:
        return True, flow
    scalar = len(node.all_input_nodes) == 1 and len(node.args) == 2
    if node.target in (operator.mul, operator.truediv, operator.add, operator.sub) and scalar:
        return True, flow
    if node.target in (torch.flatten, "flatten"):
        rest = [*node.args[1:], *node.kwargs.values()]
        return rest in ([1], [1, -1]), _Flow(flow.space, True)
    if node.target in ("view", "reshape", torch.reshape):
        sizes = node.args[1] if len(node.args) == 2 else node.args[1:]
        if not isinstance(sizes, (tuple, list)) or len(sizes) != 2:
            return False, None
        return isinstance(sizes[0], fx.Node) and sizes[1] in (-1,), _Flow(flow.space, True)
    if node.target in (torch.mean, "mean", torch.amax, "amax"):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
        spatial = isinstance(dims, (tuple, list)) and sorted(str(d) for d in dims) in (["2", "3"], ["-1", "-2"])
        return spatial, _Flow(flow.space, flow.flat or not keep)
    return False, None


def _dependency_groups(model: nn.Module, example_input: Any, into_linear: bool) -> list[ChannelGroup]:
    """Groups of torch-pruning's dependency graph, single and coupled, without what Chase does not prune.

    Raises:
        ChaseError: a model that does not run, or that torch-pruning cannot follow.
    """
    example_output(copied(model).eval(), example_input)
    try:
        return _followed(copied(model).eval(), example_input, into_linear)
    except Exception as error:
        raise ChaseError(f"torch-pruning cannot follow {type(model).__name__}: {brief(error)}") from error


def _followed(traced: nn.Module, example_input: Any, into_linear: bool) -> list[ChannelGroup]:
    """`_dependency_groups` of a copy of the model in eval mode."""
    tp = import_module("torch_pruning")
    ops = import_module("torch_pruning.ops")
    kind = ops.OPTYPE
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(traced, example_inputs=example_input, verbose=False)
    names = {module: name for name, module in traced.named_modules()}
    harmless = {kind.CONV, kind.BN, kind.LINEAR, kind.ELEMENTWISE, kind.RESHAPE}
    coupled: list[ChannelGroup] = []
    for group in graph.get_all_groups(root_module_types=[_Conv]):
        producers: list[str] = []
        norms: list[str] = []
        consumers: list[str] = []
        clean = True
        linear = False
        for dependency, _ in group:
            module = dependency.target.module
            type_ = ops.module2type(module)
            out = graph.is_out_channel_pruning_fn(dependency.handler)
            if type_ not in harmless or (type_ == kind.CONV and (module.groups != 1 or module.transposed)):
                clean = False
            elif type_ == kind.CONV:
                _append(producers if out else consumers, names[module])
            elif type_ == kind.LINEAR and not out:
                _append(consumers, names[module])
                linear = True
            elif type_ == kind.LINEAR:
                clean = False
            elif type_ == kind.BN:
                _append(norms, names[module])
        if not clean or not producers or not consumers or (linear and not into_linear):
            continue
        coupled.append(
            ChannelGroup(
                producers[0], norms[0] if norms else None, tuple(consumers), tuple(producers[1:]), tuple(norms[1:])
            )
        )
    return coupled


def _append(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)

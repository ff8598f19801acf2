"""A network over all participants at once: batched matrix products and grouped convolutions. Card, cost model.

The network is traced by ``torch.fx``. Vectors are held as [N, B, F] (``baddbmm``), maps as [B, N*C, H, W] (convolution
in groups), so neither is copied between layers of one kind.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from plait_dbadfl.errors import DbadflError


@dataclass(frozen=True)
class Maps:
    """Feature maps [B, N*C, H, W] of N participants."""

    tensor: Tensor


Value = Tensor | Maps
State = Mapping[str, Tensor]

ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Dropout,
    nn.Identity,
)  # fmt: skip
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
UNARY = {
    torch.relu,
    functional.relu,
    torch.tanh,
    torch.sigmoid,
    functional.gelu,
    functional.silu,
    functional.leaky_relu,
}
POOL_FUNCTIONS: tuple[Any, ...] = (
    functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d,
    torch.max_pool2d,
)  # fmt: skip
BINARY = {operator.add, operator.sub, operator.mul, operator.iadd, operator.imul, operator.isub, torch.add, torch.sub,
          torch.mul}  # fmt: skip
UNARY_METHODS = {"relu", "tanh", "sigmoid", "relu_", "contiguous"}


def as_maps(value: Value, n: int) -> Tensor:
    """[B, N*C, H, W] of [N, B, C, H, W]."""
    if isinstance(value, Maps):
        return value.tensor
    if value.ndim != 5:
        raise DbadflError(f"the grouped implementation needs images [N, B, C, H, W], got {tuple(value.shape)}")
    _, batch, channels, height, width = value.shape
    return value.transpose(0, 1).reshape(batch, n * channels, height, width)


def as_plain(value: Value, n: int) -> Tensor:
    """[N, B, ...]."""
    if isinstance(value, Tensor):
        return value
    batch, channels, height, width = value.tensor.shape
    return value.tensor.view(batch, n, channels // n, height, width).transpose(0, 1)


class GroupedPlan:
    """The steps of a network, each over all participants.

    Args:
        model: one participant's network (never run itself; its parameters are not used).

    Raises:
        DbadflError: a layer or function that has no grouped form (named), or a network that ``torch.fx`` cannot trace.
    """

    def __init__(self, model: nn.Module) -> None:
        tracer = fx.Tracer()
        try:
            graph = tracer.trace(model)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DbadflError(
                f"implementation 'grouped': {type(model).__name__} cannot be traced ({reason}); use 'vmap' or 'loop'"
            ) from error
        self.model = model
        self.inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
        self.output: Any = next(node.args[0] for node in graph.nodes if node.op == "output")
        if len(self.inputs) != 1 or not isinstance(self.output, fx.Node):
            raise DbadflError(
                "implementation 'grouped' takes networks of one tensor to one tensor; use 'vmap' or 'loop'"
            )
        if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
            raise DbadflError("implementation 'grouped' has no form of layers that share weights; use 'vmap' or 'loop'")
        modules = dict(model.named_modules())
        self.steps = [_step(node, modules) for node in graph.nodes if node.op not in ("placeholder", "output")]
        # Each step also says which values nobody reads after it, so that they are freed as in an ordinary forward pass.
        last = {source.name: node.name for node in graph.nodes for source in node.all_input_nodes}
        self.dead = {step.name: [s for s, reader in last.items() if reader == step.name] for step in self.steps}

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupedPlan:
        # traced anew: the nodes of a graph are a linked list, in which copying recurses node by node
        return GroupedPlan(copy.deepcopy(self.model, memo))

    def __call__(self, parameters: State, buffers: State, x: Tensor) -> Tensor:
        """[N, B, K] of x [N, B, ...]; running statistics in ``buffers`` change in place where the model trains."""
        n = len(x)
        values: dict[str, Value] = {self.inputs[0]: x}
        state = {**parameters, **buffers}
        for step in self.steps:
            values[step.name] = step.run(state, [_filled(a, values) for a in step.args], step.kwargs, n)
            for name in self.dead[step.name]:
                values.pop(name, None)
        return as_plain(values[self.output.name], n)


@dataclass(frozen=True)
class _Step:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run: Callable[[State, Sequence[Any], dict[str, Any], int], Value]


def _filled(argument: Any, values: Mapping[str, Value]) -> Any:
    return values[argument.name] if isinstance(argument, fx.Node) else argument


def _step(node: fx.Node, modules: Mapping[str, nn.Module]) -> _Step:
    handler: Callable[..., Value] | None = None
    if node.op == "call_module":
        name = str(node.target)
        handler = _of_module(name, modules[name])
        what = f"layer {name!r} ({type(modules[name]).__name__})"
    elif node.op == "call_function":
        handler = _of_function(node)
        what = f"function {getattr(node.target, '__name__', node.target)!r}"
    elif node.op == "call_method":
        handler = _of_method(node)
        what = f"tensor method {node.target!r}"
    else:
        what = f"{node.op} {node.target!r}"
    if handler is None or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        raise DbadflError(f"implementation 'grouped' has no form of {what}; use 'vmap' or 'loop'")
    return _Step(node.name, tuple(node.args), dict(node.kwargs), handler)


def _of_module(name: str, module: nn.Module) -> Callable[..., Value] | None:
    weight, bias = f"{name}.weight", f"{name}.bias"
    kind = type(module)
    if kind is nn.Linear:
        return lambda state, args, kwargs, n: linear(as_plain(args[0], n), state[weight], state.get(bias))
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d and module.padding_mode == "zeros":
        return lambda state, args, kwargs, n: Maps(
            functional.conv2d(
                as_maps(args[0], n),
                state[weight].flatten(0, 1),
                None if bias not in state else state[bias].flatten(),
                module.stride,
                module.padding,
                module.dilation,
                module.groups * n,
            )
        )
    if isinstance(module, nn.GroupNorm):
        return _group_norm(name, module)
    if kind is nn.BatchNorm2d and module.momentum is not None:
        return _batch_norm(name, module)  # type: ignore[arg-type]
    if isinstance(module, ELEMENTWISE):
        return lambda state, args, kwargs, n: _elementwise(module, args[0])
    if isinstance(module, POOLS) and not getattr(module, "return_indices", False):
        return lambda state, args, kwargs, n: Maps(module(as_maps(args[0], n)))
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return lambda state, args, kwargs, n: as_plain(args[0], n).flatten(2)
    return None


def _group_norm(name: str, module: nn.GroupNorm) -> Callable[..., Value]:
    def run(state: State, args: Sequence[Any], kwargs: dict[str, Any], n: int) -> Value:
        vectors = isinstance(args[0], Tensor) and args[0].ndim == 3
        channels = args[0].transpose(0, 1).flatten(1) if vectors else as_maps(args[0], n)
        weight, bias = _flat(state, f"{name}.weight"), _flat(state, f"{name}.bias")
        out = functional.group_norm(channels, module.num_groups * n, weight, bias, module.eps)
        return out.view(len(out), n, -1).transpose(0, 1) if vectors else Maps(out)

    return run


def _batch_norm(name: str, module: nn.BatchNorm2d) -> Callable[..., Value]:
    def run(state: State, args: Sequence[Any], kwargs: dict[str, Any], n: int) -> Value:
        maps = as_maps(args[0], n)
        mean, var = _flat(state, f"{name}.running_mean"), _flat(state, f"{name}.running_var")
        own = module.training or mean is None
        if own and not module.track_running_stats:
            mean = var = None  # as torch: a layer that was told not to track leaves its statistics alone
        elif module.training and mean is not None:
            state[f"{name}.num_batches_tracked"].add_(1)
        return Maps(
            functional.batch_norm(
                maps, mean, var, _flat(state, f"{name}.weight"), _flat(state, f"{name}.bias"),
                own, module.momentum or 0.0, module.eps,
            )
        )  # fmt: skip

    return run


def _of_function(node: fx.Node) -> Callable[..., Value] | None:
    target: Any = node.target
    if target in UNARY:
        return lambda state, args, kwargs, n: _elementwise(lambda t: target(t, *args[1:], **kwargs), args[0])
    if target in POOL_FUNCTIONS or getattr(target, "__name__", "") == "boolean_dispatch":
        if node.kwargs.get("return_indices"):
            return None
        return lambda state, args, kwargs, n: Maps(target(as_maps(args[0], n), *args[1:], **kwargs))
    if target in BINARY and not node.kwargs:
        return lambda state, args, kwargs, n: _binary(target, args[0], args[1], n)
    if target is torch.flatten and _flattens(node):
        return lambda state, args, kwargs, n: as_plain(args[0], n).flatten(2)
    return None


def _of_method(node: fx.Node) -> Callable[..., Value] | None:
    if node.target in UNARY_METHODS:
        method = str(node.target)
        return lambda state, args, kwargs, n: _elementwise(operator.methodcaller(method), args[0])
    if node.target == "flatten" and _flattens(node):
        return lambda state, args, kwargs, n: as_plain(args[0], n).flatten(2)
    if node.target == "mean" and _over_maps(node):
        return lambda state, args, kwargs, n: as_plain(Maps(as_maps(args[0], n)), n).mean((-2, -1))
    return None


def _flattens(node: fx.Node) -> bool:
    start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
    end = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)
    return (start, end) == (1, -1)


def _over_maps(node: fx.Node) -> bool:
    dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    keep = node.kwargs.get("keepdim", len(node.args) > 2)
    return isinstance(dims, list | tuple) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3] and not keep


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N, B, ..., out] of x [N, B, ..., in], weight [N, out, in], bias [N, out]."""
    rows = x.flatten(1, -2) if x.ndim > 3 else x
    transposed = weight.transpose(1, 2)
    out = torch.bmm(rows, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, transposed)
    return out.view(*x.shape[:-1], -1) if x.ndim > 3 else out


def _flat(state: State, name: str) -> Tensor | None:
    # A view, not a copy: batch norm writes its running statistics through it.
    return state[name].view(-1) if name in state else None


def _elementwise(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    return Maps(function(value.tensor)) if isinstance(value, Maps) else function(value)


def _binary(function: Callable[[Any, Any], Any], left: Any, right: Any, n: int) -> Value:
    if isinstance(left, Maps) and not isinstance(right, Maps | Tensor):
        return Maps(function(left.tensor, right))
    if isinstance(right, Maps) and not isinstance(left, Maps | Tensor):
        return Maps(function(left, right.tensor))
    if isinstance(left, Maps) or isinstance(right, Maps):
        return Maps(function(as_maps(left, n), as_maps(right, n)))
    result: Tensor = function(left, right)
    return result

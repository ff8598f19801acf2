"""N participants as one module whose parameters carry a leading participant axis. Card, notation and cost model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.grouped import GroupedPlan
from plait_dbadfl.names import Computed
from plait_dbadfl.norms import has_batch_norm, with_group_norm

__all__ = ["Stacked"]

Implementation = Literal["auto", "measured", Computed]
Nodes = Tensor | slice | None
TRIAL_REPLICAS = 8
TRIAL_REPEATS = 3
LARGE = 25_000
"""Pixels in one node's batch from which convolutions are faster one network after the other (measured, one core)."""


def usual_implementation(base: nn.Module, pixels: int) -> Computed:
    """How N networks are computed, by a rule and not by the clock, so that a recipe gives the same bits every time.

    Grouped products where every layer has them, else ``vmap``; networks with convolutions over many pixels one after
    the other. The figures behind it are those of ``benchmarks/dbadfl.py``.

    Args:
        base: one network.
        pixels: B x H x W of one node's batch.
    """
    convolves = any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in base.modules())
    if convolves and pixels > LARGE:
        return "loop"
    try:
        GroupedPlan(base)
    except DbadflError:
        return "vmap"
    return "grouped"


class Stacked(nn.Module):
    """N replicas of one network, each with its own parameters, as one ``nn.Module``.

    A parameter ``conv.weight`` of shape s becomes ``stacked.conv.weight`` of shape [N, *s]; buffers likewise. One
    backward pass of ``loss[N, B].mean(-1).sum()`` gives every participant the gradient of its own mean loss, and
    elementwise optimizers act as N separate ones.

    Args:
        base: one participant's network.
        n: number of participants, N >= 1.
        implementation: ``vmap`` (``torch.func``), ``loop`` (a Python loop, the reference), ``grouped`` (batched
            products and grouped convolutions, see `plait_dbadfl.grouped`); ``auto``: one of them by a rule
            (`usual_implementation`, and ``loop`` where ``vmap`` refuses), ``measured``: by a short timed trial, both at
            the first forward pass or in `settle`. Results agree up to rounding, so ``measured`` may give other bits
            another time.
        norm: ``group`` turns batch norm into group norm (default); ``batch`` keeps it with statistics per participant.
        init: ``same``: everybody starts from ``base``'s weights; ``different``: from ``builder``, or freshly drawn.
        builder: participant number -> network, for ``init="different"``.
        seed: for ``init="different"`` without a builder: participant i's layers are reset after ``manual_seed(seed +
            i)``.

    Attributes:
        replicas: N.
        implementation: the name in use; ``auto`` or ``measured`` until it is settled. May be set.
        timings: seconds of one forward and backward pass of each implementation that the trial ran.

    Raises:
        DbadflError: an unknown name, n < 1, a network without parameters, or layers that the implementation refuses.
    """

    replicas: int

    def __init__(
        self,
        base: nn.Module,
        n: int,
        *,
        implementation: Implementation = "auto",
        norm: Literal["group", "batch"] = "group",
        init: Literal["same", "different"] = "same",
        builder: Callable[[int], nn.Module] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n < 1:
            raise DbadflError(f"n={n}: a federation needs at least one participant")
        if norm not in ("group", "batch") or init not in ("same", "different"):
            raise DbadflError(f"norm={norm!r}, init={init!r}: norm is 'group' or 'batch', init 'same' or 'different'")
        template = self._prepared(base, norm)
        # In a list, so that the template's own weights are not parameters of this module.
        self._template = [template]
        # a network that is in evaluation mode as a whole says nothing of its parts
        self._modes = [module.training or not template.training for module in template.modules()]
        self._plan: list[GroupedPlan | None] = [None]
        self.replicas = n
        self.timings: dict[str, float] = {}
        self.stacked = nn.Module()
        copies = None if init == "same" else self._drawn(builder, seed, norm)
        for name, parameter in template.named_parameters():
            rows = _repeated(parameter, n) if copies is None else torch.stack([c[name] for c in copies])
            _register(self.stacked, name, nn.Parameter(rows, requires_grad=parameter.requires_grad))
        for name, buffer in template.named_buffers():
            rows = _repeated(buffer, n) if copies is None else torch.stack([c[name] for c in copies])
            _register(self.stacked, name, rows, persistent=_is_persistent(template, name))
        if not any(True for _ in self.parameters()):
            raise DbadflError(f"{type(base).__name__} has no parameters: there is nothing to train or to mix")
        self.training = base.training
        self.implementation = implementation

    # ---- what it is --------------------------------------------------------------------------------------------
    @property
    def base(self) -> nn.Module:
        """The template: one participant's network. Its weights mean nothing."""
        return self._template[0]

    @property
    def parameter_count(self) -> int:
        """P: parameters of one participant."""
        return sum(p.numel() for p in self.parameters()) // self.replicas

    @property
    def implementation(self) -> str:
        """The implementation in use."""
        return self._implementation

    @implementation.setter
    def implementation(self, name: str) -> None:
        if name not in get_args(Implementation):
            raise DbadflError(f"implementation {name!r} is not one of {', '.join(get_args(Implementation))}")
        if name == "grouped":
            self._grouped()
        self._implementation = name

    def extra_repr(self) -> str:
        return f"{type(self.base).__name__}, replicas={self.replicas}, implementation={self.implementation!r}"

    # ---- forward -----------------------------------------------------------------------------------------------
    def forward(self, x: Tensor, nodes: Nodes = None, *, shared: bool = False) -> Tensor:
        """Outputs [N, B, ...] of inputs [N, B, ...], participant i's rows by participant i's weights.

        Args:
            x: inputs [N, B, ...].
            nodes: only these participants, int64 [m] or a slice; ``x`` and the result are then [m, B, ...]. A
                number may occur more than once (not while batch norm records statistics).
            shared: ``x`` is one batch [B, ...] for everybody.

        Raises:
            DbadflError: inputs for another number of participants, or a network that ``vmap`` refuses (the layer is
                named).
        """
        parameters, buffers = self._rows(nodes)
        m = len(next(iter(parameters.values())))
        if not shared and len(x) != m:
            raise DbadflError(f"inputs {tuple(x.shape)} are for {len(x)} participants; the model has {m}")
        self._match_modes()
        self.settle(x, nodes, shared=shared)
        result = self._run(self.implementation, parameters, buffers, x, shared, m)
        if isinstance(nodes, Tensor) and self.training:
            for name, buffer in self._buffers_by_name().items():
                buffer.index_copy_(0, nodes, buffers[name])
        return result

    def _run(
        self, how: str, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, shared: bool, m: int
    ) -> Tensor:
        if how == "grouped":
            return self._grouped()(parameters, buffers, x.expand(m, *x.shape) if shared else x)
        if how == "loop":
            rows = {name: tensor.unbind() for name, tensor in {**parameters, **buffers}.items()}
            outputs = [
                functional_call(self.base, {name: r[i] for name, r in rows.items()}, (x if shared else x[i],))
                for i in range(m)
            ]
            return torch.stack(outputs)

        def forward_one(own: dict[str, Tensor], kept: dict[str, Tensor], inputs: Tensor) -> Any:
            return functional_call(self.base, (own, kept), (inputs,))

        call = vmap(forward_one, in_dims=(0, 0, None if shared else 0), randomness="different")
        try:
            result: Tensor = call(parameters, buffers, x)
        except (RuntimeError, ValueError) as error:
            raise self._vmap_refusal(error, call, parameters, buffers, x, shared) from error
        return result

    def _vmap_refusal(
        self,
        error: Exception,
        call: Callable[..., Any],
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        shared: bool,
    ) -> Exception:
        reason = str(error).splitlines()[0]
        spare = {name: b[0].clone() for name, b in buffers.items()}
        try:
            functional_call(self.base, ({n: p[0] for n, p in parameters.items()}, spare), (x if shared else x[0],))
        except (RuntimeError, ValueError):
            # One participant alone fails too: the inputs are wrong, not vmap.
            return DbadflError(f"{type(self.base).__name__} cannot take inputs {tuple(x.shape)}: {reason}")
        inside: list[str] = []
        hooks = []
        for name, module in self.base.named_modules():
            label = f"layer {name!r} ({type(module).__name__})" if name else f"{type(module).__name__}.forward itself"
            hooks.append(module.register_forward_pre_hook(_entering(inside, label)))
            hooks.append(module.register_forward_hook(_leaving(inside)))
        try:
            call(parameters, {name: b.clone() for name, b in buffers.items()}, x)
        except (RuntimeError, ValueError):
            pass
        finally:
            for hook in hooks:
                hook.remove()
        where = inside[-1] if inside else type(self.base).__name__
        return DbadflError(f"vmap refuses {where}: {reason} Use implementation='loop'")

    def _grouped(self) -> GroupedPlan:
        plan = self._plan[0]
        if plan is None:
            plan = self._plan[0] = GroupedPlan(self.base)
        return plan

    def settle(self, x: Tensor, nodes: Nodes = None, *, shared: bool = False) -> str:
        """The implementation's name, chosen for inputs like ``x`` where it is ``auto`` or ``measured``; see `choose`
        for what is left as it was."""
        if self.implementation == "measured":
            return self.choose(x, nodes, shared=shared)
        if self.implementation == "auto":
            of_node = x if shared else x[0]
            name = usual_implementation(self.base, len(of_node) * math.prod(of_node.shape[2:]))
            if name == "vmap":
                parameters, buffers = self._rows(nodes)
                try:
                    self._timed(name, parameters, buffers, x, shared, len(next(iter(parameters.values()))), repeats=0)
                except DbadflError:
                    name = "loop"
            self._implementation = name
        return self.implementation

    def choose(self, x: Tensor, nodes: Nodes = None, *, shared: bool = False) -> str:
        """Time every implementation that can run on ``x`` and take the fastest; its name.

        Forward and backward, best of three after one to warm up; the loop on at most 8 participants, scaled. Weights,
        gradients, buffers and the global random generators are left as they were.
        """
        self._match_modes()
        live, buffers = self._rows(nodes)
        parameters = {
            name: p.detach().requires_grad_(p.is_floating_point() or p.is_complex()) for name, p in live.items()
        }
        m = len(next(iter(parameters.values())))
        few = min(m, TRIAL_REPLICAS)
        self.timings = {}
        refusal: DbadflError | None = None
        for how in ("grouped", "vmap", "loop"):
            size = few if how == "loop" else m
            part = x if shared else x[:size]
            own = {name: p[:size] for name, p in parameters.items()}
            try:
                if how == "grouped":
                    self._grouped()
                seconds = self._timed(how, own, buffers, part, shared, size)
            except DbadflError as error:
                refusal = error
                continue
            self.timings[how] = seconds * m / size
        if not self.timings:
            assert refusal is not None
            raise refusal
        self._implementation = min(self.timings, key=lambda how: self.timings[how])
        return self._implementation

    def _timed(
        self,
        how: str,
        own: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        shared: bool,
        m: int,
        repeats: int = TRIAL_REPEATS,
    ) -> float:
        best = float("inf")
        cuda = x.device.type == "cuda"
        with torch.random.fork_rng(devices=[x.device] if cuda else []), torch.enable_grad():
            for attempt in range(repeats + 1):
                spare = {name: b[:m].clone() for name, b in buffers.items()}
                start = time.perf_counter()
                result = self._run(how, own, spare, x, shared, m)
                wanted = [p for p in own.values() if p.requires_grad]
                torch.autograd.grad(result.abs().square().mean(), wanted, allow_unused=True)
                if cuda:
                    torch.cuda.synchronize(x.device)
                if attempt:
                    best = min(best, time.perf_counter() - start)
        return best

    # ---- participants ------------------------------------------------------------------------------------------
    def replica(self, i: int) -> nn.Module:
        """A copy of the network with participant i's weights and buffers."""
        self._check(i)
        network = copy.deepcopy(self.base)
        tensors = {**self._parameters_by_name(), **self._buffers_by_name()}
        with torch.no_grad():
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
                tensor.data = tensors[name][i].detach().clone()
        return self._in_modes(network)

    @torch.no_grad()
    def load_replica(self, i: int, module: nn.Module) -> None:
        """Give participant i the weights and buffers of ``module``, in place.

        Raises:
            DbadflError: another architecture, or no such participant.
        """
        self._check(i)
        tensors = {**self._parameters_by_name(), **self._buffers_by_name()}
        given = dict([*module.named_parameters(), *module.named_buffers()])
        odd = sorted(set(given) ^ set(tensors)) or [n for n, t in tensors.items() if t.shape[1:] != given[n].shape]
        if odd:
            raise DbadflError(f"participant {i}: the module differs from the stacked network at {odd[0]!r}")
        for name, tensor in tensors.items():
            tensor[i].copy_(given[name])

    def flat(self) -> Tensor:
        """A copy of all parameters, [N, P], in the order of ``parameters()``."""
        return flatten(list(self.parameters()))

    def unflat(self, models: Tensor) -> None:
        """Write models [N, P] into the parameters, in place."""
        unflatten_(list(self.parameters()), models)

    # ---- plumbing ----------------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> Stacked:
        """Training mode here and in the template, which decides for dropout and batch norm; parts of the template that
        their builder put into evaluation mode stay in it."""
        super().train(mode)
        self._match_modes()
        return self

    def _match_modes(self) -> None:
        # the template is no submodule, so whoever sets ``training`` module by module does not reach it
        self._in_modes(self.base)

    def _in_modes(self, network: nn.Module) -> nn.Module:
        for module, mode in zip(network.modules(), self._modes, strict=True):
            module.training = mode and self.training
        return network

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stacked:
        self.base._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @staticmethod
    def _prepared(base: nn.Module, norm: str) -> nn.Module:
        return with_group_norm(base) if norm == "group" and has_batch_norm(base) else copy.deepcopy(base)

    def _drawn(self, builder: Callable[[int], nn.Module] | None, seed: int, norm: str) -> list[dict[str, Tensor]]:
        copies = []
        for i in range(self.replicas):
            if builder is not None:
                module = self._prepared(builder(i), norm)
            else:
                module = copy.deepcopy(self.base)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed + i)
                    _reset(module)
            copies.append({n: t.detach() for n, t in [*module.named_parameters(), *module.named_buffers()]})
            if {n: t.shape for n, t in copies[-1].items()} != {n: t.shape for n, t in copies[0].items()}:
                raise DbadflError(f"builder({i}) made a network of other tensors than builder(0)")
        return copies

    def _parameters_by_name(self) -> dict[str, Tensor]:
        return dict(self.stacked.named_parameters())

    def _buffers_by_name(self) -> dict[str, Tensor]:
        return dict(self.stacked.named_buffers())

    def _rows(self, nodes: Nodes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters, buffers = self._parameters_by_name(), self._buffers_by_name()
        if nodes is None:
            return parameters, buffers
        return {n: p[nodes] for n, p in parameters.items()}, {n: b[nodes] for n, b in buffers.items()}

    def _check(self, i: int) -> None:
        if not 0 <= i < self.replicas:
            raise DbadflError(f"participant {i} is not one of 0..{self.replicas - 1}")


def flatten(parameters: Sequence[Tensor]) -> Tensor:
    """A copy of parameters [N, *s] as one matrix [N, P], without gradient."""
    return torch.cat([p.detach().reshape(len(p), -1) for p in parameters], dim=1)


@torch.no_grad()
def unflatten_(parameters: Sequence[Tensor], models: Tensor) -> None:
    """Write models [N, P] into parameters [N, *s], in place. The inverse of `flatten`.

    Raises:
        DbadflError: another shape.
    """
    sizes = [p[0].numel() for p in parameters]
    wanted = (len(parameters[0]), sum(sizes))
    if tuple(models.shape) != wanted:
        raise DbadflError(f"models of shape {tuple(models.shape)} do not fit parameters of shape {wanted}")
    for parameter, block in zip(parameters, torch.split(models, sizes, dim=1), strict=True):
        parameter.copy_(block.reshape(parameter.shape))


def _entering(inside: list[str], label: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, args: inside.append(label)


def _leaving(inside: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    return leave


def _repeated(tensor: Tensor, n: int) -> Tensor:
    return tensor.detach().unsqueeze(0).repeat(n, *[1] * tensor.ndim)


def _register(root: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    *path, leaf = name.split(".")
    for step in path:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor, persistent=persistent)


def _is_persistent(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf not in model.get_submodule(path)._non_persistent_buffers_set


def _reset(model: nn.Module) -> None:
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise DbadflError(
                f"init='different': layer {name!r} ({type(module).__name__}) has no reset_parameters; give a builder"
            )

"""Masks: one owner per tensor, exact zeros through every pass, dense gradients for the owner, bits on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.errors import BadCheckpoint, BadInput


class MaskSet:
    """The masks of one run over the parameters of its model.

    A mask is a tensor of the parameter's shape and type holding 0.0 and 1.0, changed in place by its owner only, who
    then calls `changed`. Masked weights are exactly zero before every forward pass and after every step; ``p.grad`` is
    zero there after every backward pass; optimizer state is zeroed when masks change, so that a weight that comes back
    starts from zero with zero momentum. ``dirty`` says that masks changed since optimizer state was last zeroed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.owner: dict[str, str] = {}
        self.mask: dict[str, Tensor] = {}
        self.dirty = False
        self._dense: dict[str, Tensor] = {}
        self._keep_dense: set[str] = set()
        self._followers: list[dict[str, Tensor]] = []
        self.rebind()

    def __bool__(self) -> bool:
        return bool(self.mask)

    def own(self, owner: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Take parameters; returns their masks, all ones.

        Args:
            owner: the plugin's name.
            names: parameter names as in ``model.named_parameters()``.

        Raises:
            BadInput: an unknown parameter, or one that another plugin owns (both are named).
        """
        parameters = dict(self.model.named_parameters())
        taken = {}
        for name in names:
            if name not in parameters:
                raise BadInput(f"plugin {owner!r} wants to own the mask of {name!r}, which the model does not have.")
            if self.owner.get(name, owner) != owner:
                both = f"{owner!r} and {self.owner[name]!r} both"
                raise BadInput(f"{both} own the mask of {name!r}; drop one of the two plugins.")
            taken[name] = torch.ones_like(parameters[name].detach())
        self.owner.update(dict.fromkeys(taken, owner))
        self.mask.update(taken)
        self.rebind()
        return taken

    def rebind(self) -> None:
        """Find the parameters again by name, after masks were taken or parameters replaced."""
        parameters = dict(self.model.named_parameters())
        missing = [name for name in self.mask if name not in parameters]
        if missing:
            raise BadInput(f"the model no longer has {missing[0]!r}, whose mask {self.owner[missing[0]]!r} owns.")
        self._parameters = [parameters[name] for name in self.mask]
        self._values = [p.detach() for p in self._parameters]
        self._masks = list(self.mask.values())

    def changed(self) -> None:
        """Tell the core that masks were changed in place."""
        self.dirty = True

    def follow(self, tensors: dict[str, Tensor]) -> None:
        """Zero these too, by parameter name, whenever optimizer state is zeroed; the dict is read anew each time."""
        self._followers.append(tensors)

    @torch.no_grad()
    def hold(self) -> None:
        """Zero the masked weights."""
        if self._masks:
            torch._foreach_mul_(self._values, self._masks)

    @torch.no_grad()
    def hold_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero masked weights, optimizer state and what follows them, if masks changed since the last call."""
        if not self.dirty:
            return
        self.hold()
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            state = optimizer.state.get(parameter, {})
            same = [v for v in state.values() if isinstance(v, Tensor) and v.shape == mask.shape]
            if same:
                torch._foreach_mul_(same, [mask.to(v.dtype) for v in same])
        for tensors in self._followers if self._masks else ():
            torch._foreach_mul_([tensors[name] for name in self.mask], self._masks)
        self.dirty = False

    def keep_dense(self, owner: str, wanted: bool = True) -> None:
        """Keep the dense gradients of the owner's tensors from the next passes (a copy of them each, so not always)."""
        (self._keep_dense.add if wanted else self._keep_dense.discard)(owner)

    @torch.no_grad()
    def mask_gradients(self, *, keep: bool, accumulate: bool) -> None:
        """Zero the gradients at masked positions; with ``keep`` remember what stood there for owners that asked."""
        asked = zip(self.mask.items(), self._parameters, strict=True) if keep and self._keep_dense else ()
        for (name, mask), parameter in asked:
            if self.owner[name] in self._keep_dense and parameter.grad is not None:
                # earlier parts of an accumulated gradient are already masked in p.grad: only this part shows here
                hidden = parameter.grad * (1 - mask)
                self._dense[name] = self._dense[name] + hidden if accumulate and name in self._dense else hidden
        pairs = [(p.grad, m) for p, m in zip(self._parameters, self._masks, strict=True) if p.grad is not None]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], [m for _, m in pairs])

    def dense_gradient(self, name: str) -> Tensor:
        """The gradient of the last step's descent pass at all positions of a parameter, masked ones included.

        Raises:
            BadInput: `keep_dense` was not asked for before the step, or the parameter took no part in it.
        """
        parameter = self._parameters[list(self.mask).index(name)]
        if parameter.grad is None:
            raise BadInput(f"the last step gave {name!r} no gradient: it took no part in the loss.")
        if name not in self._dense:
            call = f"masks.keep_dense({self.owner[name]!r})"
            raise BadInput(f"no dense gradient of {name!r} was kept: call {call} before the step.")
        return parameter.grad + self._dense[name]

    def forget_dense(self) -> None:
        """Free the remembered gradients."""
        self._dense.clear()

    def counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (positions kept, positions)."""
        return {name: (int(mask.count_nonzero()), mask.numel()) for name, mask in self.mask.items()}

    def checksum(self) -> int:
        """A 31-bit number that two equal sets of masks share."""
        digest = hashlib.sha256()
        for name, mask in self.mask.items():
            digest.update(name.encode() + pack(mask).numpy().tobytes())
        return int.from_bytes(digest.digest()[:4], "little") >> 1

    def state_dict(self) -> dict[str, Any]:
        """Masks packed to bits: name -> {owner, shape, bits uint8 [ceil(numel / 8)]}."""
        return {
            name: {"owner": self.owner[name], "shape": list(mask.shape), "bits": pack(mask)}
            for name, mask in self.mask.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take masks back, in place.

        Raises:
            BadCheckpoint: other tensors, owners or shapes than owned in this run.
        """
        if odd := sorted(set(state) ^ set(self.mask)):
            others = "the checkpoint's masks are of other tensors than this run's"
            raise BadCheckpoint(f"{others}: {odd[0]!r} is in only one of them.")
        for name, mask in self.mask.items():
            saved = state[name]
            if saved["owner"] != self.owner[name] or list(mask.shape) != saved["shape"]:
                raise BadCheckpoint(
                    f"the mask of {name!r} is {saved['shape']} of {saved['owner']!r} in the checkpoint, "
                    f"{list(mask.shape)} of {self.owner[name]!r} in this run."
                )
            mask.copy_(unpack(saved["bits"], mask.shape))
        self.dirty = True


def pack(mask: Tensor) -> Tensor:
    """A 0/1 tensor as bits, uint8 [ceil(numel / 8)]."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).bool().numpy()))


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack`, bool of the given shape."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).astype(bool)).reshape(shape)

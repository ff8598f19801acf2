"""What a pass must not leave behind: changed state of layers, and changed modes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def frozen_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model run as it always does, and put the state of every layer back afterwards.

    Running statistics, counters, the vectors of a spectral norm, whatever a stranger's layer registers as a buffer or
    gives as extra state: nothing is switched off, so the pass computes what it would compute unfrozen, and afterwards
    the buffers hold what they held, in the same tensors, also where a layer replaced one or made a new one. The
    backward pass belongs inside.
    """
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [b for _, named in registered for b in named.values() if b is not None]
    copies = [b.detach().clone() for b in buffers]
    with_extra = [m for m in model.modules() if type(m).get_extra_state is not nn.Module.get_extra_state]
    extra = [copy.deepcopy(module.get_extra_state()) for module in with_extra]
    try:
        yield
    finally:
        for module, named in registered:
            if module._buffers or named:
                module._buffers.clear()
                module._buffers.update(named)
        with torch.no_grad():
            for buffer, before in zip(buffers, copies, strict=True):
                buffer.copy_(before)
        for module, state in zip(with_extra, extra, strict=True):
            module.set_extra_state(state)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside; afterwards every module is in the mode that it was in.

    It is put back by ``model.train``, so that one that holds a network which is no submodule can pass it on.
    """
    training, modes = model.training, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for module, mode in modes:
            module.training = mode

"""A lottery ticket: kept edges, kept weights, initial weights; on disk, and on another graph. Card section 6."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.storage.files import write_atomically
from plait.training.masks import pack, unpack
from plait_glt.errors import GLTError
from plait_glt.models.weights import drop_effective, matrix_names, plain_network

FORMAT = "plait-glt-ticket-1"


@dataclass(frozen=True)
class Ticket:
    """``(b_g, b_theta, Theta_0)`` and the graph it was found on.

    Args:
        edge_kept: b_g [U], bool.
        pairs: both nodes of each mask entry [2, U], int64.
        weight_kept: b_theta by weight name, bool.
        initial: Theta_0 and the buffers, the whole ``state_dict`` of the network before training.
        num_nodes: n.
        graph_hash: of the source graph.
        tied: whether a mask entry stands for both directions.
        notes: figures and settings to keep with it, JSON values.
    """

    edge_kept: Tensor
    pairs: Tensor
    weight_kept: dict[str, Tensor]
    initial: dict[str, Tensor]
    num_nodes: int
    graph_hash: str
    tied: bool = True
    notes: dict[str, Any] = field(default_factory=dict)

    def check_graph(self, graph_hash: str) -> None:
        """Refuse another graph.

        Raises:
            GLTError: naming both hashes.
        """
        if graph_hash != self.graph_hash:
            raise GLTError(
                f"the ticket belongs to the graph with hash {self.graph_hash[:12]}, this one has {graph_hash[:12]}; "
                "use transfer to move it."
            )

    @property
    def edge_index(self) -> Tensor:
        """The kept directed entries [2, E'], sorted by source then target."""
        kept = self.pairs[:, self.edge_kept]
        entries = torch.cat([kept, kept.flip(0)], 1) if self.tied else kept
        return entries[:, (entries[0] * self.num_nodes + entries[1]).argsort()]

    @torch.no_grad()
    def plant(self, network: nn.Module) -> None:
        """Rewind a network of the ticket's own shape: ``Theta_0 * b_theta``, and the buffers."""
        network = plain_network(network)
        network.load_state_dict(self.initial)
        parameters = dict(network.named_parameters())
        for name, kept in self.weight_kept.items():
            parameters[name].mul_(kept)

    def save(self, path: Path) -> None:
        """Write one safetensors file: masks as bits, weights, and JSON in its header. Whole or not at all.

        Raises:
            plait.errors.RunFailed: the disk is full or not writable.
        """
        tensors = {"edge_kept": pack(self.edge_kept), "pairs": self.pairs.detach().cpu().contiguous()}
        tensors |= {f"kept/{name}": pack(mask) for name, mask in self.weight_kept.items()}
        tensors |= {
            f"initial/{name}": value.detach().cpu().contiguous().clone() for name, value in self.initial.items()
        }
        header = {
            "format": FORMAT,
            "num_nodes": self.num_nodes,
            "graph_hash": self.graph_hash,
            "tied": self.tied,
            "shapes": {name: list(mask.shape) for name, mask in self.weight_kept.items()},
            "notes": self.notes,
        }
        write_atomically(path, lambda part: save_file(tensors, part, metadata={"ticket": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> Ticket:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            GLTError: no such file, no ticket, or one that is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["ticket"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["format"] != FORMAT:
                raise GLTError(f"{path} is a ticket of format {header['format']!r}; this version reads {FORMAT!r}.")
            pairs = tensors["pairs"]
            return cls(
                edge_kept=unpack(tensors["edge_kept"], torch.Size([pairs.shape[1]])),
                pairs=pairs,
                weight_kept={
                    name: unpack(tensors[f"kept/{name}"], torch.Size(shape)) for name, shape in header["shapes"].items()
                },
                initial={
                    name.removeprefix("initial/"): t for name, t in tensors.items() if name.startswith("initial/")
                },
                num_nodes=int(header["num_nodes"]),
                graph_hash=header["graph_hash"],
                tied=bool(header["tied"]),
                notes=header["notes"],
            )
        except GLTError:
            raise
        except FileNotFoundError as error:
            raise GLTError(f"no ticket at {path}.") from error
        except (SafetensorError, KeyError, ValueError, TypeError, IndexError, OSError) as error:
            raise GLTError(f"{path} is no ticket, or a damaged one ({type(error).__name__}: {error}).") from error


@dataclass(frozen=True)
class Transfer:
    """What a transfer did to the target network.

    Args:
        weight_kept: masks of all its weight matrices by name, bool; all True for fresh ones.
        carried: weight matrices whose mask and initial values came from the ticket.
        fresh: those that stay dense, at the target's own initial values.
        edge_kept: masks of the target's edges [U'] when its pairs were given, else None.
        common_edges: how many of them the ticket knew.
    """

    weight_kept: dict[str, Tensor]
    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    edge_kept: Tensor | None = None
    common_edges: int = 0


@torch.no_grad()
def transfer(
    ticket: Ticket,
    network: nn.Module,
    *,
    pairs: Tensor | None = None,
    num_nodes: int | None = None,
    shuffle: torch.Generator | None = None,
) -> Transfer:
    """Move a ticket to a network of the same architecture whose input or output layer differs [paper, card section 6].

    Every tensor of equal name and shape takes the ticket's initial values, and weight matrices their mask. Matrices of
    another shape stay dense and fresh; only the first and the last may be so.

    Args:
        ticket: found on a source graph.
        network: changed in place: carried initial values, with the pruned ones 0.
        pairs: both nodes of the target's mask entries [2, U'] (`MaskedGNN.pairs`), when it has the source's node set:
            common edges take over their mask, new ones are kept.
        num_nodes: of the target; needed with ``pairs``.
        shuffle: draw the weights that a carried matrix keeps by chance, as many as in the ticket; the baseline of equal
            sparsity. On the CPU.

    Raises:
        GLTError: another architecture, a hidden layer of another width, nothing to carry, or another node set.
    """
    network = plain_network(network)
    state = network.state_dict()
    drop_effective(network, state)
    if set(state) != set(ticket.initial):
        odd = sorted(set(state) ^ set(ticket.initial))[0]
        raise GLTError(f"transfer: another architecture, {odd!r} is in only one of ticket and network.")
    names = matrix_names(network)
    differ = [name for name in state if state[name].shape != ticket.initial[name].shape]
    hidden = [name for name in differ if name in names[1:-1]]
    if hidden:
        raise GLTError(
            f"transfer: hidden layer {hidden[0]!r} is {tuple(state[hidden[0]].shape)} in the network and "
            f"{tuple(ticket.initial[hidden[0]].shape)} in the ticket; only the input and the output layer may differ."
        )
    carried = tuple(name for name in ticket.weight_kept if name not in differ)
    if not carried:
        raise GLTError(
            "transfer: no weight matrix fits, so nothing would be carried over; with other inputs and classes the "
            "network needs a hidden layer between them (three layers or more)."
        )
    for name, value in state.items():
        if name not in differ:
            value.copy_(ticket.initial[name])
    weight_kept = {}
    for name in ticket.weight_kept:
        mask = ticket.weight_kept[name].to(state[name].device)
        if shuffle is not None:
            mask = mask.reshape(-1)[torch.randperm(mask.numel(), generator=shuffle)].reshape(mask.shape)
        weight_kept[name] = mask.clone() if name in carried else torch.ones_like(state[name], dtype=torch.bool)
        state[name].mul_(weight_kept[name])
    fresh = tuple(name for name in ticket.weight_kept if name in differ)
    if pairs is None:
        return Transfer(weight_kept, carried, fresh)
    if num_nodes != ticket.num_nodes:
        raise GLTError(
            f"transfer: edges carry over between equal node sets; {ticket.num_nodes} nodes there, {num_nodes} here."
        )
    edge_kept, common = _common_edges(ticket, pairs)
    return Transfer(weight_kept, carried, fresh, edge_kept, common)


def _common_edges(ticket: Ticket, pairs: Tensor) -> tuple[Tensor, int]:
    source = (ticket.pairs[0] * ticket.num_nodes + ticket.pairs[1]).to(pairs.device)
    target = pairs[0] * ticket.num_nodes + pairs[1]
    if not len(source):
        return torch.ones_like(target, dtype=torch.bool), 0
    order = source.argsort()
    place = torch.searchsorted(source[order], target).clamp_(max=len(source) - 1)
    known = source[order][place] == target
    kept = ticket.edge_kept.to(pairs.device)[order][place] | ~known
    return kept, int(known.sum())

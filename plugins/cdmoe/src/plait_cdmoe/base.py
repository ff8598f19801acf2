"""The small language model that is condensed where none is given: trained once on real texts, and kept in the cache.

By steps and not by minutes; a training that was killed goes on where it was, and ends with the same bits.

It is no run of plait's own: every step draws its domains by their shares and its windows with replacement from the
seed and its number alone, and the base belongs to no run's folder, for all runs of a seed share it. To train one as a
run: ``plait run --data python-docs --model transformers``, then ``model.path`` is its export and ``base_steps`` 0.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor
from torch.nn.functional import cross_entropy

from plait.data import Data
from plait.errors import BadCheckpoint
from plait.storage import checkpoints
from plait.training.optimizers import state_to_tree, tree_to_state

from .errors import CdmoeError
from .options import CdmoeOptions

__all__ = ["Recipe", "cached", "key_of", "trained_base"]

Recipe = Mapping[str, Any]
"""``steps``, ``batch``, ``lr``, ``shares`` (of the domains; others than there are: by size), ``seed``."""
Tell = Callable[[int, int], object]
"""Called with steps done and in all."""

EVERY = 100
"""Steps between two places where a killed training goes on."""


def trained_base(options: CdmoeOptions, seed: int, model: Any, data: Data, tell: Tell = lambda done, of: None) -> None:
    """Train a fresh model on the run's training texts, or take it from the cache; nothing where ``base_steps`` is 0.

    Raises:
        CdmoeError: training texts that are no windows of one length.
    """
    if not options.base_steps:
        return
    train: Any = data.train
    if not getattr(train, "even", False):
        raise CdmoeError("base_steps trains on windows of one length; else give a trained model and base_steps = 0")
    recipe = {
        "steps": options.base_steps,
        "batch": options.base_batch,
        "lr": options.base_lr,
        "shares": list(options.domain_shares),
        "seed": seed,
    }
    windows = train.tokens.view(len(train), -1)
    cache = user_cache_path("plait", appauthor=False) / "cdmoe"
    cached(model, windows, train.fields["group"], recipe, f"{train.fingerprint}", cache, tell)


def cached(
    model: Any,
    windows: Tensor,
    domains: Tensor,
    recipe: Recipe,
    corpus: str,
    folder: Path,
    tell: Tell = lambda done, of: None,
) -> bool:
    """Give ``model`` the trained weights, from the cache or by training; whether they were there.

    Args:
        model: freshly built, of transformers; changed in place.
        windows, domains: the training texts int64 [n, T], and the domain of each [n].
        recipe: how long and with what.
        corpus: hash of the texts.
        folder: where trained models are kept. Processes that want the same one wait for the one that trains it.
        tell: see `Tell`.
    """
    home = folder / key_of(model, recipe, corpus)[:32]
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        trained, going = home / "trained.safetensors", home / "going.safetensors"
        with contextlib.suppress(BadCheckpoint):  # not there, or damaged: train it
            model.load_state_dict(checkpoints.load(trained)["model"])
            return True
        _train(model, windows, domains, recipe, going, tell)
        checkpoints.save(trained, {"model": model.state_dict()})
        going.unlink(missing_ok=True)
    return False


def key_of(model: Any, recipe: Recipe, corpus: str) -> str:
    """SHA-256 of the configuration, the first weights, the corpus' hash, the recipe and the releases that compute."""
    import transformers

    config = {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}
    releases = [torch.__version__, transformers.__version__]
    first = checkpoints.digest(model.state_dict())
    text = json.dumps([config, dict(recipe), corpus, releases, first], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _train(model: Any, windows: Tensor, domains: Tensor, recipe: Recipe, going: Path, tell: Tell) -> None:
    """The card's recipe: AdamW (0.9, 0.95), weight decay 0.05, 50 steps of warm-up, a cosine to 5 %, clipped at 1.

    ``going`` is the file from which a killed training goes on.
    """
    steps, batch, device = recipe["steps"], recipe["batch"], next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], betas=(0.9, 0.95), weight_decay=0.05)
    first = 0
    with contextlib.suppress(BadCheckpoint):  # not there, or damaged: begin anew
        state = checkpoints.load(going)
        tree_to_state(optimizer, state["optimizer"])  # first: where it does not fit, the weights stay fresh
        model.load_state_dict(state["model"])
        first = state["step"]
    rows = [(domains == number).nonzero().flatten() for number in range(int(domains.max()) + 1)]
    fitting = len(recipe["shares"]) == len(rows)
    shares = torch.tensor(recipe["shares"] if fitting else [float(len(part)) for part in rows])
    factor = getattr(model.config, "router_aux_loss_coef", 0.0) or 0.0
    routed = {"output_router_logits": True} if factor and hasattr(model.config, "output_router_logits") else {}
    was = model.training
    model.train()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed((recipe["seed"] * 1_000_003 + step) % 2**63)
        drawn = torch.multinomial(shares, batch, replacement=True, generator=generator).tolist()
        place = torch.rand(batch, generator=generator).tolist()
        picked = torch.stack([rows[d][int(p * len(rows[d]))] for d, p in zip(drawn, place, strict=True)])
        ids = windows[picked].long().to(device)
        rise, fall = min(1.0, (step + 1) / min(50, max(1, steps // 2))), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * rise * (0.05 + 0.95 * fall)
        optimizer.zero_grad()
        output = model(ids, use_cache=False, **routed)
        loss = cross_entropy(output.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        if routed and isinstance(getattr(output, "aux_loss", None), Tensor):
            loss = loss + factor * output.aux_loss
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tell(step + 1, steps)
        if (step + 1) % EVERY == 0 and step + 1 < steps:
            state = {"model": model.state_dict(), "optimizer": state_to_tree(optimizer), "step": step + 1}
            checkpoints.save(going, state)
    optimizer.zero_grad()
    model.train(was)

"""The encoder: the rank-one shortcut, several subjects, the published names, checkpoints, and what does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from plait import DataInfo
from plait_brainot.checkpoint import load_checkpoint, save_checkpoint
from plait_brainot.encoder import BrainEncoder, build
from plait_brainot.errors import BrainotError
from plait_brainot.options import EncoderOptions
from plait_brainot.perceiver import Resampler
from plait_brainot.tokenizer import tokens_naive, tokens_of_rank_one

pytestmark = pytest.mark.smoke

SMALL = {"hidden": 16, "depth": 2, "heads": 2, "head_dim": 4}


def encoder(voxels: dict[int, int] | None = None, **options: object) -> BrainEncoder:
    torch.manual_seed(0)
    return BrainEncoder(voxels or {1: 30}, 5, 7, EncoderOptions(**{**SMALL, **options}))  # type: ignore[arg-type]


def test_the_shortcut_is_the_naive_form() -> None:
    torch.manual_seed(0)
    lin1, lin2 = nn.Linear(1, 24), nn.Linear(512, 48)
    x = torch.randn(4, 512, requires_grad=True)
    outs = [form(x, lin1, lin2) for form in (tokens_of_rank_one, tokens_naive)]
    assert float((outs[0] - outs[1]).abs().max()) < 1e-4
    weights = [x, *lin1.parameters(), *lin2.parameters()]
    torch.manual_seed(1)
    mixed = torch.randn_like(outs[0])
    for a, b in zip(*(torch.autograd.grad((out * mixed).sum(), weights) for out in outs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_both_forms_in_the_encoder() -> None:
    net = encoder()
    x = torch.randn(3, 30)
    short = net(x)
    assert short.shape == (3, 5, 7)
    net.options = EncoderOptions(**SMALL, naive_tokenizer=True)
    torch.testing.assert_close(net(x), short, rtol=1e-4, atol=1e-5)


def test_a_nonlinear_tokenizer_is_naive() -> None:
    net = encoder(nonlinear=True).eval()
    x = torch.randn(2, 30)
    lin1, lin2 = net.lin1["fmri1"], net.lin2["fmri1"]
    assert not torch.allclose(net.tokens(x, 1), tokens_of_rank_one(x, lin1, lin2), atol=1e-3)  # type: ignore[arg-type]


def test_several_subjects_are_each_their_own() -> None:
    net = encoder({1: 30, 5: 20}, subject_tokens=2)
    wide = torch.zeros(4, 30)
    wide[0::2], wide[1::2, :20] = torch.randn(2, 30), torch.randn(2, 20)
    out = net(wide, torch.tensor([1, 5, 1, 5]))
    alone = encoder({5: 20}, subject_tokens=2)
    alone.load_state_dict({n: v for n, v in net.state_dict().items() if n in alone.state_dict()})
    torch.testing.assert_close(out[1::2], alone(wide[1::2, :20]))
    assert net.token["fmri1"].shape == (2, 16)


@pytest.mark.parametrize(
    ("x", "subject", "message"),
    [
        (torch.ones(2, 29), torch.ones(2).long(), "29 voxels where the tokenizer of subject 1 has 30"),
        (torch.ones(2, 3, 30), None, "choose a repetition, or their mean"),
        (torch.ones(2, 30), None, "which subject"),
        (torch.ones(2, 30), torch.tensor([1, 3]), "subject 3 has no tokenizer; there are 1, 2"),
    ],
)
def test_what_does_not_fit(x: torch.Tensor, subject: torch.Tensor | None, message: str) -> None:
    with pytest.raises(BrainotError, match=message):
        encoder({1: 30, 2: 30})(x, subject)


def test_the_resampler_by_hand() -> None:
    """One layer of one head against plain matrix products."""
    torch.manual_seed(0)
    net = Resampler(6, 1, 1, 4, 3)
    tokens = torch.randn(1, 5, 6)
    attention, feed = net.layers[0]  # type: ignore[misc]
    x, latents = tokens + net.media_pos_emb[0], net.latents.expand(1, -1, -1)
    a, b = attention.norm_media(x), attention.norm_latents(latents)
    q = b @ attention.to_q.weight.T
    k, v = (torch.cat([a, b], 1) @ attention.to_kv.weight.T).chunk(2, -1)
    read = ((q @ k.mT) / 2).softmax(-1) @ v
    latents = latents + read @ attention.to_out.weight.T
    latents = latents + feed(latents)
    torch.testing.assert_close(net(tokens), net.norm(latents), rtol=1e-5, atol=1e-6)


def test_published_names_and_sizes() -> None:
    sizes = EncoderOptions(hidden=1024, depth=6, heads=16, head_dim=96)
    with torch.device("meta"):
        shapes = {
            n: list(v.shape) for n, v in BrainEncoder({1: 15724, 2: 14278}, 256, 1024, sizes).state_dict().items()
        }
    assert shapes["lin1.fmri1.weight"] == [256, 1]
    assert shapes["lin2.fmri2.weight"] == [1024, 14278]
    assert shapes["perceiver.perceiver.latents"] == [256, 1024]
    assert shapes["perceiver.perceiver.layers.5.0.to_kv.weight"] == [3072, 1024]
    assert shapes["perceiver.perceiver.layers.0.1.1.weight"] == [4096, 1024]
    assert "perceiver.perceiver.layers.0.1.1.bias" not in shapes
    assert shapes["perceiver.llm_proj.weight"] == [1024, 1024]
    assert "perceiver.ln_vision.weight" in shapes
    assert "perceiver.perceiver.media_pos_emb" in shapes


def test_checkpoints_go_and_come(tmp_path: Path) -> None:
    first, second = encoder({1: 30, 2: 20}), encoder({2: 20})
    save_checkpoint(first, tmp_path / "last.pth")
    nn.init.zeros_(second.perceiver.llm_proj.weight)
    load_checkpoint(second, tmp_path / "last.pth")
    x = torch.randn(2, 20)
    torch.testing.assert_close(second(x), first(torch.nn.functional.pad(x, (0, 10)), torch.tensor([2, 2])))
    own = {n.replace("lin1.fmri2", "lin1").replace("lin2.fmri2", "lin2"): v for n, v in second.state_dict().items()}
    torch.save({"model_state_dict": own}, tmp_path / "single.pth")
    third = encoder({7: 20}, checkpoint=str(tmp_path / "single.pth"))
    info = DataInfo("brain-tokens", (20,), extra={"voxels": {7: 20}, "tokens": (5, 7)})
    third = build(EncoderOptions(**SMALL, checkpoint=str(tmp_path / "single.pth")), info)  # type: ignore[assignment]
    torch.testing.assert_close(third(x), second(x))
    adapted = encoder({3: 11}, freeze_shared=True)
    load_checkpoint(adapted, tmp_path / "last.pth")
    torch.testing.assert_close(adapted.perceiver.llm_proj.weight, first.perceiver.llm_proj.weight)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run",))


def test_checkpoints_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(BrainotError, match="no such checkpoint"):
        load_checkpoint(encoder(), path)
    path.write_bytes(pickle.dumps({"model_state_dict": Evil()}))
    with pytest.raises(BrainotError, match="without running its code"):
        load_checkpoint(encoder(), path)
    assert "run" not in capsys.readouterr().out.split()
    torch.save({"state": {}}, path)
    with pytest.raises(BrainotError, match="no 'model_state_dict'"):
        load_checkpoint(encoder(), path)
    save_checkpoint(encoder(depth=1), path)
    with pytest.raises(BrainotError, match=r"has no 'perceiver.perceiver.layers.1"):
        load_checkpoint(encoder(), path)
    save_checkpoint(encoder({1: 31}), path)
    with pytest.raises(BrainotError, match=r"'lin2.fmri1.weight' is \[16, 31\], the encoder's \[16, 30\]"):
        load_checkpoint(encoder(), path)
    with pytest.raises(BrainotError, match=r"tokenizers of fmri1, not of \[2\].*freeze_shared"):
        load_checkpoint(encoder({2: 30}), path)
    torch.save({"model_state_dict": {"lin1.weight": torch.ones(1)}}, path)
    with pytest.raises(BrainotError, match="of one subject, which it does not name"):
        load_checkpoint(encoder({1: 30, 2: 20}), path)
    with pytest.raises(BrainotError, match="the data do not say their 'voxels'"):
        build(EncoderOptions(), DataInfo())

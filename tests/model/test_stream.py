"""Streams that are more than x + f(x): small hand-written blocks, each proven, each damaged in every claim and refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import interp
from interp.model import load
from interp.model.proof import by_letter, doctor, prove_sums
from interp.model.stacks import solve
from interp.model.tiny import tiny
from interp.model.trace import trace
from interp.model.twin import Lifted, randomise, twin_of
from interp.model.wiring import Block, Wiring

D = 16
IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(6))
PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class MLP(nn.Module):
    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Mix(nn.Module):
    """Every position gets the mean of those before it, through two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        x = self.into(x)
        return self.out(x.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(1, -1, 1))


class Block_(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mix, self.norm2, self.mlp = nn.LayerNorm(D), Mix(), nn.LayerNorm(D), MLP()


class Scaled(Block_):
    """The stream is multiplied by a number before every addition."""

    def forward(self, x):
        x = 0.8 * x + 0.6 * self.mix(self.norm1(x))
        return 0.9 * x + 0.7 * self.mlp(self.norm2(x))


class ByChannel(Block_):
    """Bare parameters multiply the stream and the write, and one is added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.ones(D)) for _ in range(4))

    def forward(self, x):
        x = self.a * x + self.mix(self.norm1(x)) + self.b
        return self.c * x + self.d * self.mlp(self.norm2(x))


class FromNorm(Block_):
    """What is added to is a norm's output."""

    def forward(self, x):
        x = self.norm1(x)
        x = self.norm2(0.5 * x + self.mix(x))
        return 0.5 * x + self.mlp(x)


class Halves(Block_):
    """Half a step of an MLP before and after, and a norm over the sum of three."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp0, self.norm3 = MLP(), nn.LayerNorm(D)

    def forward(self, x):
        x = x + 0.5 * self.mlp0(x)
        x = x + self.mix(self.norm1(x))
        return self.norm3(x + 0.5 * self.mlp(self.norm2(x)))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.shift = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))

    def forward(self, new, old):
        return torch.sigmoid(self.g) * (new + self.shift) + torch.sigmoid(-self.g) * old


class Gated(Block_):
    """A module of two tensors adds them, each times a value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gate1, self.gate2 = Gate(), Gate()

    def forward(self, x):
        x = self.gate1(self.mix(self.norm1(x)), x)
        return self.gate2(self.mlp(self.norm2(x)), x)


class Weigh(nn.Module):
    """How much of every stream a sublayer reads, is written to, and goes over into every other [batch, pos, stream, ...]."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.n, self.lin = streams, nn.Linear(streams * D, streams * (2 + streams))

    def forward(self, x):
        read, spread, mix = self.lin(x.flatten(2)).split([self.n, self.n, self.n * self.n], dim=-1)
        mix = mix.unflatten(-1, (self.n, self.n)).sigmoid()
        return spread, mix, (read.sigmoid().unsqueeze(-1) * x).sum(2)


class Several(Block_):
    """Three streams that are mixed before every write."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh1, self.weigh2 = Weigh(3), Weigh(3)

    def forward(self, x):
        for weigh, norm, part in ((self.weigh1, self.norm1, self.mix), (self.weigh2, self.norm2, self.mlp)):
            spread, mix, read = weigh(x)
            x = mix.transpose(-1, -2) @ x + spread.unsqueeze(-1) * part(norm(read)).unsqueeze(2)
        return x


class Rectified(Block_):
    """An activation function stands after each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.act1, self.act2 = nn.GELU(), nn.GELU()

    def forward(self, x):
        x = self.act1(x + self.mix(x))
        return self.act2(x + self.mlp(x))


class Text(nn.Module):
    """Token embedding, three blocks, norm, head."""

    def __init__(self, block: type[nn.Module], streams: int = 0) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(61, D), nn.ModuleList(block() for _ in range(3))
        self.norm, self.head, self.streams = nn.LayerNorm(D), nn.Linear(D, 61), streams

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x.unsqueeze(2).repeat(1, 1, self.streams, 1) if self.streams else x
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(2) if self.streams else x))


class PositionsFirst(Text):
    """The stream lies [pos, batch, channel]."""

    def forward(self, input_ids):
        x = self.embed(input_ids).transpose(0, 1).contiguous()
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.transpose(0, 1)))


class Plain(Block_):
    def forward(self, x):
        x = x + self.mlp(self.norm1(x))
        return self.norm2(x)


class SideBySide(nn.Module):
    """Lists of parts; no module holds a block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(61, D), nn.LayerNorm(D), nn.Linear(D, 61)
        self.mixes = nn.ModuleList(Mix() for _ in range(3))
        self.norms1, self.norms2 = (nn.ModuleList(nn.LayerNorm(D) for _ in range(3)) for _ in range(2))
        self.mlps = nn.ModuleList(MLP() for _ in range(3))

    def forward(self, input_ids):
        x = self.norm(self.embed(input_ids))
        for mix, norm1, mlp, norm2 in zip(self.mixes, self.norms1, self.mlps, self.norms2, strict=True):
            x = norm1(x + mix(x))
            x = norm2(x + mlp(x))
        return self.head(x)


class AgainAndAgain(Text):
    """The blocks run twice, with something added in between."""

    def forward(self, input_ids):
        start = x = self.embed(input_ids)
        for _ in range(2):
            for block in self.blocks:
                x = block(x)
            x = self.norm(x) + start
        return self.head(x)


class ConvBlock(nn.Module):
    """[batch, channel, row, column] outside, [batch, row, column, channel] inside, scaled by a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mlp = nn.Conv2d(D, D, 3, padding=1, groups=D), nn.LayerNorm(D), MLP()
        self.scale, self.drop = nn.Parameter(torch.ones(D)), nn.Identity()

    def forward(self, x):
        new = self.mlp(self.norm(self.conv(x).permute(0, 2, 3, 1)))
        return x + self.drop((self.scale * new).permute(0, 3, 1, 2))


class Picture(nn.Module):
    def __init__(self, block: type[nn.Module] = ConvBlock) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, D, 3, stride=3), nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(D, 5)

    def forward(self, pixel_values):
        x = self.patch(pixel_values)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Packed(Picture):
    """All positions of all pictures in one row [pos, channel]."""

    def __init__(self) -> None:
        super().__init__(Plain)

    def forward(self, pixel_values):
        x = self.patch(pixel_values).flatten(2).transpose(1, 2).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class NoResidual(nn.Module):
    """It hands nothing on but what its matrix makes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x):
        return self.norm(self.lin(x)).relu()


TEXTS = {
    "scaled": lambda: Text(Scaled),
    "by channel": lambda: Text(ByChannel),
    "from a norm": lambda: Text(FromNorm),
    "halves": lambda: Text(Halves),
    "gated": lambda: Text(Gated),
    "several": lambda: Text(Several, streams=3),
    "rectified": lambda: Text(Rectified),
    "positions first": lambda: PositionsFirst(Plain),
    "side by side": SideBySide,
    "again and again": lambda: AgainAndAgain(Scaled),
}
PICTURES = {"convolutions": Picture, "packed": Packed}
MODELS = [*TEXTS, *PICTURES]


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model with every parameter away from its default, and what it takes."""
    torch.manual_seed(3)
    module = (TEXTS | PICTURES)[name]().eval()
    randomise(module, seed=4)
    return module, IDS if name in TEXTS else PIXELS


def made(name: str) -> interp.model.Model:
    module, example = built(name)
    return load(module, example=example)


def damaged(block: Block) -> Iterator[Block]:
    """The block with one claim changed, for every part of every claim."""
    for at, total in enumerate(block.sums):
        ways = [replace(total, writes=()), replace(total, scale=0.999 if total.scale == 1.0 else 1.0)]
        ways += [replace(total, writes=tuple((w, 1.001 if c == 1.0 else 1.0) for w, c in total.writes))]
        ways += [replace(total, constant="")] if total.constant else []
        for way in ways:
            yield replace(block, sums=(*block.sums[:at], way, *block.sums[at + 1 :]))
    for at, (site, _, scale) in enumerate(block.norms):
        yield replace(block, norms=(*block.norms[:at], (site, site, scale), *block.norms[at + 1 :]))


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_stream_is_solved_and_proven(name):
    proofs = by_letter(doctor(made(name)))
    assert not {letter: p["reason"] for letter, p in proofs.items() if p["status"] == "fail"}
    assert {letter for letter, p in proofs.items() if p["status"] == "pass"} >= {"a", "b", "d", "e", "g"}


@pytest.mark.parametrize("name", MODELS)
def test_every_damaged_claim_about_a_stream_is_refused(name):
    module, example = built(name)
    twin = twin_of(module)
    other = IDS[:, 1:] if example is IDS else PIXELS.flip(2)
    key = "input_ids" if example is IDS else "pixel_values"
    with Lifted(), torch.no_grad():
        wiring = solve(twin, trace(twin, {key: example if example is IDS else example.double()}))
        unseen = trace(twin, {key: other if example is IDS else other.double()})
        stack = wiring.stacks[0]
        for block in stack.blocks:
            assert block.sums
            for bad in damaged(block):
                kept = prove_sums(Wiring((replace(stack, blocks=(bad,)),), {}), unseen, tolerance=1e-8)
                assert "unproven" in kept.stacks[0].blocks[0].refused["*"], bad.sums


def claims(name: str, number: int = 1) -> dict[str, tuple[object, ...]]:
    block = made(name).wiring.stacks[0].blocks[number]
    return {s.site: (s.base, s.scale, *(c for _, c in s.writes), s.constant) for s in block.sums}


def test_numbers_and_names_of_coefficients():
    assert claims("scaled") == {"resid_mid": ("resid_pre", 0.8, 0.6, ""), "resid_post": ("resid_mid", 0.9, 0.7, "")}
    at = "blocks.1."
    assert claims("by channel") == {
        "resid_mid": ("resid_pre", at + "a", 1.0, at + "b"),
        "resid_post": ("resid_mid", at + "c", at + "d", ""),
    }
    gated = claims("gated")["resid_post"]
    assert gated == ("resid_mid", at + "gate2:1/2", at + "gate2:0/2", at + "gate2:/2")
    assert claims("several")["resid_mid"] == ("resid_pre", "mixer.mix", "mixer.spread", "")
    assert claims("from a norm")["mixer.sum"] == ("resid_start", 0.5, 1.0, "")
    assert claims("halves") == {
        "resid_mid": ("resid_pre", 1.0, 0.5, 1.0, ""),
        "mlp2.sum": ("resid_mid", 1.0, 0.5, ""),
    }


def near(a, b):
    assert a.shape == b.shape
    assert torch.allclose(a, b, atol=2e-6, rtol=2e-5), (a - b).abs().max()


def test_writes_are_what_is_added_and_edits_reach_the_stream():
    model, at = made("by channel"), "blocks.1."
    names = ["resid_pre", "mixer.out", "mixer.write", "resid_mid", "mlp.out", "mlp.write", "resid_post"]
    c, block = model.record(IDS, [at + n for n in names]), model.module.blocks[1]
    pre, mixed, write, mid, out, last, post = (c[at + n] for n in names)
    near(write, mixed + block.b)
    near(mid, block.a * pre + write)
    near(last, block.d * out)
    near(post, block.c * mid + last)
    zeroed = model.record(IDS, at + "resid_mid", edits=[interp.Zero(at + "mixer.write")])[at + "resid_mid"]
    near(zeroed, block.a * pre)
    steered = model.record(IDS, at + "resid_post", edits=[interp.Steer(at + "resid_mid", torch.ones(D), alpha=2.0)])
    near(steered[at + "resid_post"], block.c * (mid + 2) + block.d * block.mlp(block.norm2(mid + 2)))


def test_the_module_of_two_tensors_is_part_of_the_write():
    model, at = made("gated"), "blocks.1."
    c, block = (
        model.record(IDS, [at + n for n in ("mlp.out", "mlp.write", "resid_mid", "resid_post")]),
        model.module.blocks[1],
    )
    near(c[at + "mlp.write"], torch.sigmoid(block.gate2.g) * (c[at + "mlp.out"] + block.gate2.shift))
    near(c[at + "resid_post"], block.gate2(c[at + "mlp.out"], c[at + "resid_mid"]))


def test_streams_are_mixed_and_written_to_as_their_modules_say():
    model, at = made("several"), "blocks.1."
    c = model.record(IDS, [at + n for n in ("resid_pre", "mixer.mix", "mixer.spread", "mixer.write", "mlp.in")])
    mid = torch.einsum("bpmn,bpmd->bpnd", c[at + "mixer.mix"], c[at + "resid_pre"])
    mid = mid + c[at + "mixer.spread"].unsqueeze(-1) * c[at + "mixer.write"].unsqueeze(2)
    block = model.module.blocks[1]
    near(c[at + "mlp.in"], block.norm2(block.weigh2(mid)[2]))
    with pytest.raises(ValueError, match="no single write"):
        model.record(IDS, at + "resid_mid")


@pytest.mark.parametrize("name", ["convolutions", "packed", "positions first"])
def test_sites_say_batch_position_channel_whatever_the_layout(name):
    module, example = built(name)
    model = load(module, example=example)
    for site, shape in model.sites().items():
        if site.endswith(("resid_pre", "write", "mlp.in", "resid_post")):
            assert shape == ("batch", "pos", D), site
    names = ["blocks.0.resid_post", "blocks.1.mlp.write"]
    c = model.record(example, names)
    rows = {"convolutions": (2, 16), "packed": (1, 32), "positions first": (2, 7)}[name]
    assert all(c[n].shape == (*rows, D) for n in names)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(3))
    steered = model.record(
        example, "blocks.0.resid_post", edits=[interp.Steer("blocks.0.resid_post", direction, pos=3)]
    )
    moved = steered["blocks.0.resid_post"] - c["blocks.0.resid_post"]
    near(moved[:, 3], direction.expand(rows[0], -1))
    assert not moved[:, :3].any()
    assert not moved[:, 4:].any()


def test_modules_without_a_residual_are_no_stack():
    module = Text(NoResidual)
    randomise(module, seed=4)
    assert not load(module.eval(), example=IDS).wiring.stacks


def test_stacks_that_run_twice_are_told_apart():
    names = [s.prefix for s in made("again and again").wiring.stacks]
    assert names == ["passes.0.", "passes.1."]


REAL = ["doge", "zaya", "hy_v4", "minimax", "squeezebert", "xlnet", "vitdet", "xlm", "convnext", "wav2vec2-conformer"]


@pytest.mark.slow("ten tiny models of the library's own classes, one to three seconds each")
@pytest.mark.parametrize("kind", REAL)
def test_real_types_with_such_streams_pass(kind):
    proofs = by_letter(doctor(load(tiny(kind))))
    assert not {letter: proofs[letter]["reason"] for letter in "abcde" if proofs[letter]["status"] == "fail"}
    assert {letter for letter in "abde" if proofs[letter]["status"] == "pass"} == set("abde")

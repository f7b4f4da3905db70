"""One shape for every sparse dictionary: it reads some sites and writes some sites through few active latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.dictionaries.kinds import ACTIVATIONS, COUNTED, TIED
from interp.dictionaries.latents import Latents
from interp.dictionaries.sparse import Code, decode_topk
from interp.errors import Failed, WrongUse, check_keys
from interp.files import read_tensors, save_tensors, write_json

if TYPE_CHECKING:
    from jaxtyping import Float

FORMAT, VERSION = "interp.dictionary", 1


@dataclass(frozen=True)
class DictionaryConfig:
    """What a dictionary is, apart from its numbers. An autoencoder reads and writes the same sites.

    Several sites lie side by side: an autoencoder of several is a crosscoder. In a `cross_layer` transcoder, latents
    belong to the sites read in equal groups; those of site i read it alone and write to sites i, i + 1, … alone.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    d_in: int  # widths of the sites read, added up
    d_out: int
    latents: int
    k: int | None = None  # active latents per row, if their number is fixed
    activation: str = "topk"
    skip: bool = False  # a transcoder's linear path from input to output
    widths_in: tuple[int, ...] = ()  # of the sites read, if they are several
    widths_out: tuple[int, ...] = ()
    cross_layer: bool = False
    heads: int = 1  # of a codebook: chunks of the site with codes of their own
    tolerance: float = 0.0  # of a pursuit: it stops where less than this is left of a row
    distinct: bool = False  # of a pursuit: it stops after a step that picks no new latent

    def __post_init__(self) -> None:
        check_keys([self.activation], ACTIVATIONS, "the list of activations")
        counted = self.activation in COUNTED
        if counted and not (self.k and 1 <= self.k <= self.latents):
            raise WrongUse(f"k must be between 1 and latents={self.latents}; it is {self.k}.")
        if not counted and self.k is not None:
            raise WrongUse(f"k={self.k} is for {' and '.join(COUNTED)}: {self.activation} fixes no number of latents.")
        if min(self.d_in, self.d_out, self.latents) < 1:
            raise WrongUse(f"Widths must be positive; d_in={self.d_in}, d_out={self.d_out}, latents={self.latents}.")
        if self.autoencoder and self.d_in != self.d_out:
            raise WrongUse(
                f"An autoencoder reads what it writes, so d_in={self.d_in} cannot differ from d_out={self.d_out}."
            )
        if self.autoencoder and self.skip:
            raise WrongUse("skip=True is for transcoders: an autoencoder with a linear path would copy its input.")
        if (self.tolerance or self.distinct) and self.activation != "pursuit":
            raise WrongUse(f"tolerance and distinct are for pursuit: {self.activation} has no steps to stop at.")
        if self.activation in TIED and not self.autoencoder:
            raise WrongUse(f"{self.activation} has no transcoder: {TIED[self.activation]}.")
        self._check_sites()

    def _check_sites(self) -> None:
        for widths, sites, d in ((self.widths_in, self.reads, self.d_in), (self.widths_out, self.writes, self.d_out)):
            if (widths or len(sites) > 1) and (len(widths) != len(sites) or sum(widths) != d):
                raise WrongUse(f"{', '.join(sites)} cannot be of widths {list(widths)}, {d} together.")
        if self.activation in TIED and len(self.widths_out) > 1:
            raise WrongUse(f"{self.activation} reads one site: a projection has no meaning over several scales.")
        if self.d_out % self.heads or self.latents % self.heads or (self.heads > 1 and self.activation != "codebook"):
            raise WrongUse(f"heads={self.heads} must divide d={self.d_out} and latents={self.latents} of a codebook.")
        if not self.cross_layer:
            return
        layers = len(self.widths_in)
        if self.autoencoder or layers < 2 or layers != len(self.widths_out) or self.skip:
            raise WrongUse("A cross-layer transcoder reads two sites or more, writes as many others, and has no skip.")
        if self.latents % layers:
            raise WrongUse(f"latents={self.latents} cannot be shared equally by {layers} layers.")

    @property
    def autoencoder(self) -> bool:
        """Whether the target is the input itself."""
        return self.reads == self.writes

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> DictionaryConfig:
        """Read what `dataclasses.asdict` wrote. Raises `WrongUse` for an unknown or missing field, naming it."""
        known = [f.name for f in fields(cls)]
        check_keys(given, known, "A dictionary's config")
        missing = [name for name in ("reads", "writes", "d_in", "d_out", "latents") if name not in given]
        if missing:
            raise WrongUse(f"A dictionary's config needs {', '.join(missing)}.")
        read: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return cls(**read)


class Dictionary(nn.Module):
    """f = activation(W_encᵀ (x − b_pre) + b_enc), ŷ = f W_dec + b_dec [+ W_skip x]: autoencoders and transcoders.

    W_enc [d_in, m], b_enc [m], W_dec [m, d_out] with rows of length one, b_dec [d_out]; transcoders also b_in [d_in]
    and, with a skip, W_skip [d_out, d_in]; JumpReLUs also threshold [m]; pursuits and codebooks have no encoder. Rows come
    and go in the units of the model (no scaling left to do). `product` is the dtype of the encoder's matrix product,
    if not that of the weights.
    """

    threshold: Tensor

    def __init__(self, config: DictionaryConfig, product: torch.dtype | None = None):
        super().__init__()
        self.config, self.product = config, product
        c = config
        if c.activation not in TIED:
            # kept latent by latent in memory, as W_dec is: gradients of active latents are then whole rows
            self.W_enc = nn.Parameter(torch.zeros(c.latents, c.d_in).T)
            self.b_enc = nn.Parameter(torch.zeros(c.latents))
        if c.activation == "jumprelu":
            self.register_buffer("threshold", torch.zeros(c.latents))
        self.W_dec = nn.Parameter(torch.zeros(c.latents, c.d_out))
        self.b_dec = nn.Parameter(torch.zeros(c.d_out))
        if not c.autoencoder:
            self.b_in = nn.Parameter(torch.zeros(c.d_in))
        if c.skip:
            self.W_skip = nn.Parameter(torch.zeros(c.d_out, c.d_in))
        for p, mask in self._reach().items():
            p.register_hook(lambda g, mask=mask: g * mask.to(g))

    def _reach(self) -> dict[nn.Parameter, Tensor]:
        """Which weights there are: W_enc is block-diagonal and W_dec block-triangular in a cross-layer transcoder.

        In a codebook of several heads, W_dec is block-diagonal.
        """
        c = self.config
        if c.heads > 1:
            head, chunk = (torch.arange(n) // (n // c.heads) for n in (c.latents, c.d_out))
            return {self.W_dec: head[:, None] == chunk}
        if not c.cross_layer:
            return {}
        site_in, site_out = (
            torch.arange(len(w)).repeat_interleave(torch.tensor(w)) for w in (c.widths_in, c.widths_out)
        )
        layer = torch.arange(len(c.widths_in)).repeat_interleave(c.latents // len(c.widths_in))
        return {self.W_enc: site_in[:, None] == layer, self.W_dec: layer[:, None] <= site_out}

    @torch.no_grad()
    def confine(self) -> None:
        """Set the weights that there are not to zero; their gradients are zero already."""
        for p, mask in self._reach().items():
            p.mul_(mask.to(p))

    def part_norms(self) -> Float[Tensor, "m sites"]:
        """‖d_i^s‖ of what latent i writes to each site s.

        In the units of the model: divide by each site's √E‖y^s‖² before comparing sites.
        """
        parts = self.W_dec.split(self.config.widths_out or (self.config.d_out,), dim=1)
        return torch.stack([part.norm(dim=1) for part in parts], dim=1)

    @property
    def b_pre(self) -> Float[Tensor, " d_in"]:
        """What is subtracted before the encoder: b_dec in an autoencoder (Gao et al. 2024), b_in in a transcoder."""
        return self.b_dec if self.config.autoencoder else self.b_in

    def active(self, x: Float[Tensor, "*batch d_in"]) -> Code:
        """The code of x as (values, indices), each [rows, k] with batch dimensions flattened."""
        if x.shape[-1] != self.config.d_in:
            raise WrongUse(
                f"This dictionary reads {self.config.d_in} numbers a row; the rows given have {x.shape[-1]}."
            )
        return ACTIVATIONS[self.config.activation](self, x.reshape(-1, x.shape[-1]).to(self.b_dec.dtype))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Latents:
        """f(x) [*batch, m], held as what fires: a tensor in every operation, with `.code`, `.to_frame()` and `.plot()`."""
        values, indices = (t.view(*x.shape[:-1], -1) for t in self.active(x))
        return Latents(Code(values, indices), self.config.latents)

    def written(self, f: Code | Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch d_out"]:
        """Σ_i f_i d_i."""
        if isinstance(f, Latents):
            flat = Code(*(t.flatten(0, -2) for t in f.code))
            return decode_topk(*flat, self.W_dec).view(*f.code.values.shape[:-1], -1)
        return decode_topk(*f, self.W_dec, f.reached) if isinstance(f, Code) else f @ self.W_dec

    def decode(
        self, f: Code | Float[Tensor, "*batch m"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """ŷ = f W_dec + b_dec [+ W_skip x]; a dictionary with a skip needs x."""
        y = self.written(f) + self.b_dec
        if not self.config.skip:
            return y
        if x is None:
            raise WrongUse("This dictionary has a skip: decode(f, x) needs the input x too.")
        return y + x @ self.W_skip.T

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """ŷ(x), in x's dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(self.b_dec.dtype)
        return self.decode(self.active(rows), rows).to(x.dtype).reshape(*x.shape[:-1], -1)

    def tensors(self) -> dict[str, Tensor]:
        """What the dictionary is made of, by name."""
        kept = {"threshold": self.threshold} if self.config.activation == "jumprelu" else {}
        return dict(self.named_parameters()) | kept

    @torch.no_grad()
    def plain(self) -> Dictionary:
        """A copy, without what training may have added to this one."""
        new = Dictionary(self.config, self.product).to(self.b_dec.device, self.b_dec.dtype)
        mine = self.tensors()
        for name, tensor in new.tensors().items():
            tensor.copy_(mine[name])
        return new

    @torch.no_grad()
    def rescaled(self, s_in: float | Float[Tensor, " d_in"], s_out: float | Float[Tensor, " d_out"]) -> Dictionary:
        """The dictionary for x, given this one for s_in·x and s_out·y: ŷ'(x) = ŷ(s_in x) / s_out.

        The same latents are selected, values become f / s, s the first number of s_out. Where s_out is one number,
        W_dec stays as it is. A codebook's values stay, its codes become c_i / s_out.
        """
        s_in, s_out = (torch.as_tensor(s, dtype=torch.float64, device=self.b_dec.device) for s in (s_in, s_out))
        s = torch.ones_like(s_out.flatten()[0]) if self.config.activation == "codebook" else s_out.flatten()[0]
        factors = {"W_enc": s_in.view(-1, 1) / s, "b_enc": 1 / s, "W_dec": s / s_out, "b_dec": 1 / s_out}
        factors |= {"b_in": 1 / s_in, "W_skip": s_in / s_out.view(-1, 1), "threshold": 1 / s}
        new = self.plain()
        for name, tensor in new.tensors().items():
            tensor.mul_(factors[name].to(tensor))
        new.config = replace(new.config, tolerance=new.config.tolerance / float(s))
        return new

    @torch.no_grad()
    def unit_rows(self) -> Dictionary:
        """The dictionary with ‖d_i‖ folded into its encoder: W_enc_i, b_enc_i, θ_i times ‖d_i‖, d_i / ‖d_i‖; same ŷ.

        Values become f_i ‖d_i‖. Rows that are zero stay. TopK and pursuits select by value: they may select others.
        """
        new = self.plain()
        length = new.W_dec.norm(dim=1)
        length = torch.where(length > 0, length, 1)
        for name in new.tensors().keys() & {"W_enc", "b_enc", "threshold"}:
            new.tensors()[name].mul_(length)
        new.W_dec.div_(length[:, None])
        return new

    def layers(self) -> list[Dictionary]:
        """The layers of a cross-layer transcoder: ŷ is the sum of theirs, each reads one site and writes to it and all above.

        Weights are views, biases of ŷ copies. A dictionary of another shape is one layer, and so is one whose active
        latents are picked among those of all layers.
        """
        c = self.config
        if not c.cross_layer or c.activation in COUNTED:
            return [self]
        return [self._layer(i) for i in range(len(c.reads))]

    @torch.no_grad()
    def _layer(self, i: int) -> Dictionary:
        c, m = self.config, self.config.latents // len(self.config.reads)
        mine, start, out = slice(i * m, (i + 1) * m), sum(c.widths_in[:i]), sum(c.widths_out[:i])
        read = slice(start, start + c.widths_in[i])
        config = DictionaryConfig(
            (c.reads[i],),
            c.writes[i:],
            c.widths_in[i],
            c.d_out - out,
            m,
            None,
            c.activation,
            widths_out=c.widths_out[i:],
        )
        with torch.device("meta"):
            layer = Dictionary(config, self.product)
        bias = torch.zeros_like(self.b_dec[out:])
        bias[: c.widths_out[i]] = self.b_dec[out : out + c.widths_out[i]]
        parts = {"W_enc": self.W_enc[read, mine], "b_enc": self.b_enc[mine], "W_dec": self.W_dec[mine, out:]}
        for name, part in (parts | {"b_dec": bias, "b_in": self.b_in[read]}).items():
            setattr(layer, name, nn.Parameter(part))
        if c.activation == "jumprelu":
            layer.threshold = self.threshold[mine]
        return layer

    def given(self, model: str, others: Mapping[str, Float[Tensor, "batch pos ..."]]) -> Dictionary:
        """A dictionary of several models as it is in one of them, with the rows of the others' sites: to attach, to splice.

        Raises `WrongUse` if it reads no site of that model, or a site of another one is not among the rows.
        """
        from interp.dictionaries.given import Given

        return Given(self, model, others)

    def save(self, folder: str | Path, made: Mapping[str, Any] | None = None) -> None:
        """Write `config.json` and `weights.safetensors` into `folder`; `made` (command, seed, …) is kept with both."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = dict(made or {})
        save_tensors(folder / "weights.safetensors", self.tensors(), made)
        write_json(
            folder / "config.json",
            {"format": FORMAT, "version": VERSION, "dictionary": asdict(self.config), "made": made},
        )


def load_dictionary(
    where: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Dictionary:
    """Read a dictionary: one of ours, of another library, or from the hub (docs/interop.md).

    `where`: what `Dictionary.save` or a training run wrote; a folder or file of SAELens, dictionary_learning, sparsify,
    circuit-tracer or Gemma Scope; "zoo:books/sae", one that is bundled; "hub:OWNER/REPOSITORY/FOLDER"; "saelens:RELEASE/ID".
    Raises `WrongUse` if there is no dictionary there or it is one that cannot be expressed, `Failed` if it is damaged or
    cannot be fetched.
    """
    from interp.interop.hub import opened

    return opened(where).dictionary.to(device=device, dtype=dtype)


def load_folder(folder: Path) -> Dictionary:
    """Read a folder that `Dictionary.save` or a training run wrote.

    Raises `WrongUse` if its config is none, `Failed` if a tensor is missing, extra or of another shape.
    """
    dictionary = Dictionary(_read_config(folder / "config.json"))
    path = folder / "weights.safetensors"
    tensors = read_tensors(path)
    check_tensors(path, tensors, dictionary.tensors())
    dictionary = dictionary.to(dtype=next(iter(tensors.values())).dtype)
    with torch.no_grad():
        for name, tensor in dictionary.tensors().items():
            tensor.copy_(tensors[name])
    return dictionary


def _read_config(path: Path) -> DictionaryConfig:
    import json

    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WrongUse(f"{path} is no JSON file ({error}). `interp train … -o DIR` writes one.") from error
    if whole.get("version") != VERSION:
        raise WrongUse(f"{path} is of format version {whole.get('version')}; this release reads version {VERSION}.")
    return DictionaryConfig.from_dict(whole.get("dictionary", {}))


def check_tensors(path: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise `Failed` if names or shapes of `given`, read from `path`, are not those of `wanted`."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(extra)}"] * bool(extra)
        raise Failed(f"{path} {' and '.join(said)}; it should hold {', '.join(wanted)}.")
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise Failed(f"{path}: {name} has shape {list(given[name].shape)}, not {list(tensor.shape)}.")

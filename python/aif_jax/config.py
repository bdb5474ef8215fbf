"""Validated configuration of our model, and the description that a bundle holds of any model."""

import dataclasses
from typing import ClassVar, Literal, get_args

from aif_jax.checks import Config, ascending, check, choice, is_variable, whole
from aif_jax.errors import ConfigError
from aif_jax.shown import shown

Architecture = Literal["aif", "exact", "cold", "two_tower"]
Signature = Literal["simhash", "int8"]
LongAttention = Literal["linear", "sign", "collision", "mean", "nearest"]
TierScale = Literal["share", "log1p"]
Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Formats of the item rows and user states of an exported model; training does not depend on them."""

REDUCED_COLUMNS = ("h", "e", "bridge", "content", "event")
"""The columns of an item row that a reduced precision applies to; `scale` of an int8 row is in this order."""

PRIOR = "prior"
"""The column of an item row that holds its logits for an unknown user."""

BLOCKS = (
    "self_attention",
    "profile_attention",
    "bridge",
    "long_attention",
    "simtier",
    "sim_hard",
    "encoder",
    "profile_item",
    "context",
    "pair",
)
"""The blocks of the model that can be switched off by config and are dropped at random in training.

`aif_jax.models.blocks` holds their code.
"""

USER_BLOCKS = ("self_attention", "profile_attention")
"""The blocks of the user side alone: all that a `two_tower` model has."""

LONG_BLOCKS = ("bridge", "long_attention", "simtier", "sim_hard", "encoder")
"""The blocks that read the long sequence: AIF approximates them, the `cold` baseline lacks them."""

_CHOICES: dict[str, tuple[object, ...]] = {
    "architecture": get_args(Architecture),
    "long_attention": get_args(LongAttention),
    "signature": get_args(Signature),
    "tier_scale": get_args(TierScale),
    "signature_bits": (64, 128, 256, 512),
    "collision_bits": (2, 4, 8),
}
"""Allowed values of the fields that have few."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Sizes and switches of one model.

    Attributes:
        architecture: ``aif``; or a baseline: ``exact`` (softmax attention and float similarities
            throughout), ``cold`` (no long sequence, no bridges), ``two_tower`` (a dot product).
        blocks: which blocks are on, a subset of `BLOCKS`.
        width: ``d``, the width of user tokens, item embedding and bridges.
        embedding_width: width of one categorical feature's embedding.
        hidden: ``h``, the width of the first interaction layer.
        head_layers: widths of the layers between the first layer and the heads.
        item_layers: widths of the hidden layers of the item module.
        heads: names of the logits, each trained against the label of the same name.
        score: expression over head probabilities and pair features that orders the candidates; empty for
            the first head.
        short_length: ``S``, behaviours that the short-sequence attention sees.
        long_length: ``L``, behaviours that the long-sequence blocks see.
        content_width: ``d_m``, width of the frozen content embedding.
        value_width: ``d_v``, width of a behaviour's value in long-sequence attention.
        long_attention: ``linear``, ``sign`` or ``collision``; ``mean``, the mean of the long sequence for
            every candidate, a control that no similarity enters; or of the ``exact`` architecture
            ``nearest``, softmax attention over the few behaviours with the nearest signatures.
        nearest: how many these are.
        collision_bits: bits a group for ``collision``: 2, 4 or 8.
        signature: ``simhash`` (packed sign bits) or ``int8`` (quantised content embedding).
        signature_bits: ``b``, for ``simhash``: 64, 128, 256 or 512.
        tier_edges: ``T - 1`` ascending similarity thresholds in (-1, 1); a pair of similarity ``s`` falls in
            the tier numbered by how many thresholds are ``<= s``.
        tier_scale: ``share`` of the valid length, or ``log1p`` of the count over ``log1p`` of the length.
        bridges: ``n``, number of bridge vectors.
        sim_slots: ``C_max``, categories per user whose sub-sequences are pre-cached.
        sim_width: ``d_s``, width of a pooled sub-sequence.
        encoder_layers: layers of the deep encoder of the long sequence; 0 for none.
        encoder_width: ``w``, width of these layers, a multiple of twice their heads.
        encoder_heads: attention heads of these layers.
        encoder_gaps: whether the encoder reads the time between behaviours.
        encoder_reach: behaviours that each layer reads at a place, the newest ones up to it; 0 for all.
        block_dropout: probability that a block is dropped for one training request.
        item_id_dropout: probability that an item's id is hidden in training, for cold items.
        item_statistics: whether the item module reads, by item id, how often rows of an item are positive in
            the training part, and what is done with it; see `aif_jax.training.item_statistics`.
        seed: seed of the random hyperplanes, which are part of the model.

    >>> ModelConfig(heads=("buy", "click")).score
    'buy'
    >>> config = ModelConfig(heads=("ctr", "cvr"), score="ctr * cvr * bid", long_length=1024)
    >>> config.tiers, config.signature_bytes
    (16, 32)
    >>> config.replace(architecture="cold").has("simtier")
    False
    """

    _about: ClassVar[str] = "model"

    architecture: Architecture = "aif"
    blocks: tuple[str, ...] = BLOCKS
    width: int = 32
    embedding_width: int = 16
    hidden: int = 64
    head_layers: tuple[int, ...] = (32,)
    item_layers: tuple[int, ...] = (64,)
    heads: tuple[str, ...] = ("ctr",)
    score: str = ""
    short_length: int = 50
    long_length: int = 256
    content_width: int = 32
    value_width: int = 32
    long_attention: LongAttention = "linear"
    nearest: int = 48
    collision_bits: int = 4
    signature: Signature = "simhash"
    signature_bits: int = 256
    tier_edges: tuple[float, ...] = (
        -0.25, -0.125, 0.0, 0.0625, 0.125, 0.1875, 0.25, 0.3125,
        0.375, 0.4375, 0.5, 0.5625, 0.625, 0.75, 0.875,
    )  # fmt: skip
    tier_scale: TierScale = "share"
    bridges: int = 8
    sim_slots: int = 32
    sim_width: int = 32
    encoder_layers: int = 0
    encoder_width: int = 64
    encoder_heads: int = 2
    encoder_gaps: bool = False
    encoder_reach: int = 0
    block_dropout: float = 0.1
    item_id_dropout: float = 0.1
    item_statistics: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, words in _CHOICES.items():
            choice(name, getattr(self, name), words)
        for block in self.blocks:
            choice("blocks", block, BLOCKS)
        if len(set(self.blocks)) != len(self.blocks):
            raise ConfigError(f"blocks: {self.blocks} names a block twice; name each once.")
        for name in (
            "width", "embedding_width", "hidden", "short_length", "long_length", "content_width",
            "value_width", "bridges", "sim_slots", "sim_width", "encoder_width", "encoder_heads", "nearest",
        ):  # fmt: skip
            whole(name, getattr(self, name), 1)
        whole("encoder_layers", self.encoder_layers, 0)
        whole("encoder_reach", self.encoder_reach, 0)
        multiple = self.encoder_width % (2 * self.encoder_heads) == 0
        check("encoder_width", self.encoder_width, multiple, "a multiple of twice encoder_heads")
        for name in ("head_layers", "item_layers"):
            for size in getattr(self, name):
                whole(name, size, 1)
        for name in ("block_dropout", "item_id_dropout"):
            rate = getattr(self, name)
            check(name, rate, 0.0 <= rate < 1.0, "a probability in [0, 1)")
        if self.heads and not self.score:
            object.__setattr__(self, "score", self.heads[0])
        check_heads(self.heads)
        edges = self.tier_edges
        if not 1 <= len(edges) <= 31:
            raise ConfigError(f"tier_edges: got {len(edges)} edges, expected 1 to 31 (2 to 32 tiers).")
        ascending("tier_edges", edges)
        if edges[0] <= -1.0 or edges[-1] >= 1.0:
            raise ConfigError(f"tier_edges: {edges} must lie inside (-1, 1), the range of a cosine.")
        if self.signature == "int8" and self.content_width not in (32, 48, 64, 128):
            raise ConfigError(
                f"content_width: got {self.content_width}, expected 32, 48, 64 or 128 for int8 signatures."
            )
        if self.long_attention == "nearest" and self.architecture != "exact":
            raise ConfigError(
                f"long_attention: got 'nearest' for {self.architecture!r}; nothing of it can be computed "
                "ahead of the request, so it goes with architecture 'exact', which is not served."
            )
        if self.needs_bits and self.signature != "simhash":
            raise ConfigError(
                f"long_attention={self.long_attention!r} compares signature bits and needs "
                f"signature='simhash', got {self.signature!r}; int8 signatures go with 'linear'."
            )

    def has(self, block: str) -> bool:
        """Return whether a block is part of this model, given the switches and the architecture."""
        if self.architecture == "two_tower" and block not in USER_BLOCKS:
            return False
        if self.architecture == "cold" and block in LONG_BLOCKS:
            return False
        return block in self.blocks and (block != "encoder" or self.encoder_layers > 0)

    def spec(self, precision: Precision) -> "ModelSpec":
        """Return the description of the folded model in a precision."""
        return ModelSpec(
            name=self.architecture,
            heads=self.heads,
            score=self.score,
            short_length=self.short_length,
            long_length=self.long_length,
            content_width=self.content_width,
            precision=precision,
            rungs=(0, 1, 2, 3),
            blocks=tuple(block for block in BLOCKS if self.has(block)),
        )

    @property
    def reads_gaps(self) -> bool:
        """True if the model reads the time between behaviours."""
        return self.has("encoder") and self.encoder_gaps

    @property
    def needs_bits(self) -> bool:
        """True if the long-sequence attention reads signature bits."""
        return self.has("long_attention") and self.long_attention in ("sign", "collision", "nearest")

    @property
    def tiers(self) -> int:
        """``T``, number of SimTier tiers."""
        return len(self.tier_edges) + 1

    @property
    def signature_bytes(self) -> int:
        """Bytes of one item's signature."""
        return self.signature_bits // 8 if self.signature == "simhash" else self.content_width


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Config):
    """The properties of a model that its tables and an engine read, besides its programs.

    Attributes:
        name: of its kind, for reports: the architecture, or the class of a model that is not ours.
        heads: names of the logits.
        score: expression over heads and pair features that orders the candidates.
        short_length: behaviours in the short sequence; 0 if the model reads none.
        long_length: most behaviours that a request reads, at least 1.
        content_width: ``d_m``, width of an item's content embedding; 1 if the model reads none.
        precision: of item rows, for readers.
        rungs: rungs of the deadline ladder that the model can answer, with 0; see `aif_jax.serving.ladder`.
        blocks: names of the model's parts, if it names any.

    >>> ModelSpec(name="Dssm", heads=("click",), score="click").rungs
    (0,)
    """

    _about: ClassVar[str] = "model"

    name: str
    heads: tuple[str, ...]
    score: str
    short_length: int = 0
    long_length: int = 1
    content_width: int = 1
    precision: str = "float32"
    rungs: tuple[int, ...] = (0,)
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.heads)
        for name, least in {"short_length": 0, "long_length": 1, "content_width": 1}.items():
            whole(name, getattr(self, name), least)
        known = 0 in self.rungs and set(self.rungs) <= {0, 1, 2, 3}
        check("rungs", self.rungs, known, "0, and any of 1, 2 and 3")
        if 1 in self.rungs and not self.short_length:
            raise ConfigError(
                "rungs: got 1, which leaves the long sequence out, of a model without a short one; give a "
                "short_length, or leave 1 out."
            )


def check_heads(heads: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless heads are one or more different identifiers."""
    check("heads", heads, bool(heads) and len(set(heads)) == len(heads), "one or more different names")
    for head in heads:
        if not is_variable(head):
            raise ConfigError(f"heads: {shown(head)} is not a name that a score expression could use.")


def check_precision(precision: str) -> None:
    """Raise `ConfigError` unless a precision is one of `PRECISIONS`."""
    choice("precision", precision, PRECISIONS)

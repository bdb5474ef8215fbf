"""Export: a model becomes a bundle. One door for our own model, one for any, and one exporter behind both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aif_jax.bundle import files
from aif_jax.bundle.bundle import Bundle
from aif_jax.checks import typed, whole
from aif_jax.config import Precision
from aif_jax.errors import ConfigError
from aif_jax.features import ContentSpace, Schema
from aif_jax.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from aif_jax.models.baselines import Model
    from aif_jax.models.contract import PreRanker
    from aif_jax.models.served import ServedModel


@typed
def export(
    model: "PreRanker | Any",
    schema: Schema,
    path: str | Path,
    *,
    k_max: int = 500,
    heads: Sequence[str] | None = None,
    score: str = "",
    long_length: int = 0,
    short_length: int = 0,
    content_space: ContentSpace | None = None,
    precision: Precision | Mapping[str, Precision] = "float32",
    rungs: Sequence[int] = (0,),
    calibration: Mapping[str, tuple[float, float]] | None = None,
    gaps: bool = False,
    metrics: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Export any model with the functions ``item``, ``user`` and ``interact`` as a bundle, and load it back.

    The functions are traced for any number of items, users, candidates and behaviours, tried on made-up
    inputs (finite, the same twice, each row by itself), and exported with the weights. The directory serves
    without the model's code.

    Args:
        model: see `aif_jax.models.contract.PreRanker`: a Flax NNX module, an equinox module or another pytree
            with these methods, or `aif_jax.Functions`. In the mode in which it predicts: ``model.eval()``.
        schema: its fitted schema, by which features are encoded.
        path: the directory to write; it appears whole or not at all.
        k_max: the most results that a request will be able to ask for.
        heads: names of the logits, where ``interact`` returns them as columns of one array.
        score: expression over heads and pair features that orders the candidates; by default the first head.
        long_length: most behaviours of the sequence ``long``; shorter ones are padded to the next size that
            the engine compiles for. 0: the model does not read it.
        short_length: behaviours of the sequence ``short``, which is always padded to it. 0: it is not read.
        content_space: of content embeddings, if the model reads any.
        precision: of the float32 columns of item rows, or of those that are named: ``float32``, ``bfloat16``,
            or ``int8`` with a float32 scale for each row. ``interact`` gets float32.
        rungs: answers that the model can give with less, besides 0: 1 without the sequence ``long``; 2 with a
            user of whom nothing is known; 3 by a prior in the item's row, the logits for such a user without
            context and pair features. An engine offers those only. Name a rung if the model was trained with
            such inputs missing.
        calibration: ``(scale, offset)`` of each head's logit, in the item's prior too.
        gaps: whether the sequence ``long`` has the time between behaviours, of `UserRecord.times`.
        metrics: the model's quality, JSON-serialisable.
        notes: further values to keep, JSON-serialisable.
        overwrite: replace a bundle that is at ``path`` already, as in `export_bundle`.

    Returns:
        The bundle, loaded from what was written, its programs proven on the golden vectors.

    Raises:
        ConfigError: the model does not keep the contract, which the message names function and column of; or
            an argument is out of its range.
        BundleError: a parameter is not finite; something is at ``path`` already, or nothing can be written
            there; or the new bundle is not proven.
    """
    from aif_jax.bundle.contract_checks import check_contract
    from aif_jax.models.baselines import Model
    from aif_jax.models.contracted import Contracted
    from aif_jax.models.store import check_finite

    whole("k_max", k_max, 1)
    if isinstance(model, Model):
        raise ConfigError(
            f"model: got a {type(model).__name__}, one of ours; export_bundle(model, path) folds and "
            "exports it."
        )
    served = uninterrupted(
        lambda: Contracted(
            model,
            schema,
            heads=None if heads is None else tuple(heads),
            score=score,
            long_length=long_length,
            short_length=short_length,
            content_width=0 if content_space is None else content_space.width,
            precision=precision,
            rungs=tuple(rungs),
            calibration=calibration,
            gaps=gaps,
        )
    )
    space = content_space or ContentSpace.declared(1)
    files.check_replaceable(Path(path), overwrite=overwrite)
    check_finite(served.weights, "the model's parameters")
    uninterrupted(lambda: check_contract(served))
    return _written(served, space, path, k_max, metrics, notes, overwrite)


@typed
def export_bundle(
    model: "Model",
    path: str | Path,
    *,
    k_max: int = 500,
    precision: Precision = "float32",
    score: str | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Export a trained model of ours as a bundle, and load it back.

    Args:
        model: of any architecture but ``exact``.
        path: the directory to write; it appears whole or not at all. Parents that do not exist are made.
        k_max: the most results that a request will be able to ask for. The stage sorts that many every time,
            and its smallest bucket is ``k_max`` rounded up to a multiple of 16.
        precision: of item rows and user states: ``float32``; ``bfloat16`` for about half the bytes; ``int8``
            for under a third of a row's and half of a state's. See `aif_jax.models.precision`.
        score: another score expression than the model's, such as ``"ctr * exp(0.5 * logit_shown)"``: no
            training depends on it.
        calibration: ``(scale, offset)`` of each head's logit.
        metrics: the model's quality, JSON-serialisable, kept in the bundle.
        notes: further values to keep, JSON-serialisable.
        overwrite: replace a bundle that is at ``path`` already, once the new one is on disk, loaded, and its
            programs are proven on the golden vectors. Until then, and on any error, the old one stays.

    Returns:
        The bundle, loaded from what was written, its programs proven on the golden vectors.

    Raises:
        ConfigError: the architecture does not fold, ``k_max`` is not positive, there is no such precision, or
            ``score`` is not an expression over heads and pair features.
        BundleError: something is at ``path`` already, or nothing can be written there; a parameter is not
            finite, which is named; or the new bundle is not proven.
    """
    from aif_jax.models.folding import fold
    from aif_jax.models.store import check_finite, weights_of

    whole("k_max", k_max, 1)
    files.check_replaceable(Path(path), overwrite=overwrite)
    check_finite(weights_of(model), "the model's parameters")
    folded = uninterrupted(lambda: fold(model, score=score, calibration=calibration, precision=precision))
    return _written(folded, model.content_space, path, k_max, metrics, notes, overwrite)


def _written(
    served: "ServedModel",
    space: ContentSpace,
    path: str | Path,
    k_max: int,
    metrics: Mapping[str, Any] | None,
    notes: Mapping[str, Any] | None,
    overwrite: bool,
) -> Bundle:
    from aif_jax.bundle.writing import write_bundle

    made = write_bundle(
        Path(path),
        served,
        space,
        k_max,
        metrics or {},
        notes or {},
        Bundle.load,
        overwrite=overwrite,
    )
    return made.named(path)

"""Which models are compared, and that the controls take away what they say and nothing else."""

import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import load
from aif_jax.errors import ConfigError, DataError
from aif_jax.evaluation import VARIANTS
from aif_jax.evaluation.judges import JUDGE_SEED, JUDGES
from aif_jax.evaluation.teaching import TEACHER, TEACHER_SEED
from aif_jax.evaluation.variants import chosen, with_shuffled_content
from aif_jax.features.score import score_of
from aif_jax.models import add_signatures, build_model
from aif_jax.training import TrainConfig, preset
from aif_jax.training.feed import TrainingBatches


def test_variants_by_name() -> None:
    assert chosen("all") == list(VARIANTS.values())
    unsampled = [name for name in VARIANTS if not name.endswith(("_negatives", "_shown"))]
    assert [variant.name for variant in chosen("all", sampled=False)] == unsampled
    for wrong in ("", "aif,aif", "aif,nonsense"):
        with pytest.raises(ConfigError, match="expected different ones of two_tower, cold"):
            chosen(wrong)


def test_every_variant_is_another_model_or_has_other_data_or_another_training() -> None:
    model, training = preset("movielens-1m")
    configs = [(v.config(model), v.data, v.trained(training)) for v in VARIANTS.values()]
    assert len(set(configs)) == len(configs)
    assert {v.name for v in VARIANTS.values() if v.trained(training).distils} == {"aif_distilled"}


def test_who_teaches_is_not_who_judges() -> None:
    model, _ = preset("movielens-1m")
    teacher = TEACHER.config(model)
    assert all(teacher.architecture != judge.config(model).architecture for judge in JUDGES.values())
    assert TEACHER_SEED != JUDGE_SEED
    assert teacher.heads == VARIANTS["aif_distilled"].config(model).heads


def test_shuffled_content_goes_to_other_items_and_stays_the_same_set() -> None:
    dataset = load("synthetic:small", content_width=8)
    shuffled = VARIANTS["aif_shuffled"].dataset(dataset, 3)
    assert dataset.content is not None
    assert shuffled.content is not None
    np.testing.assert_array_equal(shuffled.content.has, dataset.content.has)
    before, after = dataset.content.vectors, shuffled.content.vectors
    np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    same = (before == after).all(axis=1)[dataset.content.has]
    assert same.mean() < 0.05
    # What was alike is so no more.
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, dataset.n_items, (2, 5000))
    cosine, other = ((v[left] * v[right]).sum(axis=1) for v in (before, after))
    apart = left != right
    assert abs(np.corrcoef(cosine[apart], other[apart])[0, 1]) < 0.1
    assert shuffled.events is dataset.events
    assert shuffled.impressions is dataset.impressions
    again, another = with_shuffled_content(dataset, 3), with_shuffled_content(dataset, 4)
    assert again.content is not None
    assert another.content is not None
    np.testing.assert_array_equal(again.content.vectors, after)
    assert (another.content.vectors != after).any()
    assert VARIANTS["aif"].dataset(dataset, 3) is dataset


def test_the_head_for_what_is_shown_multiplies_the_score_and_alone_learns_from_sampled_items() -> None:
    dataset, shown = load("synthetic:small", content_width=32), VARIANTS["aif_shown"]
    base = ModelConfig(blocks=("context",), heads=("ctr", "like"), score="ctr + like")
    config = shown.config(base)
    assert config.heads == ("ctr", "like", "shown")
    labelled, schema = shown.dataset(dataset, 0), dataset.fit_schema()
    logits = np.array([[0.3, -1.0, 2.0]], np.float32)
    ctr, like = 1 / (1 + np.exp(-logits[0, :2]))
    found = score_of(config, schema).in_numpy(logits, {})[0]
    np.testing.assert_allclose(found, [(ctr + like) * np.exp(2.0)], rtol=1e-6)

    training = shown.trained(TrainConfig(batch_size=8, group=8))
    batch = TrainingBatches(labelled, schema, config, training)[0]
    real, sampled = batch["impression"] >= 0, (batch["item"] >= 0) & (batch["impression"] < 0)
    assert sampled.any()
    assert (batch["labels"][real][:, 2] == 1).all()
    assert (batch["labels"][sampled] == 0).all()
    assert (batch["label_mask"][sampled] == [0, 0, 1]).all()
    assert batch["label_mask"][real][:, 0].all()
    # What was there stays as it is, and rows of both sets can be compared.
    assert labelled.impressions.labels["ctr"] is dataset.impressions.labels["ctr"]
    with pytest.raises(DataError, match="'shown' already"):
        labelled.with_shown_label()


def test_the_mean_of_the_long_sequence_is_the_same_for_every_candidate() -> None:
    """Content moves attention and SimTier of `aif`; of the control only what an item is by itself."""
    dataset = load("synthetic:small", content_width=32)
    schema = dataset.fit_schema()
    base = ModelConfig(width=8, hidden=8, embedding_width=4, heads=dataset.heads, score=dataset.heads[0])
    config = VARIANTS["aif_mean"].config(base)
    blocks = set(config.blocks)
    assert blocks == set(base.blocks) - {"simtier", "sim_hard"}
    config = config.replace(blocks=("long_attention",))
    model = build_model(config, schema)
    catalogue = add_signatures(config, dataset.catalogue(schema, content_width=32))
    source = np.arange(5, dtype=np.int32)
    n = 6

    def long_part(history: np.ndarray) -> np.ndarray:
        """Return the first layer's logits less those of an empty history, by candidate."""
        batch = {
            "user": schema.missing("user", (1,)), "item": np.arange(20, 20 + n, dtype=np.int32)[None],
            "short_item": np.full((1, 1), -1, np.int32), "short_type": np.full((1, 1), -1, np.int32),
            "long_item": history[None], "long_type": np.where(history >= 0, 0, -1)[None],
            "context": schema.missing("context", (1, n)), "pair": schema.missing("pair", (1, n)),
            "train_only": schema.missing("train_only", (1, n)),
        }  # fmt: skip
        inputs = model.read(batch, catalogue)
        side = model.user_side(*inputs[:5], {})
        return np.asarray(model.block_inputs(model.candidates(inputs), side)["long_attention"][0])

    found = long_part(source)
    assert found.shape == (1, 1, config.value_width)  # one for all candidates
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(long_part(source[::-1]), found, atol=1e-6)

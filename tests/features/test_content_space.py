"""`ContentSpace`: raw content embeddings of any width become what a model reads, everywhere alike."""

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from aif_jax.errors import AifError, ConfigError, DataError, ItemIndexError
from aif_jax.features.content_space import CONTENT_SPACE, ContentSpace


def cloud(n: int, width: int, *, mean: float = 2.0, seed: int = 0, unit: bool = False) -> np.ndarray:
    """Return embeddings as encoders give them: far from the origin, with few directions that matter."""
    random = np.random.default_rng(seed)
    scale = np.exp(-3 * np.arange(width) / width)
    rows = random.normal(size=(n, width)) * scale + mean * random.normal(size=width)
    if unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def plain(fitted_on: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """Return what the space is to give, by a decomposition of all rows in float64."""
    mean = fitted_on.astype(np.float64).mean(axis=0)
    rows = rows.astype(np.float64) - mean
    if fitted_on.shape[1] > width:
        _, _, axes = np.linalg.svd(fitted_on - mean, full_matrices=False)
        axes = axes[:width]
        rows = rows @ (axes * np.sign(axes[np.arange(width), np.abs(axes).argmax(axis=1)])[:, None]).T
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("columns", "width"), [(96, 16), (16, 16), (8, 16)])
def test_content_space_apply_equals_plain_reference(columns: int, width: int) -> None:
    rows, later = cloud(700, columns), cloud(40, columns, seed=0)
    space = ContentSpace.fit(np.arange(700), rows, width=width)
    found, has = space.apply(later)
    assert has.all()
    assert (space.width, space.raw_width) == (min(columns, width), columns)
    np.testing.assert_allclose(found, plain(rows, later, width), atol=2e-5)


def test_content_space_kept_share_is_that_of_the_variance() -> None:
    rows = cloud(500, 40)
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    space = ContentSpace.fit(np.arange(500), rows, width=8)
    assert space.kept == pytest.approx(values[:8].sum() / values.sum(), abs=1e-5)
    assert space.spread == pytest.approx(values.sum() / 500, rel=1e-4)
    assert f"fitted on 500 items, 40 -> 8 columns that keep {100 * space.kept:.1f} %" in repr(space)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 600),
    columns=st.integers(1, 70),
    width=st.integers(1, 70),
    mean=st.floats(0.0, 30.0),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_content_space_apply_row_has_the_same_bits_in_every_batch(
    n: int, columns: int, width: int, mean: float, seed: int, data: st.DataObject
) -> None:
    rows = cloud(n, columns, mean=mean, seed=seed)
    space = ContentSpace.fit(np.arange(n), rows, width=width)
    whole, has = space.apply(rows)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), has, atol=1e-5)
    assert np.isfinite(whole).all()
    start = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(start + 1, min(n, start + 300)))
    part, _ = space.apply(rows[start:end])
    assert part.tobytes() == whole[start:end].tobytes()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["row", "zeros", "nan", "none"]), min_size=1, max_size=8))
def test_content_space_apply_rows_without_content_are_zero(kinds: list[str]) -> None:
    rows = cloud(50, 6)
    space = ContentSpace.fit(np.arange(50), rows, width=3)
    values = {"row": rows[0].tolist(), "zeros": [0.0] * 6, "nan": [np.nan] * 6, "none": None}
    found, has = space.apply([values[kind] for kind in kinds])
    assert has.tolist() == [kind == "row" for kind in kinds]
    assert found.any(axis=1).tolist() == has.tolist()
    assert not np.isnan(found).any()


def test_content_space_forms_of_vectors_are_alike() -> None:
    rows = cloud(50, 6)
    space = ContentSpace.fit(pd.Series(range(50)), pa.array(rows.tolist()), width=3)
    assert space == ContentSpace.fit(list(range(50)), pd.DataFrame(rows), width=3)
    expected = space.apply(rows)[0].tobytes()
    for form in (rows.tolist(), rows.astype(np.float64), np.asfortranarray(rows), pa.array(rows.tolist())):
        assert space.apply(form)[0].tobytes() == expected
    assert space.apply(None, 4)[0].shape == (4, 3)
    assert space.apply([])[0].shape == (0, 3)


def test_content_space_fit_leaves_out_items_without_vectors() -> None:
    rows = cloud(50, 6)
    space = ContentSpace.fit(np.arange(50), rows, width=3)
    gaps = np.concatenate([rows, np.zeros((1, 6)), np.full((1, 6), np.nan)])
    other = ContentSpace.fit(np.arange(52), gaps, width=3)
    assert (other.items, other.digest) == (50, space.digest)
    assert other == space


def test_content_space_embedding_at_the_mean_has_no_content() -> None:
    rows = cloud(500, 20, mean=30.0)
    space = ContentSpace.fit(np.arange(500), rows, width=4)
    assert space.mean is not None
    found, has = space.apply(np.stack([space.mean, rows[0]]))
    assert has.tolist() == [False, True]
    assert not found[0].any()


@pytest.mark.parametrize(
    ("ids", "vectors", "error", "message"),
    [
        ([1, 1], [[1.0], [2.0]], DataError, "an id is given twice"),
        ([1, 2], [[1.0], [1.0]], DataError, "those of all 2 items are equal"),
        ([1, 2], [[1.0], None], DataError, "1 of 2 items have one"),
        ([1, 2], [None, None], DataError, "0 of 2 items have one"),
        ([1, 2], [[1.0, 2.0], [1.0]], DataError, "row 1 has 1 numbers, expected 2"),
        ([1, 2], [[1.0], [np.inf]], DataError, "row 1 has inf in column 0"),
        ([1, None], [[1.0], [2.0]], DataError, "ids"),
    ],
)
def test_content_space_fit_bad_input_is_refused(
    ids: Any, vectors: Any, error: type[AifError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ContentSpace.fit(ids, vectors)


def test_content_space_wrong_width_names_both() -> None:
    rows = cloud(50, 6)
    space = ContentSpace.fit(np.arange(50), rows, width=3)
    with pytest.raises(
        ItemIndexError, match=r"got 3 columns, expected 6: raw embeddings, .* makes 6 columns 3"
    ):
        space.apply(space.apply(rows)[0])
    with pytest.raises(ItemIndexError, match=r"got 6 columns, expected 3: embeddings less the mean"):
        ContentSpace.declared(3).apply(rows)
    with pytest.raises(ItemIndexError, match=r"got 6 columns, expected 3: .* derived from the training log"):
        ContentSpace(kind="derived", width=3).apply(rows)
    with pytest.raises(ConfigError, match="width: got 0"):
        ContentSpace.fit(np.arange(50), rows, width=0)


def test_content_space_lengths_that_the_fit_did_not_have_are_refused() -> None:
    long, unit = cloud(300, 6, mean=5.0), cloud(300, 6, mean=5.0, unit=True)
    space = ContentSpace.fit(np.arange(300), long, width=6)
    with pytest.raises(ItemIndexError, match=r"row 0 has length 1, expected .* as in the fit"):
        space.apply(unit[:1])
    assert space.apply(2 * long)[1].all()
    with pytest.raises(ItemIndexError, match="row 0 has length"):
        space.apply(np.full((1, 6), 3e38))
    space = ContentSpace.fit(np.arange(300), unit, width=6)
    assert space.apply(unit.astype(np.float16))[1].all()
    with pytest.raises(ItemIndexError, match=r"row 0 has length [0-9.]+, expected 1 \(or 0 for none\)"):
        space.apply(long[:1])
    for space in (ContentSpace.declared(6), ContentSpace(kind="derived", width=6)):
        assert space.apply(unit)[0].tobytes() == unit.tobytes()
        with pytest.raises(ItemIndexError, match=r"row 1 has length [0-9.]+, expected 1 \(or 0 for none\)"):
            space.apply(np.stack([unit[0], long[0]]))


@settings(max_examples=25, deadline=None)
@given(mean=st.floats(0.5, 20.0), unit=st.booleans(), seed=st.integers(0, 2**16))
def test_content_space_rows_centred_elsewhere_are_refused(mean: float, unit: bool, seed: int) -> None:
    rows = cloud(1_000, 24, mean=mean, seed=seed, unit=unit)
    space = ContentSpace.fit(np.arange(1_000), rows, width=24)
    centred, _ = space.apply(rows)
    if not unit:
        centred = rows - rows.mean(axis=0)
    # A centred row may have length 1 by chance, which is refused first.
    with pytest.raises(
        (ConfigError, ItemIndexError), match=r"centred already|has length (1|0\.9999), expected"
    ):
        space.apply(centred)
    assert space.apply(rows[:300])[1].all()


def test_content_space_centred_fit_takes_centred_rows() -> None:
    rows = cloud(500, 24)
    rows -= rows.mean(axis=0)
    space = ContentSpace.fit(np.arange(500), rows, width=8)
    assert space.apply(rows)[1].all()


def written(space: ContentSpace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    description: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    space.write(description, files)
    return json.loads(json.dumps(description)), load(files[CONTENT_SPACE]) if files else {}


def test_content_space_written_comes_back() -> None:
    rows = cloud(50, 6)
    for space in (
        ContentSpace.fit(np.arange(50), rows, width=3, name="bert"),
        ContentSpace.fit(np.arange(50), rows),
        ContentSpace(kind="derived", width=3, digest="x"),
    ):
        description, arrays = written(space)
        again = ContentSpace.read(description, arrays, space.width)
        assert again == space
        assert repr(again) == repr(space)
        with pytest.raises(ConfigError, match=f"content_width: got 5, .* content_width={space.width}"):
            ContentSpace.read(description, arrays, 5)
    assert written(ContentSpace.declared(3)) == ({}, {})
    assert ContentSpace.read({}, {}, 3) == ContentSpace.declared(3)
    assert ContentSpace.fit(np.arange(50), rows, width=3) != ContentSpace.fit(
        np.arange(50), 2 * rows, width=3
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"kind": "derived"},
        {"mean": None},
        {"mean": np.full(6, np.nan, np.float32)},
        {"mean": np.zeros(6)},
        {"projection": None},
        {"projection": np.zeros((5, 3), np.float32)},
        {"width": 4},
        {"width": True},
    ],
)
def test_content_space_that_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    space = ContentSpace.fit(np.arange(50), cloud(50, 6), width=3)
    with pytest.raises(ConfigError, match="content space"):
        dataclasses.replace(space, **changes)

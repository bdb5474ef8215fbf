"""Candidates of one request read, by the form in which they are given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from aif_jax.features import Categorical, Numeric, Schema
from aif_jax.serving.candidates import RankArgs, parse

N = 4096
SCHEMA = Schema(
    item=(Categorical(name="item"),),
    behaviour_types=("click",),
    pair=(Numeric(name="bid", mean=0.0, std=1.0),),
)
IDS = np.random.default_rng(0).permutation(10**6)[:N].astype(np.uint64)
BID = np.random.default_rng(1).normal(size=N)

FORMS = {
    "uint64": (IDS, None),
    "uint64 and a pair feature": (IDS, {"bid": BID}),
    "int64": (IDS.astype(np.int64), None),
    "strided": (np.repeat(IDS, 2)[::2], None),
    "pandas": (pd.Series(IDS, index=np.arange(N)[::-1]), None),
    "pandas Int64": (pd.Series(IDS.astype(np.int64)).astype("Int64"), None),
    "pandas frame": (pd.DataFrame({"id": IDS, "bid": BID}), None),
    "polars": (pl.Series(IDS), None),
    "list": (IDS.tolist(), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_candidates_are_read(benchmark: SimpleNamespace, form: str) -> None:
    benchmark.group = f"{N:,} candidates, parsed"
    args = RankArgs(*FORMS[form], None, None, 0.0)
    assert parse(args, SCHEMA).keys.tolist() == IDS.tolist()
    benchmark(parse, args, SCHEMA)

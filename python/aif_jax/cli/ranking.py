"""`aif rank`: one request, its result and its report, in the terminal."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from aif_jax.bundle import Bundle
from aif_jax.cli.building import BEHAVIOURS, ITEMS
from aif_jax.cli.requests import item_values, plain, user_row
from aif_jax.data import load
from aif_jax.data.dataset import Dataset
from aif_jax.errors import RequestError
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.serving import Engine, EngineConfig
from aif_jax.timeline import as_rich, bars_of


def run_rank(
    bundle_path: Path, index: Path, data: str, *, user: str, candidates: str, k: int, console: Console
) -> None:
    """Rank candidates for a user with the user's whole history in the data set.

    Raises:
        DataError: the set has no such user.
        RequestError: candidates are not ids of the set's kind.
    """
    dataset = load(data)
    bundle = Bundle.load(bundle_path)
    tables = Tables(ItemIndex.open(bundle, index / ITEMS), BehaviourTable.open(bundle, index / BEHAVIOURS))
    row = user_row(dataset, user)
    identity = plain(dataset.users["ids"][row])
    record = dataset.user_record(row)
    ids = _candidates(candidates, dataset)
    config = EngineConfig(k=min(k, bundle.k_max))
    with console.status("compiling the stages for their sizes"):
        engine = Engine(bundle, tables, users={identity: record}.get, config=config)
    with engine:
        ranking = engine.begin(identity).rank(ids, k=config.k)
    names = [name for name in dataset.items if name not in ("ids", bundle.schema.item_id)][:4]
    table = Table("", "item", "score", *ranking.heads, *names)
    known = {plain(i): place for place, i in enumerate(dataset.items["ids"])}
    for place, (item, score) in enumerate(zip(ranking.ids, ranking.scores, strict=True)):
        shown = [str(value) for value in item_values(dataset, known[plain(item)], names)]
        heads = [f"{values[place]:.4f}" for values in ranking.heads.values()]
        table.add_row(str(place + 1), str(plain(item)), f"{score:.4f}", *heads, *shown)
    console.print(f"user {user}: {len(record.items):,} behaviours, {len(ids):,} candidates")
    console.print(table)
    console.print(as_rich(bars_of(ranking.report.spans), title="this request"))
    for name, value in ranking.report.to_json().items():
        if isinstance(value, float):
            value = f"{value:.3f}"
        console.print(f"  [dim]{name:22}[/] {value}", highlight=False)


def _candidates(text: str, dataset: Dataset) -> Any:
    ids = np.asarray(dataset.items["ids"])
    if text == "all":
        return ids
    if text.startswith("@"):
        try:
            words = Path(text[1:]).read_text(encoding="utf-8").split()
        except OSError as error:
            raise RequestError(f"candidates: cannot read {text[1:]} ({error.strerror}).") from error
    else:
        words = [word.strip() for word in text.split(",") if word.strip()]
    if ids.dtype.kind not in "iu":
        return words
    if bad := [word for word in words if not word.isdigit()]:
        raise RequestError(f"candidates: {bad[0]!r} is not an item id; {dataset.name} has integer ids.")
    return np.array([int(word) for word in words], np.uint64)

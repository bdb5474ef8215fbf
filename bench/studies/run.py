"""Train variants beside each other and write their table: quality with paired errors, retention.

    python bench/studies/run.py movielens-1m:PATH --out DIR --variants cold,aif,exact --seeds 5

Writes table.json and a page. Rows are files in DIR/rows: a run that was interrupted
resumes, and more variants or seeds are added to what is there. `make bars TABLE=DIR/table.json`
reads the bars of quality.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aif_jax.config import ModelConfig
from aif_jax.data import describe
from aif_jax.files import write_atomic
from aif_jax.training import can_sample, keep_freed_memory, preset
from results import Result, write
from studies.study import JUDGES, Row, Study, metrics_of
from studies.table import sections, summarise
from studies.variants import VARIANTS, chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="data set, as `aif_jax.data.load` takes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--variants", default="two_tower,cold,aif,exact", help=f"of {', '.join(VARIANTS)}; or all"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--config", type=Path, help="JSON of ModelConfig fields that differ in all rows")
    parser.add_argument("--lists", type=int, default=1000, help="candidate lists for retention")
    parser.add_argument("--judge", choices=JUDGES, default=JUDGES[0], help="which ranker judges")
    given = parser.parse_args(arguments)
    changes = json.loads(given.config.read_text(encoding="utf-8")) if given.config else {}
    dataset = describe(given.data).dataset(ModelConfig.from_json(changes).content_width)
    sampled = can_sample(dataset.schema, preset(dataset.name)[0].replace(**changes))
    variants = chosen(given.variants, sampled=sampled)
    keep_freed_memory()
    study = Study(
        dataset, given.out, variants, seeds=given.seeds, epochs=given.epochs, lists=given.lists,
        changes=changes, judge=given.judge,
    )  # fmt: skip

    def on_row(name: str, row: Row, kept: bool) -> None:
        survivors = row.facts["retention"]["survivors"]["10@100"]
        how = "kept" if kept else f"{row.facts['examples_per_s']:,.0f} examples/s"
        print(f"{name:24} GAUC {metrics_of(row).gauc:.4f}  10 of 100 {survivors:.3f}  {how}", flush=True)

    rows = study.run(on_row)
    summary = summarise(study, rows)
    write_atomic(given.out / "table.json", json.dumps(summary, indent=1), begins=b"{")
    result = Result(
        program="studies/run", title=f"Models on {dataset.name}", question="How good is each?",
        plan={name: str(value) for name, value in vars(given).items()}, sections=sections(summary),
        answers=f"Rows made: {'; '.join(summary['made'])}.",
    )  # fmt: skip
    write(result, given.out)


if __name__ == "__main__":
    main()

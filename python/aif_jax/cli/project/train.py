"""Train, export and index, as `aif train`, `aif export` and `aif index build` do: ``python train.py``."""

from pathlib import Path

import aif_jax as aif
from aif_jax.data import describe

HERE = Path(__file__).parent


def main() -> None:
    """Fit a model to the log of the config, report it, and write what serves."""
    config = describe(HERE / "config.toml")
    data = config.dataset()
    print(data)
    run = aif.fit(data, **{**config.arguments("fit", aif.fit), "out": HERE / "run"})
    print(run.report())
    bundle = run.export(HERE / "bundle", overwrite=True)
    tables = aif.build_tables(bundle, data)
    (HERE / "index").mkdir(exist_ok=True)
    tables.items.save(HERE / "index" / "items.aifrows")
    tables.behaviours.save(HERE / "index" / "behaviours.aifrows")


if __name__ == "__main__":
    main()

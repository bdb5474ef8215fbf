"""AIF by `fit`: our own model on the same log, through the same exporter."""

import tempfile

import jax.numpy as jnp
import shared

import aif_jax as aif
from aif_jax.models import add_signatures, build_model
from aif_jax.training import TrainConfig

CONFIG = aif.ModelConfig(
    heads=("ctr",), width=16, embedding_width=8, hidden=32, head_layers=(16,), item_layers=(32,),
    short_length=20, long_length=shared.LENGTH, content_width=16, value_width=16, signature_bits=64,
)  # fmt: skip


def main(folder: str, epochs: int = 2, **given: int) -> dict[str, float]:
    """Train, export and compare."""
    training = TrainConfig(epochs=max(epochs, 1), learning_rate=3e-3, group=8)
    model = build_model(CONFIG, shared.SCHEMA, content_space=shared.DATA.content_space)
    if epochs:
        model = aif.fit(shared.DATA, model=CONFIG, training=training, baselines=(), progress=False).model
    bundle = aif.export_bundle(model, f"{folder}/aif", k_max=shared.K)
    columns = shared.DATA.catalogue(model.schema, content_space=model.content_space)
    items = {n: jnp.asarray(leaf) for n, leaf in add_signatures(CONFIG, columns).items()}
    sequential = shared.Sequential(lambda batch, _: model(batch, items, train=False)[..., 0])
    return shared.compare(bundle, sequential, **given)


if __name__ == "__main__":
    print(main(tempfile.mkdtemp()))

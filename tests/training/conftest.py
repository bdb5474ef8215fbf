import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import load
from aif_jax.training.config import TrainConfig


@pytest.fixture(scope="session")
def dataset():
    return load("synthetic:small", content_width=8)


@pytest.fixture(scope="session")
def tiny():
    """A model whose step compiles fast: no sequences."""
    return ModelConfig(
        architecture="cold",
        blocks=("profile_item", "context", "pair"),
        width=8,
        embedding_width=8,
        hidden=8,
        head_layers=(8,),
        item_layers=(8,),
        short_length=4,
        long_length=8,
        content_width=8,
        heads=("ctr",),
    )


@pytest.fixture(scope="session")
def brief():
    return TrainConfig(batch_size=16, group=8, learning_rate=5e-3, warmup_steps=2, patience=0)

import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import ModelConfig
from aif_jax.data import Dataset, load
from aif_jax.evaluation import Evaluation, evaluate_model
from aif_jax.models import build_model
from aif_jax.models.baselines import Model


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return load("synthetic:small", content_width=8)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """A model of two heads that folds, and compiles fast."""
    return ModelConfig(
        blocks=("long_attention", "profile_item", "context", "pair", "encoder"),
        width=8, embedding_width=8, hidden=8, head_layers=(8,), item_layers=(8,), short_length=4,
        long_length=8, content_width=8, heads=("ctr", "like"), score="ctr * like", bridges=2, value_width=4,
        encoder_layers=1, encoder_width=8, encoder_gaps=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def model(dataset: Dataset, config: ModelConfig) -> Model:
    return build_model(config, dataset.fit_schema(), seed=3)


@pytest.fixture(scope="session")
def other(dataset: Dataset, config: ModelConfig) -> Model:
    return build_model(config, dataset.fit_schema(), seed=8)


@pytest.fixture(scope="session")
def bundle(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With a calibration, and another score than the model's."""
    path = tmp_path_factory.mktemp("exported") / "small"
    return export_bundle(model, path, k_max=16, calibration={"ctr": (1.5, -0.25)}, score="like")


@pytest.fixture(scope="session")
def evaluation(dataset: Dataset, model: Model, other: Model) -> Evaluation:
    return evaluate_model(
        model, dataset, against=other, slices=["category"], lists=60, candidates=40, k=(5, 10), resamples=120
    )

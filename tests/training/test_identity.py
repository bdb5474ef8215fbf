from aif_jax.config import ModelConfig
from aif_jax.training.config import TrainConfig
from aif_jax.training.identity import differing


def described(**changes):
    training = TrainConfig(epochs=3).to_json()
    return {"data": "made up", "model": ModelConfig(width=48).to_json(), "training": training, **changes}


def test_differing_absent_field_counts_as_default():
    old = described()
    old["training"] = {k: v for k, v in old["training"].items() if not k.startswith("distillation_")}
    old["model"] = {k: v for k, v in old["model"].items() if k != "tier_scale"}
    assert differing(described(), old) == differing(old, described()) == []
    now = described(training=TrainConfig(epochs=3, distillation_weight=0.5).to_json())
    assert differing(now, old) == ["training.distillation_weight"]
    del old["training"]["epochs"]
    assert differing(described(), old) == ["training.epochs"]


def test_differing_names_parts_and_fields():
    other = described(data="else", moon=1, schema={"a": 1})
    other["model"] = {**other["model"], "width": 64, "blocks": ["context"], "of_tomorrow": 3}
    mine = described(schema={"a": 2})
    names = ["data", "model.blocks", "model.of_tomorrow", "model.width", "moon", "schema.a"]
    assert differing(mine, other) == names
    assert (
        differing(mine, described(schema={"a": 2})) == []
    )  # tuples are as the lists that JSON makes of them


def test_differing_digest_of_earlier_release_is_named():
    mine = described(data={"name": "a", "labels": "2:" + "0f" * 16})
    old = described(data={"name": "a", "labels": "0f" * 16})
    assert differing(mine, old) == ["data.labels (a digest of an earlier release)"]
    assert differing(mine, described(data={"name": "a", "labels": "2:" + "f0" * 16})) == ["data.labels"]
    assert differing(described(drawn="2:ab"), described(drawn="0f" * 16)) == [
        "drawn (a digest of an earlier release)"
    ]

from aif_jax.evaluation import Evaluation, picture


def test_picture_names_model_heads_floors_and_slices(evaluation: Evaluation) -> None:
    drawn = picture(evaluation).decode()
    assert drawn.count("<!-- Calibration: expected error (ECE)") == len(evaluation.heads) == 2
    for name in ("popularity", "item mean", "other model", "GAUC by slice", "history length"):
        assert f"<!-- {name} -->" in drawn
    assert evaluation.model["name"] in drawn
    assert picture(evaluation, format="png").startswith(b"\x89PNG")

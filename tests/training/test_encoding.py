from aif_jax.training.encoding import summary_of


def test_encoding_summary_names_most_frequent_features():
    encoding = {
        "user": {"unknown": {"region": 1200}, "clipped": {"age": 1}},
        "item": {"unknown": dict.fromkeys("abcd", 1)},
    }
    assert summary_of(encoding) == (
        "1,204 unknown values (user.region 1,200, item.a 1, item.b 1, item.c 1 and 1 more); "
        "1 clipped numbers (user.age 1)"
    )
    assert summary_of({}) == ""

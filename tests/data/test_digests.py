from trainer.data.quality import INPUT_DIGEST, TARGET_DIGEST, row_digests

ROWS = {
    "text": ["a b", "a  b\n", "a c", "a b"],
    "label": ["x", "x", "x", "y"],
    "row": [1, 2, 3, 4],
}


def test_the_inputs_and_the_target_are_told_apart() -> None:
    found = row_digests(ROWS, ("text", "label"))
    first, second, third, fourth = found[INPUT_DIGEST]

    assert first == second == fourth != third
    assert found[TARGET_DIGEST][0] == found[TARGET_DIGEST][1] == found[TARGET_DIGEST][2] != found[TARGET_DIGEST][3]
    assert all(-(2**63) <= value < 2**63 for values in found.values() for value in values)


def test_the_roles_are_kept_apart() -> None:
    one = row_digests({"text": ["a"], "text_pair": ["bc"], "row": [1]}, ("text", "text_pair"))
    other = row_digests({"text": ["ab"], "text_pair": ["c"], "row": [1]}, ("text", "text_pair"))

    assert one[INPUT_DIGEST] != other[INPUT_DIGEST]
    assert one[TARGET_DIGEST] == [0]


def test_what_is_no_text_has_a_digest_too() -> None:
    rows = {
        "features": [{"a": 1.0, "b": None}, {"b": None, "a": 1.0}, {"a": 2.0, "b": None}],
        "image": [{"bytes": b"x", "path": "1.png"}, {"bytes": b"x", "path": "2.png"}, {"bytes": None, "path": "3.png"}],
        "value": [[1.0], [1.0], [1.5]],
        "row": [1, 2, 3],
    }
    for roles in (("features", "value"), ("image", "value")):
        found = row_digests(rows, roles)
        assert found[INPUT_DIGEST][0] == found[INPUT_DIGEST][1] != found[INPUT_DIGEST][2]
        assert found[TARGET_DIGEST][0] == found[TARGET_DIGEST][1] != found[TARGET_DIGEST][2]

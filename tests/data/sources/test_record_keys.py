"""Keys of other programs: those with a content are noted, each key of the record, each key of a turn."""

from lmmkit.data.sources.record_keys import unread_keys


def notes(record, *, has_images=True):
    return list(unread_keys(record, has_images=has_images))


def test_keys_without_a_content_and_unknown_keys_are_not_noted():
    assert (
        notes(
            {"id": 3, "source": "web", "tools": [], "history": None, "objects": {}, "weight": 1, "loss": True}
        )
        == []
    )
    assert notes({"conversations": [{"from": "gpt", "value": "x", "weight": 0}, 3], "loss_scale": 1.0}) == []


def test_keys_with_a_content_are_noted():
    record = {
        "tools": "[]",
        "weight": 0,
        "conversations": [{"thinking": "x"}, {"loss_weight": 0.1, "mask": False}],
    }
    assert notes(record) == [
        "`tools` is not read", "`weight` is not read", "`thinking` of a turn is not read",
        "`loss_weight` of a turn is not read",
    ]  # fmt: skip


def test_another_name_for_an_image_is_noted_where_there_is_none():
    assert notes({"image_path": "a.png"}) == []
    assert notes({"image_path": "a.png"}, has_images=False) == ["`image_path` is not read"]

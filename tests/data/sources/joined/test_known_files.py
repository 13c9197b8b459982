"""Names of other data sets: by the keys that their files have, and none for those that are not known."""

from lmmkit.data.sources.joined.known_files import entry_name, list_name, object_name

A_OKVQA = (
    "split",
    "image_id",
    "question_id",
    "question",
    "choices",
    "correct_choice_idx",
    "direct_answers",
    "rationales",
)
REFCOCO = ("sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id")
INSTANCE = ("segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id")


def test_entries_are_named_by_their_keys():
    found = [
        entry_name(dict.fromkeys(keys))
        for keys in (A_OKVQA, REFCOCO, INSTANCE, ("image_id", "id", "caption"))
    ]
    assert found == [
        "questions of A-OKVQA",
        "expressions of RefCOCO",
        "objects with boxes, as COCO's instances",
        "captions",
    ]
    for other in ({}, {"id": 1}, [], None, "caption", {"image": "a"}):
        assert entry_name(other) == "" and list_name(other) == "a JSON list"
    assert list_name({"regions": [], "id": 1}) == "a JSON list of regions of Visual Genome"


def test_objects_are_named_by_their_keys():
    assert object_name([]) == "an object with the keys none"
    assert object_name(["a", "b"]) == "an object with the keys a, b"
    assert object_name(["info", "data_subtype", "annotations"]).endswith(": VQA's annotations")
    assert object_name(["dataset_type", "data"]).endswith(
        ": questions with their answers, as those of TextVQA"
    )
    assert len(object_name([str(n) for n in range(10**5)])) < 250

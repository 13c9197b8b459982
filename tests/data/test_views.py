"""Views of a sample: their names, their rows, and the length policy."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from lmmkit.api.components import AuxTask
from lmmkit.api.layout import row_count
from lmmkit.api.needs import AttnMass, HiddenAt, HiddenMean, Select
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.errors import UserError
from tests.support.paper_objective import CAPTIONS, CHATS, IMAGE_ORDER, views
from tests.support.tiny_model import SPEC

CAPTION, CHAT = CAPTIONS[0], CHATS[0]
ROWS = row_count(views().lay_out(View(sample=CAPTION)))


def rows_by_name(image: Image) -> int:
    return {"/d0.png": 5, "/d1.png": 2}[image.path]


def test_the_main_view_is_first_and_tasks_name_theirs():
    found = views().of(CAPTION, 0)
    assert [view.name for view in found] == ["main", "image_order", "text_order"]
    assert found[0].sample == CAPTION and found[0].supervision == "train"
    assert views().of(CAPTION, 0) == found != views().of(CAPTION, 1)


def test_learned_tokens_are_inserted_into_their_views_alone():
    found = {m.view.name: m.layout for m in views().fitting(CAPTION, 0, Counter())}
    owners = {
        name: [span.owner for span in layout if span.kind == "learned"] for name, layout in found.items()
    }
    assert owners == {"main": [], "image_order": ["directed_token"], "text_order": []}


def test_each_image_takes_the_rows_that_rows_of_gives():
    two = replace(
        CHAT,
        images=(Image("/d0.png"), Image("/d1.png")),
        turns=(replace(CHAT.turns[0], images=2), CHAT.turns[1]),
    )
    made, view = replace(views(), rows_of=rows_by_name), View(sample=two)
    assert [span.n for span in made.lay_out(view) if span.kind == "image"] == [5, 2]
    asked = replace(view, sample=replace(two, turns=two.turns[:1]))
    assert [span.n for span in made.prompt(asked) if span.kind == "image"] == [5, 2]


def test_a_view_that_is_too_long_is_refused_cut_or_left_out():
    def kept(too_long: str, context: int) -> tuple[list[tuple[str, int]], Counter[str]]:
        dropped: Counter[str] = Counter()
        members = views(too_long=too_long, context=context).fitting(CAPTION, 0, dropped)
        return [(m.view.name, row_count(m.layout)) for m in members], dropped

    assert kept("error", 256)[0][0] == ("main", ROWS)
    with pytest.raises(UserError) as error:
        kept("error", ROWS - 1)
    assert [p.code for p in error.value.problems] == ["data/too-long"] and "`main`" in str(error.value)
    members, dropped = kept("truncate", ROWS - 1)
    assert dict(members)["main"] == ROWS - 1 and dropped["truncated"] == 3
    assert kept("drop", ROWS - 1) == ([], {"too_long": 3, "records": 1})


def test_a_view_of_a_task_whose_image_is_cut_is_left_out_and_counted():
    dropped: Counter[str] = Counter()
    assert views(context=SPEC.tokens).fitting(CAPTION, 0, dropped) == [], "BOS and an image do not fit"
    assert dropped == {"truncated": 3, "image_cut": 2, "no_target": 1, "records": 1}
    two = replace(
        CHAT, images=(Image("/d0.png"), Image("/d1.png")),
        turns=(Turn("user", "a b", 2, (1, 2)), CHAT.turns[1]),
    )  # fmt: skip
    room = row_count(views().lay_out(View(sample=two)))
    dropped.clear()
    made = replace(views(context=room - 40), tasks=(IMAGE_ORDER,))
    assert "image_order" not in {m.view.name for m in made.fitting(two, 0, dropped)}
    assert dropped["image_cut"] == 1, "the second image of two"


@dataclass(frozen=True, kw_only=True)
class Reads(AuxTask):
    """A task with one view, that reads what `need` names."""

    need: HiddenAt | HiddenMean | AttnMass

    @property
    def needs(self):
        return (self.need, HiddenAt(Select(view="main", role="system")))

    def views(self, sample, rng):
        return [View(sample=sample)]


@pytest.mark.parametrize(
    ("need", "kept"),
    [
        (HiddenAt(Select(view="t", kind="image")), False), (HiddenAt(Select(view="t", role="user")), True),
        (HiddenMean(Select(view="t", token_name="drt")), False),
        (AttnMass(q=Select(view="t", role="response")), False),
        (AttnMass(q=Select(view="t", role="user"), k=Select(role="response")), False),
        (AttnMass(q=Select(view="t", role="response"), k=Select(role="user")), True),
    ],
)  # fmt: skip
def test_a_view_of_which_its_task_reads_nothing_is_left_out_and_counted(need, kept):
    dropped: Counter[str] = Counter()
    made = replace(views(), tasks=(Reads(name="t", need=need),), edits=())
    blind = replace(CHAT, images=(), turns=(replace(CHAT.turns[0], images=0), CHAT.turns[1]))
    assert [m.view.name for m in made.fitting(blind, 0, dropped)] == ["main", "t"][: 1 + kept]
    assert dropped == ({} if kept else {"no_rows": 1})


READ = HiddenAt(Select(view="t", view_role="good", role="user"))


@dataclass(frozen=True, kw_only=True)
class Compares(AuxTask):
    """A task with two views to compare, whose answers are `words`; `change` changes the views."""

    roles = ("good", "bad")
    words: tuple[str, str]
    change: dict = field(default_factory=dict)
    need: HiddenAt = READ

    @property
    def needs(self):
        return (self.need,)

    def views(self, sample, rng):
        asked = sample.turns[:-1]
        return [
            View(**{
                "sample": replace(sample, turns=(*asked, Turn("assistant", text))), "role": role,
                "supervision": "read", **self.change,
            })
            for role, text in zip(self.roles, self.words, strict=True)
        ]  # fmt: skip


def roles(task: Compares, sample: Sample = CHAT, **settings) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Returns (name, role) of the views that are left, and what was dropped."""
    dropped: Counter[str] = Counter()
    made = replace(views(**settings), tasks=(task,), edits=())
    return [(m.view.name, m.view.role) for m in made.fitting(sample, 0, dropped)], dropped


def test_views_of_one_task_have_roles():
    both = [("main", ""), ("t", "good"), ("t", "bad")]
    assert roles(Compares(name="t", words=("yes", "no"))) == (both, {})
    image = HiddenAt(Select(view="t", view_role="bad", kind="image"))
    blind = replace(CHAT, images=(), turns=(replace(CHAT.turns[0], images=0), CHAT.turns[1]))
    found, dropped = roles(
        Compares(name="t", words=("yes", "no"), need=image, change={"supervision": "none"}), blind
    )
    assert found == both[:2] and dropped == {"no_rows": 1}, "the need is on the other role alone"


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_a_view_that_is_read_is_left_out_with_its_pair(too_long):
    room = row_count(views().lay_out(View(sample=CHAT)))
    long = Compares(name="t", words=("yes", "no " * 9))
    assert roles(long) == ([("main", ""), ("t", "good"), ("t", "bad")], {})
    found, dropped = roles(long, too_long=too_long, context=room)
    if too_long == "drop":
        assert found == [("main", "")] and dropped == {"too_long": 1, "pairs": 1}
    else:
        assert len(found) == 3 and dropped == {"truncated": 1}, "the answer is shorter, but not gone"
    unlearned = replace(CHAT, turns=(*CHAT.turns[:1], replace(CHAT.turns[1], supervised=False)))
    half = Compares(name="t", words=("yes", "no"), change={"sample": unlearned})
    assert roles(half, unlearned) == ([], {"no_target": 3, "records": 1})


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"role": "best"}, "role `best`"), ({"supervision": "train"}, "`train`, without `text_loss`"),
        ({"supervision": True}, "supervision `True`"),
    ],
)  # fmt: skip
def test_a_view_that_its_task_may_not_make_is_refused(change, got):
    with pytest.raises(UserError) as error:
        roles(Compares(name="t", words=("yes", "no"), change=change))
    (problem,) = error.value.problems
    assert problem.code == "plugin/view" and got in problem.got
    assert problem.where.startswith("t.views, test_views.py:")


def test_a_supervised_view_without_a_target_is_left_out():
    dropped: Counter[str] = Counter()
    members = views(context=SPEC.tokens + 1).fitting(CAPTION, 0, dropped)  # the answer is cut off
    assert "main" not in {m.view.name for m in members} and dropped["no_target"] >= 1

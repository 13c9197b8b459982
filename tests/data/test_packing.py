"""A packed batch against walking every view's layout row by row."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lmmkit.api.layout import Span, row_count, text
from lmmkit.api.sample import Image
from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.pipeline import cut
from lmmkit.errors import UserError
from lmmkit.errors.data import IMAGE_DAMAGED
from tests.support import paper_objective
from tests.support.paper_objective import CAPTIONS, CHATS, chat, packer, sized
from tests.support.tiny_model import SPEC, image, laid_out, pack, pixels, random_ids, read, tiny_lmm, whole

SAMPLES = (*CAPTIONS, *CHATS)


def members(samples=SAMPLES) -> list:
    """Returns the laid-out views, in the order of the batch."""
    return [m for sample in samples for m in paper_objective.views().fitting(sample, 0, Counter())]


def walk(layout):
    """(place, span, index within the span) of every row."""
    place = 0
    for span in layout:
        for i in range(span.n):
            yield place, span, i
            place += 1


@pytest.fixture(params=[True, False], ids=["shared", "apart"])
def packed(request):
    return paper_objective.packed(SAMPLES, share=request.param)


def test_every_row_holds_what_its_views_layout_says(packed):
    batch, paths = packed
    filled = {
        (f.source, int(r)): int(i) for f in batch.scatters for r, i in zip(f.row_N, f.item_N, strict=True)
    }
    assert len(paths) == len(members())
    for member, path in zip(members(), paths, strict=True):
        assert len(path) == row_count(member.layout)
        for place, span, i in walk(member.layout):
            row = int(path[place])
            if span.kind == "text":
                assert batch.id_T[row] == span.ids[i]
            elif span.kind == "learned":
                assert filled[f"plugins.{span.owner}", row] == i
            else:
                item = filled["vision", row]
                want = pixels(span.image, member.view.sample.image_fit)
                assert item % SPEC.tokens == i and torch.equal(batch.pixels_ICXY[item // SPEC.tokens], want)


def test_ids_are_minus_one_exactly_where_a_fill_writes_and_fills_are_disjoint(packed):
    batch, _ = packed
    written = torch.cat([fill.row_N for fill in batch.scatters])
    assert len(written.unique()) == len(written)
    assert sorted(written.tolist()) == (batch.id_T == -1).nonzero()[:, 0].tolist()
    assert {fill.source for fill in batch.scatters} == {"vision", "plugins.directed_token"}


def test_predictions_are_made_by_the_predecessor_on_the_views_path(packed):
    batch, paths = packed
    want = []
    for v, (member, path) in enumerate(zip(members(), paths, strict=True)):
        term = {"main": 0, "text_order": 1}.get(member.view.name)
        for place, span, i in walk(member.layout):
            if span.supervised and member.view.supervision == "train" and place:
                want.append((int(path[place - 1]), v, span.ids[i], term))
    columns = (batch.predict.row_Q, batch.predict.view_Q, batch.target_S, batch.term_S)
    assert want and list(zip(*(c.tolist() for c in columns), strict=True)) == want


def test_every_row_reads_its_path_and_nothing_else(packed):
    batch, paths = packed
    see = batch.forest.see()
    for path in paths:
        for place, row in enumerate(path.tolist()):
            assert see[row].nonzero()[:, 0].tolist() == sorted(path[: place + 1].tolist())


def test_the_last_image_row_predicts_the_first_words_of_two_branches():
    two = [
        laid_out(text([1], "bos"), image("a"), text([7, 8], "response", supervised=True)),
        laid_out(text([1], "bos"), image("a"), text([9, 8], "response", supervised=True), name="text_order"),
    ]
    packs = packer()
    batch, paths = pack(packs, [packs.sized(two)])
    last = 1 + SPEC.tokens - 1
    assert len(batch) == 1 + SPEC.tokens + 4 and paths[0][last] == paths[1][last] == last
    assert batch.predict.row_Q.tolist() == [last, last + 1, last, last + 3]
    assert batch.target_S.tolist() == [7, 8, 9, 8] and batch.term_S.tolist() == [0, 0, 1, 1]
    assert batch.predict.view_Q.tolist() == [0, 0, 1, 1]
    made = paper_objective.objective()
    sums, _ = paper_objective.learned(made, [batch])
    alone = [pack(packs, [packs.sized([view])])[0] for view in two]
    for name, one in zip(("next_token", "text_order"), alone, strict=True):
        assert paper_objective.learned(made, [one])[0][name] == pytest.approx(float(sums[name]), rel=1e-12)


def test_a_first_row_that_is_supervised_has_no_row_that_predicts_it():
    made = packer()
    batch, _ = pack(made, [made.sized([laid_out(text([5, 6, 7], "response", supervised=True))])])
    assert batch.predict.row_Q.tolist() == [0, 1] and batch.target_S.tolist() == [6, 7]


def test_counts_are_items_of_each_term():
    batch, _ = paper_objective.packed(SAMPLES)
    trainable = Counter()
    for m in members():
        trainable[m.view.name] += sum(s.n for s in m.layout if s.supervised) * (m.view.supervision == "train")
    with_image = sum(m.view.name == "main" and any(s.kind == "image" for s in m.layout) for m in members())
    targets_with_image = sum(
        sum(s.n for s in m.layout if s.supervised)
        for m in members() if m.view.name == "main" and any(s.kind == "image" for s in m.layout)
    )  # fmt: skip
    assert batch.count == {
        "next_token": trainable["main"], "text_order": trainable["text_order"],
        "image_order": with_image, "guided_loss": targets_with_image,
    }  # fmt: skip


def test_labels_stand_in_the_order_of_their_views():
    batch, _ = paper_objective.packed(SAMPLES)
    want = [m.view.labels["permutation"] for m in members() if m.view.name == "image_order"]
    assert batch.labels["image_order/permutation"].tolist() == want and len(set(want)) > 1
    assert batch.views == tuple((m.view.name, m.view.sample.key) for m in members())


def test_the_label_is_the_shuffle_of_the_image_that_the_view_reads():
    batch, _ = paper_objective.packed(CAPTIONS)
    views, labels = batch.views_of("image_order"), batch.labels["image_order/permutation"]
    for v, label in zip(views, labels.tolist(), strict=True):
        plain = batch.first_image(v - 1)  # the main view comes before it
        shuffle = members(CAPTIONS)[v].layout[1].image.edit
        assert torch.equal(shuffle.undo()(batch.first_image(v)), plain) and not torch.equal(
            batch.first_image(v), plain
        )
        assert members(CAPTIONS)[v].view.labels["permutation"] == label


def test_the_rows_of_an_image_are_shared_but_its_shuffle_is_another_image():
    batch, paths = paper_objective.packed(CAPTIONS[:1])
    main, shuffled, words = paths
    assert (main[1 : 1 + SPEC.tokens] == words[1 : 1 + SPEC.tokens]).all()
    assert not set(main.tolist()) & set(shuffled.tolist())  # only bos is common: not worth a branch
    assert len(batch.pixels_ICXY) == 2 and batch.first_image_V == (0, 1, 0)


def test_images_of_unlike_row_counts_follow_each_other_in_the_items():
    def view(*images: Span) -> LaidOut:
        return laid_out(text([1], "bos"), *images, text([7, 8], "response", supervised=True))

    long, short, longer = image("a", n=9), image("b", n=4), image("c", n=12)
    views = [view(long, short), view(short), view(longer, long)]
    want = [[*range(9), *range(9, 13)], [*range(9, 13)], [*range(13, 25), *range(9)]]
    batch, paths = pack(packer(share=False), [SizedSample((each,), row_count(each.layout)) for each in views])
    (vision,) = batch.scatters
    item = dict(zip(vision.row_N.tolist(), vision.item_N.tolist(), strict=True))
    assert [[item[row] for row in path.tolist() if row in item] for path in paths] == want
    assert len(batch.pixels_ICXY) == 3 and batch.first_image_V == (0, 1, 2)
    for path, laid in zip(paths, views, strict=True):
        assert [batch.id_T[row] == -1 for row in path] == [
            span.kind == "image" for _, span, _ in walk(laid.layout)
        ]


def test_a_packer_needs_the_images_of_its_samples_and_no_files():
    made = packer()
    samples = [made.sized([laid_out(text([1], "bos"), image("a"), text([7], "response", supervised=True))])]
    with pytest.raises(KeyError):
        made.pack(samples, {})
    images = read_images(samples, read)
    assert list(images) == [(Image("a"), "pad")] and read_images(samples, read, known=images) == {}
    batch, _ = made.pack(samples, images)
    assert torch.equal(batch.pixels_ICXY[0], pixels(Image("a")))


def test_all_images_that_cannot_be_read_are_reported_together():
    def broken(image: Image, fit: str) -> torch.Tensor:
        if image.path == "b":
            return read(image, fit)
        raise UserError(IMAGE_DAMAGED.at(image.path, got="noise"))

    made = packer()
    views = [laid_out(text([1], "bos"), *map(image, names), text([7], "none")) for names in ("ab", "ca")]
    with pytest.raises(UserError) as error:
        read_images([made.sized(views)], broken)
    assert [problem.where for problem in error.value.problems] == ["a", "c"]


def test_uniform_mass_is_the_share_of_image_rows_among_those_seen(packed):
    batch, _ = packed
    pick = batch.gathers[paper_objective.GUIDED.needs[0]]
    see = batch.forest.see()[pick.row_Q]
    want = (see & batch.attention.key_T).sum(1) / see.sum(1)
    assert torch.allclose(pick.uniform_Q, want, rtol=1e-6) and (pick.uniform_Q > 0).all()
    marked = torch.zeros(len(batch), dtype=torch.bool)
    vision = next(fill for fill in batch.scatters if fill.source == "vision")
    marked[vision.row_N] = True
    assert not (batch.attention.key_T & ~marked).any()
    assert set(pick.row_Q.tolist()) == set(batch.attention.row_R.tolist())


def test_mass_is_read_at_every_response_row_of_the_main_view_alone(packed):
    batch, paths = packed
    want = []
    for v, (member, path) in enumerate(zip(members(), paths, strict=True)):
        if member.view.name == "main" and any(span.kind == "image" for span in member.layout):
            want += [(int(path[place]), v) for place, span, _ in walk(member.layout) if span.supervised]
    pick = batch.gathers[paper_objective.GUIDED.needs[0]]
    assert list(zip(pick.row_Q.tolist(), pick.view_Q.tolist(), strict=True)) == want


def test_text_alone_has_no_scatter_no_image_and_no_mass():
    batch, _ = paper_objective.packed([chat("t", "hi", "yes", images=0)])
    assert batch.scatters == () and batch.pixels_ICXY.shape == (0, 3, SPEC.size, SPEC.size)
    assert (
        len(batch.attention.row_R) == 0
        and not batch.attention.key_T.any()
        and batch.first_image_V == (-1, -1)[: len(batch.views)]
    )
    assert batch.count["guided_loss"] == batch.count["image_order"] == 0 < batch.count["next_token"]


def test_no_tree_at_all_is_an_empty_batch_with_zero_counts():
    batch, paths = packer().pack([], {})
    assert len(batch) == 0 and paths == [] and set(batch.count.values()) == {0}


def test_the_same_file_with_another_fit_is_another_image():
    crop = replace(CAPTIONS[0], image_fit="crop")
    batch, _ = paper_objective.packed([CAPTIONS[0], crop, CAPTIONS[0]])
    assert len(batch.pixels_ICXY) == 2 + 2  # plain and shuffled, padded and cropped


def test_cutting_keeps_samples_whole_in_order_and_within_the_limit():
    samples = sized(SAMPLES, packer())
    parts = list(cut(samples, 150))
    assert [each for part in parts for each in part] == samples and len(parts) > 1
    assert all(len(part) == 1 or sum(each.size for each in part) <= 150 for part in parts)


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_another_document_of_equal_length_does_not_move_a_bit_of_the_rest(backend, place):
    """Cross-contamination would show; so would a kernel whose sums depend on its neighbours."""
    lmm = tiny_lmm(backend=backend)
    made = packer()

    def hidden(stranger: int):
        words = [random_ids(n, 10 + i) for i, n in enumerate((14, 14, 9))]
        words[place] = random_ids(len(words[place]), stranger)
        images = [f"stranger{stranger}" if i == place else f"own{i}" for i in range(3)]
        views = [
            laid_out(text(w[:3], "bos"), image(p), text(w[3:], "response", supervised=True))
            for w, p in zip(words, images, strict=True)
        ]
        batch, paths = pack(made, [made.sized([view]) for view in views])
        with torch.no_grad():
            out = lmm(whole(batch), {})
        mass_T = torch.zeros(len(batch)).index_copy(0, batch.attention.row_R, out.mass_LR.mean(0))
        return out.hidden_WD, mass_T, paths

    (before, mass_before, paths), (after, mass_after, _) = hidden(1), hidden(2)
    assert not torch.equal(before[paths[place]], after[paths[place]])
    for i in {0, 1, 2} - {place}:
        assert torch.equal(before[paths[i]], after[paths[i]])
        assert torch.equal(mass_before[paths[i]], mass_after[paths[i]]) and mass_before[paths[i]].any()

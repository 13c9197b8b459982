"""The page in a real headless Chromium: choose or drop an image, ask, read, stop, look at attention; keys, themes, widths."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmmkit.api.sample import Turn
from lmmkit.chat_page.serve import listening, server_of
from lmmkit.chat_page.session import About, ChatSession
from lmmkit.demo.demo_run import DEMO_MODEL
from lmmkit.demo.image import DrawnImage, draw_image
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.conversation import Conversation
from lmmkit.inference.generate import greedy
from lmmkit.inference.load import load
from lmmkit.recipe import read_text
from tests.chat_page.test_app import EVIL, TOKEN, png
from tests.conftest import PLAIN
from tests.support.browser import BARE, LOW_CONTRAST, SIDEWAYS, TWICE, WIDTHS, OpenPage, opened_chromium
from tests.support.random_chat_model import random_chat_model

pytestmark = pytest.mark.browser
COUNT = "How many objects are there?"
DROP = """([name, data]) => {
  const files = new DataTransfer(), bytes = data === null ? new Uint8Array(33 << 20) : Uint8Array.from(atob(data), c => c.charCodeAt(0));
  files.items.add(new File([bytes], name));
  for (const type of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
}"""

PLACES = """figure => [...figure.querySelectorAll("img, rect")].map(e => {
  const box = e.getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
})"""


@pytest.fixture(scope="module")
def chromium():
    yield from opened_chromium()


class Served:
    """Serves a conversation. While `gate` is closed, an answer waits before its second token."""

    def __init__(self, folder: Path, chat_model: ChatModel):
        self.talk = Conversation(chat_model, max_new_tokens=8)
        self.scene: DrawnImage = draw_image(folder, 2)
        (folder / "uploads").mkdir()
        about = About(title="demo", notes=[EVIL], questions=[COUNT, "Is there a circle?"])
        self.gate = threading.Event()
        self.server = server_of(ChatSession(self.talk, folder / "uploads", about), TOKEN)
        self.listener = listening(0)
        self.origin = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def answer_slowly(self) -> str:
        """Makes answers of many equal words, of which the second waits for the gate. Returns the first part."""
        ids, asked = self.talk.chat_model.views.tokenizer.encode_continued("two"), []
        self.gate.clear()

        def choose(logits_QV):
            asked.append(0)
            assert len(asked) != 2 or self.gate.wait(20)
            return logits_QV.new_full((len(logits_QV),), ids[-1]).long()

        self.talk.choose = choose
        return self.talk.chat_model.views.tokenizer.decode(ids[-1:])

    def until(self, condition: Callable[[], object]) -> bool:
        """Returns whether a condition is true, now or within ten seconds."""
        waiting = threading.Event()
        return any(condition() or waiting.wait(0.05) for _ in range(200))

    def is_stopped(self) -> bool:
        """Returns whether the answer is stopped, now or within ten seconds."""
        return self.until(lambda: self.talk.stopped)

    def right(self) -> str:
        """Returns the right answer to `COUNT`."""
        return ("zero", "one", "two", "three")[self.scene.content.count("(")]


@contextmanager
def serving(folder: Path, chat_model: ChatModel) -> Iterator[Served]:
    made = Served(folder, chat_model)
    try:
        yield made
    finally:
        made.gate.set()
        made.server.should_exit = True
        made.thread.join(20)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """Serves the demo's model."""
    with serving(tmp_path_factory.mktemp("served"), load(DEMO_MODEL, device="cpu")) as made:
        yield made


class ChatTab(OpenPage):
    """Is the page of the conversation in the browser."""

    def __init__(self, chromium, served: Served, **options):
        super().__init__(chromium, f"{served.origin}/{TOKEN}/", **options)
        self.wait("document.activeElement.id === 'text'")  # once the conversation is shown

    def wait(self, condition: str) -> None:
        """Waits for a condition. The page's policy forbids `wait_for_function`, which makes code of a text there."""
        for _ in range(1000):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(condition)

    def ask(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.keyboard.press("Enter")

    def answers(self) -> list[str]:
        return self.page.locator(".answer .text").all_text_contents()

    def done(self, turns: int) -> None:
        self.wait(f"document.querySelectorAll('.answer:not([aria-busy])').length === {turns}")


@pytest.fixture
def tab(chromium, served) -> Iterator[ChatTab]:
    served.talk.reset()
    served.talk.choose = greedy
    made = ChatTab(chromium, served)
    yield made
    assert made.messages == [] and all(url.startswith(served.origin) for url in made.requests)
    made.context.close()


def test_an_image_is_chosen_a_question_is_answered_and_attention_is_shown(tab, served):
    tab.page.set_input_files("#file", served.scene.path)
    tab.wait("document.querySelector('#waiting img')?.naturalWidth > 0")
    tab.ask(COUNT)
    tab.done(1)
    assert tab.answers() == [served.right()] and tab.page.locator("#waiting li").count() == 0
    assert tab.page.locator(".question img").count() == 1 and tab.page.input_value("#text") == ""
    assert tab.page.evaluate("document.activeElement.id") == "text"
    tab.page.click("text=Show attention")
    tab.wait("document.querySelectorAll('.maps rect').length === 16")
    (found,) = served.talk.attention(1).images
    assert f"{100 * found.mass:.1f} % of the attention" in (tab.page.text_content(".maps figcaption") or "")
    shares = tab.page.locator(".maps rect title").all_text_contents()
    assert shares == [f"{100 * share:.1f} %" for share in found.map_XY.flatten().tolist()]
    tab.page.click("text=Hide attention")
    assert not tab.page.locator(".maps").is_visible()
    tab.page.reload()
    tab.done(1)
    assert tab.answers() == [served.right()], "the conversation is the program's, not the tab's"
    tab.page.click("#reset")
    tab.wait("!document.querySelector('.answer')")
    assert served.talk.turns == () and tab.page.locator("#offers button").count() == 2
    tab.page.click(f"text={COUNT}")
    tab.done(1)


def test_the_map_of_an_image_in_its_shape_covers_it(chromium, scenes, tmp_path):
    sets = ["model.chat.image_fit={kind: native, max_patches: 24}", "model.text.context=400"]
    model = random_chat_model(read_text(PLAIN, root=scenes, overrides=sets))
    word = model.views.tokenizer.encode_continued("two")[-1]
    wide, tall = (tmp_path / name for name in ("wide.png", "tall.png"))
    wide.write_bytes(png((96, 48)))
    tall.write_bytes(png((16, 48)))
    with serving(tmp_path, model) as served:
        served.talk.choose = lambda logits_QV: logits_QV.new_full((len(logits_QV),), word).long()
        tab = ChatTab(chromium, served)
        tab.page.set_input_files("#file", [wide, tall])
        tab.wait(
            "document.querySelectorAll('#waiting img').length === 2 && !document.querySelector('#add').disabled"
        )
        tab.ask("red?")
        tab.done(1)
        tab.page.click("text=Show attention")
        tab.wait("document.querySelectorAll('.maps figure').length === 2")
        found = served.talk.attention(1).images
        assert [each.map_XY.shape for each in found] == [(3, 6), (6, 2)]
        tab.wait("[...document.querySelectorAll('.maps img')].every(image => image.naturalWidth)")
        for figure, each in zip(tab.page.locator(".maps figure").all(), found, strict=True):
            (lines, columns), (shown, *cells) = each.map_XY.shape, figure.evaluate(PLACES)
            assert len(cells) == lines * columns and shown[2] > shown[3] * columns / lines / 2
            assert figure.locator("title").all_text_contents() == [
                f"{100 * share:.1f} %" for share in each.map_XY.flatten().tolist()
            ]
            for i, cell in enumerate(cells):
                width, height = shown[2] / columns, shown[3] / lines
                want = (shown[0] + i % columns * width, shown[1] + i // columns * height, width, height)
                assert cell == pytest.approx(want, abs=1)
        assert "fixed patches" not in tab.page.text_content(".maps") and tab.messages == []
        tab.context.close()


def test_without_fixed_patches_the_page_says_so_in_place_of_a_map(chromium, scenes, tmp_path):
    sets = ["model.connector={kind: resampler, queries: 5, heads: 2}"]
    with serving(tmp_path, random_chat_model(read_text(PLAIN, root=scenes, overrides=sets))) as served:
        word = served.talk.chat_model.views.tokenizer.encode_continued("two")[-1]
        served.talk.choose = lambda logits_QV: logits_QV.new_full((len(logits_QV),), word).long()
        tab = ChatTab(chromium, served)
        tab.page.set_input_files("#file", served.scene.path)
        tab.wait("document.querySelector('#waiting img')?.naturalWidth > 0")
        tab.ask("red?")
        tab.done(1)
        tab.page.click("text=Show attention")
        tab.wait("document.querySelectorAll('.maps figcaption').length === 1")
        assert "its rows are not made of fixed patches" in tab.page.text_content(".maps")
        assert tab.page.locator(".maps img, .maps rect").count() == 0 and tab.messages == []
        tab.context.close()


def test_images_are_dropped_and_what_is_none_is_refused_on_the_page(chromium, served):
    served.talk.reset()
    tab = ChatTab(chromium, served)
    tab.page.evaluate(DROP, ["a.png", base64.b64encode(png((300, 9))).decode()])
    tab.wait(
        "document.querySelectorAll('#waiting li').length === 1 && !document.querySelector('#add').disabled"
    )
    assert not tab.page.locator("#drop").is_visible()
    tab.page.evaluate(DROP, [f"{EVIL}.svg", base64.b64encode(b"<svg/>").decode()])
    tab.wait("!document.querySelector('#problem').hidden")
    text = tab.page.text_content("#problem span") or ""
    assert text.startswith(EVIL) and "JPEG, PNG, WEBP, GIF, BMP" in text
    assert tab.page.locator("#problem img, #problem script").count() == 0
    tab.page.click("#problem button")
    tab.page.evaluate(DROP, ["large.png", None])
    tab.wait("!document.querySelector('#problem').hidden")
    assert "at most 33,554,432" in (tab.page.text_content("#problem span") or "")
    assert len(served.talk.waiting) == 1
    refused = [message for message in tab.messages if "status of 400" not in message]
    assert refused == [] and len(tab.messages) == 1, "a browser itself notes a refused request"
    tab.context.close()


def test_an_answer_streams_and_can_be_stopped(tab, served):
    first = served.answer_slowly()
    tab.ask(COUNT)
    tab.wait(f"document.querySelector('.answer .text').textContent === {first!r}")
    assert tab.page.text_content("#send") == "Stop" and tab.page.locator("#add").is_disabled()
    tab.page.click("#send")
    assert served.is_stopped()
    served.gate.set()
    tab.done(1)
    assert tab.answers() == [2 * first] == [served.talk.turns[1].text], (
        "the token that was being computed is the last"
    )
    assert "stopped" in (tab.page.text_content(".answer .tools") or "")
    assert tab.page.text_content("#send") == "Ask"


def test_a_question_that_cannot_be_asked_goes_back_to_where_it_was_written(tab, served):
    tab.page.set_input_files("#file", served.scene.path)
    tab.wait("document.querySelector('#waiting img')?.naturalWidth > 0")
    tab.ask("<image> and <image>")
    tab.wait("!document.querySelector('#problem').hidden")
    assert "chat/image-markers" in (tab.page.text_content("#problem span") or "")
    assert tab.page.input_value("#text") == "<image> and <image>" and tab.answers() == []
    tab.wait("document.querySelectorAll('#waiting li').length === 1")


def test_an_answer_that_fails_remains_as_far_as_it_is_written(tab, served):
    part = served.answer_slowly()
    slowly = served.talk.choose

    def choose(logits_QV):
        try:
            return slowly(logits_QV)
        finally:
            if served.gate.is_set():
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    served.talk.choose = choose
    tab.ask(COUNT)
    tab.wait("document.querySelector('.answer .text').textContent !== ''")
    served.gate.set()
    tab.wait("!document.querySelector('#problem').hidden && !document.querySelector('[aria-busy]')")
    tab.done(1)
    assert "machine/out-of-memory" in tab.page.text_content("#problem span")
    assert tab.answers() == [part] and tab.page.input_value("#text") == ""
    served.talk.choose = greedy
    tab.ask(COUNT)
    tab.done(2)


def test_a_tab_that_is_closed_stops_its_answer(chromium, served, tab):
    other = ChatTab(chromium, served)
    first = served.answer_slowly()
    other.ask(COUNT)
    other.wait(f"document.querySelector('.answer .text').textContent === {first!r}")
    other.context.close()
    assert served.is_stopped(), "the server has seen that the page is gone"
    served.gate.set()
    assert served.until(lambda: served.talk.turns)
    tab.ask("And now?")
    tab.done(1)
    assert "up to date" in (tab.page.text_content("#problem span") or "") and tab.answers() == [2 * first]


def test_keys_do_all_that_the_mouse_does(tab, served):
    keys = tab.page.keyboard
    tab.page.focus("#add")
    choosers = []
    tab.page.on("filechooser", lambda found: choosers.append(found))  # it is not known from when on
    for _ in range(20):
        if not choosers:
            tab.page.wait_for_timeout(200)
            keys.press("Enter")
    choosers[0].set_files([served.scene.path] * 2)
    tab.wait("document.querySelectorAll('#waiting li').length === 2")
    tab.wait("document.activeElement.id === 'text'")
    keys.press("Shift+Tab")
    assert tab.page.evaluate("document.activeElement.ariaLabel") == "Remove image 2"
    keys.press("Enter")
    tab.wait("document.querySelectorAll('#waiting li').length === 1")
    tab.page.focus("#text")
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    first = served.answer_slowly()
    keys.press("Enter")
    tab.wait(f"document.querySelector('.answer .text').textContent === {first!r}")
    assert tab.page.locator(".question .text").text_content() == "one\ntwo"
    keys.press("Escape")
    assert served.is_stopped()
    served.gate.set()
    tab.done(1)
    tab.page.focus("text=Show attention")
    keys.press("Space")
    tab.wait("document.querySelectorAll('.maps rect').length === 16")
    assert tab.page.evaluate("document.activeElement.textContent") == "Hide attention"


def test_hostile_text_stays_text(tab, served):
    served.talk.turns = (Turn("user", EVIL), Turn("assistant", EVIL))
    tab.page.reload()
    tab.done(1)
    texts = tab.page.locator(".text, .note").all_text_contents()
    assert texts.count(EVIL) == 3
    assert tab.page.locator("main img, main script").count() == 0 and tab.page.title() == "demo · lmmkit chat"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_no_width_scrolls_sideways_and_the_theme_is_kept(chromium, served, scheme):
    served.talk.reset()
    served.talk.choose = greedy
    tab = ChatTab(chromium, served, color_scheme=scheme)
    tab.page.set_input_files("#file", served.scene.path)
    tab.wait(
        "document.querySelector('#waiting img')?.naturalWidth > 0 && !document.querySelector('#add').disabled"
    )
    tab.ask(COUNT)
    tab.done(1)
    tab.page.click("text=Show attention")
    tab.wait("document.querySelectorAll('.maps rect').length === 16")
    tab.ask("W" * 60)
    tab.done(2)
    tab.page.evaluate(DROP, ["a.png", base64.b64encode(png((300, 9))).decode()])
    tab.wait("document.querySelectorAll('#waiting li').length === 1")
    tab.ask("<image> <image> <image>" + "x" * 150)
    tab.wait("!document.querySelector('#problem').hidden")
    tab.done(2)
    for _ in range(2):
        assert tab.page.evaluate(LOW_CONTRAST) == []
        tab.page.click("#theme")
    tab.page.click("#theme")
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is (scheme == "dark")
    tab.page.reload()
    tab.done(2)
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    for width in WIDTHS:
        tab.page.set_viewport_size({"width": width, "height": 700})
        assert tab.page.evaluate(SIDEWAYS) <= 0, width
    assert tab.page.evaluate(BARE) == 0 and tab.page.evaluate(TWICE) == []
    assert tab.page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    assert tab.messages == []
    tab.context.close()

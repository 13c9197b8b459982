"""The page's requests: who may send them, what they change, their limits, and one work at a time."""

from __future__ import annotations

import errno
import io
import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image as Pil
from starlette.testclient import TestClient

from lmmkit.api.sample import AnyRes, Native
from lmmkit.chat_page import app as app_module
from lmmkit.chat_page import session as session_module
from lmmkit.chat_page.app import chat_app, page_text, policy_of
from lmmkit.chat_page.session import About, ChatSession, shown_fit
from lmmkit.demo.demo_run import DEMO_MODEL
from lmmkit.demo.image import draw_image
from lmmkit.inference.conversation import Conversation
from lmmkit.inference.load import load
from lmmkit.report.page import template_text

TOKEN, HOST = "a-token", "127.0.0.1:8123"
OWN = {"origin": f"http://{HOST}"}
COUNT = "How many objects are there?"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> \u2028 'x\""


@pytest.fixture(scope="module")
def model():
    return load(DEMO_MODEL, device="cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return draw_image(tmp_path_factory.mktemp("scene"), 2)


@pytest.fixture
def talk(model):
    return Conversation(model, max_new_tokens=8)


class Page:
    """Sends requests as the page does."""

    def __init__(self, talk: Conversation, folder: Path):
        self.folder = folder
        self.session = ChatSession(talk, folder, About(title="t", notes=[EVIL], questions=[COUNT]))
        self.client = TestClient(chat_app(self.session, TOKEN), base_url=f"http://{HOST}")

    def get(self, path: str):
        return self.client.get(f"/{TOKEN}/{path}")

    def post(self, path: str, content=b"", headers=OWN):
        return self.client.post(f"/{TOKEN}/{path}", content=content, headers=headers)

    def ask(self, text: str, turns: int) -> list[dict]:
        answer = self.post("ask", json.dumps({"text": text, "turns": turns}))
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.text.splitlines()]

    def state(self) -> dict:
        return self.get("state").json()


@pytest.fixture
def page(talk, tmp_path):
    return Page(talk, tmp_path)


def png(size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Pil.effect_noise(size, 60).convert("RGB").save(out, "PNG")
    return out.getvalue()


HOSTS = {
    "127.0.0.1:8123": 200, "localhost:8123": 200, "localhost": 200, "127.0.0.1:2": 200, "evil.example": 403, "127.0.0.1.evil.example": 403,
    "localhost.": 403, "0.0.0.0:8123": 403, "127.0.0.1:8123:1": 403, "[::1]:8123": 403, "localhost:": 403, "x@127.0.0.1": 403, "": 403,
}  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_only_this_machine_s_own_names_are_answered(page, host, status):
    for method, path in (("GET", ""), ("GET", "state"), ("POST", "stop")):
        headers = {"host": host, "origin": f"http://{host}"}
        assert page.client.request(method, f"/{TOKEN}/{path}", headers=headers).status_code == status


ORIGINS = (None, "null", "http://evil.example", "https://127.0.0.1:8123", "http://127.0.0.1:9", "http://localhost:8123", "http://127.0.0.1:8123/")  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_changes_come_from_the_page_itself(page, origin):
    headers = {} if origin is None else {"origin": origin}
    for path in ("images", "ask", "stop", "reset", "images/0/remove"):
        answer = page.post(path, png(), headers)
        assert answer.status_code == 403 and answer.json() == {
            "problem": "the request is not from the page itself"
        }
    assert page.state()["waiting"] == [] and list(page.folder.iterdir()) == []
    read = page.client.get(f"/{TOKEN}/state", headers=headers)
    assert read.status_code == (200 if origin is None else 403)


@pytest.mark.parametrize(
    "path", ["", "/", "/state", "/a-toke/", "/a-token2/state", "/%61-token2/", "//a-token/", "/\udcff/"]
)
def test_without_the_token_nothing_is_there(page, path):
    for method in ("GET", "POST", "OPTIONS"):
        answer = page.client.request(method, path.encode("utf-8", "replace").decode(), headers=OWN)
        assert answer.status_code == 403 and "token" in answer.json()["problem"]


def test_the_page_loads_nothing_and_is_shown_in_no_frame(page):
    answer = page.get("")
    headers = answer.headers
    policy = headers["content-security-policy"]
    assert answer.text == page_text() and headers["content-type"].startswith("text/html")
    assert policy == policy_of(page_text()) and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and policy.count("sha256-") == 3 and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'none'" in policy
    for name, value in (
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    ):
        assert headers[name] == value
    assert page.get("nothing").headers["content-security-policy"] == policy
    for name in ("shared.css", "shared.js", "theme.js"):
        assert page_text().count(template_text(name)) == 1 and f"{{ {name} }}" not in page_text()
    assert " style=" not in page_text() and " on" + "click" not in page_text(), "the policy would stop them"


def test_a_question_about_an_uploaded_image_is_answered_in_parts(page, talk, scene):
    number = page.post("images", scene.path.read_bytes()).json()["image"]
    assert page.state()["waiting"] == [number]
    *parts, end = page.ask(f"  {COUNT}\n", 0)
    word = ("zero", "one", "two", "three")[scene.content.count("(")]
    assert "".join(line["part"] for line in parts) == word and end == {"turns": 2, "stopped": False}
    state = page.state()
    assert state["turns"] == [
        {"role": "user", "text": COUNT, "images": [number]}, {"role": "assistant", "text": word, "images": []},
    ]  # fmt: skip
    assert (state["waiting"], state["fit"], state["vision"], state["title"]) == ([], "pad", True, "t")
    assert page.ask(EVIL, 2)[-1]["turns"] == 4 and page.state()["turns"][2]["text"] == EVIL.strip()
    assert page.post("reset").status_code == 200
    assert (page.state()["turns"], list(page.folder.iterdir()), talk.images) == ([], [], ())


def test_attention_is_that_of_the_conversation(page, talk, scene):
    numbers = [page.post("images", data).json()["image"] for data in (scene.path.read_bytes(), png((10, 90)))]
    page.ask(COUNT, 0)
    found = page.get("attention/1").json()["images"]
    for each, want, number in zip(found, talk.attention(1).images, numbers, strict=True):
        assert each == {
            "image": number, "mass": want.mass, "even": want.even, "shares": want.map_XY.tolist(),
        }  # fmt: skip
    for turn in (0, 2, 99):
        assert page.get(f"attention/{turn}").status_code == 404


def test_an_image_is_shown_upright_and_never_by_its_own_bytes(page, tmp_path):
    turned = Pil.new("RGB", (2000, 500), "red")
    exif = Pil.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    turned.save(out, "JPEG", exif=exif)
    number = page.post("images", out.getvalue() + EVIL.encode()).json()["image"]
    answer = page.get(f"images/{number}")
    assert answer.headers["content-type"] == "image/webp" and EVIL.encode() not in answer.content
    assert Pil.open(io.BytesIO(answer.content)).size == (256, 1024)
    small = page.post("images", png()).json()["image"]
    shown = Pil.open(io.BytesIO(page.get(f"images/{small}").content)).convert("RGB")
    assert shown.tobytes() == Pil.open(page.folder / str(small)).tobytes(), (
        "a small image is stored without loss"
    )
    (page.folder / str(small)).write_text("changed")
    assert page.get(f"images/{small}").status_code == 404 and page.get("images/77").status_code == 404
    assert page.get("images/x").status_code == 404


def test_what_is_no_image_is_refused_with_its_reason(page):
    for data, reason in (
        (b"", "image/format"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/format"), (png()[:200], "image/damaged"),
        (png((500, 2)), "image/aspect-ratio"), (EVIL.encode(), "image/format"),
    ):  # fmt: skip
        answer = page.post("images", data)
        assert answer.status_code == 400 and f"[{reason}]" in answer.json()["problem"]
        assert str(page.folder) not in answer.text, "places on the machine are not shown"
    assert list(page.folder.iterdir()) == [] and page.state()["waiting"] == []


def test_sizes_and_numbers_have_limits(page, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_BYTES", 5000)
    monkeypatch.setattr(session_module, "MOST_IMAGES", 2)

    def stream():
        for _ in range(100):
            yield bytes(100)

    for body in (bytes(5001), stream()):  # with its length, and without
        assert page.post("images", body).status_code == 413
    assert page.post("ask", b"x" * (session_module.MOST_TEXT + 1)).status_code == 413
    data = png()
    assert [page.post("images", data).status_code for _ in range(3)] == [200, 200, 413]
    (problem,) = page.ask("x" * 3000, 0)
    assert "chat/too-long" in problem["problem"] and page.state()["turns"] == []
    assert len(page.state()["waiting"]) == 2, "the images wait for another question"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'"x"', b'{"text": "x"}', b'{"text": " ", "turns": 0}', b'{"text": 1, "turns": 0}',
             b'{"text": "x", "turns": true}', b"[" * 5000, b"\xff"]
)  # fmt: skip
def test_what_is_no_question_is_refused(page, body):
    assert page.post("ask", body).status_code == 400


def test_what_the_tokenizer_refuses_is_a_problem_on_the_page(page):
    (line,) = page.ask("half a pair \ud800", 0)
    assert "tokenizer/surrogate" in line["problem"]


def test_a_page_that_shows_another_conversation_is_refused(page):
    page.ask(COUNT, 0)
    (line,) = page.ask(COUNT, 0)
    assert "changed elsewhere" in line["problem"] and len(page.state()["turns"]) == 2


def test_images_wait_and_can_be_removed(model, scene, tmp_path):
    page = Page(Conversation(model, max_new_tokens=8, first=[scene.path]), tmp_path)
    (given,) = page.state()["waiting"]
    added = page.post("images", png()).json()["image"]
    for number in (added, given):
        assert page.post(f"images/{number}/remove").status_code == 200
    state = page.state()
    assert state["waiting"] == state["notes"] == [] and list(page.folder.iterdir()) == []
    assert scene.path.is_file(), "a file of the user remains"
    assert page.post(f"images/{given}/remove").status_code == 404


def test_a_new_conversation_is_as_at_the_start(model, scene, tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(scene.path.read_bytes())
    (tmp_path / "uploads").mkdir()
    page = Page(Conversation(model, max_new_tokens=8, first=[path, scene.path]), tmp_path / "uploads")
    page.post("images", png())
    page.ask(COUNT, 0)
    assert page.post("reset").status_code == 200
    state = page.state()
    assert len(state["waiting"]) == 2 and state["notes"] == [EVIL] and state["turns"] == []
    assert all(page.get(f"images/{number}").status_code == 200 for number in state["waiting"])
    path.unlink()
    answer = page.post("reset")
    assert answer.status_code == 400 and "[image/file]" in answer.json()["problem"]
    assert page.state()["waiting"] == page.state()["notes"] == []


def test_one_work_at_a_time_and_an_answer_can_be_stopped(page, talk):
    begun, go_on = threading.Event(), threading.Event()
    word = talk.chat_model.views.tokenizer.encode_continued("two")[-1]

    def choose(logits_QV):
        if not begun.is_set():
            begun.set()
            assert go_on.wait(20)
        return logits_QV.new_full((len(logits_QV),), word).long()

    talk.choose = choose
    lines: list[dict] = []
    asking = threading.Thread(target=lambda: lines.extend(page.ask(COUNT, 0)))
    asking.start()
    assert begun.wait(20)
    assert "at work" in page.ask(COUNT, 0)[0]["problem"]
    for path in ("images", "reset"):
        assert page.post(path, png()).status_code == 409
    assert page.get("attention/0").status_code == 409 and page.state()["turns"] == []
    assert page.post("stop").status_code == 200
    go_on.set()
    asking.join(20)
    assert lines[-1] == {"turns": 2, "stopped": True} and len(lines) == 2
    assert page.state()["turns"][1]["text"] == lines[0]["part"] and list(page.folder.iterdir()) == []


def test_a_fault_is_shown_on_the_page_and_in_the_terminal(page, talk, capsys):
    def fail(logits_QV):
        raise RuntimeError("no memory")

    talk.choose = fail
    (line,) = page.ask(COUNT, 0)
    assert "RuntimeError: no memory" in line["problem"] and "Traceback" in capsys.readouterr().err
    talk.choose = lambda logits_QV: logits_QV.argmax(-1)
    assert page.ask(COUNT, 0)[-1]["turns"] == 2


def test_too_little_memory_and_a_full_disk_are_named_without_a_traceback(page, talk, monkeypatch, capsys):
    number = page.post("images", png()).json()["image"]
    page.ask(COUNT, 0)

    def full(*args):
        return torch.empty(2**50, dtype=torch.uint8)

    before, talk.choose = talk.choose, full
    (line,) = page.ask(COUNT, 2)
    assert "machine/out-of-memory" in line["problem"]
    with monkeypatch.context() as patch:
        patch.setattr(talk, "attention", full)
        answer = page.get("attention/1")
        assert answer.status_code == 503 and "machine/out-of-memory" in answer.json()["problem"]
        patch.setattr(Path, "write_bytes", refused)
        answer = page.post("images", png())
        assert answer.status_code == 503 and "files/cannot-write" in answer.json()["problem"]
    assert capsys.readouterr().err == "" and [each.name for each in page.folder.iterdir()] == [str(number)]
    talk.choose = before
    assert page.ask(COUNT, 2)[-1]["turns"] == 4 and page.post("images", png()).status_code == 200


def refused(self: Path, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", str(self))


def test_a_map_covers_what_the_model_gets_of_an_image():
    assert [shown_fit(fit) for fit in ("pad", "crop", "stretch")] == ["pad", "crop", "stretch"]
    assert shown_fit(AnyRes()) == shown_fit(Native(max_patches=4)) == "stretch"

"""Progress of long work: nothing is shown without a display, and a display gets what the work reports."""

from __future__ import annotations

import pytest

from lmmkit.progress import counted, duration, moving, plural, shown_on, weighed, working


class Recorder:
    """Records the calls of a display."""

    def __init__(self):
        self.calls = []

    def begin(self, title, total, unit):
        self.calls.append(("begin", title, total, *([unit] if unit else [])))
        return len(self.calls)

    def move(self, task, done):
        self.calls.append(("move", task, done))

    def end(self, task):
        self.calls.append(("end", task))


def test_without_a_display_work_runs_and_nothing_is_shown(capsys):
    with working("nothing", 3) as move:
        move(1)
    assert list(counted("x", [1, 2])) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_display_gets_the_tasks_and_their_parts():
    display = Recorder()
    with shown_on(display), working("outer") as move:
        assert list(counted("inner", iter("ab"), total=2)) == ["a", "b"]
        move(7)
    assert display.calls == [
        ("begin", "outer", None), ("begin", "inner", 2), ("move", 2, 1), ("move", 2, 2), ("end", 2), ("move", 1, 7),
        ("end", 1),
    ]  # fmt: skip
    with shown_on(display), shown_on(None), working("unseen"):
        pass
    assert display.calls[-1] == ("end", 1)


def test_sizes_and_units_reach_the_display():
    display = Recorder()
    with shown_on(display):
        assert list(weighed("copying", ["a", "bbb"], lambda text: 10**6 * len(text))) == ["a", "bbb"]
        assert list(counted("asking", ["a"], unit="questions")) == ["a"]
    assert display.calls == [
        ("begin", "copying", 4, "MB"), ("move", 1, 1), ("move", 1, 4), ("end", 1), ("begin", "asking", 1, "questions"),
        ("move", 5, 1), ("end", 5),
    ]  # fmt: skip
    assert list(weighed("copying", ["a"], len)) == ["a"], "without a display"


def test_work_that_fails_or_is_left_early_ends_its_task():
    display = Recorder()
    with shown_on(display), pytest.raises(ZeroDivisionError), working("fails"):
        raise ZeroDivisionError
    with shown_on(display):
        for _ in counted("left", [1, 2, 3]):
            break
    assert [call for call in display.calls if call[0] == "end"] == [("end", 1), ("end", 3)]


def test_tasks_inside_a_part_move_the_outer_one_and_never_back():
    display = Recorder()
    with shown_on(display), working("outer", 2) as move:
        with moving(move, 0, 1):
            list(counted("without a unit", "ab"))
            for _ in counted("first", "ab", unit="letters"):
                list(counted("inside it", "xy", unit="letters"))
            list(counted("second", "abcd", unit="letters"))
        with moving(move, 1, 2), working("without a total", unit="letters"):
            list(counted("third", "ab", unit="letters"))
    assert [done for kind, *rest in display.calls if kind == "move" and rest[0] == 1 for done in rest[1:]] == [
        0.5, 1, 1, 1, 1, 1, 1, 1.5, 2, 2,
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError), shown_on(display), working("outer", 1) as move, moving(move, 0, 1):
        raise ZeroDivisionError
    assert display.calls[-1] == ("end", display.calls[-1][1]) and display.calls[-2][0] == "begin"
    list(counted("outside", "ab"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 00 s"),
        (750, "12 min 30 s"),
        (18_120, "5 h 02 min"),
        (273_600, "3 d 04 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_plural():
    assert [plural(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert [plural(n, "batch", "batches") for n in (1, 2)] == ["1 batch", "2 batches"]

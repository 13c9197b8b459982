"""Makes the views of tasks in another process: with another hash seed, and other global generators.

A data worker and a resumed run are other processes too. A task that depends on `hash()`, or on the order of a
set, gives other views there, and no second call in one process can show it.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

from lmmkit.errors import LmmkitError, Problem
from lmmkit.errors.dry_run import NOT_PURE, PICKLE
from lmmkit.plan.dry_run.subject import problem
from lmmkit.plan.dry_run.view_checks import ViewSubject, views_digest

SAMPLES = 16  # of each task
CODE = "from lmmkit.plan.dry_run.second_process import answer; answer()"


def other_views(subjects: Mapping[str, ViewSubject]) -> list[Problem]:
    """Returns a problem for each task that makes other views in another process."""
    problems, sent = [], {}
    for key, subject in subjects.items():
        few = replace(subject, samples=subject.samples[:SAMPLES])
        try:
            sent[key] = pickle.dumps(few)
        except Exception as error:  # pickle raises errors of many types
            got = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            problems.append(problem(PICKLE, subject.task.name, "fields", subject.task, got))
    if not sent:
        return problems
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=pickle.dumps(sent), stdout=subprocess.PIPE, check=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    found = json.loads(done.stdout)
    for key, data in sent.items():
        subject: ViewSubject = pickle.loads(data)
        if not found[key]["loaded"]:
            problems.append(problem(PICKLE, subject.task.name, "fields", subject.task, found[key]["views"]))
        elif found[key]["views"] != views_digest(subject):
            got = "other views of the same samples in another process"
            expected = "views that depend on nothing but `sample` and `rng`"
            problems.append(
                problem(NOT_PURE, subject.task.name, "views", subject.task, got, expected=expected)
            )
    return problems


def answer() -> None:
    """Prints a digest of the views of each task that is sent to standard input, or why it cannot be loaded here."""
    sent = pickle.loads(sys.stdin.buffer.read())
    found = {}
    for key, data in sent.items():
        try:
            subject = pickle.loads(data)
        except Exception as error:  # such as of a class that only the first process has
            found[key] = {"loaded": False, "views": f"{type(error).__name__} in another process: {error}"}
            continue
        try:
            views = views_digest(subject)
        except LmmkitError as error:
            views = str(error)
        found[key] = {"loaded": True, "views": views}
    print(json.dumps(found))

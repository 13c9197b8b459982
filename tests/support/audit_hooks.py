"""Runs a command of lmmkit in a forked child under an audit hook, and reports everything it must not do.

The parent has imported everything, so a child costs what its command costs. What native code opens
raises no audit event: canaries detect that, files outside that only a payload would make.
"""

from __future__ import annotations

import ast
import os
import resource
import select
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 10  # of the processor; what takes longer hangs
WALL = 120.0  # seconds on the clock: what waits for a pipe takes no processor time
MEMORY = 4 << 30  # bytes more than the parent has: a hostile size must not take the machine along

CODE = tuple({
    *(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib", "data")),
    *(str(ROOT / name) for name in ("lmmkit", "plugins", "tests")),
    *(path for path in sys.path if path.endswith(".zip")),
})  # fmt: skip
SYSTEM = ("/proc", "/sys/devices", "/sys/fs/cgroup", "/usr", "/lib", "/dev/null", "/dev/urandom")
READABLE = (*CODE, str(ROOT / "recipes"), *SYSTEM)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# Whose business it is to make code of a class's own fields.
MAKERS = ("/dataclasses.py", "/collections/__init__.py", "/enum.py", "/typing.py", "/inspect.py")
NEVER = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.", "webbrowser.",
    "socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "socket.gethostby", "urllib.", "http.", "ftplib.",
    "smtplib.", "pickle.find_class", "ctypes.call_function",
)  # fmt: skip
CHANGES = {  # event: which of its arguments are paths that it changes
    **dict.fromkeys(
        ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.utime", "os.truncate"), (0, 1)
    ),
    **dict.fromkeys(("shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp"), (0, 1)),
    **dict.fromkeys(("os.rename", "os.link", "shutil.move"), (0, 2)),
    "os.symlink": (1, 2),
}
AT = ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.utime")  # may be given an open folder


@dataclass(frozen=True)
class Outcome:
    """Holds a child's exit code (None: it hung), its output, and what it did that it must not."""

    code: int | None
    output: str
    breaches: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Watch:
    """The hook. `read` and `write`: folders that may be read, and written to, besides the code itself."""

    report: Callable[[str], None]
    read: tuple[str, ...]
    write: tuple[str, ...]

    def __call__(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            wants = self.write if flags & WRITES else (*self.read, *self.write, *READABLE)
            self.inside("writes" if flags & WRITES else "reads", path, wants)
        elif event in ("exec", "compile"):
            self.code(event, args)
        elif event.startswith(NEVER):
            self.report(f"{event} {args!r:.200}")
        elif event in CHANGES:
            for path in args[slice(*CHANGES[event])]:
                self.inside(event, _whole(path, args[-1] if event in AT else None), self.write)
        elif event == "os.listdir" and os.path.realpath(args[0] or ".") in map(os.path.realpath, sys.path):
            pass  # an import that looks for a module
        elif event in ("os.listdir", "os.scandir", "shutil.copyfile", "shutil.copytree"):
            self.inside(event, args[0], (*self.read, *self.write, *READABLE))

    def inside(self, what: str, path: object, folders: Sequence[str]) -> None:
        if not isinstance(path, str | bytes | os.PathLike):  # an open handle
            return
        real = os.path.realpath(os.fsdecode(path))
        if not any(real == folder or real.startswith(folder + "/") for folder in (*folders, "/dev/null")):
            self.report(f"{what} {real}")

    def code(self, event: str, args: tuple) -> None:
        file = args[0].co_filename if event == "exec" else args[1]
        file = os.fsdecode(file) if isinstance(file, str | bytes) else ""
        frame = sys._getframe(2)
        caller = frame.f_code.co_filename
        if file.startswith(("<frozen ", *CODE)) or caller.endswith(MAKERS):
            return
        # how numpy reads the head of a .npy file: a tree of literals, which is never run
        if event == "compile" and frame.f_back and frame.f_back.f_code is ast.literal_eval.__code__:
            return
        self.report(f"{event} of {file or args[0]!r:.200} by {caller}")


def _whole(path: object, folder: object) -> object:
    """Returns the whole path of one relative to an open folder, as `shutil.rmtree` gives them."""
    if type(folder) is not int or folder < 0 or not isinstance(path, str | bytes):
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))


def run(words: Sequence[object], cwd: Path, *, read: Sequence[Path], write: Sequence[Path]) -> Outcome:
    """Runs `lmmkit WORDS` in a child that may read and write these folders only."""
    from lmmkit.cli import main

    def command() -> int:
        sys.argv = ["lmmkit", *map(str, words)]
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    return watched(command, cwd, read=read, write=write)


def watched(action: Callable[[], int], cwd: Path, *, read: Sequence[Path], write: Sequence[Path]) -> Outcome:
    """Runs `action` in a child: its value is the exit code, or 1 with a traceback."""
    at, to = os.pipe()
    log, began = cwd / ".output", time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(at)
        _child(action, cwd, log, to, read, write)
    os.close(to)
    reports, hung = _listen(at, began)
    os.close(at)
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    code = None if hung or code in (-signal.SIGXCPU, -signal.SIGKILL) else code
    breaches = tuple(dict.fromkeys(reports.decode(errors="replace").splitlines()))
    output = log.read_text(errors="replace") if log.is_file() else ""
    return Outcome(code, output, breaches, time.monotonic() - began)


def _listen(at: int, began: float) -> tuple[bytes, bool]:
    """Returns all that the child reports until it ends, and whether it took too long."""
    reports = b""
    while (left := began + WALL - time.monotonic()) > 0:
        if not select.select([at], [], [], left)[0]:
            break
        part = os.read(at, 65536)
        if not part:
            return reports, False
        reports += part
    return reports, True


def _child(action, cwd: Path, log: Path, to: int, read: Sequence[Path], write: Sequence[Path]) -> None:
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (handle, 1), (handle, 2)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(cwd)
        sys.dont_write_bytecode = True
        with open("/proc/self/statm") as statm:
            now = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        aside = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in write]
        roots = [tuple(os.path.realpath(p) for p in paths) for paths in (read, [*write, *aside])]
        sys.addaudithook(Watch(lambda text: os.write(to, f"{text}\n".encode(errors="replace")), *roots))
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

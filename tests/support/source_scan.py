"""What a source file does that could run code from data, reach the network or unpack: by its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator

MODULES = {
    "reads objects back to life": (
        "pickle", "cPickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg",
    ),
    "unpacks": ("zipfile", "zipimport", "patoolib"),
    "connects": (
        "socket", "socketserver", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "smtplib",
        "telnetlib", "xmlrpc", "webbrowser", "huggingface_hub", "fsspec", "boto3", "paramiko",
    ),
    "runs programs": ("subprocess", "pty", "popen2", "commands", "sh", "plumbum"),
    "runs code": ("importlib", "runpy", "imp", "code", "codeop", "ctypes", "cffi", "builtins", "pkgutil", "pydoc"),
    "reads YAML, tags and all": ("yaml",),
    "serves": ("tensorboard", "flask", "uvicorn", "fastapi", "gradio"),
    "runs templates": ("jinja2", "mako", "hydra", "omegaconf"),
}  # fmt: skip
BANNED = {module: why for why, modules in MODULES.items() for module in modules}
HARMLESS = ("importlib.metadata",)  # says what is installed, imports nothing

CALLS = {
    "eval", "exec", "compile", "__import__", "breakpoint",
    "os.system", "os.popen", "os.startfile", "os.fork", "os.forkpty", "os.posix_spawn", "os.posix_spawnp",
    "shutil.unpack_archive", "torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url",
    "torch.package.PackageImporter", "torch.export.load", "torch.compile", "pandas.read_pickle", "asyncio.create_subprocess_shell",
    "asyncio.create_subprocess_exec", "asyncio.open_connection",
}  # fmt: skip
BEGINNINGS = ("os.exec", "os.spawn")
OFF = ("shell", "trust_remote_code", "allow_pickle", "pretrained")  # keywords that must be a plain False
BY_NAME = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "system",
    "popen",
    "load_module",
    "exec_module",
    "extract",
    "extractall",
)
HOOKS = ("__reduce__", "__reduce_ex__", "__setstate__")


def faults(source: str) -> Iterator[str]:
    """Yields what a file must not do: "imports pickle (reads objects back to life)", "calls eval", ..."""
    tree = ast.parse(source)
    names = dict(_bound(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node)
        elif isinstance(node, ast.Call):
            yield from _calls(node, names)
        elif isinstance(node, ast.FunctionDef) and node.name in HOOKS:
            yield f"defines {node.name}"
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield from _forbidden(_dotted(node, names), "names")  # handed on, to be called elsewhere
            if isinstance(node, ast.Attribute) and node.attr.lstrip("_").startswith("extract"):
                yield f"names {node.attr} (unpacks)"  # of tarfile, which may be imported: it reads headers


def _bound(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (name in this file, full name) of everything imported, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.partition(".")[0],
                    alias.name if alias.asname else alias.name.partition(".")[0],
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    else:
        found = [f"{node.module}.{alias.name}" for alias in node.names] if node.level == 0 else []
    for name in found:
        top = name.partition(".")[0]
        if top in BANNED and not name.startswith(HARMLESS):
            yield f"imports {top} ({BANNED[top]})"


def _calls(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = _dotted(node.func, names)
    keywords = {k.arg: k.value for k in node.keywords}
    if name == "torch.load" and not _is(keywords.get("weights_only"), True):
        yield "calls torch.load without weights_only=True"
    if name.rpartition(".")[2] == "import_module":
        yield "calls import_module"
    for key in OFF:
        if key in keywords and not _is(keywords[key], False):
            yield f"passes {key}"
    if name in ("numpy.load", "np.load") and len(node.args) > 2:
        yield "passes allow_pickle"
    if name == "getattr" and len(node.args) > 1 and _is(node.args[1], *BY_NAME):
        yield f"calls {ast.unparse(node.args[1])} by its name"


def _forbidden(name: str, verb: str) -> Iterator[str]:
    if name in CALLS or name.startswith(BEGINNINGS):
        yield f"{verb} {name}"


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`o.system` -> "os.system" after `import os as o`; empty for what is no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def _is(node: ast.AST | None, *values: object) -> bool:
    return isinstance(node, ast.Constant) and any(node.value is v or node.value == v for v in values)

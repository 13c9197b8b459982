"""lmmkit chat RUN | --demo"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmmkit.commands.support.chat_lines import HELP, edit_lines, paths_in, read_line
from lmmkit.commands.support.common import (
    STARTING,
    Dtype,
    Trust,
    err,
    out,
    refused_file,
    reporting,
    safe,
    show,
)
from lmmkit.errors import LmmkitError, MachineError, Tried, UserError, raise_together
from lmmkit.errors.commands import CHAT_MODEL, CHAT_NO_WEB, CHAT_TOP_P, CHAT_WEB
from lmmkit.memory_faults import naming_memory
from lmmkit.progress import plural, shown_on, working

if TYPE_CHECKING:
    from lmmkit.demo.image import DrawnImage
    from lmmkit.inference.conversation import Conversation

MOST_SEED = 2**63 - 1  # torch's generators take no larger one


@reporting
def chat(
    model: Annotated[
        Path | None, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model folder.")
    ] = None,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo", help="The small model that comes with lmmkit; draws an image if none is given."
        ),
    ] = False,
    image: Annotated[
        list[Path] | None, typer.Option(help="An image for the first question. Repeatable.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Ask this and exit; without it, a conversation starts.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="The most tokens of an answer.")
    ] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --temperature: draw from the likeliest tokens with this probability in all.",
        ),
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MOST_SEED, help="Seed for sampling, and of the image that --demo draws."),
    ] = 0,
    web: Annotated[
        bool, typer.Option("--web", help="Serve a page for this machine's browser instead (extra `web`).")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --web: the port of 127.0.0.1; 0 is any free one.")
    ] = 0,
    dtype: Dtype = "float32",
    trust_files: Trust = False,
) -> None:
    """Chat with a trained model about images."""
    model = _model(model, demo)
    _require_fitting(prompt, web, port, temperature, top_p)
    with working(STARTING):
        import torch

        from lmmkit.data.image_files.image_file import check_header
        from lmmkit.inference.conversation import Conversation
        from lmmkit.inference.generate import Sampled, greedy
        from lmmkit.inference.load import load

        serve_page = _page_server() if web else None

    drawn = _draw(seed) if demo and not image else None
    images = [drawn.path] if drawn else image or []
    raise_together([Tried(partial(check_header, path, "crop")) for path in images])
    chat_model = load(model, dtype=getattr(torch, dtype), trust_files=trust_files)
    generator = torch.Generator().manual_seed(seed)
    choose = Sampled(temperature, top_p, generator) if temperature > 0 else greedy
    conversation = Conversation(chat_model, max_new_tokens=max_new_tokens, choose=choose, first=images)
    if serve_page is not None:
        return serve_page(conversation, "the demo's model" if demo else str(model), drawn, port)
    if drawn:
        err.print(f"image: {drawn.path}, {_notes(drawn)[0]}")
        err.print(f"{_notes(drawn)[1]} Questions, for example: {' '.join(drawn.questions)}")
    if prompt is not None:
        return _ask(conversation, prompt)
    about = "Ask about the image" if len(images) == 1 else "Ask about the images" if images else "Ask"
    err.print(f"{about}; `/image PATH` adds one, `/help` lists more; an empty line ends.")
    edit_lines()
    while line := read_line():
        try:
            with naming_memory("this line"):
                _obey(conversation, line)
        except LmmkitError as error:
            show(error)


def _obey(conversation: Conversation, line: str) -> None:
    """Does what a line of a conversation asks for."""
    command, _, rest = line.partition(" ")
    if not line.startswith("/"):
        try:
            _ask(conversation, line)
        except KeyboardInterrupt:
            err.print("\nstopped; what is written of the answer remains.")
    elif command == "/image" and rest:
        conversation.add_images(paths_in(rest))
        n, rows = len(conversation.waiting), conversation.rows()
        err.print(
            f"{plural(n, 'image')} for the next question; the conversation takes {rows} of "
            f"{conversation.chat_model.views.context} rows with {'them' if n > 1 else 'it'}."
        )
    elif line == "/reset":
        conversation.reset()
        images = plural(len(conversation.waiting), "image") if conversation.waiting else "no image"
        err.print(f"begun again, without turns; {images} for the next question.")
    else:
        err.print(HELP if line == "/help" else f"`{safe(line)}` is not one of these:\n{HELP}")


def _ask(conversation: Conversation, text: str) -> None:
    """Asks a question, and prints the answer as it is written."""
    with ExitStack() as reading:
        reading.enter_context(working("reading the question"))

        def stream(part: str) -> None:
            reading.close()  # from here on the answer shows that it goes on
            sys.stdout.write(part)
            sys.stdout.flush()

        with shown_on(None):
            conversation.ask(text, stream)
    sys.stdout.write("\n")


def _model(model: Path | None, demo: bool) -> Path:
    """Returns the folder of the model. Raises `UserError` unless exactly one is named."""
    from lmmkit.demo.demo_run import DEMO_MODEL

    if (model is None) is not demo:
        got = "no model" if model is None else f"`{model}` and `--demo`"
        raise UserError(CHAT_MODEL.at("RUN_OR_MODEL", got=got))
    return DEMO_MODEL if model is None else model


def _require_fitting(prompt: str | None, web: bool, port: int, temperature: float, top_p: float) -> None:
    """Raises `UserError` for options that exclude each other, and for one that would change nothing."""
    if web and prompt is not None:
        raise UserError(CHAT_WEB.at("--web", got="`--web` and `--prompt`"))
    if port and not web:
        raise UserError(CHAT_WEB.at("--port", got=f"`--port {port}` without `--web`"))
    if top_p < 1 and temperature == 0:
        raise UserError(CHAT_TOP_P.at("--top-p", got=f"`--top-p {top_p}` without `--temperature`"))


def _draw(number: int) -> DrawnImage:
    """Draws an image for the demo's model into a temporary folder, which remains."""
    from lmmkit.demo.image import draw_image

    try:
        return draw_image(Path(tempfile.mkdtemp(prefix="lmmkit-demo-")), number)
    except OSError as error:
        raise refused_file(error) from error


def _notes(drawn: DrawnImage) -> tuple[str, str]:
    """Returns what a drawn image is, and what the demo's model knows."""
    return (
        f"a drawn scene that the model was not trained on: {drawn.content}",
        "The model knows such scenes only.",
    )


def _page_server() -> Callable[[Conversation, str, DrawnImage | None, int], None]:
    """Returns the function that serves the page until it is stopped. Raises `MachineError` without its packages."""
    try:
        from lmmkit.chat_page.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise MachineError(CHAT_NO_WEB.at("--web", got=f"no package {error.name}")) from error
    from lmmkit.chat_page.session import About, ChatSession

    def serve_page(conversation: Conversation, title: str, drawn: DrawnImage | None, port: int) -> None:
        about = About(title=title)
        if drawn:
            notes = [f"The image is {_notes(drawn)[0]}", _notes(drawn)[1]]
            about = About(title=title, notes=notes, questions=drawn.questions)
        with tempfile.TemporaryDirectory(prefix="lmmkit-chat-") as folder, shown_on(None):
            serve(ChatSession(conversation, Path(folder), about), port=port, on_address=_show_address)

    return serve_page


def _show_address(address: str) -> None:
    out.print(address)
    err.print(
        "Open this address in a browser on this machine; whoever has it can use the model. Ctrl-C ends."
    )

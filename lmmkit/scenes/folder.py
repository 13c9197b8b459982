"""The folder of a drawn data set: what it may contain before, its images, its text files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmmkit.errors import Problem, UserError
from lmmkit.errors.commands import NOT_WRITABLE, SCENES_NOT_EMPTY, TOO_FEW
from lmmkit.scenes.draw import draw
from lmmkit.scenes.scene import Scene

# With fewer scenes the tokenizer lacks words, and shares of question types are not meaningful.
LEAST_COUNT = 100
LEAST_HELDOUT = 20


def target_problems(directory: Path, count: int, heldout: int) -> list[Problem]:
    """Returns what is wrong with the numbers of scenes and with the folder."""
    problems = [
        TOO_FEW.at(f"--{name}", got=str(number), least=least)
        for name, number, least in (("count", count, LEAST_COUNT), ("heldout", heldout, LEAST_HELDOUT))
        if number < least
    ]
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        got = "a file" if directory.is_file() else "a folder with files in it"
        problems.append(SCENES_NOT_EMPTY.at(str(directory), got=got))
    return problems


@contextmanager
def new_folder(directory: Path, splits: Iterable[str]) -> Iterator[None]:
    """Creates the folder, and in it one for the images of each split. If the body fails, nothing is left in it.

    Raises `UserError` if it cannot be created.
    """
    try:
        for split in splits:
            (directory / "images" / split).mkdir(parents=True)
    except OSError as error:
        raise UserError(NOT_WRITABLE.at(str(directory), got=error.strerror or str(error))) from error
    try:
        yield
    except BaseException:  # the folder was new or empty
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def save_image(scene: Scene, directory: Path) -> None:
    """Draws a scene into its file."""
    path = directory / scene.image
    if scene.suffix == "jpg":
        draw(scene).save(path, format="JPEG", quality=90)
    else:
        draw(scene).save(path, format="PNG")


def write_text(path: Path, text: str) -> None:
    """Writes a text with the same bytes on all systems."""
    # Bytes, because text mode writes other line ends on other systems.
    path.write_bytes(text.encode())

"""Lists options by letter, and reads letters from answers, more tolerantly than official parsers do."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from string import ascii_uppercase

ASK_LETTER = "Answer with the option's letter from the given choices directly."

# "b", "B.", "(B) red", "B: red", but not "A dog"
_FIRST = re.compile(r"\s*\(?([A-Za-z])\s*(?:[.,:)]|$)")
# "The answer is (B)", "Answer: b"; not "the answer is a dog"
_NAMED = re.compile(r"\banswer(?: is)?:? *\(?([A-Za-z])\)?(?:[.,:]|\s*$)", re.IGNORECASE)


def lettered(options: Sequence[str]) -> str:
    """Returns the options as LLaVA-1.5 lists them: "A. red", "B. blue", one on each line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def lenient_letter(answer: str, letters: Collection[str]) -> str | None:
    """Returns the letter that an answer begins with, or names as the answer; None without one."""
    found = _FIRST.match(answer) or _NAMED.search(answer)
    return found[1].upper() if found and found[1].upper() in letters else None

"""Codes of problems with the official files of benchmarks, and with answers for a test server."""

from lmmkit.errors import Code

# fmt: off

NO_OFFICIAL_FILE = Code(
    "benchmarks/no-file", cause="A file or folder of a benchmark is missing.",
    expected="{expected}", hint="docs/benchmarks.md lists the files of each benchmark and where they come from.",
)
LFS_POINTER = Code(
    "benchmarks/lfs-pointer", cause="A file of a benchmark is a pointer of Git LFS or git-annex instead of the data.",
    expected="the data", hint="Run `git lfs pull` or `git annex get` where the file comes from, or download it again.",
)
OFFICIAL_JSON = Code(
    "benchmarks/not-json", cause="A file of a benchmark is not the text or JSON of the official release.",
    expected="{expected}", hint="Download the file again.",
)
OFFICIAL_RECORD = Code(
    "benchmarks/record", cause="A record of a benchmark's file lacks a key, or has a value of another type.",
    expected="{expected}", hint="Use the official file without changes; docs/benchmarks.md names its version.",
)
OFFICIAL_DUPLICATE = Code(
    "benchmarks/duplicate-id", cause="Two records of a benchmark's file have one id.",
    expected="each id once", hint="Use the official file without changes; were two files joined?",
)
OFFICIAL_VERSION = Code(
    "benchmarks/other-version", cause="A file of a benchmark belongs to another split, version or file.",
    expected="{expected}", hint="Use the files of one release and split; docs/benchmarks.md names them.",
)
ABSENT_IMAGES = Code(
    "benchmarks/no-images", cause="Images that a benchmark's questions are about are missing.",
    expected="all images of the split", hint="Unpack the image archive again; docs/benchmarks.md has the folder.",
)
NO_EXTRA = Code(
    "benchmarks/not-installed", cause="A package that is needed for a table of a benchmark is not installed.",
    expected="the packages of the extra `benchmarks`", hint='Run `pip install "lmmkit[benchmarks]"`.',
)
UNKNOWN_SPLIT = Code(
    "benchmarks/unknown-split", cause="The benchmark has no split of this name.",
    expected="one of {known}", hint="{nearest}",
)
UPLOAD_ANSWERS = Code(
    "benchmarks/upload-answers",
    cause="The answers for a test server do not belong one to one to the questions that it asks.",
    expected="{expected}", hint="Answer exactly the questions of the split, each once.",
)

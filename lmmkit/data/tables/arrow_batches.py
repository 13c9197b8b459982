"""Opens Arrow files, in the form of a stream or of a file, and finds those that end too early or too late."""

from __future__ import annotations

from typing import Any

_FILE = b"ARROW1"


def read_batches(path: str) -> tuple[Any, list[Any]]:
    """Returns the schema and the record batches of a file, which is mapped into memory.

    Raises `ValueError` for a stream without its end or with more behind it, which pyarrow takes for a complete one, and
    pyarrow's own errors for other damage.
    """
    import pyarrow as arrow

    with open(path, "rb") as file:
        in_file_form = file.read(len(_FILE)) == _FILE
    source = arrow.memory_map(path)
    if in_file_form:
        opened = arrow.ipc.open_file(source)
        return opened.schema, [opened.get_batch(i) for i in range(opened.num_record_batches)]
    stream, batches = arrow.ipc.open_stream(source), []
    end = source.tell()
    for batch in stream:
        batches.append(batch)
        end = source.tell()
    if source.tell() == end:
        raise ValueError(f"a stream that breaks off after {sum(len(batch) for batch in batches)} records")
    if source.tell() < source.size():
        raise ValueError(f"{source.size() - source.tell()} bytes behind the end of the stream")
    return stream.schema, batches

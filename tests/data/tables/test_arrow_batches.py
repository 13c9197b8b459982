"""Arrow streams and files: complete ones are read, and those that end too early or too late are refused."""

import pytest

from lmmkit.data.tables.arrow_batches import read_batches
from lmmkit.data.tables.table_file import open_table
from lmmkit.errors import UserError

pa = pytest.importorskip("pyarrow")


def written(path, new=None):
    """Writes six records in batches of two. Returns the bytes of the file."""
    table = pa.table({"a": list(range(6)), "b": pa.array(["x", "y"] * 3).dictionary_encode()})
    with (new or pa.ipc.new_stream)(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=2)
    return path.read_bytes()


def begins(path):
    """Returns where the batches of a stream begin, and where the last one ends."""
    source = pa.memory_map(str(path))
    stream = pa.ipc.open_stream(source)
    found = [source.tell()]
    for _ in stream:
        found.append(source.tell())
    return found


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_complete_files_are_read(tmp_path, new):
    path = tmp_path / "r.arrow"
    written(path, new)
    schema, batches = read_batches(str(path))
    assert schema.names == ["a", "b"] and [len(batch) for batch in batches] == [2, 2, 2]
    assert [each for batch in batches for each in batch.column("a").to_pylist()] == list(range(6))
    written(
        path,
        lambda path, schema: pa.ipc.new_stream(
            path, schema, options=pa.ipc.IpcWriteOptions(use_legacy_format=True)
        ),
    )
    assert sum(len(batch) for batch in read_batches(str(path))[1]) == 6


def test_a_stream_cut_at_any_byte_is_refused(tmp_path):
    """At the end of a batch too, where pyarrow takes it for a complete one."""
    path = tmp_path / "r.arrow"
    whole = written(path)
    ends = begins(path)
    assert len(ends) == 4 and ends[-1] < len(whole)
    for size in (*ends, *(end - 1 for end in ends), 0, 1, len(whole) // 3, len(whole) - 8):
        cut = tmp_path / f"{size}.arrow"
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError) as error:
            open_table(str(cut))
        (problem,) = error.value.problems
        assert problem.code == "records/table" and problem.where == str(cut)
    assert "after 6 records" in _refused(tmp_path / f"{ends[-1]}.arrow").got


def test_a_stream_with_more_behind_it_is_refused(tmp_path):
    path = tmp_path / "r.arrow"
    whole = written(path)
    for more in (whole, b"\0" * 8, b"x"):
        path.write_bytes(whole + more)
        assert f"{len(more)} bytes behind the end" in _refused(path).got


def _refused(path):
    with pytest.raises(UserError) as error:
        open_table(str(path))
    return error.value.problems[0]

import gzip
import logging
import pickle

from grounding_dino.data.datasets.rows import (
    RowError,
    RowLeftOut,
    RowReport,
    check_pictures,
    check_yield,
    json_line_files,
    parse_row,
    read_json_lines,
    read_rows,
    strict_rows,
    with_own_ids,
)

import pytest


def test_rows_have_the_numbers_of_their_lines_and_empty_lines_are_nothing(write_rows):
    path, report = write_rows([{"n": 1}, "", "  ", {"n": 2}, '{"n": "\u2028"}']), RowReport("x")
    assert list(read_json_lines(path, report)) == [(1, {"n": 1}), (4, {"n": 2}), (5, {"n": "\u2028"})]
    assert not report.findings


@pytest.mark.parametrize(
    ("line", "kind"),
    [(b'{"a": 1', "not JSON"), (b"[1]", "no JSON object"), (b"\xff\xfe", "not UTF-8"), (b"[" * 100000, "not JSON")],
)
def test_a_broken_line_is_counted_with_file_and_line_and_the_others_are_read(tmp_path, caplog, line, kind):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([b'{"a": 1}', line, line, b'{"a": 2}']))
    report = RowReport("the set")
    assert [row for _, row in read_json_lines(str(path), report)] == [{"a": 1}, {"a": 2}]
    report.settle(strict=False)
    (message,) = caplog.messages
    assert message.startswith("the set: ") and kind in message and f": 2 (first: {path}:2" in message
    with pytest.raises(RowError, match=rf"{path}:2"):
        report.settle(strict=True)


def test_compressed_rows_are_refused_with_what_to_do(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    with pytest.raises(ValueError, match=r"compressed \(gzip\); unpack it"):
        list(read_json_lines(str(path), RowReport("")))


def test_a_byte_order_mark_is_no_part_of_the_first_row():
    assert parse_row('\ufeff{"a": 1}'.encode()) == {"a": 1}


def test_rows_that_the_reader_refuses_are_counted_by_kind(write_rows, caplog):
    def reader(row, report):
        if row["n"] > 1:
            raise RowError("too many", str(row["n"]))
        report.note("repaired", "one")
        return row

    report = RowReport("x")
    path = write_rows([{"n": n} for n in (1, 2, 3, 0)])
    assert list(read_rows([path], reader, report)) == [{"n": 1}, {"n": 0}]
    assert report.findings["dropped rows (too many)"] == (2, f"{path}:2, 2")
    assert report.findings["repaired"] == (2, f"{path}:1, one") and report.skipped == 2
    report.settle()
    assert len(caplog.records) == 1


def test_rows_left_out_on_purpose_are_no_fault(caplog):
    report = RowReport("x")
    report.at("rows.jsonl", 3).skip(RowLeftOut("no box with a score of 0.9", "a.jpg"))
    with caplog.at_level(logging.INFO):
        report.settle(strict=True)
    assert "left out 1 rows (no box with a score of 0.9)" in caplog.text
    with pytest.raises(RowError, match="yields nothing: .*score of 0.9"):
        check_yield(0, report)


def test_strictness_comes_from_the_run_unless_said():
    report = RowReport("x")
    report.note("repaired", "one")
    with strict_rows(True):
        with pytest.raises(RowError, match="DATASETS.STRICT_ON"):
            report.settle()
        report.settle(strict=False)
    report.settle()


def test_a_set_that_yields_nothing_is_an_error_with_the_reason():
    report = RowReport("rows.jsonl")
    with pytest.raises(RowError, match="rows.jsonl yields nothing: it has no rows"):
        check_yield(0, report)
    report.at("rows.jsonl", 1).skip(RowError("an empty caption", "''"))
    with pytest.raises(RowError, match=r"yields nothing: .*an empty caption.*rows.jsonl:1"):
        check_yield(0, report)


def test_a_folder_means_its_row_files_by_name_and_not_its_label_maps(write_rows, tmp_path):
    files = [write_rows([{}], f"folder/{name}.jsonl") for name in ("b", "a")]
    write_rows([{}], "folder/label_map.json")
    assert json_line_files(str(tmp_path / "folder")) == sorted(files)
    assert json_line_files(files[0]) == [files[0]]
    for missing in ("nothing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=missing):
            json_line_files(str(tmp_path / missing))


def test_another_picture_folder_is_noticed_at_start(pictures, tmp_path):
    check_pictures([{"file_name": f"{pictures}/gone.png"}, {"file_name": f"{pictures}/a.png"}], pictures)
    with pytest.raises(FileNotFoundError, match="none of the first 1 pictures"):
        check_pictures([{"file_name": f"{tmp_path}/a.png"}], str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no picture folder"):
        check_pictures([], f"{pictures}/nowhere")


@pytest.mark.parametrize(
    ("ids", "expected"), [([7, 3], [7, 3]), (["a", "b"], ["a", "b"]), ([7, 7], [1, 2]), ([7, "a"], [1, 2])]
)
def test_image_ids_become_numbers_where_they_do_not_tell_records_apart(ids, expected):
    assert [record["image_id"] for record in with_own_ids([{"image_id": n} for n in ids])] == expected


def test_errors_of_rows_get_out_of_worker_processes():
    error = pickle.loads(pickle.dumps(RowError("kind", "detail")))
    assert (error.kind, error.detail, str(error)) == ("kind", "detail", "kind: detail")

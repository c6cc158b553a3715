"""What benchmarks count and compute, tested without nginx and without timing."""

from pathlib import Path

from benchmarks.nginx import Listed, Traffic, count, listing_path, write_listing
from benchmarks.plot import bars
from benchmarks.results import Result, table
from benchmarks.turns import in_turns, ratios
from idcfs.store.base import ObjectInfo
from idcfs.store.list_parser import parse_listing

SERIES = "00000000-0000-4000-8000-000000000000"


def key(number: int) -> str:
    return f"{SERIES}/{number:08x}-0000-4000-8000-000000000000.dcm"


def test_requests_in_the_log_are_counted_by_kind_and_bytes_of_objects_only() -> None:
    lines = [
        "GET 200 900 /bucket",
        "GET 200 900 /bucket/",
        "HEAD 200 0 /bucket",
        f"HEAD 200 0 /bucket/{key(1)}",
        f"GET 206 500 /bucket/{key(1)}",
        f"GET 200 7 /bucket/{key(2)}",
    ]
    assert count(lines) == Traffic(gets=2, heads=2, lists=2, bytes=507)
    assert count(lines).requests == 6


def test_a_listing_has_records_of_one_length_with_the_key_at_one_offset(tmp_path: Path) -> None:
    objects = [Listed(key(2), 5, 1_700_000_000), Listed(key(1), 123_456, 1_700_000_000)]
    write_listing(tmp_path, "bucket", SERIES, objects)
    records = listing_path(tmp_path, "bucket", SERIES).read_text().splitlines()
    at = len("<Contents><Key>")
    assert len({len(record) for record in records}) == 1
    assert [record[at : at + len(key(1))] for record in records] == [key(1), key(2)]


def test_a_listing_has_the_same_attributes_of_a_file_as_nginx(tmp_path: Path) -> None:
    write_listing(tmp_path, "bucket", SERIES, [Listed(key(1), 256, 0x65000000)])
    records = listing_path(tmp_path, "bucket", SERIES).read_bytes()
    page = parse_listing(b"<ListBucketResult><IsTruncated>false</IsTruncated>" + records + b"</ListBucketResult>")
    assert page.objects == [ObjectInfo(key(1), 256, '"65000000-100"', 0x65000000 * 10**9)]


def test_both_sides_run_in_turn_and_each_run_is_compared_with_the_next_one() -> None:
    order: list[str] = []

    def side(name: str, values: list[float]) -> float:
        order.append(name)
        return values.pop(0)

    first, second = [3.0, 8.0], [2.0, 4.0]
    ours, its = in_turns(2, lambda: side("ours", first), lambda: side("its", second), memory=4096)
    assert order == ["ours", "its"] * 2
    assert ratios(ours, its) == [1.5, 2.0]


def test_the_plot_shows_the_rows_of_the_table_that_have_a_target() -> None:
    rows = [
        Result("`cp`", [1.0], "s", at_most=4),
        Result("reads", [1000, 2000, 4000], "reads/s", at_least=8000),
        Result("to be known", [3], "s"),
    ]
    document = f"text\n<!-- begin reading -->\nmachine\n\n{table(rows)}\n<!-- end reading -->\n"
    assert list(bars(document)) == [("cp", 0.25), ("reads", 4)]

"""`benches/compare` reads what its tools print. Nothing is measured here: the lines were printed once, by those tools."""

import importlib.machinery
import importlib.util
import json
import sys

import pytest
from processes import ROOT

LOG_FIGURES = """\
fill: 10000000 records of 40 bytes in 16.1s, 1.30 us CPU each; 10000000 keys
index: 11.12 bytes of memory for each key
start from footers: 10000000 keys in 1.60s
start from the index of a clean stop: 10000000 keys in 250.12ms
get, 1 KiB, cold, one at a time: p50 125.4µs, p99 197.9µs, p99.9 293.1µs; 4470 went to the disk
a plain file, 4 KiB read directly, one at a time: p50 102.6µs, p99 167.7µs, p99.9 270.9µs; the log's p50 within a round 1.19 (1.05 to 1.32) times
CPU of a get of 1 KiB: resident 2.90 (2.70 to 3.10) us, memory and a copy 0.71 (0.69 to 0.80) us; within a round 2.19 (1.33 to 2.34) us more
put, 1 KiB, ack=DISK, 64 at a time: p50 505.8µs, p99 1.0ms, p99.9 1.5ms, 108251 a second
a plain file, 72 KiB written directly and synced: p50 250.0µs, p99 500.0µs, p99.9 527.0µs; the puts' p99 within a group 2.00 (1.52 to 2.06) times
put, 1 KiB, ack=DISK, 64 in flight all the time: 60.00 (50.00 to 70.00) MiB/s written
a plain file, 72 KiB written directly and synced in a loop: 150.00 (140.00 to 160.00) MiB/s; the log within a round 0.40 (0.34 to 0.55) times
get from memory, 16 every 100µs, nobody writes: p50 20.0µs, p99 200.0µs, p99.9 1.5ms
the same while the log writes 90 MiB/s: p50 30.0µs, p99 400.0µs, p99.9 1.8ms; p99.9 within a group 1.20 (0.57 to 1.61) times
the same while a plain loop writes as much, 256 KiB at a time: p50 33.2µs, p99 265.8µs, p99.9 963.0µs; p99.9 within a group 0.95 (0.35 to 1.01) times
between two turns of a neighbour, 20000 puts/s of 1024 bytes to a log of 4 MiB segments that reclaims (9 reclaimed): p50 71.0µs, p99 150.0µs, p99.9 341.0µs, longest 812.0µs; CPU of the log's own turns p50 2.1µs, p99 54.0µs, p99.9 86.6µs, longest 912.0µs
between two turns of a neighbour, 20000 puts/s of 1024 bytes to a log of 4 MiB segments that has room (0 reclaimed): p50 71.0µs, p99 150.0µs, p99.9 419.0µs, longest 3.0ms; CPU of the log's own turns p50 2.1µs, p99 55.9µs, p99.9 99.6µs, longest 491.7µs
between two turns of a neighbour, 200000 puts/s of 100 bytes to a log of 64 MiB segments that reclaims (4 reclaimed): p50 37.8µs, p99 179.2µs, p99.9 621.8µs, longest 1.8ms; CPU of the log's own turns p50 1.5µs, p99 38.7µs, p99.9 85.7µs, longest 2.5ms
between two turns of a neighbour, 200000 puts/s of 100 bytes to a log of 64 MiB segments that has room (0 reclaimed): p50 34.5µs, p99 124.9µs, p99.9 255.9µs, longest 3.2ms; CPU of the log's own turns p50 1.4µs, p99 12.6µs, p99.9 51.6µs, longest 284.3µs
gets with the log's pages dropped every 1000: 9000 of 10000 went to the disk; 0 major faults of the thread
gets with the log's pages dropped every 500: 9220 of 10000 went to the disk; 1 major faults of the thread
the line above in a group with 64 MiB for everything: the limit was met 59084 times; exit status: 0
amplification, 1 KiB, Zipf 0.99, log full: 1.235 bytes written for each of key and value (1.2 for each of records; 9.9 % carried, hit ratio 0.812)
"""

MEMORY_FIGURES = """\
10000000 entries of 100 bytes: 72.4 bytes each beyond key and value, resident, 38.4 beyond the version of 34 too; 70.0 by its own count; 300 ns a put
20000000 writes of mixed sizes, budget 256 MiB: resident 1.001 of the budget at most
"""


@pytest.fixture(scope="module")
def compare():
    loader = importlib.machinery.SourceFileLoader("compare", str(ROOT / "benches" / "compare"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


@pytest.fixture
def record(compare, tmp_path):
    return compare.Record("log", tmp_path, False, "One process")


def told(record):
    return {figure["name"]: figure["found"]["median"] for figure in record.figures if figure["found"]}


def test_every_line_of_log_figures_that_a_goal_needs_is_read(compare, record):
    compare.log_figures(record, LOG_FIGURES, 10_000_000)
    found = told(record)
    expected = {
        "start-killed": 1.6,
        "start-clean": 0.25012,
        "index-bytes": 11.12,
        "resident-more": 2.19,
        "cold:read": 1.19,
        "put-p99:sync-p99": 2.0,
        "sustained": 0.40,
        "writing": 1.2,
        "plain-writing": 0.95,
        "reclaiming-4": 0.912,
        "not-reclaiming-4": 0.4917,
        "reclaiming-64": 2.5,
        "not-reclaiming-64": 0.2843,
        "reclaiming-more": 2.2157,
        "faults": 0.0,
        "faults-pressed": 1.0,
        "amplification": 1.235,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_start_with_fewer_keys_than_the_goal_names_is_no_answer_to_it(compare, record):
    compare.log_figures(record, LOG_FIGURES, 1_000_000)
    assert "start-killed" not in told(record) and "start-killed-of-1000000" in told(record)


def test_a_line_that_is_not_printed_leaves_its_figure_untold(compare, record):
    compare.log_figures(record, "something else\n", 10_000_000)
    assert record.figures == []


def test_both_lines_of_memory_figures_are_read(compare, record):
    compare.memory_figures(record, MEMORY_FIGURES, 10_000_000)
    assert told(record) == {"entry-bytes": 38.4, "resident": 1.001}


def test_of_a_result_the_histograms_stay_that_a_picture_needs(compare, tmp_path):
    def times():
        return {measured: {"count": 9, "hdr": "HISTF"} for measured in ("response", "service", "lag")}

    run = {
        "settings": {"rate_per_s": 1000.0},
        "series": [{"second": 0}],
        "latency": [{"op": "all", **times()}, {"op": "get", **times()}],
        "tiers": [{"tier": "memory", "service": {"count": 9, "hdr": "HISTF"}}],
    }
    path = tmp_path / "ab.json"
    path.write_text(json.dumps({"runs": [run]}))
    compare.compact(path)
    [left] = json.loads(path.read_text())["runs"]
    assert left["latency"][0]["response"] == {"count": 9, "hdr": "HISTF"}
    others = [left["latency"][0]["service"], left["latency"][1]["response"], left["tiers"][0]["service"]]
    assert others == [{"count": 9, "hdr": ""}] * 3
    assert left["series"] == []


def test_throughput_is_of_pairs_without_errors_whichever_side_went_first(compare, record):
    def run(label, rate, *codes):
        reasons = [{"code": code} for code in codes]
        return {
            "label": label,
            "rates": {"achieved_per_s": rate},
            "validity": {"reasons": reasons},
            "noise": {"steal_share": 0.1},
        }

    runs = [run("A", 10.0), run("B", 40.0, "steal"), run("B", 30.0), run("A", 10.0), run("A", 1.0, "errors"), run("B", 99.0)]
    compare.throughput(record, {"runs": runs}, "95-5/throughput", "throughput")
    assert record.figures[0]["found"] == {"median": 3.5, "least": 3.0, "most": 4.0, "samples": 2}
    assert record.remarks == ["throughput: pairs count although the hypervisor took up to 10% of the processors' time"]
    compare.throughput(record, {"runs": runs[4:]}, "50-50/throughput", "throughput")
    assert record.figures[1]["withheld"] == "no pair of runs without errors"


def test_a_comparison_that_cannot_be_made_leaves_a_record_that_says_why(compare, tmp_path, monkeypatch):
    def missing(_):
        raise compare.Skipped("redis-server is missing")

    def broken(record):
        record.samples("a", "a", "times", [3.0, 1.0, 2.0])
        raise compare.Failed("milena-loadtest ended with 1: refused")

    monkeypatch.setitem(compare.COMPARISONS, "batch", (missing, "nobody"))
    monkeypatch.setitem(compare.COMPARISONS, "memory", (broken, "nobody"))
    assert compare.compare("batch", tmp_path, True)
    assert not compare.compare("memory", tmp_path, True)
    left = {name: json.loads((tmp_path / "raw" / f"{name}.json").read_text()) for name in ("batch", "memory")}
    assert (left["batch"]["state"], left["batch"]["reason"]) == ("skipped", "redis-server is missing")
    assert left["memory"]["state"] == "failed"
    assert left["memory"]["figures"][0]["found"] == {"median": 2.0, "least": 1.0, "most": 3.0, "samples": 3}

"""`milena get|put|del|topology`, as a shell sees it."""

import json
import subprocess

import pytest
from processes import PROGRAMS


@pytest.fixture
def milena(cluster):
    """Runs the tool against the cluster's router; (exit code, standard output, standard error)."""

    def run(*arguments, stdin=b"", router=None):
        done = subprocess.run(
            [PROGRAMS / "milena", *arguments],
            env={"MILENA_ROUTER": router or cluster.router},
            input=stdin,
            capture_output=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr.decode()

    return run


def test_the_commands_of_the_readme_work(milena):
    assert milena("put", "default", "greeting", "hello") == (0, b"", "")
    assert milena("get", "default", "greeting") == (0, b"hello", "")
    assert milena("del", "default", "greeting") == (0, b"", "")
    assert milena("get", "default", "greeting")[:2] == (3, b"")


def test_values_come_from_arguments_files_and_pipes_and_go_out_as_they_are(milena, tmp_path):
    value = bytes(range(256)) * 4096
    (tmp_path / "value").write_bytes(value)
    assert milena("put", "default", "file", f"@{tmp_path}/value")[0] == 0
    assert milena("put", "default", "pipe", "-", stdin=value)[0] == 0
    for key in ("file", "pipe"):
        assert milena("get", "default", key) == (0, value, "")


def test_json_is_one_object_with_what_a_program_needs(milena):
    code, out, _ = milena("put", "default", "json", "hello", "--json")
    assert code == 0
    version = json.loads(out)["version"]
    code, out, _ = milena("get", "default", "json", "--json")
    found = json.loads(out)
    assert (code, found["value"], found["version"], found["tier"]) == (0, "hello", version, "MEMORY")
    assert milena("get", "default", "json-absent", "--json")[0] == 3


def test_a_batch_is_answered_line_by_line_in_its_order(milena):
    said = milena("batch", stdin=b"put default b1 one\nput default b2 two words\nget default b2\nget default b1\n")
    assert said == (0, b"done\ndone\nfound two words\nfound one\n", "")
    code, out, said = milena("batch", stdin=b"get default b1\nget default b-none\ndel default b1\nget default b1\n")
    assert (code, out) == (3, b"found one\nabsent\ndone\nabsent\n")
    assert "2 of 4 keys: not found" in said
    code, out, _ = milena("batch", "--json", stdin=b"put default b3 v\nget default b3\n")
    put, get = map(json.loads, out.splitlines())
    assert code == 0 and put["done"] and put["op"] == "put"
    assert (get["key"], get["value"], get["version"]) == ("b3", "v", put["version"])


def test_a_batch_of_many_lines_is_as_many_calls_as_it_needs_and_large_answers_come_in_several(milena):
    lines = [b"put default many-%d %d" % (number, number) for number in range(2_500)]
    assert milena("batch", stdin=b"\n".join(lines)) == (0, b"done\n" * 2_500, "")
    lines = [b"get default many-%d" % number for number in range(2_500)]
    assert milena("batch", stdin=b"\n".join(lines)) == (0, b"".join(b"found %d\n" % n for n in range(2_500)), "")
    value = b"v" * 3_000_000
    assert milena("batch", stdin=b"\n".join(b"put default big-%d %s" % (number, value) for number in range(8)))[0] == 0
    code, out, _ = milena("batch", stdin=b"\n".join(b"get default big-%d" % number for number in range(8)))
    assert code == 0 and out == b"found %s\n" % value * 8


def test_a_line_that_is_no_command_ends_a_batch_after_those_before_it(milena):
    code, out, said = milena("batch", stdin=b"put default b4 v\nfetch default b4\nput default b4 w\n")
    assert (code, out) == (2, b"done\n")
    assert "line 2: 'fetch' is no command" in said
    assert milena("get", "default", "b4")[1] == b"v"
    code, out, _ = milena("batch", stdin=b"get default k\n", router="127.0.0.1:1")
    assert (code, out) == (1, b"")


def test_the_topology_names_every_node(milena, cluster):
    code, out, _ = milena("topology")
    assert code == 0
    assert all(address in out.decode() for address in cluster.nodes)
    code, out, _ = milena("topology", "--json")
    assert code == 0
    assert len(json.loads(out)["slots"]) == 3


def test_a_condition_that_does_not_hold_is_a_failure(milena):
    assert milena("put", "default", "condition", "one", "--if-absent")[0] == 0
    code, _, said = milena("put", "default", "condition", "two", "--if-absent")
    assert code == 1
    assert "ALREADY_EXISTS" in said


def test_wrong_usage_has_exit_code_2_and_a_router_that_is_not_there_1(milena):
    assert milena("get", "under_score", "key")[0] == 2
    assert milena("get", "default")[0] == 2
    assert milena("frobnicate")[0] == 2
    code, _, said = milena("get", "default", "key", "--timeout", "2", router="127.0.0.1:1")
    assert code == 1
    assert "127.0.0.1:1" in said

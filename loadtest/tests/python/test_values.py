"""Get, Put and Delete, as a user of Python sees them."""

import concurrent.futures
import os

import grpc
import pytest
from conftest import status_of
from processes import wait_until

MIB = 1 << 20


def test_what_was_put_is_got_and_what_was_deleted_is_a_miss(door, key):
    miss = door.get(key)
    assert (miss.successful, miss.value) == (False, b"")

    put = door.put(key, b"hello")
    assert put.successful and put.version
    hit = door.get(key)
    assert (hit.successful, hit.value, hit.version) == (True, b"hello", put.version)
    assert hit.tier == door.pb.MEMORY

    assert door.delete(key).successful
    assert not door.get(key).successful


def test_a_miss_is_not_an_error_and_not_an_empty_value(door, key):
    door.put(key, b"")
    assert door.get(key).successful
    assert not door.get(key + b"-other").successful


def test_the_last_of_many_puts_wins(door, key):
    versions = {door.put(key, b"%d" % number).version for number in range(50)}
    assert door.get(key).value == b"49"
    assert len(versions) == 50, "every write has a version of its own"


def test_buckets_are_apart(door, key):
    door.put(key, b"one", bucket="bucket-1")
    door.put(key, b"two", bucket="bucket-2")
    assert door.get(key, bucket="bucket-1").value == b"one"
    assert door.get(key, bucket="bucket-2").value == b"two"
    assert not door.get(key, bucket="bucket-3").successful


@pytest.mark.parametrize(
    "name",
    [
        b"\x00",
        bytes(range(256)),
        b"/",
        b"..",
        b"../../escape",
        b"a//b/./c",
        b"trailing/",
        "schlüssel".encode(),
        b"%2F",
        b"k" * 1024,
    ],
    ids=lambda name: name[:8].hex(),
)
def test_a_key_is_any_bytes(door, name):
    bucket = "odd-keys"
    door.put(name, b"value of " + name, bucket=bucket)
    assert door.get(name, bucket=bucket).value == b"value of " + name
    assert door.delete(name, bucket=bucket).successful
    assert not door.get(name, bucket=bucket).successful


@pytest.mark.parametrize("value_bytes", [0, 1, 16383, 16384, 16385, 65535, 65536, MIB, 5 * MIB])
def test_a_value_of_any_legal_size_comes_back_whole(door, key, value_bytes):
    value = os.urandom(value_bytes)
    door.put(key, value)
    assert door.get(key).value == value


def test_what_the_router_wrote_can_be_read_at_its_owner(cluster, router_door, open_door, key):
    router_door.put(key, b"written through the router")
    answers = [open_door.node(address).get(key) for address in cluster.nodes]
    # A node that does not own the key reads it through from the store; the owner has it in memory.
    assert [answer.value for answer in answers] == [b"written through the router"] * 3
    assert [answer.tier for answer in answers].count(router_door.pb.MEMORY) >= 1


def test_a_write_holds_only_on_the_version_it_names(door, key):
    first = door.put(key, b"first", if_absent=True)
    assert status_of(door.put, key, b"second", if_absent=True).code() == grpc.StatusCode.ALREADY_EXISTS
    assert door.get(key).value == b"first"

    second = door.put(key, b"second", if_version=first.version)
    assert status_of(door.put, key, b"third", if_version=first.version).code() == grpc.StatusCode.ABORTED
    assert status_of(door.delete, key, if_version=first.version).code() == grpc.StatusCode.ABORTED
    assert door.get(key).value == b"second"

    assert door.delete(key, if_version=second.version).successful
    assert not door.get(key).successful


def test_of_sixteen_writers_with_one_condition_one_wins(door, key):
    first = door.put(key, b"start")

    def write(number):
        try:
            door.put(key, b"%d" % number, if_version=first.version)
            return number
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ABORTED, error
            return None

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(write, range(16)) if number is not None]
    assert len(winners) == 1
    assert door.get(key).value == b"%d" % winners[0]


def test_a_value_past_its_life_is_a_miss(door, key):
    door.put(key, b"brief", ttl_ms=300)
    door.put(key + b"-long", b"long", ttl_ms=3_600_000)
    wait_until(lambda: not door.get(key).successful, 10, "the value is gone at the end of its life")
    left = door.get(key + b"-long")
    assert left.successful and 0 < left.ttl_ms <= 3_600_000


def test_an_acknowledgement_that_cannot_be_given_is_refused_and_nothing_written(door, key):
    assert door.put(key, b"in the store", ack=door.pb.ACK_S3).successful
    for level in (door.pb.ACK_DISK, door.pb.ACK_MEMORY):
        assert status_of(door.put, key, b"lost?", ack=level).code() == grpc.StatusCode.FAILED_PRECONDITION
        assert status_of(door.delete, key, ack=level).code() == grpc.StatusCode.FAILED_PRECONDITION
    assert door.get(key).value == b"in the store"


def test_a_node_without_a_store_keeps_values_in_memory_and_says_so(starter, open_door):
    node = starter.node(STORE="none")
    door = open_door.node(node.address)
    assert door.put(b"k", b"v").successful
    assert door.put(b"k", b"v", ack=door.pb.ACK_MEMORY).successful
    assert status_of(door.put, b"k", b"w", ack=door.pb.ACK_S3).code() == grpc.StatusCode.FAILED_PRECONDITION
    assert door.get(b"k").value == b"v"
    assert not door.get(b"absent").successful
    assert "none" in node.log() and "memory" in node.log(), "the log says at start that nothing outlives the process"

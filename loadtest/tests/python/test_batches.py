"""Batches, as gRPC's own client sees them: through the router, at a node, and at the ports of its cores."""

import os

import grpc
import pytest
import wire
from conftest import status_of
from hyperframe.frame import SettingsFrame, WindowUpdateFrame
from processes import wait_until

MIB = 1 << 20
CODE = grpc.StatusCode


def batch_get(door, keys, bucket="default", **options):
    request = door.pb.BatchGetRequest(bucket=bucket, keys=keys)
    return door.stub.BatchGet(request, **{"timeout": 20, **options}).results


def batch_put(door, values, **fields):
    entries = [door.pb.PutRequest(key=key, bucket="default", value=value, **fields) for key, value in values]
    return door.stub.BatchPut(door.pb.BatchPutRequest(entries=entries), timeout=60).results


def batch_delete(door, keys, bucket="default"):
    request = door.pb.BatchDeleteRequest(bucket=bucket, keys=keys)
    return door.stub.BatchDelete(request, timeout=20).results


def names(key, count):
    return [key + b"-%d" % number for number in range(count)]


def test_what_one_batch_writes_another_reads_and_a_third_deletes_in_their_order(door, key):
    keys = names(key, 500)
    written = batch_put(door, [(name, b"value of " + name) for name in keys])
    assert [result.code for result in written] == [0] * 500 and all(result.version for result in written)
    asked = [*keys[::-1], key + b"-absent", keys[7], keys[7]]
    found = batch_get(door, asked)
    values = [b"value of " + name if name in keys else b"" for name in asked]
    assert [result.value for result in found] == values
    assert [result.successful for result in found] == [True] * 500 + [False, True, True]
    assert [result.version for result in found[:500]] == [result.version for result in written[::-1]]
    assert door.get(keys[3]).value == b"value of " + keys[3], "a Get alone finds the same"
    assert [result.code for result in batch_delete(door, asked)] == [0] * 503
    assert not any(result.successful for result in batch_get(door, keys))


def test_an_empty_value_is_a_hit_in_a_batch_too(door, key):
    door.put(key, b"")
    [found, absent] = batch_get(door, [key, key + b"-absent"])
    assert found.successful and found.value == b""
    assert not absent.successful and not absent.version


def test_writes_fail_each_for_itself(door, key):
    door.put(key, b"there")
    pb = door.pb
    entries = [
        pb.PutRequest(key=key + b"-new", bucket="default", value=b"1"),
        pb.PutRequest(key=b"", bucket="default", value=b"1"),
        pb.PutRequest(key=key, bucket="under_score", value=b"1"),
        pb.PutRequest(key=key, bucket="default", value=b"1", if_absent=True),
        pb.PutRequest(key=key, bucket="default", value=b"1", if_version="other"),
        pb.PutRequest(key=key, bucket="default", value=bytes(5 * MIB + 1)),
        pb.PutRequest(key=key + b"-new", bucket="default", value=b"2"),
    ]
    results = door.stub.BatchPut(pb.BatchPutRequest(entries=entries), timeout=60).results
    invalid = CODE.INVALID_ARGUMENT
    expected = [CODE.OK, invalid, invalid, CODE.ALREADY_EXISTS, CODE.ABORTED, invalid, CODE.OK]
    assert [result.code for result in results] == [code.value[0] for code in expected]
    assert all(bool(result.message) == bool(result.code) for result in results)
    assert "1 to 1024 are allowed" in results[1].message and "5242880 are allowed" in results[5].message
    assert (door.get(key).value, door.get(key + b"-new").value) == (b"there", b"2")


def test_a_batch_of_gets_names_the_key_that_is_wrong_and_both_kinds_the_limit_of_entries(door, key):
    error = status_of(batch_get, door, [key, key, b""])
    assert error.code() == CODE.INVALID_ARGUMENT and error.details().startswith("keys[2]: key has 0 bytes")
    assert status_of(batch_get, door, [key], bucket="a_b").code() == CODE.INVALID_ARGUMENT
    for call in (batch_get, batch_delete):
        error = status_of(call, door, [key] * 1_001)
        assert error.code() == CODE.INVALID_ARGUMENT
        assert error.details() == "the batch has 1001 entries; at most 1000 are allowed"
    assert len(batch_get(door, [key] * 1_000)) == 1_000
    assert len(batch_get(door, [])) == len(batch_put(door, [])) == len(batch_delete(door, [])) == 0


def test_bytes_that_are_no_batch_are_refused(door):
    for method in ("BatchGet", "BatchPut", "BatchDelete"):
        error = status_of(door.channel.unary_unary(door.path(method)), b"\x0a\xff\xff", timeout=20)
        assert error.code() == CODE.INVALID_ARGUMENT, method


def test_large_values_come_whole_up_to_the_limit_of_an_answer(door, key):
    values = {name: os.urandom(4 * MIB) for name in names(key, 5)}
    for name, value in values.items():
        door.put(name, value)
    found = batch_get(door, list(values)[:3], timeout=60)
    assert [result.value for result in found] == list(values.values())[:3]
    error = status_of(batch_get, door, list(values), timeout=60)
    assert error.code() == CODE.RESOURCE_EXHAUSTED and "16777216 bytes" in error.details()


def test_many_large_answers_at_once_are_all_given(door, key):
    values = [(name, os.urandom(MIB)) for name in names(key, 12)]
    for name, value in values:
        door.put(name, value)
    request = door.pb.BatchGetRequest(bucket="default", keys=[name for name, _ in values])
    # 120 MiB, more than one connection may have waiting for its reader: some are put aside and read again.
    calls = [door.stub.BatchGet.future(request, timeout=60) for _ in range(10)]
    for call in calls:
        assert [result.value for result in call.result().results] == [value for _, value in values]


def test_a_client_that_reads_no_large_answer_costs_a_bounded_amount_and_nobody_else_waits(starter, open_door, key):
    router = starter.router()
    node = starter.node(STORE="none", MEMORY="1GiB", ROUTER_ADDR=f"http://{router.address}")
    front = open_door.router(router.address)
    topology = front.pb.TopologyRequest()
    wait_until(lambda: front.stub.Topology(topology, timeout=20).slots, 20, "the node has joined")
    values = [(name, os.urandom(MIB)) for name in names(key, 12)]
    for name, value in values:
        front.put(name, value)
    keys = [name for name, _ in values]
    request = front.pb.BatchGetRequest(bucket="default", keys=keys).SerializeToString()
    for program, path in ((node, "/cache_server.Cache/BatchGet"), (router, front.path("BatchGet"))):
        batch_get(front, keys)
        before = program.resident_bytes()
        # 40 answers of 12 MiB are asked for, windows are wide open, and nothing is ever read.
        wide = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1}
        with wire.Wire(program.address, settings=wide, receive_buffer_bytes=8192) as deaf:
            deaf.send(WindowUpdateFrame(0, 2**31 - 1 - 65535))
            for number in range(40):
                deaf.start_call(2 * number + 1, path, request)
            for name, value in values * 3:
                assert front.get(name).value == value, "another client is served meanwhile"
            grown = program.resident_bytes() - before
            assert grown < 300 * MIB, f"{program.name} grew by {grown // MIB} MiB for one client that does not read"


def test_batches_that_are_cancelled_harm_nobody(door, key):
    keys = names(key, 200)
    batch_put(door, [(name, b"v" * 1_000) for name in keys])
    request = door.pb.BatchGetRequest(bucket="default", keys=keys)
    calls = [door.stub.BatchGet.future(request, timeout=60) for _ in range(40)]
    for call in calls[::2]:
        call.cancel()
    assert all(len(call.result().results) == 200 for call in calls[1::2])
    assert all(result.successful for result in batch_get(door, keys))


def test_at_a_cores_own_port_a_batch_with_keys_of_another_node_is_refused_and_nothing_of_it_done(
    cluster, router_door, open_door, key
):
    keys = names(key, 40)
    doors = [open_door.node(slot.shard_addresses[0].removeprefix("http://")) for slot in cluster.slots]

    def epoch_of(call, *arguments):
        """The epoch by which a batch is refused, or None."""
        try:
            call(*arguments)
        except grpc.RpcError as error:
            assert error.code() == CODE.FAILED_PRECONDITION, error
            return int(dict(error.trailing_metadata())["milena-owner-epoch"])

    def are_refused():
        return all(epoch_of(batch_get, door, keys) is not None for door in doors)

    # A node knows a table a second after the router does: until then it answers for any key.
    wait_until(are_refused, 20, "40 keys are not one node's")
    for door in doors:
        assert epoch_of(batch_put, door, [(name, b"v") for name in keys]) >= len(cluster.slots)
        assert epoch_of(batch_delete, door, keys) >= len(cluster.slots)
    assert not any(result.successful for result in batch_get(router_door, keys)), "nothing was written"

    def is_answered(door, name):
        return epoch_of(batch_get, door, [name]) is None

    for door in doors:
        own = [name for name in keys if is_answered(door, name)]
        assert own and len(own) < len(keys)
        assert [result.code for result in batch_put(door, [(name, b"v") for name in own])] == [0] * len(own)
    assert all(result.successful for result in batch_get(router_door, keys)), "every key is somebody's"


@pytest.mark.parametrize("limit", ["RATE_LIMIT", "RATE_LIMIT_PER_BUCKET"])
def test_a_batch_costs_the_rate_limit_what_its_keys_would(starter, open_door, limit):
    router = starter.router(**{limit: "100", "CORES": "1"})
    node = starter.node(ROUTER_ADDR=router.address)
    door = open_door.router(router.address)
    topology = door.pb.TopologyRequest()
    wait_until(lambda: door.stub.Topology(topology, timeout=20).slots, 20, f"{node.address} has joined")
    batch_get(door, names(b"k", 100))
    error = status_of(batch_get, door, names(b"k", 100))
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0

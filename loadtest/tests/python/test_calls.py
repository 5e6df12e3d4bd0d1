"""What a gRPC client does beside asking: many calls at once, deadlines, cancels, metadata."""

import itertools
import os

import grpc
import wire
from conftest import status_of
from processes import wait_until

MIB = 1 << 20


def test_a_thousand_calls_at_once_are_all_answered(door):
    requests = [
        door.pb.PutRequest(key=b"thousand-%d" % number, bucket="default", value=b"%d" % number)
        for number in range(1000)
    ]
    puts = [door.stub.Put.future(request, timeout=60) for request in requests]
    assert all(put.result().successful for put in puts)
    gets = [
        door.stub.Get.future(door.pb.GetRequest(key=request.key, bucket="default"), timeout=60) for request in requests
    ]
    assert [get.result().value for get in gets] == [request.value for request in requests]


def test_a_thousand_misses_on_one_key_are_all_answered(door, key):
    gets = [door.stub.Get.future(door.pb.GetRequest(key=key, bucket="default"), timeout=60) for _ in range(1000)]
    assert not any(get.result().successful for get in gets)


def test_many_large_values_at_once_come_back_whole(door, key):
    value = os.urandom(5 * MIB)
    door.put(key, value)
    # 50 MiB: of more than 64 MiB that wait for one connection to be read, some would be RESOURCE_EXHAUSTED.
    gets = [door.stub.Get.future(door.pb.GetRequest(key=key, bucket="default"), timeout=60) for _ in range(10)]
    assert all(get.result().value == value for get in gets)


def test_a_deadline_that_is_long_enough_does_no_harm(door, key):
    door.put(key, b"v", timeout=3600)
    assert door.get(key, timeout=3600).value == b"v"


def test_a_deadline_that_has_passed_is_exceeded(door, key):
    # gRPC for Python says a millisecond where it means none, and a node may answer within that: so this is said by hand.
    door.put(key, b"v")
    with wire.Wire(door.address) as connection:
        fields, _ = connection.call(1, door.path("Get"), door.get_bytes(key), grpc__timeout="0n")
        assert fields["grpc-status"] == "4"


def test_calls_that_are_cancelled_harm_nobody(door, key):
    door.put(key, os.urandom(MIB // 8))
    for _ in range(5):
        calls = [door.stub.Get.future(door.pb.GetRequest(key=key, bucket="default"), timeout=60) for _ in range(100)]
        for call in calls[::2]:
            call.cancel()
        assert all(call.result().successful for call in calls[1::2])
        assert all(call.cancelled() or call.result().successful for call in calls[::2])


def test_a_put_that_was_cancelled_is_done_or_not_but_never_half(door, key):
    values = {b"", *(bytes([number]) * MIB for number in range(20))}
    for value in values - {b""}:
        door.stub.Put.future(door.pb.PutRequest(key=key, bucket="default", value=value), timeout=60).cancel()
    assert door.get(key).value in values
    door.put(key, b"last")
    assert door.get(key).value == b"last"


def test_metadata_of_every_legal_kind_does_no_harm(door, key):
    door.put(key, b"v")
    kinds = [
        [],
        [("x-plain", "value"), ("x-plain", "again")],
        [("x-empty", "")],
        [("x-spaces", "a  b")],
        [("x-punctuation", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")],
        [("x-any-bin", bytes(range(256)))],
        [("x-empty-bin", b"")],
        [("x-long", "v" * 4000)],
        [(f"x-many-{number}", str(number)) for number in range(100)],
        [("0", "digit"), ("a_b.c-d", "every kind of name")],
        [("authorization", "Bearer nobody-asks"), ("user-agent", "other")],
    ]
    for metadata in kinds:
        assert door.get(key, metadata=metadata).value == b"v", metadata


def test_a_client_that_comes_and_goes_leaves_nothing_behind(door, key, cluster):
    door.put(key, b"v")
    for _ in range(200):
        with grpc.insecure_channel(door.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            get = channel.unary_unary(door.path("Get"), request_serializer=bytes, response_deserializer=bytes)
            assert get(door.get_bytes(key), timeout=20)
    assert cluster.is_running()


def test_the_table_of_members_is_pushed_to_whoever_watches(starter, open_door):
    door = open_door.router(starter.router().address)
    watch = door.stub.WatchTopology(door.pb.TopologyRequest(), timeout=60)
    first = next(watch)
    assert not [slot for slot in first.slots if slot.state != door.pb.EMPTY]

    joined = door.stub.Join(door.pb.JoinRequest(address="http://127.0.0.1:1"), timeout=20)
    assert joined.successful and joined.lease_ms == 0, "an address alone is a pinned member without a lease"
    seen = next(one for one in watch if any(slot.state == door.pb.PINNED for slot in one.slots))
    assert seen.epoch > first.epoch and seen.epoch == joined.epoch

    assert door.stub.Leave(door.pb.LeaveRequest(address="http://127.0.0.1:1"), timeout=20).successful
    last = next(one for one in watch if not any(slot.state == door.pb.PINNED for slot in one.slots))
    assert last.epoch > seen.epoch
    watch.cancel()


def test_a_member_that_does_not_renew_its_lease_is_dead_and_keeps_its_slot(starter, open_door):
    door = open_door.router(starter.router().address)
    request = door.pb.JoinRequest(
        address="http://127.0.0.1:1", node_id="n", shard_addresses=["http://127.0.0.1:1"], incarnation=1
    )
    joined = door.stub.Join(request, timeout=20)
    assert joined.lease_ms > 0

    def state():
        [slot] = door.stub.Topology(door.pb.TopologyRequest(), timeout=20).slots
        return slot.state

    assert state() == door.pb.LIVE
    wait_until(lambda: state() == door.pb.DEAD, 8 + 2, "the lease has run out")
    again = door.stub.Join(request, timeout=20)
    assert state() == door.pb.LIVE and again.epoch > joined.epoch


def test_nodes_name_one_address_for_each_core_and_the_owners_answer_while_the_others_say_that_they_are_not(
    cluster, router_door, open_door, key
):
    router_door.put(key, b"v")
    addresses = list(itertools.chain.from_iterable(slot.shard_addresses for slot in cluster.slots))
    assert len(addresses) >= 3 and len(set(addresses)) == len(addresses)
    doors = {address: open_door.node(address.removeprefix("http://")) for address in addresses}

    def answer(address):
        """The value, or the epoch by which the key is another node's."""
        try:
            return doors[address].get(key).value
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            return int(dict(error.trailing_metadata())["milena-owner-epoch"])

    def answers():
        return [{answer(address) for address in slot.shard_addresses} for slot in cluster.slots]

    def is_settled():
        found = answers()
        return found.count({b"v"}) == 1 and all(len(each) == 1 for each in found)

    # A node knows a table a second after the router does: until then it answers for any key.
    wait_until(is_settled, 20, "the owner alone answers")
    epochs = [epoch for [epoch] in answers() if epoch != b"v"]
    assert len(epochs) == len(cluster.slots) - 1 and min(epochs) >= len(cluster.slots), epochs

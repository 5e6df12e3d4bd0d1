"""Every row of the table of statuses that a client can bring about by itself, row by row.

The rows that need a store that fails are in loadtest/tests/cluster.rs.
"""

import grpc
import pytest
import wire
from conftest import status_of
from processes import free_ports, wait_until

MIB = 1 << 20
CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("bucket", "found"),
    [
        ("", "0"),
        ("b" * 64, "64"),
        ("under_score", "_"),
        ("slash/", "/"),
        ("sp ace", " "),
        ("ümlaut", "bucket"),
        ("nul\0", "bucket"),
    ],
)
def test_an_illegal_bucket_is_an_invalid_argument_that_names_field_found_and_allowed(door, bucket, found):
    for call in (
        lambda: door.get(b"k", bucket=bucket),
        lambda: door.put(b"k", b"v", bucket=bucket),
        lambda: door.delete(b"k", bucket=bucket),
    ):
        error = status_of(call)
        assert error.code() == CODE.INVALID_ARGUMENT
        assert "bucket" in error.details() and found in error.details() and "allowed" in error.details()


@pytest.mark.parametrize("name", [b"", b"k" * 1025, b"k" * 100_000], ids=len)
def test_an_illegal_key_is_an_invalid_argument_that_names_field_found_and_allowed(door, name):
    for call in (lambda: door.get(name), lambda: door.put(name, b"v"), lambda: door.delete(name)):
        error = status_of(call)
        assert error.code() == CODE.INVALID_ARGUMENT
        assert "key" in error.details() and str(len(name)) in error.details() and "1024" in error.details()


def test_a_bucket_of_63_and_a_key_of_1024_are_legal(door):
    assert door.put(b"k" * 1024, b"v", bucket="B" * 63).successful


def test_a_value_one_byte_too_large_is_an_invalid_argument_and_nothing_is_written(door, key):
    door.put(key, b"before")
    error = status_of(door.put, key, bytes(5 * MIB + 1))
    assert error.code() == CODE.INVALID_ARGUMENT
    assert str(5 * MIB + 1) in error.details() and str(5 * MIB) in error.details()
    assert door.get(key).value == b"before"


def test_a_message_that_cannot_be_legal_is_refused_before_it_is_buffered(door, key):
    assert status_of(door.put, key, bytes(40 * MIB)).code() == CODE.RESOURCE_EXHAUSTED
    assert not door.get(key).successful

    # The prefix alone announces it: the answer comes although the rest never does.
    with wire.Wire(door.address) as connection:
        connection.send(connection.headers(1, door.path("Put")), wire.DataFrame(1, b"\0\x7f\xff\xff\xff"))
        fields, _ = connection.answer(1)
        assert fields["grpc-status"] == "8"


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\x0a\x7fshort", b"\x0b\x0c", b"\x08\x01", b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"],
    ids=bytes.hex,
)
def test_a_message_that_is_not_protobuf_is_an_invalid_argument(door, payload):
    for method in ("Get", "Put", "Delete"):
        call = door.channel.unary_unary(door.path(method), request_serializer=bytes, response_deserializer=bytes)
        assert status_of(call, payload, timeout=20).code() == CODE.INVALID_ARGUMENT


def test_fields_that_are_yet_to_come_are_no_reason_to_refuse(door, key):
    # Field 15, a string, and field 100, a number: from a client newer than the server.
    later = b"\x7a\x03new\xa0\x06\x07"
    call = door.channel.unary_unary(
        door.path("Get"), request_serializer=bytes, response_deserializer=door.pb.GetResponse.FromString
    )
    door.put(key, b"v")
    assert call(later + door.get_bytes(key) + later, timeout=20).value == b"v"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:50051",
        "ftp://127.0.0.1:50051",
        "http://",
        "http://127.0.0.1",
        "http://host:0",
        "http://host:65536",
        "http://host:port",
        "http://a b:1",
        "http://host:1/path",
    ],
)
def test_a_join_with_an_address_that_is_none_is_an_invalid_argument(starter, open_door, address):
    door = open_door.router(starter.router().address)
    error = status_of(door.stub.Join, door.pb.JoinRequest(address=address), timeout=20)
    assert error.code() == CODE.INVALID_ARGUMENT
    assert "address" in error.details()
    slots = door.stub.Topology(door.pb.TopologyRequest(), timeout=20).slots
    assert not [slot for slot in slots if slot.state != door.pb.EMPTY]


def test_a_rate_limit_is_answered_with_when_to_come_back(starter, open_door):
    node = starter.node(STORE="none")
    router = starter.router(RATE_LIMIT=5)
    door = open_door.router(router.address)
    door.stub.Join(door.pb.JoinRequest(address=f"http://{node.address}"), timeout=20)

    refused = None
    for _ in range(200):
        try:
            door.get(b"k")
        except grpc.RpcError as error:
            refused = error
            break
    assert refused is not None and refused.code() == CODE.RESOURCE_EXHAUSTED
    pushback = dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]
    assert 0 <= int(pushback) <= 60_000

    # Members are never turned away, or a busy cluster would fall apart.
    for _ in range(20):
        assert door.stub.Join(door.pb.JoinRequest(address=f"http://{node.address}"), timeout=20).successful
    wait_until(lambda: is_served(door), 10, "requests are taken again when time has passed")


def is_served(door):
    try:
        door.get(b"k")
        return True
    except grpc.RpcError as error:
        assert error.code() == CODE.RESOURCE_EXHAUSTED, error
        return False


def test_a_router_without_nodes_is_unavailable(starter, open_door):
    door = open_door.router(starter.router().address)
    for call in (lambda: door.get(b"k"), lambda: door.put(b"k", b"v"), lambda: door.delete(b"k")):
        assert status_of(call).code() == CODE.UNAVAILABLE


def test_a_node_that_cannot_be_reached_is_unavailable(starter, open_door):
    door = open_door.router(starter.router().address)
    [port] = free_ports(1)
    door.stub.Join(door.pb.JoinRequest(address=f"http://127.0.0.1:{port}"), timeout=20)
    assert status_of(door.get, b"k").code() == CODE.UNAVAILABLE


def test_a_deadline_that_has_passed_is_the_servers_answer_too(door):
    # A client that gives up by itself would hide what the server says, so this one does not.
    with wire.Wire(door.address) as connection:
        fields, _ = connection.call(1, door.path("Get"), door.get_bytes(b"k"), grpc__timeout="1n")
        assert fields["grpc-status"] == "4"


@pytest.mark.parametrize("timeout", ["", "1", "S", "-1S", "1.5S", "123456789S", "1x", "1 S", "9" * 40 + "S"])
def test_a_timeout_that_is_none_is_an_error_and_never_a_failure_of_the_server(door, timeout):
    with wire.Wire(door.address) as connection:
        fields, _ = connection.call(1, door.path("Get"), door.get_bytes(b"k"), grpc__timeout=timeout)
        assert fields.get("grpc-status", fields[":status"]) in ("0", "3", "13", "400"), fields
        fields, _ = connection.call(3, door.path("Get"), door.get_bytes(b"k"))
        assert fields["grpc-status"] == "0"


@pytest.mark.parametrize("timeout", ["1H", "5M", "30S", "20000m", "20000000u", "99999999n", "99999999H"])
def test_every_unit_of_a_timeout_is_understood(door, timeout):
    with wire.Wire(door.address) as connection:
        fields, _ = connection.call(1, door.path("Get"), door.get_bytes(b"k"), grpc__timeout=timeout)
        assert fields["grpc-status"] == "0"


@pytest.mark.parametrize("path", ["Nothing", "get", "Get/", "../Get"])
def test_an_unknown_method_is_unimplemented(door, path):
    call = door.channel.unary_unary(door.path(path), request_serializer=bytes, response_deserializer=bytes)
    error = status_of(call, b"", timeout=20)
    assert error.code() == CODE.UNIMPLEMENTED


def test_an_unknown_service_is_unimplemented(door):
    for path in ("/no.Such/Get", "/", "//", "/x"):
        call = door.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        assert status_of(call, b"", timeout=20).code() == CODE.UNIMPLEMENTED, path


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/json", "application/grpcx", "application/grpc-web"]
)
def test_a_wrong_content_type_is_http_415(door, content_type):
    with wire.Wire(door.address) as connection:
        fields, _ = connection.call(1, door.path("Get"), door.get_bytes(b"k"), content__type=content_type)
        assert fields[":status"] == "415"
        fields, _ = connection.call(3, door.path("Get"), door.get_bytes(b"k"))
        assert fields["grpc-status"] == "0"


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_every_form_of_the_right_content_type_is_taken(door, content_type):
    with wire.Wire(door.address) as connection:
        fields, _ = connection.call(1, door.path("Get"), door.get_bytes(b"k"), content__type=content_type)
        assert (fields[":status"], fields["grpc-status"]) == ("200", "0")


def test_a_compressed_message_is_unimplemented(door, key):
    request = door.pb.PutRequest(key=key, bucket="default", value=bytes(10_000))
    error = status_of(door.stub.Put, request, timeout=20, compression=grpc.Compression.Gzip)
    assert error.code() == CODE.UNIMPLEMENTED
    assert not door.get(key).successful


def test_a_stream_where_one_message_is_due_is_an_error(door):
    message = wire.grpc_message(door.get_bytes(b"k"))
    for body in (b"", message + message, message[:-1], message[:3]):
        with wire.Wire(door.address) as connection:
            connection.send(connection.headers(1, door.path("Get")), wire.DataFrame(1, body, flags=["END_STREAM"]))
            fields, _ = connection.answer(1)
            assert fields["grpc-status"] in ("12", "13", "3"), (len(body), fields)

"""Peers that do not keep to HTTP/2, by mistake or on purpose. Each is turned away; nobody else notices."""

import concurrent.futures
import os
import socket
import struct

import pytest
import wire
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from processes import wait_until

MIB = 1 << 20
IDLE_CONNECTIONS = 5000

#: The end of a connection whose peer asks for too much. See `goodbye_after` for the None.
CALMED = {wire.ENHANCE_YOUR_CALM, None}


@pytest.fixture(autouse=True)
def others_are_served(request):
    """After every test here, a client that behaves is answered."""
    door = request.getfixturevalue("door") if "door" in request.fixturenames else None
    yield
    if door:
        assert not door.get(b"nobody put this").successful


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=wire.PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100,
        b"\xff" * 100_000,
        os.urandom(5000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),  # a TLS hello
        wire.PREFACE[:-1] + b"x" + bytes(100),
        wire.PREFACE + b"\xff" * 100,
        wire.PREFACE + bytes(9) * 10,  # DATA on stream 0
    ],
    ids=["zeros", "ones", "random", "http1", "tls", "almost", "frame", "data0"],
)
def test_garbage_instead_of_http2_ends_the_connection(door, garbage):
    with connect(door.address) as peer:
        try:
            peer.sendall(garbage)
            while peer.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass


@pytest.mark.parametrize("count", [0, 1, 10, 23])
def test_half_a_preface_and_silence_holds_nobody_up(door, count):
    with connect(door.address) as peer:
        peer.sendall(wire.PREFACE[:count])
        assert not door.get(b"nobody put this").successful
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass


def goodbye_after(address, frames, settings=None):
    """Sends frames until the peer has had enough, reading what it says meanwhile; the code of its GOAWAY.

    None if the connection ended without one, or it was lost: whoever closes with something still unread resets the
    connection, and what was under way is gone.
    """
    with wire.Wire(address, settings=settings) as connection, concurrent.futures.ThreadPoolExecutor(1) as reader:
        goodbye = reader.submit(connection.goodbye)
        try:
            for frame in frames(connection):
                connection.send_raw(frame if isinstance(frame, bytes) else frame.serialize())
        except wire.Closed:
            pass
        return goodbye.result()


# Where two codes stand, the second is what h2's codec says: it tells a broken frame, not always how it is broken.
@pytest.mark.parametrize(
    ("frames", "codes"),
    [
        (lambda _: [b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x"], {wire.PROTOCOL_ERROR}),
        (lambda _: [DataFrame(1, b"x")], {wire.PROTOCOL_ERROR, wire.STREAM_CLOSED}),
        (lambda c: [c.headers(2, "/x")], {wire.PROTOCOL_ERROR}),
        (
            lambda c: [c.headers(5, "/x", end_stream=True), c.headers(3, "/x", end_stream=True)],
            {wire.PROTOCOL_ERROR, wire.STREAM_CLOSED},
        ),
        (
            lambda _: [HeadersFrame(1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"])],
            {wire.COMPRESSION_ERROR, wire.PROTOCOL_ERROR},
        ),
        (lambda _: [HeadersFrame(1, b"\x80", flags=["END_HEADERS"])], {wire.COMPRESSION_ERROR, wire.PROTOCOL_ERROR}),
        (lambda _: [ContinuationFrame(1, b"")], {wire.PROTOCOL_ERROR}),
        (lambda c: [c.headers(1, "/x", end_headers=False), DataFrame(1, b"x")], {wire.PROTOCOL_ERROR}),
        (lambda _: [WindowUpdateFrame(0, 2**31 - 1), WindowUpdateFrame(0, 2**31 - 1)], {wire.FLOW_CONTROL_ERROR}),
        (lambda _: [b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"], {wire.PROTOCOL_ERROR}),
        (lambda _: [b"\x00\x00\x07\x06\x00\x00\x00\x00\x00" + bytes(7)], {wire.FRAME_SIZE_ERROR, wire.PROTOCOL_ERROR}),
        (
            lambda _: [b"\x01\x00\x00\x00\x00\x00\x00\x00\x01" + bytes(65536)],
            {wire.FRAME_SIZE_ERROR, wire.PROTOCOL_ERROR},
        ),
        (lambda _: [b"\x00\x00\x05\x04\x00\x00\x00\x00\x00" + bytes(5)], {wire.FRAME_SIZE_ERROR, wire.PROTOCOL_ERROR}),
        (lambda _: [RstStreamFrame(1, wire.CANCEL)], {wire.PROTOCOL_ERROR}),
        (
            lambda _: [b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff"],
            {wire.FLOW_CONTROL_ERROR, wire.PROTOCOL_ERROR},
        ),
    ],
    ids=[
        "data on stream 0",
        "data on an idle stream",
        "even stream",
        "stream number going back",
        "HPACK garbage",
        "HPACK index 0",
        "lone CONTINUATION",
        "DATA between header frames",
        "window overflow",
        "window update of 0",
        "short PING",
        "frame too large",
        "odd SETTINGS",
        "reset of an idle stream",
        "initial window too large",
    ],
)
def test_a_connection_error_is_named_in_the_goaway(door, frames, codes):
    assert goodbye_after(door.address, frames) in codes


def test_rapid_resets_are_stopped(door):
    def frames(connection):
        for stream in range(1, 40_001, 2):
            yield (
                connection.headers(stream, door.path("Get")).serialize()
                + RstStreamFrame(stream, wire.CANCEL).serialize()
            )

    assert goodbye_after(door.address, frames) in CALMED


def test_resets_that_the_server_is_made_to_send_are_stopped(door):
    """MadeYouReset: the peer breaks its own streams, here by a window that overflows, so that the server resets them."""

    def frames(connection):
        for stream in range(1, 40_001, 2):
            overflow = WindowUpdateFrame(stream, 2**31 - 1)
            yield connection.headers(stream, door.path("Get")).serialize() + overflow.serialize()

    assert goodbye_after(door.address, frames) in CALMED


@pytest.mark.parametrize(
    "frame",
    [SettingsFrame(settings={3: 100}), PingFrame(opaque_data=b"12345678"), DataFrame(1, b"")],
    ids=["settings", "ping", "empty data"],
)
def test_a_flood_of_frames_that_cost_only_the_server_is_stopped(door, frame):
    def frames(connection):
        yield connection.headers(1, door.path("Get"))
        for _ in range(200):
            yield frame.serialize() * 500

    assert goodbye_after(door.address, frames) in CALMED


def test_a_flood_of_continuations_is_stopped(door):
    def frames(connection):
        yield connection.headers(1, door.path("Get"), end_headers=False)
        for _ in range(5000):
            yield ContinuationFrame(1, b"\x00\x01a" + b"\x7f\x81\x7e" + b"v" * 254).serialize()

    assert goodbye_after(door.address, frames) in CALMED | {wire.COMPRESSION_ERROR, wire.PROTOCOL_ERROR}


def test_headers_too_large_are_refused_and_the_connection_lives(door):
    with wire.Wire(door.address) as connection:
        block = connection.headers(1, door.path("Get"), x__large="v" * 30_000, end_headers=False).data
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        connection.send(HeadersFrame(1, pieces[0]))
        for piece in pieces[1:-1]:
            connection.send(ContinuationFrame(1, piece))
        connection.send(
            ContinuationFrame(1, pieces[-1], flags=["END_HEADERS"]), DataFrame(1, b"", flags=["END_STREAM"])
        )
        try:
            fields, _ = connection.answer(1)
            assert fields[":status"] == "431" or fields["grpc-status"] in ("8", "13"), fields
        except AssertionError as refused:
            assert "was reset" in str(refused)
        fields, _ = connection.call(3, door.path("Get"), door.get_bytes(b"k"))
        assert fields["grpc-status"] == "0"


def test_streams_beyond_the_limit_are_refused_and_the_others_served(door):
    with wire.Wire(door.address) as connection:
        limit = 0
        while not limit:
            frame = connection.next_frame()
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                limit = frame.settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS, 0)
        assert 100 <= limit <= 100_000, "a limit is announced"
        connection.send(SettingsFrame(flags=["ACK"]))
        streams = range(1, 2 * limit + 3, 2)
        for stream in streams:
            connection.send(connection.headers(stream, door.path("Get")))
        refused = connection.frame()
        while not isinstance(refused, RstStreamFrame):
            refused = connection.frame()
        assert refused.stream_id == streams[-1]
        connection.send(DataFrame(1, wire.grpc_message(door.get_bytes(b"k")), flags=["END_STREAM"]))
        fields, _ = connection.answer(1)
        assert fields["grpc-status"] == "0"


def test_a_message_split_at_every_byte_is_understood(door, key):
    door.put(key, b"v")
    message = wire.grpc_message(door.get_bytes(key))
    with wire.Wire(door.address) as connection:
        for at in range(len(message) + 1):
            stream = 2 * at + 1
            connection.send(connection.headers(stream, door.path("Get")), DataFrame(stream, message[:at]))
            connection.send(DataFrame(stream, message[at:], flags=["END_STREAM"]))
            fields, body = connection.answer(stream)
            assert fields["grpc-status"] == "0"
            assert door.pb.GetResponse.FromString(body[5:]).value == b"v"


def test_bytes_that_come_one_by_one_are_understood(door, key):
    door.put(key, b"v")
    with wire.Wire(door.address, preface=False) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames = [
            SettingsFrame(),
            connection.headers(1, door.path("Get")),
            DataFrame(1, wire.grpc_message(door.get_bytes(key)), flags=["END_STREAM"]),
        ]
        for byte in wire.PREFACE + b"".join(frame.serialize() for frame in frames):
            connection.send_raw(bytes([byte]))
        fields, _ = connection.answer(1)
        assert fields["grpc-status"] == "0"


def test_a_window_of_one_byte_gets_its_answer_byte_by_byte(door, key):
    door.put(key, b"0123456789")
    with wire.Wire(door.address, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1}) as connection:
        connection.start_call(1, door.path("Get"), door.get_bytes(key))
        body, fields = b"", {}
        while "grpc-status" not in fields:
            frame = connection.frame()
            if isinstance(frame, HeadersFrame):
                fields.update(connection.decoder.decode(frame.data))
            elif isinstance(frame, DataFrame):
                assert len(frame.data) <= 1
                body += frame.data
                connection.send(WindowUpdateFrame(1, 1))
        assert door.pb.GetResponse.FromString(body[5:]).value == b"0123456789"


def test_a_client_that_stops_reading_costs_a_bounded_amount_and_nobody_else_waits(starter, open_door, key):
    router = starter.router()
    node = starter.node(STORE="none", MEMORY="1GiB", ROUTER_ADDR=f"http://{router.address}")
    front = open_door.router(router.address)
    wait_until(lambda: front.stub.Topology(front.pb.TopologyRequest(), timeout=20).slots, 20, "the node has joined")
    value = os.urandom(5 * MIB)
    front.put(key, value)
    assert front.get(key).value == value

    for program, path in ((node, "/cache_server.Cache/Get"), (router, front.path("Get"))):
        before = program.resident_bytes()
        # 40 answers of 5 MiB are asked for, windows are wide open, and nothing is ever read.
        wide = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1}
        with wire.Wire(program.address, settings=wide, receive_buffer_bytes=8192) as deaf:
            deaf.send(WindowUpdateFrame(0, 2**31 - 1 - 65535))
            for number in range(40):
                deaf.start_call(2 * number + 1, path, front.get_bytes(key))
            for _ in range(50):
                assert front.get(key).value == value, "another client is served meanwhile"
            grown = program.resident_bytes() - before
            assert grown < 150 * MIB, f"{program.name} grew by {grown // MIB} MiB for one client that does not read"
    assert front.get(key).value == value


def test_forty_large_answers_asked_for_at_once_all_come_on_one_connection(door, key):
    """More than a connection may have waiting: whoever reads, however slowly, gets everything."""
    value = os.urandom(5 * MIB)
    door.put(key, value)
    request = door.pb.GetRequest(key=key, bucket="default")
    answers = [door.stub.Get.future(request, timeout=60) for _ in range(40)]
    for answer in answers:
        assert answer.result().value == value


def test_five_thousand_idle_connections_are_held_and_others_served(starter, open_door):
    node = starter.node(STORE="none")
    door = open_door.node(node.address)
    door.put(b"k", b"v")
    before = node.resident_bytes()
    idle = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            peer = connect(node.address)
            peer.sendall(wire.PREFACE + SettingsFrame().serialize())
            idle.append(peer)
        for peer in idle[:: IDLE_CONNECTIONS // 50]:
            assert peer.recv(9), "the server has greeted it"
        for _ in range(100):
            assert door.get(b"k").value == b"v"
        each = (node.resident_bytes() - before) / IDLE_CONNECTIONS
        assert each < 64 * 1024, f"an idle connection costs {each:.0f} bytes"
        with wire.Wire(node.address) as one_more:
            fields, _ = one_more.call(1, door.path("Get"), door.get_bytes(b"k"))
            assert fields["grpc-status"] == "0"
    finally:
        for peer in idle:
            peer.close()
    wait_until(lambda: open_files(node) < 200, 20, "the connections are given back")


def open_files(program):
    return len(os.listdir(f"/proc/{program.process.pid}/fd"))


def test_a_connection_that_is_reset_in_the_middle_of_a_call_harms_nobody(door, key):
    door.put(key, os.urandom(MIB))
    for _ in range(50):
        connection = wire.Wire(door.address)
        connection.start_call(1, door.path("Get"), door.get_bytes(key))
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.socket.close()
    assert door.get(key).successful

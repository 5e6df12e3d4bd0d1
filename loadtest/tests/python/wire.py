"""HTTP/2 by hand: what no client library would ever send.

hyperframe makes and reads the frames, hpack their headers; what is sent in which order is up to the test.
"""

import socket
import struct

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113, section 7.
PROTOCOL_ERROR = 0x1
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

PATIENCE_SECONDS = 20


def grpc_message(payload, compressed=0):
    """The five-byte prefix and the message."""
    return struct.pack(">BI", compressed, len(payload)) + payload


class Closed(Exception):
    """The peer ended the connection."""


class Wire:
    """One connection, frame by frame."""

    def __init__(self, address, preface=True, settings=None, receive_buffer_bytes=None):
        host, port = address.rsplit(":", 1)
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect((host, int(port)))
        self.authority = address
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.received = b""
        if preface:
            self.socket.sendall(PREFACE + SettingsFrame(settings=settings or {}).serialize())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    # ---- Sending.

    def send(self, *frames):
        self.send_raw(b"".join(frame.serialize() for frame in frames))

    def send_raw(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def headers(self, stream, path, end_headers=True, end_stream=False, **changes):
        """The HEADERS frame of a call. A name in `changes` replaces a header (`__` stands for `-`), None drops it."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": self.authority,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        fields.update({name.replace("__", "-"): value for name, value in changes.items()})
        block = self.encoder.encode([(name, value) for name, value in fields.items() if value is not None])
        flags = [flag for flag, wanted in (("END_HEADERS", end_headers), ("END_STREAM", end_stream)) if wanted]
        return HeadersFrame(stream, block, flags=flags)

    def start_call(self, stream, path, payload, **changes):
        """A whole unary call, as a well-behaved client sends it."""
        data = DataFrame(stream, grpc_message(payload), flags=["END_STREAM"])
        self.send(self.headers(stream, path, **changes), data)

    # ---- Receiving.

    def frame(self):
        """The next frame. SETTINGS and PING are answered on the way, as a client must, and not returned."""
        while True:
            frame = self.next_frame()
            if isinstance(frame, SettingsFrame):
                if "ACK" not in frame.flags:
                    self.send(SettingsFrame(flags=["ACK"]))
            elif isinstance(frame, PingFrame):
                if "ACK" not in frame.flags:
                    self.send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
            else:
                return frame

    def next_frame(self):
        head = self.take(9)
        frame, body_bytes = Frame.parse_frame_header(memoryview(head))
        frame.parse_body(memoryview(self.take(body_bytes)))
        return frame

    def take(self, count):
        while len(self.received) < count:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed
            self.received += data
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def answer(self, stream):
        """Everything of one stream until its end: (headers and trailers in one dict, message bytes)."""
        fields, body = {}, b""
        while True:
            frame = self.frame()
            if isinstance(frame, GoAwayFrame):
                raise AssertionError(f"GOAWAY {frame.error_code} {frame.additional_data!r}")
            if frame.stream_id != stream:
                continue
            if isinstance(frame, RstStreamFrame):
                raise AssertionError(f"stream {stream} was reset: {frame.error_code}")
            if isinstance(frame, HeadersFrame):
                fields.update(self.decoder.decode(frame.data))
            elif isinstance(frame, DataFrame):
                body += frame.data
            if "END_STREAM" in frame.flags:
                return fields, body

    def call(self, stream, path, payload, **changes):
        self.start_call(stream, path, payload, **changes)
        return self.answer(stream)

    def goodbye(self):
        """The error code of the GOAWAY that must come before the connection ends, or None if it just ends."""
        code = None
        try:
            while True:
                frame = self.frame()
                if isinstance(frame, GoAwayFrame):
                    code = frame.error_code
        except Closed:
            return code

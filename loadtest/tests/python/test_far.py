"""`benches/far` makes a server farther away, and changes nothing else."""

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time

import pytest
from processes import ROOT, free_ports, wait_until

DELAY_MS = 500


class Echo(socketserver.BaseRequestHandler):
    """Answers with what it was sent, once the client has sent all."""

    def handle(self):
        sent = b"".join(iter(lambda: self.request.recv(1 << 16), b""))
        self.request.sendall(sent)


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 200


@pytest.fixture
def far():
    """The address at which an echo is farther away."""
    (port,) = free_ports(1)
    with Server(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [f"127.0.0.1:{server.server_address[1]}", f"127.0.0.1:{port}", str(DELAY_MS)]
        proxy = subprocess.Popen([sys.executable, ROOT / "benches" / "far", *words])
        try:
            wait_until(lambda: listens(port), 30, "far listens")
            yield "127.0.0.1", port
        finally:
            proxy.terminate()
            assert proxy.wait(30) == 0
            server.shutdown()


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def ask(address, data):
    connection = socket.create_connection(address, 30)
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    return connection


def answer(connection):
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_an_answer_comes_later_and_is_the_same(far):
    data = os.urandom(3 << 20)
    begun = time.monotonic()
    connection = ask(far, data)
    assert connection.recv(1, socket.MSG_PEEK) == data[:1]
    assert time.monotonic() - begun >= DELAY_MS / 1000
    assert answer(connection) == data


def test_no_answer_waits_for_another(far):
    begun = time.monotonic()
    connections = [ask(far, b"%d" % number) for number in range(100)]
    assert [answer(connection) for connection in connections] == [b"%d" % number for number in range(100)]
    # One after the other they would take twice as long.
    assert time.monotonic() - begun < 100 * DELAY_MS / 1000 / 2

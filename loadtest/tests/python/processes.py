"""Real processes of Milena on loopback, with addresses that nobody else uses and files that go away.

Program       one process: its log is kept and shown when something goes wrong
node(), router()   one of each, ready to be asked when they return
dev_cluster()      `milena dev`: a router and its nodes
"""

import os
import pathlib
import signal
import socket
import subprocess
import time

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAMS = pathlib.Path(os.environ.get("MILENA_PROGRAMS", ROOT / "target" / "debug"))

READY_SECONDS = 30
STOP_SECONDS = 30

#: No limit of the client's own, so that it is the server's limits that are met.
ANY_SIZE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def free_ports(count):
    """Ports that nobody listens on now. All are held until all are found, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(condition, seconds, what):
    """Asks until `condition()` holds; its answer. Fails after `seconds`, saying that `what` did not happen."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(0.02)


class Program:
    """One process of ours. Its environment holds nothing but what is given here."""

    def __init__(self, name, arguments=(), environment=None, directory=None):
        path = PROGRAMS / name
        assert path.exists(), f"{path} is missing; ./test builds it and runs these tests"
        self.log_path = pathlib.Path(directory) / f"{name}.{time.monotonic_ns()}.log"
        self.name = name
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [path, *map(str, arguments)],
                env={"PATH": os.environ["PATH"], **{key: str(value) for key, value in (environment or {}).items()}},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self):
        return self.log_path.read_text(errors="replace")

    def is_running(self):
        return self.process.poll() is None

    def wait_ready(self, address):
        """Returns when gRPC's own health service at `address` says that it serves."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        def serves():
            assert self.is_running(), f"{self.name} ended with {self.process.returncode}:\n{self.log()}"
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING

        with grpc.insecure_channel(address, [("grpc.max_reconnect_backoff_ms", 100)]) as channel:
            try:
                wait_until(serves, READY_SECONDS, f"{self.name} serves at {address}")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log()}") from None

    def exit_code(self, seconds=STOP_SECONDS):
        """Waits for the end of the process."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s:\n{self.log()}") from None

    def stop(self):
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code()

    def end(self):
        """Leaves nothing behind, whatever state the process is in."""
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        # Its children, if it has any, are in its group.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def resident_bytes(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Starter:
    """Starts programs and ends all of them."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.programs = []

    def start(self, name, arguments=(), environment=None):
        program = Program(name, arguments, environment, self.directory)
        self.programs.append(program)
        return program

    def node(self, **environment):
        """A node that stands alone unless told otherwise; ready when this returns."""
        port, metrics = free_ports(2)
        settings = {
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "METRICS_PORT": metrics,
            "DATA_DIR": self.directory / f"node-{port}",
            "CORES": 2,
            "PIN": "false",
            "MEMORY": "256MiB",
            **environment,
        }
        program = self.start("milena-cache", environment=settings)
        program.address = settings["LISTEN_ADDR"]
        program.metrics = settings["METRICS_PORT"]
        program.wait_ready(program.address)
        return program

    def router(self, **environment):
        """A router without nodes; ready when this returns."""
        port, metrics = free_ports(2)
        settings = {
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "METRICS_PORT": metrics,
            "STATE": f"file://{self.directory}/router-{port}",
            "CORES": 1,
            "PIN": "false",
            **environment,
        }
        program = self.start("milena-router", environment=settings)
        program.address = settings["LISTEN_ADDR"]
        program.metrics = settings["METRICS_PORT"]
        program.wait_ready(program.address)
        return program

    def end(self):
        for program in reversed(self.programs):
            program.end()

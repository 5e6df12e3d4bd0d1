"""What every test here may ask for.

cluster   `milena dev` with a directory as store, one for the whole run
door      the cluster as a client sees it: once the router, once a node, with the same calls
starter   processes of a test's own
"""

import importlib
import json
import pathlib
import resource
import sys

import grpc
import pytest
from processes import ANY_SIZE, ROOT, Starter, wait_until

#: Connections that the tests open at once, with room for the rest.
OPEN_FILES_MIN = 12_000


def pytest_configure(config):
    # Children inherit it: a shell's usual 1,024 would be the test's limit, not the server's.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_MIN, (
        f"raise the hard limit of open files to {OPEN_FILES_MIN}"
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_MIN, hard))


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """Messages and stubs that grpcio-tools makes of the .proto files, as a user of Python would make them."""
    from grpc_tools import protoc

    made = tmp_path_factory.mktemp("stubs")
    sources = ["milena/cache_server.proto", "milena/router_server.proto", "grpc/reflection/v1/reflection.proto"]
    for source in sources:
        path = ROOT / "proto" / source
        arguments = [f"-I{path.parent}", f"--python_out={made}", f"--grpc_python_out={made}", path.name]
        assert protoc.main(["protoc", *arguments]) == 0, f"protoc refused {source}"
    sys.path.insert(0, str(made))
    names = [f"{pathlib.Path(source).stem}_{kind}" for source in sources for kind in ("pb2", "pb2_grpc")]
    return type("Stubs", (), {name: importlib.import_module(name) for name in names})


class Door:
    """One address with its channel, and the three calls in the form that is quickest to write."""

    def __init__(self, address, pb, stub_type, service):
        self.address = address
        self.pb = pb
        self.service = service
        self.channel = grpc.insecure_channel(address, ANY_SIZE)
        self.stub = stub_type(self.channel)

    def get(self, key, bucket="default", **options):
        return self.stub.Get(self.pb.GetRequest(key=key, bucket=bucket), **{"timeout": 20, **options})

    def put(self, key, value, bucket="default", timeout=20, **fields):
        return self.stub.Put(self.pb.PutRequest(key=key, bucket=bucket, value=value, **fields), timeout=timeout)

    def delete(self, key, bucket="default", timeout=20, **fields):
        return self.stub.Delete(self.pb.DeleteRequest(key=key, bucket=bucket, **fields), timeout=timeout)

    def path(self, method):
        return f"/{self.service}/{method}"

    def get_bytes(self, key, bucket="default"):
        return self.pb.GetRequest(key=key, bucket=bucket).SerializeToString()


@pytest.fixture(scope="session")
def open_door(stubs):
    """Opens the door at an address: `open_door.node(address)`, `open_door.router(address)`."""
    opened = []

    def node(address):
        opened.append(
            Door(address, stubs.cache_server_pb2, stubs.cache_server_pb2_grpc.CacheStub, "cache_server.Cache")
        )
        return opened[-1]

    def router(address):
        opened.append(
            Door(address, stubs.router_server_pb2, stubs.router_server_pb2_grpc.RouterStub, "router_server.Router")
        )
        return opened[-1]

    yield type("OpenDoor", (), {"node": staticmethod(node), "router": staticmethod(router)})
    for door in opened:
        door.channel.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, open_door):
    """A router and three nodes, all of which are in the router's table."""
    directory = tmp_path_factory.mktemp("cluster")
    starter = Starter(directory)
    program = starter.start("milena", ["dev", "--port", 0, "--json"], {"CORES": 2})

    def summary():
        assert program.is_running(), f"milena dev ended with {program.process.returncode}:\n{program.log()}"
        return next((line for line in program.log().splitlines() if line.startswith("{")), None)

    try:
        told = json.loads(wait_until(summary, 60, "milena dev says that the cluster is ready"))
        program.router, program.pages = told["router"], told["metrics"]
        router = open_door.router(program.router)

        def live():
            slots = router.stub.Topology(router.pb.TopologyRequest(), timeout=5).slots
            found = [slot for slot in slots if slot.state == router.pb.LIVE]
            return found if len(found) == 3 else None

        slots = wait_until(live, 30, "three nodes in the router's table")
        program.nodes = [slot.address.removeprefix("http://") for slot in slots]
        program.slots = slots
        yield program
    finally:
        starter.end()


@pytest.fixture(scope="session")
def router_door(cluster, open_door):
    return open_door.router(cluster.router)


@pytest.fixture(scope="session")
def node_door(cluster, open_door):
    return open_door.node(cluster.nodes[0])


@pytest.fixture(params=["router", "node"])
def door(request):
    """The same test through the router and straight to a node."""
    return request.getfixturevalue(f"{request.param}_door")


@pytest.fixture
def starter(tmp_path):
    starter = Starter(tmp_path)
    yield starter
    starter.end()


@pytest.fixture
def key(request):
    """A key that no other test uses."""
    return request.node.nodeid.split("::")[-1].encode()


def status_of(call, *arguments, **options):
    """The error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value

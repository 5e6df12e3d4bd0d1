"""What every gRPC server should offer: health and reflection. And the operators' page."""

import re
import urllib.request

import grpc
import pytest
from conftest import status_of
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


# ---- Health.


def test_health_says_serving_for_the_server_and_its_services(door):
    health = health_pb2_grpc.HealthStub(door.channel)
    for service in ("", door.service):
        assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status == SERVING


def test_health_does_not_know_a_service_that_is_not_there(door):
    health = health_pb2_grpc.HealthStub(door.channel)
    error = status_of(health.Check, health_pb2.HealthCheckRequest(service="no.Such"), timeout=20)
    assert error.code() == grpc.StatusCode.NOT_FOUND


def test_a_health_watch_begins_with_the_state_of_now(door):
    health = health_pb2_grpc.HealthStub(door.channel)
    for service, status in (("", SERVING), (door.service, SERVING), ("no.Such", SERVICE_UNKNOWN)):
        watch = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert next(watch).status == status
        watch.cancel()


def test_a_health_watch_ends_when_the_server_stops_and_the_exit_code_is_0(starter, open_door):
    node = starter.node(STORE="none")
    door = open_door.node(node.address)
    watch = health_pb2_grpc.HealthStub(door.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    assert node.stop() == 0, node.log()
    seen = []
    with pytest.raises(grpc.RpcError) as end:
        seen.extend(answer.status for answer in watch)
    assert SERVING not in seen
    assert end.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


# ---- Reflection: v1alpha through grpcio's own client, v1 through stubs made of the .proto file.


def test_reflection_lists_the_services(door):
    names = ProtoReflectionDescriptorDatabase(door.channel).get_services()
    assert door.service in names
    assert "grpc.health.v1.Health" in names
    assert {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} <= set(names)


def test_a_client_without_stubs_learns_the_calls_by_reflection(door, key):
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(door.channel))
    service = pool.FindServiceByName(door.service)
    put = service.FindMethodByName("Put")
    request = message_factory.GetMessageClass(put.input_type)(key=key, bucket="default", value=b"learned")
    answer = message_factory.GetMessageClass(put.output_type)
    call = door.channel.unary_unary(f"/{door.service}/Put", type(request).SerializeToString, answer.FromString)
    assert call(request, timeout=20).successful
    assert door.get(key).value == b"learned"


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request, door, stubs):
    """Sends questions in one stream and returns the answers."""
    if request.param == "v1":
        pb, stub = stubs.reflection_pb2, stubs.reflection_pb2_grpc.ServerReflectionStub(door.channel)
    else:
        pb, stub = reflection_pb2, reflection_pb2_grpc.ServerReflectionStub(door.channel)

    def ask(*questions):
        requests = [pb.ServerReflectionRequest(**question) for question in questions]
        return list(stub.ServerReflectionInfo(iter(requests), timeout=20))

    return ask


def test_reflection_finds_files_by_symbol_and_by_name(door, ask):
    package, _ = door.service.split(".")
    symbols = [door.service, f"{door.service}.Get", f"{package}.GetRequest", f"{package}.Tier", "grpc.health.v1.Health"]
    answers = ask(*({"file_containing_symbol": symbol} for symbol in symbols))
    assert len(answers) == len(symbols)
    for symbol, answer in zip(symbols, answers, strict=True):
        assert answer.WhichOneof("message_response") == "file_descriptor_response", symbol
        assert answer.original_request.file_containing_symbol == symbol

    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto.FromString(answers[0].file_descriptor_response.file_descriptor_proto[0])
    assert file.package == package
    [again] = ask({"file_by_filename": file.name})
    assert (
        again.file_descriptor_response.file_descriptor_proto[0]
        == answers[0].file_descriptor_response.file_descriptor_proto[0]
    )


def test_reflection_answers_what_it_does_not_know_and_goes_on(door, ask):
    answers = ask(
        {"file_containing_symbol": "no.Such"},
        {"file_by_filename": "no/such.proto"},
        {"all_extension_numbers_of_type": "no.Such"},
        {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
        {},
        {"list_services": ""},
    )
    assert [answer.WhichOneof("message_response") for answer in answers] == ["error_response"] * 5 + [
        "list_services_response"
    ]
    assert answers[0].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# ---- The operators' page.


def page(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.status, answer.headers["content-type"], answer.read().decode()


def test_a_node_counts_what_it_does(starter, open_door):
    node = starter.node(STORE="none")
    door = open_door.node(node.address)
    door.put(b"k", b"v")
    for _ in range(5):
        door.get(b"k")
    door.get(b"absent")
    status_of(door.get, b"")

    status, kind, text = page(node.metrics, "/metrics")
    assert status == 200 and kind.startswith(("text/plain", "application/openmetrics-text"))
    assert count(text, "milena_cache_requests_total", op="get") >= 6
    assert count(text, "milena_cache_requests_total", op="put") == 1
    assert count(text, "milena_cache_hits_total", tier="memory") == 5
    assert count(text, "milena_cache_misses_total") == 1
    assert count(text, "milena_cache_errors_total", op="get", code="INVALID_ARGUMENT") == 1
    assert count(text, "milena_memory_entries") == 1
    assert count(text, "milena_operation_duration_seconds_count", op="get") >= 6
    for name in (
        "milena_memory_bytes",
        "milena_evictions_total",
        "milena_coalesced_requests_total",
        "milena_forwarded_requests_total",
    ):
        assert re.search(rf"^{name}[{{ ]", text, re.MULTILINE), f"{name} is not on the page"

    assert page(node.metrics, "/health")[0] == 200
    assert page(node.metrics, "/ready")[0] == 200


def test_a_router_counts_what_it_does(starter, open_door):
    node = starter.node(STORE="none")
    router = starter.router()
    door = open_door.router(router.address)
    door.stub.Join(door.pb.JoinRequest(address=f"http://{node.address}"), timeout=20)
    door.put(b"k", b"v")
    door.get(b"k")

    _, _, text = page(router.metrics, "/metrics")
    assert count(text, "milena_router_requests_total", op="put") == 1
    assert count(text, "milena_router_requests_total", op="get") == 1
    assert count(text, "milena_router_node_requests_total") == 2
    assert count(text, "milena_router_nodes") >= 1
    assert count(text, "milena_router_ring_epoch") >= 1
    assert page(router.metrics, "/health")[0] == 200


def count(text, name, **labels):
    """The sum of all samples of `name` that carry these labels (compared without regard to case)."""
    total = None
    for line in text.splitlines():
        match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \S+)?", line)
        if not match or match[1] != name:
            continue
        found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        if all(found.get(label, "").lower() == value.lower() for label, value in labels.items()):
            total = (total or 0) + float(match[3])
    assert total is not None, f"{name}{labels} is not on the page:\n{text}"
    return total

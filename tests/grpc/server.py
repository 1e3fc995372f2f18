"""A gRPC server without .proto files: every method takes and gives bytes. Prints its port when it serves."""

import time
from concurrent import futures

import grpc


def echo(request, context):
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-bytes-bin", bytes(range(256)))))
    return request


def fail(request, context):
    context.set_trailing_metadata((("x-why", "no reason"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this: ü%")


def slow(request, context):
    # A client that goes away is noticed.
    gone = []
    context.add_callback(lambda: gone.append(True))
    for _ in range(600):
        if gone:
            left.append(request)
            break
        time.sleep(0.02)
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def endless(request, context):
    number = 0
    context.add_callback(lambda: left.append(request))
    while context.is_active():
        yield str(number).encode()
        number += 1
        time.sleep(0.01)


def total(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def talk(requests, context):
    for request in requests:
        yield b"you said " + request


def metadata(request, context):
    return repr(sorted((key, value) for key, value in context.invocation_metadata() if key.startswith("x-"))).encode()


def who_left(request, context):
    return b",".join(sorted(left))


left = []
handlers = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "WhoLeft": grpc.unary_unary_rpc_method_handler(who_left),
}
server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=32), options=[("grpc.max_receive_message_length", 32 << 20)]
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()

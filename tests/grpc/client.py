"""A gRPC client that goes through every kind of call. Prints the name of each case that went well; fails at the first
that does not."""

import queue
import sys
import time
from concurrent import futures

import grpc

channel = grpc.insecure_channel(
    sys.argv[1],
    options=[("grpc.max_receive_message_length", 32 << 20), ("grpc.default_authority", "grpc.example")],
)
grpc.channel_ready_future(channel).result(timeout=10)


def method(kind, name):
    return getattr(channel, kind)("/test.Test/" + name)


def case(name):
    def run(check):
        check()
        print(name, flush=True)

    return run


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


def until(what, is_so):
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < 10, what
        time.sleep(0.02)


echo = method("unary_unary", "Echo")
who_left = method("unary_unary", "WhoLeft")


@case("unary")
def _():
    response, call = echo.with_call(b"hello", timeout=10)
    assert response == b"hello"
    assert ("x-initial", "first") in call.initial_metadata(), call.initial_metadata()
    trailing = dict(call.trailing_metadata())
    assert trailing["x-trailing"] == "last" and trailing["x-bytes-bin"] == bytes(range(256)), trailing
    assert call.code() == grpc.StatusCode.OK


@case("empty and large messages")
def _():
    for size in (0, 1, 16384, 65535, 65536, 4 << 20):
        message = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
        assert echo(message[:size], timeout=30) == message[:size], size


@case("many at once")
def _():
    with futures.ThreadPoolExecutor(50) as pool:
        messages = [str(number).encode() for number in range(1000)]
        assert list(pool.map(lambda message: echo(message, timeout=30), messages)) == messages


@case("server streaming")
def _():
    count = method("unary_stream", "Count")
    assert list(count(b"1000", timeout=30)) == [str(number).encode() for number in range(1000)]
    assert list(count(b"0", timeout=10)) == []


@case("client streaming")
def _():
    total = method("stream_unary", "Total")
    assert total((b"x" * size for size in range(1000)), timeout=30) == str(sum(range(1000))).encode()
    assert total(iter(()), timeout=10) == b"0"


@case("both streaming, one word after another")
def _():
    words = queue.Queue()
    answers = method("stream_stream", "Talk")(iter(words.get, None), timeout=30)
    for number in range(100):
        words.put(str(number).encode())
        assert next(answers) == b"you said " + str(number).encode()
    words.put(None)
    assert list(answers) == []


@case("an error is trailers alone")
def _():
    error = code_of(lambda: method("unary_unary", "Fail")(b"", timeout=10))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "not like this: ü%", error
    assert dict(error.trailing_metadata())["x-why"] == "no reason"
    error = code_of(lambda: method("unary_unary", "Missing")(b"", timeout=10))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


@case("a deadline ends the call on both sides")
def _():
    start = time.monotonic()
    error = code_of(lambda: method("unary_unary", "Slow")(b"deadline", timeout=0.5))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - start < 3
    until("the server hears of the deadline", lambda: b"deadline" in who_left(b"", timeout=10))


@case("a cancelled call ends on both sides")
def _():
    call = method("unary_unary", "Slow").future(b"cancel", timeout=30)
    time.sleep(0.2)
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED
    until("the server hears of the cancel", lambda: b"cancel" in who_left(b"", timeout=10))


@case("a cancelled stream ends on both sides")
def _():
    call = method("unary_stream", "Endless")(b"endless", timeout=30)
    assert [next(call) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    call.cancel()
    until("the server hears of the cancel", lambda: b"endless" in who_left(b"", timeout=10))


@case("metadata passes")
def _():
    sent = (("x-one", "1"), ("x-two", "a, b"), ("x-bytes-bin", b"\x00\xff"))
    # What the proxy says of the client is its own.
    got = [it for it in eval(method("unary_unary", "Metadata")(b"", metadata=sent, timeout=10)) if "forwarded" not in it[0]]
    assert got == sorted(sent), got


@case("metadata that is too large is refused, and the connection goes on")
def _():
    error = code_of(lambda: echo(b"", metadata=(("x-large", "x" * (1 << 20)),), timeout=10))
    assert error.code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ), error
    error = code_of(lambda: echo(b"", metadata=(("x-large", "x" * 40000),), timeout=10))
    assert error.code() != grpc.StatusCode.OK
    assert echo(b"still here", timeout=10, wait_for_ready=True) == b"still here"


print("all", flush=True)

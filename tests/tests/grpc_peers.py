"""gRPC's own server and client, on plain bytes: `server PORT_FILE`, or `client ADDRESS AUTHORITY CALL...`.

The client prints one JSON object: what became of each call. As `tls-client FOLDER ADDRESS AUTHORITY CALL...` it believes
root.pem in the folder and, where there is one, shows client.pem.
"""

import json
import os
import pathlib
import queue
import sys
import threading
from concurrent import futures

import grpc

SERVICE = "test.Echo"
PATIENCE = 20  # seconds, for what should be there at once
CANCELLED = threading.Event()


# What the server does.

def unary(request, context):
    context.set_trailing_metadata((("x-length", str(len(request))), ("x-raw-bin", b"\x00\xff")))
    return request


def server_stream(request, context):
    for number in range(int(request)):
        yield str(number).encode()
    context.set_trailing_metadata((("x-sent", request.decode()),))


def client_stream(requests, context):
    return b",".join(requests)


def both(requests, context):
    count = 0
    for request in requests:
        count += 1
        yield request.upper()
    context.set_trailing_metadata((("x-sent", str(count)),))


def fail(request, context):
    context.set_trailing_metadata((("x-why", "gone"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such ad: café")


def fail_later(request, context):
    yield b"first"
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


def hang(request, context):
    context.add_callback(CANCELLED.set)
    CANCELLED.wait(3 * PATIENCE)
    return b""


def was_cancelled(request, context):
    return b"yes" if CANCELLED.wait(PATIENCE) else b"no"


def serve(port_file):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "FailLater": grpc.unary_stream_rpc_method_handler(fail_later),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open(port_file + ".new", "w") as file:
        json.dump({"listen": f"127.0.0.1:{port}"}, file)
    os.rename(port_file + ".new", port_file)
    server.wait_for_termination()


# What the client asks.

def told(call, answer):
    trailers = {key: value.hex() if isinstance(value, bytes) else value for key, value in call.trailing_metadata()}
    # Where the head is all there is, its fields are told as trailers; whoever forwards adds a date (RFC 9110, 6.6.1).
    trailers.pop("date", None)
    return {"answer": answer, "code": call.code().name, "details": call.details(), "trailers": trailers}


def call_unary(channel):
    answer, call = channel.unary_unary(f"/{SERVICE}/Unary").with_call(b"hello", timeout=PATIENCE)
    return told(call, answer.decode())


def call_large(channel):
    answer, call = channel.unary_unary(f"/{SERVICE}/Unary").with_call(b"x" * (3 << 20), timeout=PATIENCE)
    return told(call, len(answer))


def call_server_stream(channel):
    call = channel.unary_stream(f"/{SERVICE}/ServerStream")(b"1000", timeout=PATIENCE)
    return told(call, sum(int(number) for number in call))


def call_client_stream(channel):
    numbers = (str(number).encode() for number in range(5))
    answer, call = channel.stream_unary(f"/{SERVICE}/ClientStream").with_call(numbers, timeout=PATIENCE)
    return told(call, answer.decode())


def call_both(channel):
    # The next message is sent only when the one before was answered.
    sending = queue.Queue()
    call = channel.stream_stream(f"/{SERVICE}/Both")(iter(sending.get, None), timeout=PATIENCE)
    answers = []
    for message in (b"a", b"b", b"c"):
        sending.put(message)
        answers.append(next(call).decode())
    sending.put(None)
    answers.extend(answer.decode() for answer in call)
    return told(call, answers)


def call_fail(channel):
    channel.unary_unary(f"/{SERVICE}/Fail")(b"", timeout=PATIENCE)


def call_fail_later(channel):
    call = channel.unary_stream(f"/{SERVICE}/FailLater")(b"", timeout=PATIENCE)
    answers = []
    try:
        answers.extend(answer.decode() for answer in call)
    except grpc.RpcError:
        return told(call, answers)


def call_deadline(channel):
    channel.unary_unary(f"/{SERVICE}/Hang")(b"", timeout=0.5)


def call_was_cancelled(channel):
    answer, call = channel.unary_unary(f"/{SERVICE}/WasCancelled").with_call(b"", timeout=2 * PATIENCE)
    return told(call, answer.decode())


def call_unknown(channel):
    channel.unary_unary(f"/{SERVICE}/Unknown")(b"", timeout=PATIENCE)


def connect(address, authority, folder):
    options = [("grpc.default_authority", authority)]
    if folder is None:
        return grpc.insecure_channel(address, options=options)
    options.append(("grpc.ssl_target_name_override", authority))
    root, key, chain = (
        path.read_bytes() if path.exists() else None
        for path in (folder / "root.pem", folder / "client.key", folder / "client.pem")
    )
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain), options=options)


def ask(address, authority, names, folder=None):
    results = {}
    with connect(address, authority, folder) as channel:
        for name in names:
            try:
                results[name] = globals()[f"call_{name}"](channel)
            except grpc.RpcError as error:
                results[name] = told(error, None)
    print(json.dumps(results))


if sys.argv[1] == "server":
    serve(sys.argv[2])
elif sys.argv[1] == "tls-client":
    ask(sys.argv[3], sys.argv[4], sys.argv[5:], pathlib.Path(sys.argv[2]))
else:
    ask(sys.argv[2], sys.argv[3], sys.argv[4:])

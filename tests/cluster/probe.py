"""What a stranger gets from the ports of a host: python probe.py HOST PORT ... prints a line of JSON a port.

"refused", or what an HTTP request and calls of Ray's services get there. None of them carries a token.
"""

import http.client
import json
import socket
import sys

import grpc

SECONDS = 5.0
CALLS = (
    "InternalKVGcsService/InternalKVKeys",
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetSystemConfig",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "RayletDriver/ClusterInfo",
    "RayletDriver/KVList",
    "ReporterService/GetTraceback",
    "CoreWorkerService/GetCoreWorkerStats",
    "CoreWorkerService/PushTask",
)


def probe(host: str, port: int) -> dict[str, str]:
    try:
        socket.create_connection((host, port), SECONDS).close()
    except ConnectionRefusedError:
        return {"tcp": "refused"}
    found = {"tcp": "open"}
    try:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        connection.request("GET", "/")
        found["http"] = str(connection.getresponse().status)
    except (http.client.HTTPException, OSError):
        found["http"] = "none"
    channel = grpc.insecure_channel(f"{host}:{port}")
    for call in CALLS:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=SECONDS)
            found[call] = "OK"
        except grpc.RpcError as error:
            found[call] = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
            if found[call] == "UNAVAILABLE":  # it does not speak gRPC
                break
    return found


if __name__ == "__main__":
    for number in map(int, sys.argv[2:]):
        print(json.dumps({"port": number, **probe(sys.argv[1], number)}))

"""The other half of `test_network.py`: an engine and sandboxes in a network namespace; prints one JSON object.

The engine runs as the user whom this program is run by, and listens on every address of its host.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

import e2b

from sandboxkit.local._child import start_engine, stop_engines
from sandboxkit.local._config import EngineConfig

CURL = "curl -sS -m 8 --noproxy '' -o - -w ' %{http_code}' "
ALL = "0.0.0.0/0"


def run(sandbox: Any, command: str) -> str:
    """What a command printed, whether it failed or not."""
    try:
        done = sandbox.commands.run(command, timeout=30)
        return f"{done.stdout}{done.stderr}".strip()
    except e2b.CommandExitException as error:
        return f"{error.stdout}{error.stderr}".strip()


def main() -> None:
    engine = start_engine(
        EngineConfig(
            isolation=os.environ["SANDBOXKIT_ISOLATION"],
            log_level="error",
            internet_ceiling="internet",
            host="0.0.0.0",
        )
    )
    assert engine.endpoint.api_url is not None
    port = engine.endpoint.api_url.rpartition(":")[2]
    sdk: Any = {
        "api_key": engine.endpoint.api_key,
        "api_url": engine.endpoint.api_url,
        "sandbox_url": engine.endpoint.sandbox_url,
    }
    told: dict[str, Any] = {}
    # Something of the host's, for those who get through.
    service = socket.create_server(("0.0.0.0", 0), backlog=64)
    host_port = service.getsockname()[1]

    def fresh(**options: Any) -> Any:
        return e2b.Sandbox.create(template="base", timeout=120, **options, **sdk)

    try:
        box = fresh(allow_internet_access=True)
        told["public"] = run(box, CURL + "http://web.93-184-216-34.test/")
        told["public address"] = run(box, CURL + "http://93.184.216.34/")
        told["tunnel"] = run(box, CURL + "-p http://web.93-184-216-34.test/")
        told["socks"] = run(box, CURL + "--socks5-hostname 127.0.0.1:3128 http://web.93-184-216-34.test/")
        told["private"] = run(box, CURL + "http://web.10-9-0-2.test/")
        told["private address"] = run(box, CURL + "-p http://10.9.0.2/")
        told["documentation"] = run(box, CURL + "http://198.51.100.2/")
        told["redirect"] = run(box, CURL + "-L http://web.93-184-216-34.test/to/http://10.9.0.2/")
        told["redirect to a name"] = run(box, CURL + "-L http://web.93-184-216-34.test/to/http://web.127-0-0-1.test/")
        told["metadata"] = run(box, CURL + "http://169.254.169.254/latest/meta-data/")
        told["own"] = [
            run(box, CURL + f"-p http://{name}:{host_port}/")
            for name in ("web.127-0-0-1.test", "web.198-51-100-1.test", "web.8-8-4-4.test", "8.8.4.4", "0.0.0.0",
                         "[::1]", "[::ffff:127.0.0.1]", "[::ffff:8.8.4.4]", "[64:ff9b::8.8.4.4]", "[2002:808:404::]")
        ]  # fmt: skip
        told["engine"] = [
            run(box, CURL + f"-p http://{name}:{port}/health")
            for name in ("web.127-0-0-1.test", "8.8.4.4", "web.198-51-100-1.test")
        ]
        told["spellings"] = [
            run(box, f"printf 'CONNECT {host}:{host_port} HTTP/1.1\\r\\n\\r\\n' | curl -s -m 5 telnet://127.0.0.1:3128")
            for host in ("0x7f.1", "2130706433", "017700000001", "127.1", "0")
        ]
        told["rebound"] = [run(box, CURL + f"http://rebind-{os.getuid()}.test/") for _ in range(2)]
        told["direct"] = run(box, "curl -sS -m 5 --noproxy '*' http://93.184.216.34/")
        told["udp"] = run(
            box,
            'python3 -c "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); '
            "s.sendto(b'x', ('198.51.100.2', 53))\" 2>&1 | tail -1",
        )
        told["dns"] = run(
            box, "python3 -c \"import socket; socket.gethostbyname('web.93-184-216-34.test')\" 2>&1 | tail -1"
        )
        told["info"] = [box.get_info().allow_internet_access, box.get_info().network]
        # at run time
        box.update_network({"allow_out": ["web.93-184-216-34.test"], "deny_out": [ALL]})
        told["listed"] = run(box, CURL + "http://web.93-184-216-34.test/")
        told["not listed"] = run(box, CURL + "http://93.184.216.34/")
        box.update_network({"allow_out": ["*.10-9-0-2.test", "10.9.0.0/24"], "deny_out": [ALL]})
        told["listed private"] = run(box, CURL + "http://a.10-9-0-2.test/")
        told["listed no more"] = run(box, CURL + "http://web.93-184-216-34.test/")
        told["info of rules"] = [box.get_info().allow_internet_access, box.get_info().network]
        box.update_network({"allow_out": ["127.0.0.1", "8.8.4.4"], "deny_out": [ALL]})
        told["engine, listed"] = [
            run(box, CURL + f"-p http://{name}:{port}/health") for name in ("web.127-0-0-1.test", "8.8.4.4")
        ]
        box.update_network({"deny_out": ["93.184.216.0/24"], "allow_internet_access": True})
        told["denied block"] = run(box, CURL + "http://web.93-184-216-34.test/")
        box.update_network({"allow_internet_access": False})
        told["closed"] = run(box, CURL + "-x http://127.0.0.1:3128 http://web.93-184-216-34.test/")
        told["info when closed"] = [box.get_info().allow_internet_access, box.get_info().network]
        box.kill()
        # a box that may reach nothing has no proxy, and gets one when that changes
        box = fresh()
        told["no proxy"] = run(
            box, "env | grep -ci proxy; curl -sS -m 5 http://127.0.0.1:3128/; curl -sS -m 5 http://93.184.216.34/"
        )
        box.update_network({"allow_out": ["93.184.216.34"]})
        told["later"] = run(box, CURL + "http://93.184.216.34/")
        box.kill()
        service.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            service.accept()
            told["reached the host"] = True
    finally:
        service.close()
        stop_engines()
    print(json.dumps(told))


if __name__ == "__main__":
    main()

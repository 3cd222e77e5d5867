"""The exact JSON of the engine's refusals, as E2B's clients expect them."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response


def error(
    status: int, message: str, *, error_code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An error of the REST API or of /files: `{"code", "message"}`, and `error_code` where programs need one."""
    body: dict[str, object] = {"code": status, "message": message}
    if error_code is not None:
        body["error_code"] = error_code
    return JSONResponse(body, status_code=status, headers=headers)


def sandbox_not_found(sandbox_id: str) -> Response:
    """The gateway's answer for a sandbox that is not there (any more); clients match on "was not found"."""
    return JSONResponse({"sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502}, status_code=502)


def port_not_open(sandbox_id: str, port: int) -> Response:
    """The gateway's answer where nobody listens; clients match on "port is not open"."""
    return JSONResponse(
        {
            "sandboxId": sandbox_id,
            "message": "The sandbox is running but port is not open",
            "port": port,
            "code": 502,
        },
        status_code=502,
    )


def token_refused(sandbox_id: str, *, is_missing: bool) -> Response:
    """The gateway's answer where a sandbox's traffic needs a token; E2B's own words."""
    header = "'e2b-traffic-access-token'"
    said = f"Token header {header} is missing" if is_missing else f"Provided token in header {header} is invalid"
    message = f"Sandbox is secured with traffic access token. {said}"
    return JSONResponse({"sandboxId": sandbox_id, "message": message, "code": 403}, status_code=403)


def bad_answer(sandbox_id: str, port: int, why: str) -> Response:
    """The gateway's answer where something listens, and what it says is no HTTP."""
    message = f"The sandbox is running but what listens on the port gave no answer that can be passed on: {why}"
    return JSONResponse({"sandboxId": sandbox_id, "message": message, "port": port, "code": 502}, status_code=502)


def moved(location: str) -> Response:
    """Where a browser finds what it asked for."""
    headers = {"location": location, "cache-control": "no-store", "vary": "Sec-Fetch-Mode, Sec-Fetch-Dest"}
    return Response(status_code=307, headers=headers)

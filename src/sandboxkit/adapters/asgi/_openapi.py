"""The description of the routes, as OpenAPI 3.1."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sandboxkit.adapters.asgi._bodies import (
    Failure,
    FileContent,
    FileTree,
    FileWritten,
    Logs,
    RunRequest,
    RunResult,
)

_TAKEN, _GIVEN = (RunRequest, FileContent), (RunResult, FileTree, FileWritten, Logs, Failure)
_REF = "#/components/schemas/"
_WHEN = {
    "400": "The body is no JSON, or asks for what is not supported.",
    "401": "Nobody said who asks.",
    "403": "The path leads out of the sandbox's files.",
    "404": "There is no such sandbox, template or file, or it is somebody else's.",
    "409": "Something else is there, or somebody else works there.",
    "413": "The body, or the file, is too large.",
    "415": "The body is not application/json.",
    "422": "The request does not fit, or the fragment cannot be carried out.",
    "500": "The server failed.",
    "502": "The service that runs the sandboxes failed.",
    "503": "No sandbox is free, or the service cannot be reached.",
    "504": "The code or the app took too long.",
    "507": "The sandbox's disk is full.",
}
_ALWAYS = ("401", "500", "502", "503")
_OF_A_SANDBOX = ("list_files", "read_file", "write_file", "read_logs", "end_sandbox")
"""The operations that take the id of a result."""


def openapi(*, server: str = "/") -> dict[str, Any]:
    """Describe the routes, for tools and for an application that merges them into its own description.

    Args:
        server: the URL, or the path, at which the routes are mounted.
    """
    of_sandbox = [_parameter("id", "path", "The id of a sandbox, as a result names it.")]
    path = _parameter("path", "query", "Relative to the home directory, or absolute and below it.")
    run = _operation("run_fragment", "Carry a fragment out.", RunResult, "400 404 409 413 415 422 504 507", RunRequest)
    run["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    run["responses"]["200"]["links"] = {
        name: {"operationId": name, "parameters": {"id": "$response.body#/sandbox_id"}} for name in _OF_A_SANDBOX
    }
    read = _operation("read_file", "Read a file.", FileContent, "403 404 409 413 422")
    write = _operation("write_file", "Write a file.", FileWritten, "400 403 404 409 413 415 422 507", FileContent)
    end = _operation("end_sandbox", "End a sandbox, with all that is in it.", None, "404")
    return {
        "openapi": "3.1.0",
        "info": {"title": "sandboxkit", "version": version("e2b-sandboxkit")},
        "servers": [{"url": server}],
        "security": [{"bearer": []}],
        "paths": {
            "/api/sandbox": {"post": run},
            "/api/sandbox/{id}": {"parameters": of_sandbox, "delete": end},
            "/api/sandbox/{id}/files": {
                "parameters": of_sandbox,
                "get": _operation("list_files", "List the files as trees.", FileTree, "404 409"),
            },
            "/api/sandbox/{id}/files/content": {
                "parameters": of_sandbox,
                "get": {**read, "parameters": [path]},
                "post": write,
            },
            "/api/sandbox/{id}/logs": {
                "parameters": of_sandbox,
                "get": _operation("read_logs", "Read the end of the app's log.", Logs, "404"),
            },
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "What the application's hook asks for."}
            },
        },
    }


def _schemas() -> dict[str, Any]:
    taken = [(model, "validation") for model in _TAKEN]
    given = [(model, "serialization") for model in _GIVEN]
    _, made = models_json_schema([*taken, *given], ref_template=_REF + "{model}")  # type: ignore[list-item]
    schemas: dict[str, Any] = made["$defs"]
    return schemas


def _parameter(name: str, place: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": True,
        "description": text,
        "schema": {"type": "string", "minLength": 1},
    }


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + model.__name__}}}


def _operation(
    name: str, text: str, answer: type[BaseModel] | None, errors: str, body: type[BaseModel] | None = None
) -> dict[str, Any]:
    done = {"200": {"description": text, "content": _json(answer)}} if answer else {"204": {"description": text}}
    failed = {
        status: {"description": _WHEN[status], "content": _json(Failure)}
        for status in sorted({*errors.split(), *_ALWAYS})
    }
    taken = {"requestBody": {"required": True, "content": _json(body)}} if body else {}
    return {"operationId": name, "summary": text, **taken, "responses": {**done, **failed}}

"""What the engine's rooms know about one sandbox: plain values, shared by control, envd and interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sandboxkit.local.isolation._base import BASE_PATH, HOME, PREFIX, USER

ENVD_VERSION = "0.6.13"
ENVD_PORT = 49983
INTERPRETER_PORT = 49999


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """What a sandbox was created with, as far as processes in it are concerned."""

    sandbox_id: str
    template_id: str
    access_token: str = field(repr=False)
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str = USER
    home: str = HOME
    workdir: str = HOME
    has_interpreter: bool = False
    has_environment: bool = False
    """Whether its template has packages of its own."""
    network_variables: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)
    """What programs need now to get out: it changes with the sandbox's network."""
    traffic_token: str | None = field(default=None, repr=False)
    """What requests to its ports need, but for envd's, which has a token of its own; None where they need none."""
    mask_host: str | None = None
    """What its servers see as the Host, with `${PORT}` for their port; None leaves it."""

    def base_environment(self) -> dict[str, str]:
        """The environment that every process of the sandbox starts from: ours, then the sandbox's own."""
        python = "env" if self.has_interpreter or self.has_environment else "python"
        # What a user installs for themselves goes before what the template has.
        path = f"{self.home}/.local/bin:{PREFIX}/{python}/bin:{BASE_PATH}"
        ours = {
            "PATH": path,
            "HOME": self.home,
            "USER": self.user,
            "LOGNAME": self.user,
            "LANG": "C.UTF-8",
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.sandbox_id,
            "E2B_TEAM_ID": "local",  # an engine has no teams, and one owner
            "E2B_TEMPLATE_ID": self.template_id,
        }
        return ours | dict(self.network_variables()) | dict(self.envs)

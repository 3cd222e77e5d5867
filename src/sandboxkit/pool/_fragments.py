"""What the runner gets to carry a session's fragment out."""

from __future__ import annotations

from sandboxkit.errors import ConfigurationError, SessionConflict
from sandboxkit.events import EventHandler
from sandboxkit.fragment import Fragment
from sandboxkit.pool._lease import Lease, LeasedSandbox
from sandboxkit.runner import Bench
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.template import Template


def bench(
    lease: Lease,
    fragment: Fragment,
    *,
    sandbox: LeasedSandbox,
    files: AsyncSafeFS,
    on_event: EventHandler | None,
    allow_install_command: bool,
) -> Bench:
    """Everything of a session that a fragment's run needs.

    Raises:
        ConfigurationError: it is no fragment.
        SessionConflict: it is for another template than the session's.
        TemplateNotFound: its template is not registered.
    """
    options, core = lease.shell.options, lease.core
    return Bench(
        template=_template_of(lease, fragment),
        sandbox=sandbox,
        files=files,
        timeouts=options.timeouts,
        emit=core.tell.about(on_event).told,
        workshop=core.workshop,
        has_index=options.network != "deny",
        allow_install_command=allow_install_command,
    )


def _template_of(lease: Lease, fragment: Fragment) -> Template:
    if not isinstance(fragment, Fragment):
        raise ConfigurationError(f"{type(fragment).__name__} is no Fragment; use Fragment.model_validate(...).")
    lease.check_usable()
    core = lease.core
    if fragment.template != core.spec.template:
        raise SessionConflict(
            f"The fragment is for template {fragment.template!r}, and session {core.key!r} lives in a sandbox of "
            f"{core.spec.template!r}. Open a session with template={fragment.template!r}.",
            sandbox_id=core.sandbox.sandbox_id,
        )
    return Template.get(fragment.template)

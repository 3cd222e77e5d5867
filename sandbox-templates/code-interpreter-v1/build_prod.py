"""Build the template under its production name at E2B. Needs E2B_API_KEY."""

from e2b import Template, default_build_logger
from template import template

if __name__ == "__main__":
    Template.build(
        template,
        "sandboxkit-code-interpreter",
        cpu_count=2,
        memory_mb=2048,
        on_build_logs=default_build_logger(),
    )

"""Build the template under its development name, at E2B or at the engine that E2B_API_URL names. Needs E2B_API_KEY."""

from e2b import Template, default_build_logger
from template import template

if __name__ == "__main__":
    Template.build(
        template,
        "nextjs-developer-dev",
        cpu_count=2,
        memory_mb=2048,
        on_build_logs=default_build_logger(),
    )

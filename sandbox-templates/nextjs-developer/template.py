"""Next.js with the pages router, TypeScript and Tailwind CSS, its development server running on port 3000."""

from e2b import Template, wait_for_url

template = (
    Template()
    .from_node_image("24-slim")
    # What wait_for_url, wait_for_port and wait_for_process call.
    .apt_install(["curl", "iproute2", "procps"], no_install_recommends=True)
    .set_envs({"NEXT_TELEMETRY_DISABLED": "1"})
    .set_workdir("/home/user")
    .copy("skeleton/package.json", "package.json")
    .npm_install()
    .copy("skeleton", ".")
    .set_start_cmd("npx next dev --hostname 0.0.0.0 --port 3000", wait_for_url("http://localhost:3000"))
)

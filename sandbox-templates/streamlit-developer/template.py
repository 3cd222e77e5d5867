"""Streamlit with the usual libraries for data, serving app.py on port 8501."""

from e2b import Template, wait_for_url

template = (
    Template()
    .from_python_image("3.13-slim")
    # What wait_for_url, wait_for_port and wait_for_process call.
    .apt_install(["curl", "iproute2", "procps"], no_install_recommends=True)
    .set_workdir("/home/user")
    .copy("requirements.txt", "/tmp/requirements.txt")
    .pip_install("--no-cache-dir -r /tmp/requirements.txt")
    .copy("skeleton", ".")
    .set_start_cmd(
        "streamlit run app.py --server.headless true --server.address 0.0.0.0 --server.port 8501",
        wait_for_url("http://localhost:8501/_stcore/health"),
    )
)

"""Gradio with the usual libraries for data, serving `demo` of app.py on port 7860."""

from e2b import Template, wait_for_url

template = (
    Template()
    .from_python_image("3.13-slim")
    # What wait_for_url, wait_for_port and wait_for_process call.
    .apt_install(["curl", "iproute2", "procps"], no_install_recommends=True)
    .set_envs({"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "7860"})
    .set_workdir("/home/user")
    .copy("requirements.txt", "/tmp/requirements.txt")
    .pip_install("--no-cache-dir -r /tmp/requirements.txt")
    .copy("serve.py", ".gradio/serve.py")
    .copy("skeleton", ".")
    # Not `gradio app.py`, which may miss a file that is written while it starts; serve.py has the reason.
    .set_start_cmd("python3 -u .gradio/serve.py app.py", wait_for_url("http://localhost:7860/_loaded"))
)

"""Template builds through the package e2b. Nothing here needs a network: what would is only written down."""

import json
import os
import tempfile
from pathlib import Path

from check import SYNC, Sandbox, Template, check, do, raises, run, until
from e2b import BuildException, SandboxException, wait_for_file, wait_for_port, wait_for_process, wait_for_timeout, wait_for_url

NAME = f"py-{'sync' if SYNC else 'async'}-{os.getpid()}"


async def main():
    context = Path(tempfile.mkdtemp())
    (context / "app").mkdir()
    (context / "app/main.py").write_text('print("hello from the template")\n')
    (context / "single.txt").write_text("single\n")

    def start():
        return Template(file_context_path=context)

    info = None

    async def build():
        nonlocal info
        template = (
            start()
            .from_template("base")
            .set_user("root")
            .make_dir("/opt/app")
            .copy("app", "/opt/app/")
            .copy_items([{"src": "single.txt", "dest": "/opt/items/", "user": "user", "mode": 0o600}])
            .set_envs({"STAGE": "built"})
            .run_cmd('echo "$STAGE $(id -un)" >/opt/run')
            .make_symlink("/opt/run", "/opt/link")
            .rename("/opt/items/single.txt", "/opt/items/final.txt")
            .remove("/opt/nothing", force=True)
            .set_workdir("/opt/app")
            .set_user("user")
            .set_start_cmd("echo started >/tmp/started; exec sleep infinity", wait_for_file("/tmp/started"))
        )
        logs = []
        info = await do(Template.build(template, NAME, tags=["v1"], cpu_count=1, memory_mb=512, on_build_logs=logs.append))
        assert info.template_id and info.build_id and len(logs) > 3
        sbx = await do(Sandbox.create(NAME, timeout=120))
        result = await do(sbx.commands.run('pwd; python3 main.py; cat /opt/link; stat -c "%U %a" /opt/items/final.txt; cat /tmp/started'))
        assert result.stdout == "/opt/app\nhello from the template\nbuilt root\nuser 600\nstarted\n", result.stdout
        await do(sbx.kill())

    await check("Template.build", build)

    async def background():
        more = start().from_template(NAME).run_cmd("true").set_ready_cmd(wait_for_timeout(1))
        made = await do(Template.build_in_background(more, f"{NAME}-2"))

        async def ready():
            status = await do(Template.get_build_status(made))
            assert status.status.value != "error", status
            return status.status.value == "ready"

        await until("the build", ready, 240)

    await check("Template.build_in_background and get_build_status", background)

    async def fails():
        bad = start().from_template("base").run_cmd("echo why >&2; exit 9")
        await raises(BuildException, lambda: Template.build(bad, f"{NAME}-bad"), "9")

    await check("a step that fails", fails)

    async def names():
        assert await do(Template.exists(NAME)) is True
        assert await do(Template.alias_exists(NAME)) is True
        assert await do(Template.exists("there-is-no-such-template")) is False
        assigned = await do(Template.assign_tags(f"{NAME}:v1", ["stable"]))
        assert assigned.build_id == info.build_id
        assert {"v1", "stable"} <= {t.tag for t in await do(Template.get_tags(info.template_id))}
        await do(Template.remove_tags(NAME, "stable"))
        await raises(SandboxException, lambda: Sandbox.create(f"{NAME}:stable"), "40")

    await check("Template.exists and tags", names)

    async def written():
        docker = Template.to_dockerfile
        for method, word in [
            ("from_debian_image", "debian"),
            ("from_ubuntu_image", "ubuntu"),
            ("from_fedora_image", "fedora"),
            ("from_alpine_image", "alpine"),
            ("from_arch_image", "archlinux"),
            ("from_node_image", "node"),
            ("from_bun_image", "oven/bun"),
            ("from_base_image", "e2bdev/base"),
        ]:
            assert docker(getattr(start(), method)()).startswith(f"FROM {word}"), method
        assert "FROM python:3" in docker(start().from_python_image().pip_install(["six"]).npm_install("x").bun_install().apt_install("curl").git_clone("https://example.com/r"))
        assert "ENV A=1" in docker(start().from_dockerfile("FROM debian:12\nENV A=1\n").skip_cache())
        for registry in [
            start().from_image("i", username="u", password="p"),
            start().from_aws_registry("i", access_key_id="a", secret_access_key="s", region="r"),
            start().from_gcp_registry("i", service_account_json={"a": 1}),
        ]:
            assert json.loads(Template.to_json(registry))["fromImageRegistry"]["type"]
        assert "mcp-gateway pull exa" in Template.to_json(start().skip_cache().from_template("mcp-gateway").add_mcp_server("exa"))
        assert "devcontainer build" in Template.to_json(start().from_template("devcontainer").beta_dev_container_prebuild("/w"))
        assert "devcontainer up" in Template.to_json(start().from_template("devcontainer").beta_set_dev_container_start("/w"))
        for ready in (wait_for_port(80), wait_for_url("http://localhost:1/"), wait_for_process("nginx")):
            assert ready.get_cmd()

    await check("builders that only write down steps", written)


run(main)

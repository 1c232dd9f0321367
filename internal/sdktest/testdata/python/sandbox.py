"""The life of sandboxes through the package e2b."""

import os
import re
import time
import urllib.error
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone

from check import Sandbox, SYNC, check, do, pages, raises, run, until
from e2b import (
    E2B,
    AuthenticationException,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
    get_signature,
)

MARK = f"sandbox-py-{os.getpid()}"


def fetch(url, data=None, headers=None):
    """Returns status and body of what a plain HTTP client gets."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers or {}), timeout=30) as r:
            return r.status, r.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def left(info):
    return (info.end_at - datetime.now(timezone.utc)).total_seconds()


async def main():
    sbx = None

    async def create():
        nonlocal sbx
        sbx = await do(
            Sandbox.create(
                "base",
                timeout=120,
                metadata={"mark": MARK, "a b": "c&d=é"},
                envs={"GREETING": "hello"},
                secure=True,
                allow_internet_access=False,
                lifecycle={"on_timeout": "kill", "auto_resume": False},
                network={"allow_public_traffic": True},
                request_timeout=60,
                retries=1,
                api_headers={"x-test": "yes"},
            )
        )
        assert re.fullmatch("[a-z0-9]+", sbx.sandbox_id)
        result = await do(sbx.commands.run('echo "$GREETING $E2B_SANDBOX $E2B_SANDBOX_ID"'))
        assert result.stdout == f"hello true {sbx.sandbox_id}\n", result.stdout

    await check("Sandbox.create with every option", create)

    async def info():
        one = await do(sbx.get_info())
        assert one.sandbox_id == sbx.sandbox_id and one.state == SandboxState.RUNNING
        assert one.metadata == {"mark": MARK, "a b": "c&d=é"}
        assert one.lifecycle["on_timeout"] == "kill", one.lifecycle
        assert one.cpu_count >= 1 and one.memory_mb >= 64
        assert 60 < left(one) <= 125
        assert await do(Sandbox.get_info(sbx.sandbox_id)) == one

    await check("sandbox.get_info", info)

    async def unknown():
        for call in (Sandbox.get_info, Sandbox.connect, Sandbox.pause, Sandbox.get_metrics):
            await raises(SandboxNotFoundException, lambda: call("i0000000000000000000"))
        await raises(SandboxNotFoundException, lambda: Sandbox.set_timeout("i0000000000000000000", 60))
        assert await do(Sandbox.kill("i0000000000000000000")) is False
        await raises(SandboxException, lambda: Sandbox.create("there-is-no-such-template"), "40")
        await raises(AuthenticationException, lambda: Sandbox.create(api_key="e2b_" + "0" * 40))

    await check("unknown sandboxes, templates and keys", unknown)

    async def connect():
        again = await do(Sandbox.connect(sbx.sandbox_id))
        await do(again.files.write("/tmp/shared", "by the one"))
        assert await do(sbx.files.read("/tmp/shared")) == "by the one"
        await do(sbx.connect(timeout=1))
        assert left(await do(sbx.get_info())) > 60
        await do(sbx.connect(timeout=240))
        assert left(await do(sbx.get_info())) > 180
        client = E2B(api_key=os.environ["E2B_API_KEY"])
        own = client.Sandbox if SYNC else client.AsyncSandbox
        assert (await do((await do(own.connect(sbx.sandbox_id))).commands.run("echo own"))).stdout == "own\n"

    await check("sandbox.connect", connect)

    async def set_timeout():
        await do(sbx.set_timeout(600))
        assert left(await do(sbx.get_info())) > 540
        await do(Sandbox.set_timeout(sbx.sandbox_id, 180))
        assert 120 < left(await do(sbx.get_info())) < 240

    await check("sandbox.set_timeout", set_timeout)

    async def metrics():
        found = await until("a metric", lambda: sbx.get_metrics())
        assert found[0].cpu_count >= 1 and found[0].mem_total > 0 and found[0].disk_total > 0, found[0]
        past = datetime.fromtimestamp(0, timezone.utc)
        assert await do(sbx.get_metrics(start=past, end=past + timedelta(seconds=9))) == []
        assert await do(sbx.is_running()) is True

    await check("sandbox.get_metrics and is_running", metrics)

    async def listing():
        others = [await do(Sandbox.create(metadata={"mark": MARK, "number": str(n)}, timeout=60)) for n in (1, 2, 3)]
        query = SandboxQuery(metadata={"mark": MARK})
        pager = Sandbox.list(query=query, limit=3)
        assert pager.has_next and pager.next_token is None
        first = await do(pager.next_items())
        assert len(first) == 3 and pager.has_next and pager.next_token
        rest = await do(pager.next_items())
        assert not pager.has_next
        assert {s.sandbox_id for s in first + rest} == {s.sandbox_id for s in [sbx, *others]}
        oldest = await pages(Sandbox.list(query=query, limit=1, order="asc"))
        assert oldest[0].sandbox_id == sbx.sandbox_id
        for metadata, state, want in [
            ({"number": "2"}, None, {others[1].sandbox_id}),
            ({"a b": "c&d=é"}, [SandboxState.RUNNING], {sbx.sandbox_id}),
            ({}, [SandboxState.PAUSED], set()),
        ]:
            found = await pages(Sandbox.list(query=SandboxQuery(metadata={"mark": MARK, **metadata}, state=state)))
            assert {s.sandbox_id for s in found} == want, (metadata, state)
        later = datetime.now(timezone.utc) + timedelta(minutes=1)
        assert await pages(Sandbox.list(query=SandboxQuery(metadata={"mark": MARK}, started_after=later))) == []
        assert len(await pages(Sandbox.list(query=SandboxQuery(metadata={"mark": MARK}, template="base")))) == 4
        for other in others:
            assert await do(other.kill()) is True

    await check("Sandbox.list", listing)

    async def kill():
        short = await do(Sandbox.create(metadata={"mark": MARK}))
        assert await do(short.kill()) is True
        assert await do(short.kill()) is False
        assert await do(short.is_running()) is False
        await raises(SandboxNotRunningException, lambda: short.commands.run("true"))
        await raises(SandboxNotRunningException, lambda: short.files.read("/etc/hostname"))

    await check("sandbox.kill", kill)

    async def with_block():
        if SYNC:
            with Sandbox.create(metadata={"mark": MARK}) as box:
                assert box.is_running()
        else:
            async with await Sandbox.create(metadata={"mark": MARK}) as box:
                assert await box.is_running()
        assert await do(box.is_running()) is False

    await check("a sandbox in a with block", with_block)

    async def pause():
        counter = await do(
            sbx.commands.run("n=40; while read -r line; do n=$((n+1)); echo $n >/tmp/n; done", background=True, stdin=True, timeout=0)
        )
        await do(sbx.commands.send_stdin(counter.pid, "x\n"))
        await until("the first count", lambda: sbx.files.exists("/tmp/n"))
        assert await do(sbx.pause()) is True
        assert (await do(sbx.get_info())).state == SandboxState.PAUSED
        assert await do(sbx.pause()) is False
        assert await do(Sandbox.beta_pause(sbx.sandbox_id)) is False
        paused = await pages(Sandbox.list(query=SandboxQuery(metadata={"mark": MARK}, state=[SandboxState.PAUSED])))
        assert [s.sandbox_id for s in paused] == [sbx.sandbox_id]
        await do(sbx.connect(timeout=180, on_resume="restore"))
        await do(sbx.commands.send_stdin(counter.pid, "x\n"))

        async def second():
            return (await do(sbx.files.read("/tmp/n"))).strip() == "42"

        await until("the second count", second)
        assert await do(sbx.commands.kill(counter.pid)) is True
        assert await do(sbx.beta_pause()) is True
        await do(Sandbox.connect(sbx.sandbox_id))

    await check("sandbox.pause keeps the memory", pause)

    async def sleepy():
        box = await do(Sandbox.create(metadata={"mark": MARK}, timeout=10, lifecycle={"on_timeout": "pause", "auto_resume": True}))

        async def paused():
            return (await do(box.get_info())).state == SandboxState.PAUSED

        await until("the pause", paused)
        assert (await do(box.commands.run("echo awake"))).stdout == "awake\n"
        assert not await paused()
        assert await do(box.kill()) is True

    await check("auto-pause at the timeout, auto-resume at a request", sleepy)

    async def network():
        await do(sbx.update_network({"allow_out": ["example.com"], "deny_out": ["0.0.0.0/0"], "allow_internet_access": False}))
        one = await do(sbx.get_info())
        assert one.network["allow_out"] == ["example.com"] and one.allow_internet_access is False, one
        await do(Sandbox.update_network(sbx.sandbox_id, {}))
        assert not (await do(sbx.get_info())).network.get("allow_out")

    await check("sandbox.update_network", network)

    async def download_url():
        path = "/tmp/a b é.txt"
        await do(sbx.files.write(path, "signed"))
        url = sbx.download_url(path)
        assert fetch(url) == (200, b"signed")
        soon = sbx.download_url(path, user="user", use_signature_expiration=60)
        assert fetch(soon) == (200, b"signed")
        assert fetch(sbx.download_url(path, use_signature_expiration=-60))[0] == 401
        assert fetch(url.replace("signature=", "signature=x"))[0] == 401

    await check("sandbox.download_url", download_url)

    async def upload_url():
        bound = uuid.uuid4().hex
        body = f'--{bound}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nfrom outside\r\n--{bound}--\r\n'.encode()
        sent = fetch(sbx.upload_url("/tmp/outside"), body, {"Content-Type": f"multipart/form-data; boundary={bound}"})
        assert sent[0] == 200, sent
        assert await do(sbx.files.read("/tmp/outside")) == "from outside"

    await check("sandbox.upload_url", upload_url)

    async def hosts():
        assert sbx.get_host(8080).startswith(f"8080-{sbx.sandbox_id}.")
        assert sbx.get_mcp_url() == f"https://{sbx.get_host(50005)}/mcp"
        await do(sbx.commands.run("mkdir -p /etc/mcp-gateway && printf secret >/etc/mcp-gateway/.token", user="root"))
        assert await do(sbx.get_mcp_token()) == "secret"
        assert get_signature("/x", "read", "user", "token")["signature"].startswith("v1_")

    await check("sandbox.get_host, get_mcp_url, get_mcp_token", hosts)

    async def idempotent():
        key = f"{MARK}-{time.time_ns()}"
        make = lambda **more: Sandbox.create(metadata={"mark": MARK}, timeout=60, idempotency_key=key, **more)
        first, second = await do(make()), await do(make())
        assert first.sandbox_id == second.sandbox_id
        assert (await do(second.commands.run("echo same"))).stdout == "same\n"
        await raises(SandboxException, lambda: make(envs={"OTHER": "request"}), "409")
        await do(first.kill())

    await check("Sandbox.create with an idempotency_key", idempotent)

    async def stranger():
        await raises(TimeoutException, lambda: sbx.commands.run("sleep 60", timeout=1))
        await do(sbx.kill())
        assert await pages(Sandbox.list(query=SandboxQuery(metadata={"mark": MARK}))) == []

    await check("no sandbox of this program is left", stranger)


run(main)

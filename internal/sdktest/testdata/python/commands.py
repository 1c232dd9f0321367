"""Commands and terminals through the package e2b."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from check import SYNC, Sandbox, check, do, raises, run, until
from e2b import AuthenticationException, CommandExitException, InvalidArgumentException, NotFoundException, PtySize, TimeoutException


async def main():
    sbx = await do(Sandbox.create(timeout=300, envs={"FROM_SANDBOX": "a", "BOTH": "sandbox"}))

    async def alive(pid):
        return any(p.pid == pid for p in await do(sbx.commands.list()))

    async def gone(pid):
        return not await alive(pid)

    async def plain():
        result = await do(sbx.commands.run("echo out; echo err >&2"))
        assert (result.exit_code, result.stdout, result.stderr, result.error) == (0, "out\n", "err\n", None)
        dropped = await do(sbx.commands.run("echo out", retain_output=False))
        assert dropped.stdout is None

    await check("commands.run", plain)

    async def fails():
        e = await raises(CommandExitException, lambda: sbx.commands.run("echo out; echo err >&2; exit 3"))
        assert (e.exit_code, e.stdout, e.stderr, e.error) == (3, "out\n", "err\n", "exit status 3")
        assert (await raises(CommandExitException, lambda: sbx.commands.run("no-such-program"))).exit_code == 127

    await check("a command that fails", fails)

    async def streams():
        said = []

        def heard(text):
            said.append(text)
            if text == "first\n":
                return sbx.files.write("/tmp/go", "")  # or else the command never ends

        await do(
            sbx.commands.run(
                "echo first; until [ -e /tmp/go ]; do sleep 0.02; done; echo second; echo third >&2",
                on_stdout=heard,
                on_stderr=said.append,
            )
        )
        assert sorted(said) == ["first\n", "second\n", "third\n"], said

    await check("output comes while the command runs", streams)

    async def background():
        command = await do(sbx.commands.run("until [ -e /tmp/end ]; do sleep 0.02; done; echo ended; exit 2", background=True))
        listed = next(p for p in await do(sbx.commands.list()) if p.pid == command.pid)
        assert listed.cmd == "/bin/bash" and listed.args[:2] == ["-l", "-c"]
        await do(sbx.files.write("/tmp/end", ""))
        e = await raises(CommandExitException, command.wait)
        assert (e.exit_code, e.stdout) == (2, "ended\n")
        assert await gone(command.pid)

    await check("commands.run in the background", background)

    async def surroundings():
        result = await do(sbx.commands.run("echo $FROM_SANDBOX $BOTH $MINE", envs={"BOTH": "command", "MINE": "m"}))
        assert result.stdout == "a command m\n"
        assert (await do(sbx.commands.run("pwd; id -un"))).stdout == "/home/user\nuser\n"
        assert (await do(sbx.commands.run("pwd; id -un", cwd="/tmp", user="root"))).stdout == "/tmp\nroot\n"
        await raises(InvalidArgumentException, lambda: sbx.commands.run("pwd", cwd="/no/such"), "does not exist")
        await raises(AuthenticationException, lambda: sbx.commands.run("true", user="nobody-of-this-name"))

    await check("environment, directory and user", surroundings)

    async def stdin():
        cat = await do(sbx.commands.run("cat", background=True, stdin=True))
        await do(cat.send_stdin("one "))
        await do(sbx.commands.send_stdin(cat.pid, b"two\n"))
        await do(cat.close_stdin())
        assert (await do(cat.wait())).stdout == "one two\n"
        wc = await do(sbx.commands.run("wc -c", background=True, stdin=True))
        await do(sbx.commands.send_stdin(wc.pid, "x" * (1 << 20)))
        await do(sbx.commands.close_stdin(wc.pid))
        assert (await do(wc.wait())).stdout.strip() == str(1 << 20)
        await raises(NotFoundException, lambda: sbx.commands.send_stdin(999999, "x"))

    await check("commands.send_stdin and close_stdin", stdin)

    async def stream_input():
        cat = await do(sbx.commands.run("cat", background=True, stdin=True))
        parts = [f"{n}\n" for n in range(200)]
        if SYNC:
            sbx.commands.stream_input(cat.pid, iter(parts))
        else:
            async with sbx.commands.stream_input(cat.pid) as typing:
                for part in parts:
                    await typing.send(part)
        await do(cat.close_stdin())
        assert (await do(cat.wait())).stdout == "".join(parts)

    await check("commands.stream_input", stream_input)

    async def connect():
        first = await do(sbx.commands.run('read -r a; echo "got $a"; exit 4', background=True, stdin=True))
        second = await do(sbx.commands.connect(first.pid))
        assert second.pid == first.pid
        await do(second.send_stdin("1\n"))
        for handle in (first, second):
            e = await raises(CommandExitException, handle.wait)
            assert (e.exit_code, e.stdout) == (4, "got 1\n")
        await raises(NotFoundException, lambda: sbx.commands.connect(999999))

    await check("commands.connect", connect)

    async def disconnect():
        command = await do(sbx.commands.run("exec sleep 600", background=True, timeout=0))
        await do(command.disconnect())
        assert await alive(command.pid)
        assert await do(sbx.commands.kill(command.pid)) is True
        await until("its end", lambda: gone(command.pid))
        assert await do(sbx.commands.kill(command.pid)) is False
        other = await do(sbx.commands.run("sleep 600", background=True))
        assert await do(other.kill()) is True
        assert "signal: killed" in str((await raises(CommandExitException, other.wait)).error)

    await check("handle.disconnect and kill", disconnect)

    async def late():
        pid = ""
        for limit in (1, 4, 16):  # until the shell has begun by then
            await do(sbx.commands.run("rm -f /tmp/pid"))
            await raises(TimeoutException, lambda: sbx.commands.run("echo $$ >/tmp/pid; exec sleep 600", timeout=limit))
            if await do(sbx.files.exists("/tmp/pid")) and (pid := (await do(sbx.files.read("/tmp/pid"))).strip()):
                break
        await until("its end", lambda: gone(int(pid)))

    await check("a command whose time is up", late)

    async def many():
        if SYNC:
            with ThreadPoolExecutor(20) as pool:
                results = list(pool.map(lambda n: sbx.commands.run(f"echo {n}"), range(40)))
        else:
            results = await asyncio.gather(*(sbx.commands.run(f"echo {n}") for n in range(40)))
        assert [r.stdout for r in results] == [f"{n}\n" for n in range(40)]
        much = await do(sbx.commands.run("head -c 8388608 /dev/zero | tr '\\0' x"))
        assert len(much.stdout) == 8388608

    await check("many commands, much output", many)

    async def terminal():
        screen = bytearray()
        shown = screen.extend

        async def open_pty(size, **options):
            return await do(sbx.pty.create(size, **options) if SYNC else sbx.pty.create(size, shown, **options))

        async def end(handle):
            if SYNC:
                return handle.wait(on_pty=shown)
            return await handle.wait()

        shell = await open_pty(PtySize(rows=31, cols=91), cwd="/tmp", envs={"WORD": "w"})
        await do(sbx.pty.send_stdin(shell.pid, b'echo "[$WORD $TERM $(pwd) $(stty size)]"\n'))
        await do(sbx.pty.resize(shell.pid, PtySize(rows=40, cols=120)))
        parts = [b'echo "<$(stty size)>"\n', b"exit 7\n"]
        if SYNC:
            sbx.pty.stream_input(shell.pid, iter(parts))
        else:
            async with sbx.pty.stream_input(shell.pid) as typing:
                for part in parts:
                    await typing.send(part)
        e = await raises(CommandExitException, lambda: end(shell))
        text = screen.decode()
        assert e.exit_code == 7 and "[w xterm-256color /tmp " in text and "<40 120>" in text, text

        other = await open_pty(PtySize(rows=24, cols=80), user="root", timeout=0)
        await do(other.disconnect())
        again = await do(sbx.pty.connect(other.pid) if SYNC else sbx.pty.connect(other.pid, shown))
        await do(sbx.pty.send_stdin(other.pid, b'echo "($(id -un))" >/tmp/who\n'))

        async def who():
            return await do(sbx.files.exists("/tmp/who")) and await do(sbx.files.read("/tmp/who")) == "(root)\n"

        await until("the answer", who)
        assert await do(sbx.pty.kill(other.pid)) is True
        await raises(CommandExitException, lambda: end(again))
        assert await do(sbx.pty.kill(other.pid)) is False

    await check("terminals", terminal)

    await do(sbx.kill())


run(main)

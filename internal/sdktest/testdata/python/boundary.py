"""The same calls behind any boundary: argv is sync or async, the template, its language and the table
boundaries.json, in which stands what is run and what comes of it; host is the template behind gVisor, and the others have no processes."""

import json
import os
import sys

import httpx
from check import SYNC, Interpreter, Sandbox, check, do, pages, raises, run, until
from e2b import CommandExitException, FileNotFoundException, NotFoundException, PtySize, SandboxQuery, SandboxNotFoundException, TimeoutException

TEMPLATE, LANGUAGE = sys.argv[2:4]
with open(sys.argv[4], encoding="utf-8") as table:
    TABLE = json.load(table)
HERE = TABLE[LANGUAGE]
LINUX = TEMPLATE == "host"
ASKED = LANGUAGE if LINUX else None  # a template of one language needs no word for it
PLACE = {"host": "", "wasm": "a WASM sandbox", "v8": "a V8 sandbox"}[TEMPLATE.split("-")[0]]
CELLS = [c for c in HERE["cells"] if not c.get("node") or TEMPLATE != "wasm-javascript"]  # QuickJS has no modules of Node
FORMS = ["text", "html", "markdown", "svg", "png", "latex", "json"]


def holds(cell, got):
    """Holds a run to a cell of the table."""
    shown = [{k: getattr(r, k) for k in FORMS if getattr(r, k) is not None} | ({"main": True} if r.is_main_result else {}) for r in got.results]
    want = cell.get("results", [{"text": cell["text"], "main": True}] if "text" in cell else [])
    assert shown == want, (shown, want, got.error)
    assert "".join(got.logs.stdout) == cell.get("stdout", ""), got.logs
    assert "".join(got.logs.stderr) == cell.get("stderr", ""), got.logs
    if "error" not in cell:
        assert got.error is None, got.error
        return
    name, value = cell["error"]
    assert got.error and got.error.name == name and value in got.error.value, got.error
    assert cell.get("traceback", name) in got.error.traceback, got.error.traceback


async def main():
    sbx = await do(Interpreter.create(TEMPLATE, timeout=300, envs={"FROM_SANDBOX": "yes"}, metadata={"of": TEMPLATE, "kit": sys.argv[1] + LANGUAGE}))
    await do(sbx.files.write("in.txt", "by client"))

    def code(text, **more):
        return sbx.run_code(text, **({} if "context" in more else {"language": ASKED}), **more)

    counts = []

    async def cell(c):
        seen = {"results": [], "errors": [], "stdout": [], "stderr": []}
        got = await do(code(c["code"], envs=c.get("envs"), on_result=seen["results"].append, on_error=seen["errors"].append,
                            on_stdout=lambda m: seen["stdout"].append(m.line), on_stderr=lambda m: seen["stderr"].append(m.line)))
        holds(c, got)
        assert (len(seen["results"]), len(seen["errors"])) == (len(got.results), 1 if got.error else 0)
        assert (seen["stdout"], seen["stderr"]) == (got.logs.stdout, got.logs.stderr)
        counts.append(got.execution_count)

    for c in CELLS:
        await check(("node: " if c.get("node") else "code: ") + c["name"], lambda: cell(c))

    async def counted():
        assert counts == list(range(counts[0], counts[0] + len(CELLS))), counts

    await check("runs are counted", counted)

    async def much():
        got = await do(code(HERE["lines"]))
        assert got.error is None and "".join(got.logs.stdout) == "".join(f"{i}\n" for i in range(5000)), (got.error, len("".join(got.logs.stdout)))
        holds({"text": "2"}, await do(code(HERE["two"])))

    await check("much output", much)

    async def language():
        assert (await do(sbx.run_code(HERE["two"], language=LANGUAGE))).text == "2"

    await check("the language by its name", language)

    async def contexts():
        await do(sbx.files.make_dir("/tmp/there"))
        context = await do(sbx.create_code_context(cwd="/tmp/there", language=ASKED))
        assert (context.language, context.cwd) == (LANGUAGE, "/tmp/there")
        await do(code(HERE["set"], context=context))
        assert (await do(code(HERE["isSet"], context=context))).text == HERE["yes"]
        assert (await do(code(HERE["isSet"]))).text == HERE["no"]
        if "directory" in HERE:
            assert (await do(code(HERE["directory"], context=context))).text == "/tmp/there"
        assert any(c.id == context.id for c in await do(sbx.list_code_contexts()))
        await do(sbx.restart_code_context(context))
        assert (await do(code(HERE["isSet"], context=context))).text == HERE["no"]
        await do(sbx.remove_code_context(context))
        assert not any(c.id == context.id for c in await do(sbx.list_code_contexts()))
        await raises(Exception, lambda: code("1", context=context), "not found")

    await check("contexts", contexts)

    async def imports():
        for cwd in ["/home/user", "/tmp/there"]:
            await do(sbx.files.write(f"{cwd}/{HERE['own']['file']}", HERE["own"]["text"]))
            context = await do(sbx.create_code_context(cwd=cwd, language=ASKED))
            for c in HERE["own"]["cells"]:
                holds(c, await do(code(c["code"], context=context)))
            await do(sbx.remove_code_context(context))

    await check("files that code imports", imports)

    async def streams():
        context = await do(sbx.create_code_context(language=ASKED))
        heard = []

        def end(message):  # or else the code never ends
            heard.append(message.line)
            return sbx.remove_code_context(context)

        got = await do(code(HERE["wait"], context=context, on_stdout=end))
        assert heard == ["begun\n"] and got.error.name == "KernelDied", (heard, got.error)

    await check("output comes while the code runs", streams)

    async def alive(lost):
        """Runs code until nothing is told any more of a state that was lost."""
        got = await do(code(HERE["two"]))
        if lost:
            assert got.error and got.error.name == "KernelDied" and "its state is lost" in got.error.value, got
            got = await do(code(HERE["two"]))
        holds({"text": "2"}, got)

    async def works():
        return (await do(code(HERE["two"]))).text == "2"

    async def late():
        await raises(TimeoutException, lambda: code(HERE["loop"], timeout=2))
        await alive(not LINUX)

    await check("life after a loop without end", late)

    async def file_calls():
        files = sbx.files
        info = await do(files.write("d/a.txt", "é\n", metadata={"k": "v"}))
        assert (info.name, info.path) == ("a.txt", "/home/user/d/a.txt")
        await do(files.write_files([{"path": "d/b", "data": bytes(range(256))}, {"path": "d/e/f", "data": ""}]))
        assert await do(files.read("d/a.txt")) == "é\n"
        assert bytes(await do(files.read("d/b", format="bytes"))) == bytes(range(256))
        assert [(e.path, e.type.value) for e in await do(files.list("d", depth=2))] == [
            ("/home/user/d/a.txt", "file"), ("/home/user/d/b", "file"), ("/home/user/d/e", "dir"), ("/home/user/d/e/f", "file")]
        a = await do(files.get_info("d/a.txt"))
        assert (a.size, a.owner, a.permissions, a.metadata) == (3, "user", "-rw-r--r--", {"k": "v"}), a
        assert await do(files.make_dir("d/g")) is True and await do(files.make_dir("d/g")) is False
        moved = await do(files.rename("d/a.txt", "d/g/c"))
        assert moved.path == "/home/user/d/g/c"
        assert (await do(files.exists("d/a.txt")), await do(files.exists("d/g/c"))) == (False, True)
        await do(files.remove("d"))
        await do(files.remove("d"))
        assert await do(files.exists("d")) is False
        await raises(FileNotFoundException, lambda: files.read("d/b"), "no such file or directory")
        await raises(FileNotFoundException, lambda: files.list("d"), "no such file or directory")
        await raises(FileNotFoundException, lambda: files.rename("d", "e"), "no such file or directory")
        await raises(Exception, lambda: files.list("in.txt"), "not a directory")
        await raises(Exception, lambda: files.read("/home/user"), "not a file but a directory")

    await check("files", file_calls)

    async def watch():
        heard = []
        heard_by = {} if SYNC else {"on_event": heard.append}
        await do(sbx.files.make_dir("/tmp/w"))
        watching = await do(sbx.files.watch_dir("/tmp/w", recursive=True, **heard_by))
        await do(sbx.files.write("/tmp/w/a", "x"))
        await do(sbx.files.rename("/tmp/w/a", "/tmp/w/b"))
        await do(sbx.files.remove("/tmp/w/b"))

        async def all():
            if SYNC:
                heard.extend(await do(watching.get_new_events()))
            return {("a", "create"), ("a", "write"), ("a", "rename"), ("b", "create"), ("b", "remove")} <= {(e.name, e.type.value) for e in heard}

        await until("five events", all)
        await do(watching.stop())
        await raises(FileNotFoundException, lambda: sbx.files.watch_dir("/tmp/none", **heard_by), "no such file or directory")

    await check("a directory is watched", watch)

    async def from_code():
        assert await do(sbx.files.read("made/by_code.txt")) == "by code"

    if TEMPLATE != "wasm-javascript":
        await check(("code" if LANGUAGE == "python" else "node") + ": what it wrote", from_code)

    program = f"{HERE['program']} {HERE['file']}"

    async def command():
        await do(sbx.files.write(HERE["file"], HERE["text"]))
        out, err = [], []
        e = await raises(CommandExitException, lambda: sbx.commands.run(f"{program} 1 'a b'", envs={"A": "é"}, on_stdout=out.append, on_stderr=err.append))
        want = "1,a b é by client\n" if LANGUAGE == "python" else "1,a b é\n"
        assert (e.exit_code, e.stdout, e.stderr) == (3, want, "why\n"), (e.exit_code, e.stdout, e.stderr)
        assert ("".join(out), "".join(err)) == (want, "why\n")
        if LANGUAGE == "python":
            assert await do(sbx.files.read("out.txt")) == "by program"

    await check("a program", command)

    async def elsewhere():
        await do(sbx.files.make_dir("sub"))
        text = "print('there')" if LANGUAGE == "python" else "console.log('there')"
        await do(sbx.files.write("sub/there", text))
        for line, cwd in [("there", "/home/user/sub"), ("sub/there", None), ("../sub/there", "sub"), ("/home/user/sub/there", "/")]:
            done = await do(sbx.commands.run(f"{HERE['program']} {line}", cwd=cwd))
            assert done.stdout == "there\n", (line, cwd, done)
        e = await raises(CommandExitException, lambda: sbx.commands.run(f"{HERE['program']} none"))
        assert e.exit_code != 0 and "none" in e.stderr, e.stderr
        await raises(Exception, lambda: sbx.commands.run(program, cwd="/none"), "does not exist")

    await check("programs of other directories", elsewhere)

    async def background():
        flag = "-c" if LANGUAGE == "python" else "-e"
        handle = await do(sbx.commands.run(f"{HERE['program']} {flag} '{HERE['loop']}'", background=True))
        assert handle.pid in [p.pid for p in await do(sbx.commands.list())]
        assert await do(sbx.commands.kill(handle.pid)) is True
        await raises(CommandExitException, handle.wait)
        assert handle.pid not in [p.pid for p in await do(sbx.commands.list())]
        assert await do(sbx.commands.kill(handle.pid)) is False
        await raises(TimeoutException, lambda: sbx.commands.run(f"{HERE['program']} {flag} '{HERE['loop']}'", timeout=0.5))
        if TEMPLATE.startswith("v8"):  # where all code of a tenant shares a process, which such loops end
            await until("the end of that process", works)
        await alive(False)

    await check("a program in the background", background)

    async def life():
        info = await do(sbx.get_info())
        assert (info.template_id, info.metadata["of"], info.state.value) == (TEMPLATE if not LINUX else info.template_id, TEMPLATE, "running")
        before = info.end_at
        await do(sbx.set_timeout(1200))
        assert (await do(sbx.get_info())).end_at > before
        assert await do(sbx.is_running()) is True
        other = await do(Interpreter.connect(sbx.sandbox_id))
        assert await do(other.files.read("in.txt")) == "by client"
        assert (await do(other.run_code(HERE["two"], language=ASKED))).text == "2"
        mine = await pages(Sandbox.list(query=SandboxQuery(metadata={"of": TEMPLATE, "kit": sys.argv[1] + LANGUAGE})))
        assert [s.sandbox_id for s in mine] == [sbx.sandbox_id]
        assert isinstance(await do(sbx.get_metrics()), list)

    await check("life", life)

    await refusals(sbx, code)

    async def killed():
        assert await do(sbx.kill()) is True
        assert await do(sbx.is_running()) is False
        assert await do(sbx.kill()) is False
        await raises(TimeoutException, lambda: code("1"), "not found")
        await raises((NotFoundException, SandboxNotFoundException), lambda: Interpreter.connect(sbx.sandbox_id))

    await check("killed", killed)


async def refusals(sbx, code):
    """What cannot work is refused in one sentence; where there are processes, it is no matter of this program."""
    calls = {
        "run": lambda line: sbx.commands.run(line),
        "language": lambda name: sbx.run_code("1", language=name),
        "context": lambda name: sbx.create_code_context(language=name),
        "directory": lambda path: sbx.create_code_context(language=ASKED, cwd=path),
        "terminal": lambda _: sbx.pty.create(PtySize(24, 80), **({} if SYNC else {"on_data": print})),
        "root": lambda _: sbx.files.write("/root/x", "", user="root"),
        "port": lambda port: knock(sbx, port),
        "pause": lambda _: sbx.pause(),
        "pause at the end": lambda _: Interpreter.create(TEMPLATE, lifecycle={"on_timeout": "pause"}),
    }

    async def refused(row):
        words = {"program": HERE["program"], "file": HERE["file"], "language": LANGUAGE, "place": PLACE, "driver": TEMPLATE.split("-")[0]}

        def fill(text):
            for name, word in words.items():
                text = text.replace("{" + name + "}", word)
            return text

        e = await raises(Exception, lambda: calls[row["call"]](fill(row["is"])), *map(fill, row["says"]))
        text = str(e).strip()
        assert "\n" not in text and len(text) < 300 and "*" not in text.replace("*, ?", ""), text

    if LINUX:
        return
    for row in TABLE["refused"]:
        await check(f"refused: {row['call']} {row['is']}".strip(), lambda: refused(row))

    async def lives_on():
        assert (await do(code(HERE["two"]))).text == "2"
        assert await do(sbx.files.read("in.txt")) == "by client"

    await check("it lives on after all refusals", lives_on)


async def knock(sbx, port):
    """Asks a port as a browser would ask what get_host names."""
    assert sbx.get_host(int(port)).startswith(f"{port}-{sbx.sandbox_id}.")
    answer = httpx.get(os.environ["E2B_SANDBOX_URL"], headers={"E2b-Sandbox-Id": sbx.sandbox_id, "E2b-Sandbox-Port": port})
    assert answer.status_code == 502, answer
    raise ConnectionError(answer.json()["message"])


run(main)

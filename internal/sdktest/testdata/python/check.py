"""What the programs of this directory share: named checks, each of which prints one line of JSON, and at the end which
methods of the SDK were called.

Each program is written once and run twice, with the word sync or async: `await do(call)` waits for what the asynchronous
SDK returns, and passes on what the synchronous one has returned already.
"""

import asyncio
import inspect
import json
import os
import sys
import time
import traceback

import e2b
import e2b_code_interpreter

SYNC = len(sys.argv) > 1 and sys.argv[1] == "sync"
LIMIT = 400  # seconds of one check, so that a hang is one failure and not the loss of all checks after it

Sandbox = e2b.Sandbox if SYNC else e2b.AsyncSandbox
Interpreter = e2b_code_interpreter.Sandbox if SYNC else e2b_code_interpreter.AsyncSandbox
Template = e2b.Template if SYNC else e2b.AsyncTemplate
Volume = e2b.Volume if SYNC else e2b.AsyncVolume
Secret = e2b.Secret if SYNC else e2b.AsyncSecret


class Skipped(Exception):
    pass


def skip(reason):
    """Ends a check that cannot be made here."""
    raise Skipped(reason)


async def do(call):
    return await call if inspect.isawaitable(call) else call


async def drain(stream):
    """Reads a stream of either SDK to its end."""
    if SYNC:
        return b"".join(stream)
    return b"".join([part async for part in stream])


async def pages(paginator):
    found = []
    while paginator.has_next:
        found += await do(paginator.next_items())
    return found


def log(line):
    print(json.dumps(line), flush=True)


async def check(name, run):
    """Runs one check and prints how it went. The checks of a program run one after the other."""
    start = time.monotonic()
    line = {"name": name, "ok": True}
    try:
        await asyncio.wait_for(run(), LIMIT)
    except Skipped as e:
        line.update(ok=False, skip=str(e))
    except BaseException:
        line.update(ok=False, error=traceback.format_exc())
    line["ms"] = round(1000 * (time.monotonic() - start))
    log(line)


async def until(what, condition, limit=60):
    """Waits for a condition that is bound to come true, and says what it waited for if it does not."""
    end = time.monotonic() + limit
    while True:
        got = condition()
        got = await do(got)
        if got:
            return got
        if time.monotonic() > end:
            raise TimeoutError(f"waited {limit} s for {what}")
        await asyncio.sleep(0.05)


async def raises(kind, call, *words):
    """Holds a call to an exception of this kind with these words in its text. The call is a function, because the
    synchronous SDK raises at once."""
    try:
        got = await do(call())
    except kind as e:
        for word in words:
            assert word in str(e), f"{word!r} is not in: {e}"
        return e
    raise AssertionError(f"no {kind} but {got!r}")


_seen = set()


def _profile(frame, event, _):
    if event == "call":
        _seen.add(frame.f_code)


def run(main):
    """Runs a program, and prints which methods of the SDK it called."""
    sys.setprofile(_profile)
    asyncio.run(main())
    sys.setprofile(None)
    log({"called": sorted(name for name, code in public() if code in _seen)})
    leave()


def leave():
    """Ends the process at once. The SDK's HTTP client has threads of its own that now and then abort a Python which
    takes its time to end."""
    os._exit(0)


def public():
    """Lists the public methods of the SDK in use, as their classes have them."""
    box = Interpreter.__mro__
    owners = {"sandbox": box, "Template": Template.__mro__, "Secret": Secret.__mro__, "Volume": Volume.__mro__}
    owners["builder"] = e2b.template.main.TemplateBuilder.__mro__
    kind = "sync" if SYNC else "async"
    for name, module in {
        "commands": f"sandbox_{kind}.commands.command:Commands",
        "handle": f"sandbox_{kind}.commands.command_handle:{'' if SYNC else 'Async'}CommandHandle",
        "pty": f"sandbox_{kind}.commands.pty:Pty",
        "files": f"sandbox_{kind}.filesystem.filesystem:Filesystem",
        "watch": f"sandbox_{kind}.filesystem.watch_handle:{'' if SYNC else 'Async'}WatchHandle",
        "git": f"sandbox_{kind}.git:Git",
    }.items():
        path, cls = module.split(":")
        owners[name] = getattr(__import__(f"e2b.{path}", fromlist=[cls]), cls).__mro__
    for owner, mro in owners.items():
        done = set()
        for cls in mro:
            if not cls.__module__.startswith("e2b"):
                continue
            for name, member in vars(cls).items():
                code = _code(member)
                if name.startswith("_") or name in done or code is None:
                    continue
                done.add(name)
                yield f"{owner}.{name}", code


def _code(member):
    if isinstance(member, property):
        return None
    member = getattr(member, "method", None) or getattr(member, "__func__", member)  # class_method_variant, classmethod
    return getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None


if __name__ == "__main__":
    log({"api": sorted(name for name, _ in public())})

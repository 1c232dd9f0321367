"""Has the official Python client call every tool: drive.py stdio PROGRAM | http URL KEY. As drive.mjs does."""

import asyncio
import json
import os
import pathlib
import sys
import time
import urllib.request

import httpx2
from mcp import Client, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

steps = json.loads((pathlib.Path(__file__).parent / "steps.json").read_text())
kind, target = sys.argv[1:3]
saved = {}
answer = True
notes = 0


async def elicit(context, params):
    if answer:
        return types.ElicitResult(action="accept", content={"allow": True})
    return types.ElicitResult(action="decline")


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file://" + os.getcwd())])


async def progress(done, total, message):
    global notes
    notes += 1


def fill(v):
    return saved[v[1:]] if isinstance(v, str) and v.startswith("$") else v


async def step(client, s):
    global answer
    answer = s.get("answer", True)
    args = {k: fill(v) for k, v in s["args"].items()}
    res = await client.call_tool(s["tool"], args, progress_callback=progress)
    text = "\n".join(c.text for c in res.content if c.type == "text")
    if fill(s["want"]) not in text or bool(res.is_error) != s.get("failed", False):
        raise AssertionError(f"is_error {res.is_error}: {text}")
    if s.get("image") and not any(c.type == "image" and c.data.startswith("iVBOR") for c in res.content):
        raise AssertionError("no picture")
    for name, field in s.get("save", {}).items():
        saved[name] = res.structured_content[field]
    if "fetch" in s and kind == "stdio":  # Python finds no names below localhost
        got = urllib.request.urlopen(res.structured_content["url"] + s["fetch"]["path"]).read().decode()
        if got != s["fetch"]["want"]:
            raise AssertionError(f"the port answers {got!r}")


def transport():
    if kind == "stdio":
        return stdio_client(StdioServerParameters(command=target, args=["mcp"], env=dict(os.environ)))
    return streamable_http_client(target, http_client=httpx2.AsyncClient(headers={"Authorization": "Bearer " + sys.argv[3]}, timeout=120), max_sse_event_size=16 << 20)


async def main():
    called = []
    async with Client(transport(), elicitation_callback=elicit, list_roots_callback=roots) as client:
        for i, s in enumerate(steps):
            if s.get("local") and kind != "stdio":
                continue
            began, error = time.monotonic(), ""
            try:
                await step(client, s)
            except Exception as e:
                error = f"{type(e).__name__}: {e}"
            called.append(s["tool"])
            print(json.dumps({"name": f"{i} {s['tool']}", "ok": not error, "error": error, "ms": int(1000 * (time.monotonic() - began))}), flush=True)
        offered = [t.name for t in (await client.list_tools()).tools]
        missing = [t for t in offered if t not in called]
        print(json.dumps({"name": "every tool", "ok": not missing, "error": ", ".join(missing)}))
        log = await client.read_resource("sandbox://default/log")
        print(json.dumps({"name": "resources", "ok": "made from template" in log.contents[0].text, "error": str(log)}))
        print(json.dumps({"name": "progress", "ok": notes > 0, "error": "none was told"}))
        print(json.dumps({"called": called}), flush=True)


asyncio.run(main())

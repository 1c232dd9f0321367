"""The sandbox client of the OpenAI Agents SDK against Firebreak, step by step and without a model.

    firebreak serve                 # in another terminal; it prints three lines to export
    pip install openai-agents e2b
    python openai_agents.py

An agent gets the same session: Runner.run(agent, …, run_config=RunConfig(sandbox=SandboxRunConfig(session=session))).
"""

import asyncio
import io
from pathlib import Path

from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions, E2BSandboxType
from agents.sandbox import Manifest
from agents.sandbox.entries import File

SALES = b"north 12\nsouth 30\nnorth 8\n"
REPORT = """
import collections, sys
total = collections.Counter()
for line in open('sales.txt'):
    region, units = line.split()
    total[region] += int(units)
for region, units in sorted(total.items()):
    print(region, units)
"""


async def main():
    client = E2BSandboxClient()
    session = await client.create(
        manifest=Manifest(entries={"sales.txt": File(content=SALES)}),
        options=E2BSandboxClientOptions(sandbox_type=E2BSandboxType.E2B, timeout=300, envs={"WHO": "agent"}),
    )
    async with session:
        await session.write(Path("report.py"), io.BytesIO(REPORT.encode()))
        ran = await session.exec("python3 report.py | tee report.txt; echo by $WHO")
        print(ran.stdout.decode(), end="")
        print("failed with", (await session.exec("exit 3")).exit_code)
        print("read:", (await session.read(Path("report.txt"))).read())
        print("files:", sorted(Path(entry.path).name for entry in await session.ls(Path("."))))

        shell = await session.pty_exec_start("python3", "-q", tty=True, yield_time_s=2)
        shown = shell.output
        for typed in ["print(6 * 7)\n"] + 10 * [""]:  # nothing typed is waiting for more
            shown += (await session.pty_write_stdin(session_id=shell.process_id, chars=typed, yield_time_s=1)).output
            if b"42" in shown:
                break
        print("terminal:", b"42" in shown)

        saved = await session.persist_workspace()
        print("saved:", len(saved.read()) > 1000)
        print("running:", await session.running())
    print("running:", await session.running())


asyncio.run(main())

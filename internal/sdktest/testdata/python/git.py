"""The git helpers of the package e2b, with repositories within the sandbox."""

from check import Sandbox, check, do, raises, run
from e2b import GitUpstreamException

WORK = "/home/user/work"


async def main():
    sbx = await do(Sandbox.create(timeout=300))
    git, files = sbx.git, sbx.files

    async def start():
        await do(git.init("/home/user/origin.git", bare=True, initial_branch="main"))
        await do(git.init(WORK, initial_branch="main"))
        await do(git.configure_user("Test", "test@example.com"))
        assert await do(git.get_config("user.name")) == "Test"
        await do(git.set_config("core.abbrev", "9", scope="local", path=WORK))
        assert await do(git.get_config("core.abbrev", scope="local", path=WORK)) == "9"
        assert await do(git.get_config("no.such")) is None

    await check("git.init and configure_user", start)

    async def commit():
        await do(files.write(f"{WORK}/a.txt", "a\n"))
        await do(files.write(f"{WORK}/b c.txt", "b\n"))
        assert (await do(git.status(WORK))).untracked_count == 2
        await do(git.add(WORK, files=["a.txt"]))
        assert (await do(git.status(WORK))).staged_count == 1
        await do(git.add(WORK))
        await do(git.commit(WORK, 'first "commit"', author_name="A", author_email="a@example.com"))
        status = await do(git.status(WORK))
        assert status.is_clean and status.current_branch == "main"

    await check("git.add, status and commit", commit)

    async def branches():
        await do(git.create_branch(WORK, "topic"))
        await do(git.checkout_branch(WORK, "main"))
        found = await do(git.branches(WORK))
        assert (sorted(found.branches), found.current_branch) == (["main", "topic"], "main")
        await do(git.delete_branch(WORK, "topic", force=True))
        assert (await do(git.branches(WORK))).branches == ["main"]

    await check("branches", branches)

    async def undo():
        await do(files.write(f"{WORK}/a.txt", "changed\n"))
        await do(git.restore(WORK, ["a.txt"]))
        assert await do(files.read(f"{WORK}/a.txt")) == "a\n"
        await do(files.write(f"{WORK}/a.txt", "staged\n"))
        await do(git.add(WORK))
        await do(git.reset(WORK, mode="hard", target="HEAD"))
        assert await do(files.read(f"{WORK}/a.txt")) == "a\n"

    await check("git.reset and restore", undo)

    async def remotes():
        await raises(GitUpstreamException, lambda: git.pull(WORK))
        await do(git.remote_add(WORK, "origin", "/home/user/origin.git"))
        assert await do(git.remote_get(WORK, "origin")) == "/home/user/origin.git"
        await do(git.push(WORK, remote="origin", branch="main"))
        await do(git.clone("/home/user/origin.git", path="/home/user/copy"))
        assert await do(files.read("/home/user/copy/b c.txt")) == "b\n"
        await do(files.write("/home/user/copy/new.txt", "n\n"))
        await do(git.add("/home/user/copy"))
        await do(git.commit("/home/user/copy", "more"))
        await do(git.push("/home/user/copy"))
        await do(git.pull(WORK))
        assert await do(files.read(f"{WORK}/new.txt")) == "n\n"

    await check("remotes, git.push, pull and clone", remotes)

    async def credentials():
        await do(git.dangerously_authenticate("u", "p", host="git.example.com"))
        assert await do(files.read("/home/user/.git-credentials")) == "https://u:p@git.example.com\n"

    await check("git.dangerously_authenticate", credentials)

    await do(sbx.kill())


run(main)

"""Files through the package e2b."""

import hashlib
import io
import os

from check import SYNC, Sandbox, check, do, drain, raises, run, until
from e2b import FileNotFoundException, FilesystemEventType, FileType, InvalidArgumentException


async def main():
    sbx = await do(Sandbox.create(timeout=300))
    files = sbx.files

    async def formats():
        info = await do(files.write("/tmp/a.txt", "text €"))
        assert (info.name, info.path, info.type) == ("a.txt", "/tmp/a.txt", FileType.FILE), info
        assert await do(files.read("/tmp/a.txt")) == "text €"
        assert await do(files.read("/tmp/a.txt", format="bytes")) == "text €".encode()
        assert await drain(await do(files.read("/tmp/a.txt", format="stream"))) == "text €".encode()
        assert await do(files.read("/tmp/a.txt", gzip=True)) == "text €"
        await do(files.write("/tmp/empty", ""))
        assert await do(files.read("/tmp/empty")) == ""
        assert await drain(await do(files.read("/tmp/empty", format="stream"))) == b""

    await check("files.write and files.read in every format", formats)

    async def kinds():
        data = os.urandom(1000)
        await do(files.write("/tmp/kind/bytes", data))
        await do(files.write("/tmp/kind/io", io.BytesIO(data)))
        await do(files.write("/tmp/kind/octet", data, use_octet_stream=True))
        await do(files.write("/tmp/kind/zipped", data, gzip=True))
        await do(files.write("/tmp/kind/form", data, use_octet_stream=False))
        for name in ("bytes", "io", "octet", "zipped", "form"):
            assert await do(files.read(f"/tmp/kind/{name}", format="bytes")) == data, name
        paths = [f"/tmp/many/{name}" for name in ("one", "deep/er/two", "drei €")]
        for octet in (False, True):
            written = await do(files.write_files([{"path": p, "data": f"{p} {octet}"} for p in paths], use_octet_stream=octet))
            assert [w.path for w in written] == paths
            for p in paths:
                assert await do(files.read(p)) == f"{p} {octet}"

    await check("every kind of data, several files at once", kinds)

    async def names():
        for name in ["with space", "é€😀", "100%", "a?b#c&d=e+f", "quote'\"", "semi;colon", "-dash", "~tilde", "back\\slash", "%41"]:
            path = f"/tmp/names/{name}"
            assert (await do(files.write(path, name))).path == path
            assert await do(files.read(path)) == name, name
            assert (await do(files.get_info(path))).name == name
        assert len(await do(files.list("/tmp/names"))) == 10
        assert (await do(files.write("here.txt", "x"))).path == "/home/user/here.txt"
        assert (await do(files.write("~/here.txt", "x", user="root"))).path == "/root/here.txt"

    await check("names of all kinds", names)

    async def info():
        await do(sbx.commands.run("cd /tmp && printf 12345 >info && chmod 640 info && ln -sf info link && mkdir -p tree/a/b && touch tree/1 tree/a/2"))
        file = await do(files.get_info("/tmp/info"))
        assert (file.size, file.mode & 0o777, file.owner, file.type) == (5, 0o640, "user", FileType.FILE)
        assert "rw-r-----" in file.permissions and file.modified_time is not None
        assert (await do(files.get_info("/tmp/link"))).symlink_target.endswith("info")
        await raises(FileNotFoundException, lambda: files.get_info("/tmp/nothing"))
        assert sorted(e.path for e in await do(files.list("/tmp/tree", depth=2))) == ["/tmp/tree/1", "/tmp/tree/a", "/tmp/tree/a/2", "/tmp/tree/a/b"]
        assert sorted(e.name for e in await do(files.list("/tmp/tree"))) == ["1", "a"]
        await raises(InvalidArgumentException, lambda: files.list("/tmp/tree/1"))
        await raises(FileNotFoundException, lambda: files.list("/tmp/nothing"))
        assert await do(files.exists("/tmp/tree")) is True
        assert await do(files.exists("/tmp/nothing")) is False

    await check("files.get_info, list and exists", info)

    async def changes():
        assert await do(files.make_dir("/tmp/new/deep")) is True
        assert await do(files.make_dir("/tmp/new/deep")) is False
        await do(files.write("/tmp/new/deep/f", "moved"))
        assert (await do(files.rename("/tmp/new/deep/f", "/tmp/other/g"))).path == "/tmp/other/g"
        assert await do(files.read("/tmp/other/g")) == "moved"
        await raises(FileNotFoundException, lambda: files.rename("/tmp/nothing", "/tmp/x"))
        await do(files.remove("/tmp/other"))
        await do(files.remove("/tmp/other"))
        await raises(FileNotFoundException, lambda: files.read("/tmp/other/g"))
        await raises(InvalidArgumentException, lambda: files.read("/tmp"))

    await check("files.make_dir, rename and remove", changes)

    async def metadata():
        marks = {"origin": "agent", "step-2": "value with space"}
        assert (await do(files.write("/home/user/meta", "x", metadata=marks))).metadata == marks
        assert (await do(files.get_info("/home/user/meta"))).metadata == marks

    await check("metadata of files", metadata)

    async def big():
        data = os.urandom(32 << 20)
        digest = hashlib.sha256(data).hexdigest()
        await do(files.write("/tmp/big", data))
        assert (await do(sbx.commands.run("sha256sum </tmp/big"))).stdout.split()[0] == digest
        await do(files.write("/tmp/streamed", io.BytesIO(data), use_octet_stream=True))
        assert hashlib.sha256(await drain(await do(files.read("/tmp/streamed", format="stream")))).hexdigest() == digest
        assert hashlib.sha256(await do(files.read("/tmp/big", format="bytes"))).hexdigest() == digest

    await check("32 MiB", big)

    async def watch():
        await do(files.make_dir("/tmp/watched/sub"))
        events = []
        if SYNC:
            handle = files.watch_dir("/tmp/watched", recursive=True, include_entry=True)
        else:
            ended = []
            handle = await files.watch_dir("/tmp/watched", events.append, on_exit=ended.append, recursive=True, include_entry=True, timeout=0)

        async def saw(kind, name):
            def found():
                if SYNC:
                    events.extend(handle.get_new_events())
                return [e for e in events if e.type == kind and e.name == name]

            return (await until(f"{kind} of {name}", found))[0]

        await do(files.write("/tmp/watched/file", "x"))
        assert (await saw(FilesystemEventType.CREATE, "file")).entry.path == "/tmp/watched/file"
        await saw(FilesystemEventType.WRITE, "file")
        await do(files.write("/tmp/watched/sub/deep", "x"))
        await saw(FilesystemEventType.CREATE, "sub/deep")
        await do(files.rename("/tmp/watched/file", "/tmp/watched/name"))
        await saw(FilesystemEventType.RENAME, "file")
        await do(files.remove("/tmp/watched/name"))
        await saw(FilesystemEventType.REMOVE, "name")
        await do(handle.stop())
        if not SYNC:
            assert ended == [None], ended

        async def nothing():
            return await do(files.watch_dir("/tmp/nothing") if SYNC else files.watch_dir("/tmp/nothing", events.append))

        await raises(FileNotFoundException, nothing)

    await check("files.watch_dir", watch)

    await do(sbx.kill())


run(main)

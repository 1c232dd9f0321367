"""What this version does not do, and must say so: each of these calls is answered with 501 and a sentence."""

import os

from check import Sandbox, Secret, Volume, check, do, raises, run


async def main():
    sbx = await do(Sandbox.create(timeout=300))
    volume = Volume("vol-1", "name", os.environ["E2B_API_KEY"])  # there is none, and so no token of one
    here = {"api_url": os.environ["E2B_API_URL"]}
    calls = {
        "sandbox.fork": lambda: sbx.fork(count=2),
        "sandbox.create_snapshot": lambda: sbx.create_snapshot(),
        "sandbox.list_snapshots": lambda: sbx.list_snapshots().next_items(),
        "sandbox.update_network with rules": lambda: sbx.update_network({"rules": {"example.com": [{"transform": {"headers": {"A": "b"}}}]}}),
        "sandbox.pause without memory": lambda: sbx.pause(mode="filesystem"),
        "sandbox.connect with reboot": lambda: sbx.connect(on_resume="reboot"),
        "Volume.create": lambda: Volume.create("name"),
        "Volume.connect": lambda: Volume.connect("vol-1"),
        "Volume.destroy": lambda: Volume.destroy("vol-1"),
        "Volume.get_info": lambda: Volume.get_info("vol-1"),
        "Volume.list": lambda: Volume.list(),
        "volume.list": lambda: volume.list("/", **here),
        "volume.make_dir": lambda: volume.make_dir("/d", **here),
        "volume.exists": lambda: volume.exists("/d", **here),
        "volume.update_metadata": lambda: volume.update_metadata("/d", mode=0o700, **here),
        "volume.read_file": lambda: volume.read_file("/f", **here),
        "volume.write_file": lambda: volume.write_file("/f", "x", **here),
        "volume.remove": lambda: volume.remove("/f", **here),
        "Secret.create": lambda: Secret.create("name", "value"),
        "Secret.update": lambda: Secret.update("name", "value"),
        "Secret.get_info": lambda: Secret.get_info("name"),
        "Secret.list": lambda: Secret.list().next_items(),
        "Secret.exists": lambda: Secret.exists("name"),
        "Secret.destroy": lambda: Secret.destroy("name"),
        "Sandbox.create with rules": lambda: Sandbox.create(
            network={"rules": {"example.com": [{"transform": {"headers": {"A": Secret.fill("name")}}}]}}
        ),
        "Sandbox.create with iam": lambda: Sandbox.create(
            iam={"tokens": {"aws": Secret.iam_token(audience="sts.amazonaws.com", token_type="JWT-SVID")}}
        ),
        "Sandbox.create with volume_mounts": lambda: Sandbox.create(volume_mounts={"/mnt": "name"}),
    }
    for name, call in calls.items():

        async def refused(call=call):
            e = await raises(Exception, call, "501")
            assert len(str(e).split()) > 4, e

        await check(name, refused)

    async def delete():
        assert await do(Sandbox.delete_snapshot("no-such-snapshot:default")) is False

    await check("Sandbox.delete_snapshot", delete)
    await do(sbx.kill())


run(main)

// Earlier versions of the package e2b, which speak the first version of the API, and in part leave the headers out that say
// which sandbox a request is for.
import assert from 'node:assert/strict'
import { check, finish } from './check.mjs'

for (const name of ['e2b-2.12', 'e2b-2.45']) {
  const { Sandbox } = await import(name)
  await check(name, async () => {
    const mark = `${name}-${process.pid}`
    const sbx = await Sandbox.create('base', { timeoutMs: 60_000, metadata: { mark }, envs: { WHO: name } })
    assert.equal((await sbx.commands.run('echo $WHO')).stdout, `${name}\n`)
    await sbx.files.write('/tmp/x', 'written')
    assert.equal(await sbx.files.read('/tmp/x'), 'written')
    assert.deepEqual((await sbx.files.list('/tmp')).map((e) => e.name).filter((n) => n === 'x'), ['x'])
    assert.equal((await (await fetch(await sbx.downloadUrl('/tmp/x'))).text()), 'written')
    assert.equal(await sbx.isRunning(), true)
    const again = await Sandbox.connect(sbx.sandboxId)
    await assert.rejects(again.commands.run('exit 3'), (e) => e.exitCode === 3)
    assert.deepEqual((await Sandbox.list({ query: { metadata: { mark } } }).nextItems()).map((s) => s.sandboxId), [sbx.sandboxId])
    await sbx.setTimeout(120_000)
    assert.ok((await sbx.getInfo()).endAt - Date.now() > 60_000)
    await sbx.kill()
    assert.equal(await sbx.isRunning(), false)
  })
}

await finish()

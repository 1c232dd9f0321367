// What this version does not do, and must say so: every one of these calls is answered with 501 and a sentence. The name
// of a check is the name of the method, which docs/e2b.md lists as refused.
import assert from 'node:assert/strict'
import { Sandbox, Secret, Volume } from 'e2b'
import { check, finish } from './check.mjs'

const sbx = await Sandbox.create({ timeoutMs: 300_000 })
const volume = new Volume('vol-1', 'name', process.env.E2B_API_KEY) // there is none, and so no token of one
const here = { apiUrl: process.env.E2B_API_URL }
const notImplemented = (e) => {
  assert.match(e.message, /501/)
  assert.match(e.message.replace(/^.*501:? */s, ''), /\w+ \w+ \w+/, 'a sentence')
  return true
}
const refused = (name, call) => check(name, () => assert.rejects(async () => call(), notImplemented), { refused: /^\w+\.\w+$/.test(name) })

await refused('Sandbox.fork', () => Sandbox.fork(sbx.sandboxId))
await refused('sandbox.fork', () => sbx.fork({ count: 2 }))
await refused('Sandbox.createSnapshot', () => Sandbox.createSnapshot(sbx.sandboxId, { name: 'snap' }))
await refused('sandbox.createSnapshot', () => sbx.createSnapshot())
await refused('Sandbox.listSnapshots', () => Sandbox.listSnapshots().nextItems())
await refused('sandbox.listSnapshots', () => sbx.listSnapshots({ limit: 3 }).nextItems())
await refused('Sandbox.updateNetwork with rules', () => Sandbox.updateNetwork(sbx.sandboxId, { rules: { 'example.com': [{ transform: { headers: { A: 'b' } } }] } }))
await refused('sandbox.updateNetwork with egressProxy', () => sbx.updateNetwork({ egressProxy: { address: 'proxy.example.com:1080' } }))

await refused('Volume.create', () => Volume.create('name'))
await refused('Volume.connect', () => Volume.connect('vol-1'))
await refused('Volume.getInfo', () => Volume.getInfo('vol-1'))
await refused('Volume.list', () => Volume.list())
await refused('Volume.destroy', () => Volume.destroy('vol-1'))
await refused('volume.list', () => volume.list('/', here))
await refused('volume.makeDir', () => volume.makeDir('/d', here))
await refused('volume.getInfo', () => volume.getInfo('/d', here))
await refused('volume.exists', () => volume.exists('/d', here))
await refused('volume.updateMetadata', () => volume.updateMetadata('/d', { mode: 0o700 }, here))
await refused('volume.readFile', () => volume.readFile('/f', here))
await refused('volume.writeFile', () => volume.writeFile('/f', 'x', here))
await refused('volume.remove', () => volume.remove('/f', here))

await refused('Secret.create', () => Secret.create('name', 'value'))
await refused('Secret.update', () => Secret.update('name', 'value'))
await refused('Secret.getInfo', () => Secret.getInfo('name'))
await refused('Secret.list', () => Secret.list().nextItems())
await refused('Secret.exists', () => Secret.exists('name'))
await refused('Secret.destroy', () => Secret.destroy('name'))

await refused('Sandbox.create with rules', () => Sandbox.create({ network: { allowOut: ['example.com'], denyOut: ['0.0.0.0/0'], rules: { 'example.com': [{ transform: { headers: { A: Secret.fill('name') } } }] } } }))
await refused('Sandbox.create with egressProxy', () => Sandbox.create({ network: { egressProxy: { address: 'proxy.example.com:1080' } } }))
await refused('Sandbox.create with httpsPorts', () => Sandbox.create({ network: { httpsPorts: [8443] } }))
await refused('Sandbox.create with iam', () => Sandbox.create({ iam: { tokens: { aws: Secret.iamToken({ audience: 'sts.amazonaws.com', tokenType: 'JWT-SVID' }) } } }))
await refused('Sandbox.create with volumeMounts', () => Sandbox.create({ volumeMounts: { '/mnt': 'name' } }))

await refused('sandbox.pause without memory', () => sbx.pause({ keepMemory: false }))
await refused('Sandbox.connect with reboot', () => Sandbox.connect(sbx.sandboxId, { onResume: 'reboot' }))
await refused('Sandbox.create with a pause without memory', () => Sandbox.create({ lifecycle: { onTimeout: { action: 'pause', keepMemory: false } } }))

await check('Sandbox.deleteSnapshot', async () => {
  assert.equal(await Sandbox.deleteSnapshot('no-such-snapshot:default'), false)
})

await check('helpers that only write text', async () => {
  assert.equal(Secret.fill('key'), '${e2b.secrets.key}')
})

await sbx.kill()
await finish()

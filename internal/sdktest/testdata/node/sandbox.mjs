// The life of sandboxes through the package e2b: creation with all options, finding them again, their time, pausing with
// the memory kept, signed addresses of files.
import assert from 'node:assert/strict'
import { AuthenticationError, E2B, Sandbox, SandboxError, SandboxNotFoundError, TimeoutError, getSignature } from 'e2b'
import { check, finish, gate, until } from './check.mjs'

const MINUTE = 60_000
const mark = `sandbox-${process.pid}` // metadata by which this program finds its own sandboxes
const all = async (pages) => {
  const found = []
  while (pages.hasNext) found.push(...(await pages.nextItems()))
  return found
}

let sbx
await check('Sandbox.create with every option', async () => {
  sbx = await Sandbox.create('base', {
    timeoutMs: 2 * MINUTE,
    metadata: { mark, 'a b': 'c&d=é' },
    envs: { GREETING: 'hello', 'EMPTY': '' },
    secure: true,
    allowInternetAccess: false,
    lifecycle: { onTimeout: 'kill' },
    network: { allowPublicTraffic: true },
    requestTimeoutMs: MINUTE,
    retries: 1,
    logger: { error: () => {} },
    apiHeaders: { 'x-test': 'yes' },
  })
  assert.match(sbx.sandboxId, /^[a-z0-9]+$/)
  const { stdout } = await sbx.commands.run('echo "$GREETING, $E2B_SANDBOX, $E2B_SANDBOX_ID, ${EMPTY-unset}"')
  assert.equal(stdout, `hello, true, ${sbx.sandboxId}, \n`)
})

await check('sandbox.getInfo', async () => {
  const info = await sbx.getInfo()
  assert.equal(info.sandboxId, sbx.sandboxId)
  assert.deepEqual(info.metadata, { mark, 'a b': 'c&d=é' })
  assert.equal(info.state, 'running')
  assert.equal(info.lifecycle.onTimeout, 'kill')
  assert.equal(info.lifecycle.autoResume, false)
  assert.ok(info.cpuCount >= 1 && info.memoryMB >= 64, `${info.cpuCount} CPUs, ${info.memoryMB} MB`)
  const left = info.endAt - Date.now()
  assert.ok(left > MINUTE && left <= 2 * MINUTE + 5000, `${left} ms are left`)
  assert.ok(Math.abs(info.startedAt - Date.now()) < MINUTE)
  assert.deepEqual(await Sandbox.getInfo(sbx.sandboxId), info)
  assert.deepEqual(await Sandbox.getFullInfo(sbx.sandboxId), info)
})

await check('Sandbox.getInfo of an unknown sandbox', async () => {
  await assert.rejects(Sandbox.getInfo('i0000000000000000000'), SandboxNotFoundError)
  await assert.rejects(Sandbox.connect('i0000000000000000000'), SandboxNotFoundError)
  await assert.rejects(Sandbox.setTimeout('i0000000000000000000', MINUTE), SandboxNotFoundError)
  await assert.rejects(Sandbox.pause('i0000000000000000000'), SandboxNotFoundError)
  await assert.rejects(Sandbox.getMetrics('i0000000000000000000'), SandboxNotFoundError)
})

await check('a wrong key', async () => {
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
  await assert.rejects(Sandbox.getInfo(sbx.sandboxId, { apiKey: 'nonsense' }), AuthenticationError)
})

await check('an unknown template', async () => {
  await assert.rejects(Sandbox.create('there-is-no-such-template'), (e) => e instanceof SandboxError && /40[04]/.test(e.message))
})

await check('a wrong timeout', async () => {
  await assert.rejects(Sandbox.create({ timeoutMs: 0 }), (e) => e instanceof SandboxError && /400/.test(e.message))
})

await check('Sandbox.connect', async () => {
  const again = await Sandbox.connect(sbx.sandboxId)
  await again.files.write('/tmp/shared', 'by the one')
  assert.equal(await sbx.files.read('/tmp/shared'), 'by the one')
  assert.equal(await sbx.connect({ timeoutMs: 1000 }), sbx)
  assert.ok((await sbx.getInfo()).endAt - Date.now() > MINUTE, 'connecting never shortens the time')
  await sbx.connect({ timeoutMs: 4 * MINUTE })
  assert.ok((await sbx.getInfo()).endAt - Date.now() > 3 * MINUTE, 'connecting extends the time')
})

await check('sandbox.setTimeout', async () => {
  await sbx.setTimeout(10 * MINUTE)
  assert.ok((await sbx.getInfo()).endAt - Date.now() > 9 * MINUTE)
  await Sandbox.setTimeout(sbx.sandboxId, 3 * MINUTE)
  const left = (await sbx.getInfo()).endAt - Date.now()
  assert.ok(left > 2 * MINUTE && left < 4 * MINUTE, `${left} ms are left`)
})

await check('sandbox.isRunning', async () => {
  assert.equal(await sbx.isRunning(), true)
})

await check('sandbox.getMetrics', async () => {
  const [first] = await until('a metric', async () => {
    const got = await sbx.getMetrics()
    return got.length > 0 && got
  })
  assert.ok(first.timestamp instanceof Date && !Number.isNaN(first.timestamp.getTime()))
  assert.ok(first.cpuCount >= 1 && first.memTotal > 0 && first.memUsed >= 0 && first.diskTotal > 0, JSON.stringify(first))
  assert.deepEqual(await Sandbox.getMetrics(sbx.sandboxId, { start: new Date(0), end: new Date(1000) }), [])
})

await check('E2B with options of its own', async () => {
  const client = new E2B({ apiKey: process.env.E2B_API_KEY, apiUrl: process.env.E2B_API_URL, sandboxUrl: process.env.E2B_SANDBOX_URL })
  const own = await client.Sandbox.connect(sbx.sandboxId)
  assert.equal((await own.commands.run('echo own')).stdout, 'own\n')
})

await check('Sandbox.list', async () => {
  const others = await Promise.all([1, 2, 3].map((n) => Sandbox.create({ metadata: { mark, number: `${n}` }, timeoutMs: MINUTE })))
  const pages = Sandbox.list({ query: { metadata: { mark } }, limit: 3 })
  assert.equal(pages.hasNext, true)
  assert.equal(pages.nextToken, undefined)
  const first = await pages.nextItems()
  assert.equal(first.length, 3)
  assert.equal(pages.hasNext, true)
  assert.ok(pages.nextToken)
  const rest = await pages.nextItems()
  assert.equal(pages.hasNext, false)
  assert.deepEqual([...first, ...rest].map((s) => s.sandboxId).sort(), [sbx, ...others].map((s) => s.sandboxId).sort())
  const from = await all(Sandbox.list({ query: { metadata: { mark } }, limit: 1, order: 'asc' }))
  assert.equal(from[0].sandboxId, sbx.sandboxId, 'the oldest first')
  assert.deepEqual(from.map((s) => s.startedAt.getTime()), from.map((s) => s.startedAt.getTime()).toSorted((a, b) => a - b))

  assert.deepEqual((await all(Sandbox.list({ query: { metadata: { mark, number: '2' } } }))).map((s) => s.sandboxId), [others[1].sandboxId])
  assert.deepEqual((await all(Sandbox.list({ query: { metadata: { 'a b': 'c&d=é', mark } } }))).map((s) => s.sandboxId), [sbx.sandboxId])
  assert.equal((await all(Sandbox.list({ query: { metadata: { mark }, state: ['paused'] } }))).length, 0)
  assert.equal((await all(Sandbox.list({ query: { metadata: { mark }, state: ['running', 'paused'], template: 'base' } }))).length, 4)
  assert.equal((await all(Sandbox.list({ query: { metadata: { mark }, template: 'no-such' } }))).length, 0)
  assert.equal((await all(Sandbox.list({ query: { metadata: { mark }, startedAfter: new Date(Date.now() + MINUTE) } }))).length, 0)
  assert.deepEqual(await Promise.all(others.map((o) => o.kill())), [true, true, true])
  assert.equal((await all(Sandbox.list({ query: { metadata: { mark } } }))).length, 1)
})

await check('sandbox.kill', async () => {
  const short = await Sandbox.create({ metadata: { mark } })
  assert.equal(await short.kill(), true)
  assert.equal(await short.kill(), false)
  assert.equal(await Sandbox.kill(short.sandboxId), false)
  assert.equal(await short.isRunning(), false)
  await assert.rejects(short.commands.run('true'), SandboxNotFoundError)
  await assert.rejects(short.files.read('/etc/hostname'), TimeoutError)
  await assert.rejects(Sandbox.connect(short.sandboxId), SandboxNotFoundError)
})

await check('the end of its time', async () => {
  const brief = await Sandbox.create({ metadata: { mark }, timeoutMs: 5000 })
  await until('the end of the sandbox', async () => !(await brief.isRunning()))
  await until('the news of it', () => brief.getInfo().then(() => false, (e) => e instanceof SandboxNotFoundError))
})

await check('sandbox.pause keeps the memory', async () => {
  const { opened: two, open } = gate()
  const counter = await sbx.commands.run('n=40; while read -r line; do n=$((n+1)); echo $n; done', {
    background: true,
    stdin: true,
    timeoutMs: 0,
    onStdout: (text) => text.includes('41') && open(),
  })
  await sbx.commands.sendStdin(counter.pid, 'x\n')
  await two
  assert.equal(await sbx.pause(), true)
  assert.equal((await sbx.getInfo()).state, 'paused')
  assert.equal(await sbx.pause(), false)
  assert.equal(await Sandbox.pause(sbx.sandboxId), false)
  assert.deepEqual((await all(Sandbox.list({ query: { metadata: { mark }, state: ['paused'] } }))).map((s) => s.sandboxId), [sbx.sandboxId])
  const back = await Sandbox.connect(sbx.sandboxId, { timeoutMs: 3 * MINUTE })
  assert.equal((await back.getInfo()).state, 'running')
  const { opened: three, open: seen } = gate()
  const same = await back.commands.connect(counter.pid, { timeoutMs: 0, onStdout: (text) => text.includes('42') && seen() })
  await back.commands.sendStdin(counter.pid, 'x\n')
  await three
  assert.equal(await same.kill(), true)
  assert.deepEqual((await back.getInfo()).metadata, { mark, 'a b': 'c&d=é' })
  assert.equal((await back.commands.run('echo $GREETING')).stdout, 'hello\n')
})

await check('sandbox.betaPause', async () => {
  assert.equal(await sbx.betaPause(), true)
  assert.equal(await Sandbox.betaPause(sbx.sandboxId), false)
  await sbx.connect({ onResume: 'restore' })
  assert.equal(await sbx.isRunning(), true)
})

await check('pause twice, changes kept', async () => {
  for (const round of ['one', 'two', 'three']) {
    await sbx.commands.run(`echo ${round} >>/tmp/rounds`)
    assert.equal(await sbx.pause(), true)
    await sbx.connect()
  }
  assert.equal(await sbx.files.read('/tmp/rounds'), 'one\ntwo\nthree\n')
})

await check('a paused sandbox without autoResume', async () => {
  await sbx.pause()
  await assert.rejects(sbx.commands.run('true', { requestTimeoutMs: 10_000 }))
  assert.equal((await sbx.getInfo()).state, 'paused')
  await sbx.connect()
})

await check('a paused sandbox can be killed', async () => {
  const one = await Sandbox.create({ metadata: { mark } })
  await one.pause()
  assert.equal(await one.kill(), true)
  await assert.rejects(one.getInfo(), SandboxNotFoundError)
})

await check('auto-pause at the timeout, auto-resume at a request', async () => {
  const sleepy = await Sandbox.create({ metadata: { mark }, timeoutMs: 10_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
  const state = async () => (await sleepy.getInfo()).state
  assert.deepEqual((await sleepy.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true })
  await until('the pause', async () => (await state()) === 'paused')
  assert.equal((await sleepy.commands.run('echo awake')).stdout, 'awake\n')
  assert.equal(await state(), 'running')
  await sleepy.kill()
})

await check('auto-pause keeps its rule after a resume', async () => {
  const sleepy = await Sandbox.create({ metadata: { mark }, timeoutMs: 1000, lifecycle: { onTimeout: 'pause' } })
  const state = async () => (await sleepy.getInfo()).state
  await until('the first pause', async () => (await state()) === 'paused')
  await sleepy.connect({ timeoutMs: 1000 })
  await until('the second pause', async () => (await state()) === 'paused')
  await sleepy.kill()
})

await check('sandbox.updateNetwork', async () => {
  await sbx.updateNetwork({ allowOut: ['example.com'], denyOut: ({ allTraffic }) => [allTraffic], allowInternetAccess: false })
  const { network, allowInternetAccess } = await sbx.getInfo()
  assert.deepEqual([network.allowOut, network.denyOut, allowInternetAccess], [['example.com'], ['0.0.0.0/0'], false])
  await Sandbox.updateNetwork(sbx.sandboxId, { denyOut: ['10.0.0.0/8'] })
  assert.deepEqual((await sbx.getInfo()).network.allowOut ?? [], [])
  await assert.rejects(sbx.updateNetwork({ allowOut: ['example.com'] }), /400/)
  await assert.rejects(Sandbox.updateNetwork('i0000000000000000000', {}), SandboxNotFoundError)
})

await check('no way out', async () => {
  const { stdout } = await sbx.commands.run('ls /sys/class/net; timeout 5 bash -c "echo >/dev/tcp/1.1.1.1/80" 2>&1 || echo none')
  assert.match(stdout, /none\n$/)
})

await check('sandbox.downloadUrl', async () => {
  await sbx.files.write('/tmp/a b é.txt', 'signed')
  const url = await sbx.downloadUrl('/tmp/a b é.txt')
  const got = await fetch(url)
  assert.equal(got.status, 200, await got.clone().text())
  assert.equal(await got.text(), 'signed')
  assert.equal((await fetch(url, { headers: { range: 'bytes=2-3' } })).status, 206)
  const soon = await sbx.downloadUrl('/tmp/a b é.txt', { useSignatureExpiration: 60, user: 'user' })
  assert.equal(await (await fetch(soon)).text(), 'signed')
  const past = await sbx.downloadUrl('/tmp/a b é.txt', { useSignatureExpiration: -60 })
  assert.equal((await fetch(past)).status, 401)
  const forged = new URL(url)
  forged.searchParams.set('path', '/etc/hostname')
  assert.equal((await fetch(forged)).status, 401)
  const later = new URL(soon)
  later.searchParams.set('signature_expiration', `${Math.floor(Date.now() / 1000) + 9000}`)
  assert.equal((await fetch(later)).status, 401)
})

await check('sandbox.uploadUrl', async () => {
  const form = () => {
    const data = new FormData()
    data.append('file', new Blob(['from outside']), '/tmp/outside.txt')
    return data
  }
  const url = await sbx.uploadUrl('/tmp/outside.txt')
  const sent = await fetch(url, { method: 'POST', body: form() })
  assert.equal(sent.status, 200, await sent.clone().text())
  assert.equal(await sbx.files.read('/tmp/outside.txt'), 'from outside')
  const home = await fetch(await sbx.uploadUrl(undefined, { useSignatureExpiration: 60 }), { method: 'POST', body: form() })
  assert.equal(home.status, 200, await home.text())
  assert.equal((await fetch(url, { method: 'GET' })).status, 401, 'a signature for writing reads nothing')
})

await check('getSignature', async () => {
  const [a, b] = await Promise.all(['tok', 'other'].map((envdAccessToken) => getSignature({ path: '/x', operation: 'read', user: 'user', envdAccessToken })))
  assert.match(a.signature, /^v1_/)
  assert.notEqual(a.signature, b.signature)
})

await check('sandbox.getHost', async () => {
  assert.match(sbx.getHost(8080), new RegExp(`^8080-${sbx.sandboxId}\\..+`))
})

await check('sandbox.getMcpUrl and getMcpToken', async () => {
  assert.equal(sbx.getMcpUrl(), `https://${sbx.getHost(50005)}/mcp`)
  await sbx.commands.run('mkdir -p /etc/mcp-gateway && printf secret >/etc/mcp-gateway/.token && chmod 600 /etc/mcp-gateway/.token', { user: 'root' })
  assert.equal(await sbx.getMcpToken(), 'secret')
})

await check('a token is needed', async () => {
  const stranger = new Sandbox({ sandboxId: sbx.sandboxId, envdVersion: '0.6.13' })
  await assert.rejects(stranger.commands.run('true'), AuthenticationError)
  await assert.rejects(stranger.files.list('/'), AuthenticationError)
  await assert.rejects(stranger.files.read('/etc/hostname'), AuthenticationError)
})

await check('a request that is aborted', async () => {
  await assert.rejects(Sandbox.create({ signal: AbortSignal.abort() }), { name: 'AbortError' })
})

await check('no sandbox of this program is left', async () => {
  await sbx.kill()
  assert.deepEqual(await all(Sandbox.list({ query: { metadata: { mark } } })), [])
})

await finish()

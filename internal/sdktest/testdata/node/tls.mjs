// Everything over TLS and host names, as against E2B itself: no E2B_SANDBOX_URL, and the certificates of the server's own
// authority, which NODE_EXTRA_CA_CERTS names. The one thing that is not real is the name server.
import assert from 'node:assert/strict'
import dns from 'node:dns'
import https from 'node:https'
import { Sandbox } from '@e2b/code-interpreter'
import { check, finish, until } from './check.mjs'

const domain = process.env.E2B_DOMAIN
const name = domain.split(':')[0]
const lookup = dns.lookup
dns.lookup = (host, options, done) => {
  if (!host.endsWith(`.${name}`)) return lookup(host, options, done)
  return options.all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4)
}

const get = (host, options = {}) =>
  new Promise((resolve, reject) => {
    const request = https.request(`https://${host}${options.path ?? '/'}`, { agent: false, ...options }, (response) => {
      let body = ''
      response.on('data', (part) => (body += part)).on('end', () => resolve({ status: response.statusCode, headers: response.headers, body }))
    })
    request.on('error', reject).end(options.body)
  })

const SERVER = `
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = json.dumps({'path': self.path, 'host': self.headers['Host'], 'token': self.headers.get('X-Access-Token'), 'method': self.command}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.do_GET()
http.server.ThreadingHTTPServer(('127.0.0.1', 8080), Handler).serve_forever()
`

let sbx
await check('create, run and write by host names', async () => {
  assert.equal(process.env.E2B_SANDBOX_URL, undefined)
  sbx = await Sandbox.create({ timeoutMs: 300_000 })
  assert.equal(sbx.sandboxDomain, domain)
  assert.equal((await sbx.commands.run('echo over TLS')).stdout, 'over TLS\n')
  await sbx.files.write('/tmp/x', 'y'.repeat(1 << 20))
  assert.equal((await sbx.files.read('/tmp/x')).length, 1 << 20)
  assert.equal((await sbx.runCode('1 + 1')).text, '2')
  assert.equal(await sbx.isRunning(), true)
  await sbx.pause()
  await sbx.connect()
  assert.equal((await sbx.getInfo()).sandboxDomain, domain)
})

await check('sandbox.getHost', async () => {
  await sbx.files.write('/tmp/server.py', SERVER)
  await sbx.commands.run('exec python3 /tmp/server.py', { background: true, timeoutMs: 0 })
  const host = sbx.getHost(8080)
  assert.equal(host, `8080-${sbx.sandboxId}.${domain}`)
  const answer = await until('the server in the sandbox', async () => {
    const got = await get(host, { path: '/some/path?q=1' })
    return got.status === 200 && JSON.parse(got.body)
  })
  assert.deepEqual(answer, { path: '/some/path?q=1', host, token: null, method: 'GET' })
  const posted = await get(host, { method: 'POST', body: 'x'.repeat(100_000), headers: { 'content-length': 100_000 } })
  assert.equal(JSON.parse(posted.body).method, 'POST')
  assert.equal((await get(sbx.getHost(8081))).status, 502)
  assert.equal((await get(`8080-i0000000000000000000.${domain}`)).status, 502)
})

await check('HTTP/2 is offered', async () => {
  const { connect } = await import('node:http2')
  const session = connect(`https://${sbx.getHost(8080)}`)
  const status = await new Promise((resolve, reject) => {
    session.on('error', reject)
    session.request({ ':path': '/h2' }).on('response', (headers) => resolve(headers[':status'])).on('error', reject).resume()
  })
  session.close()
  assert.equal(status, 200)
})

await check('sandbox.downloadUrl and uploadUrl', async () => {
  const url = new URL(await sbx.downloadUrl('/tmp/x', { useSignatureExpiration: 60 }))
  assert.equal(url.host, `49983-${sbx.sandboxId}.${domain}`)
  assert.equal((await fetch(url)).status, 200)
  const form = new FormData()
  form.append('file', new Blob(['up']), 'up')
  assert.equal((await fetch(await sbx.uploadUrl('/tmp/up'), { method: 'POST', body: form })).status, 200)
  assert.equal(await sbx.files.read('/tmp/up'), 'up')
})

await check('ports that only who has the token may reach', async () => {
  const own = await Sandbox.create({ timeoutMs: 60_000, network: { allowPublicTraffic: false } })
  assert.ok(own.trafficAccessToken)
  await own.files.write('/tmp/server.py', SERVER)
  await own.commands.run('exec python3 /tmp/server.py', { background: true, timeoutMs: 0 })
  const headers = { 'e2b-traffic-access-token': own.trafficAccessToken }
  await until('the server in the sandbox', async () => (await get(own.getHost(8080), { headers })).status === 200)
  assert.equal((await get(own.getHost(8080))).status, 403)
  assert.equal((await own.runCode('2 + 2')).text, '4')
  await own.kill()
})

await check('a certificate of another authority is not enough', async () => {
  await assert.rejects(get(sbx.getHost(8080), { ca: [] }), /certificate/)
})

await sbx.kill()
await finish()

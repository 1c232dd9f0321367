// Has a client of the official packages call every tool: drive.mjs VERSION stdio PROGRAM | http URL KEY. The work directory
// is what the client shares. Prints a line of JSON for each step, and what was called.
import { readFileSync } from 'node:fs'
import { get } from 'node:http'

const [version, kind, target, key] = process.argv.slice(2)
const steps = JSON.parse(readFileSync(new URL('steps.json', import.meta.url)))
const root = 'file://' + process.cwd()
let answer = true, notes = 0
const elicit = async () => ({ action: answer ? 'accept' : 'decline', ...(answer ? { content: { allow: true } } : {}) })
const roots = async () => ({ roots: [{ uri: root, name: 'work' }] })

async function clientOf() {
  const info = [{ name: 'drive', version: '1' }, { capabilities: { elicitation: { form: {} }, roots: {} } }]
  const options = { requestInit: { headers: { 'X-API-Key': key } } }
  if (version === '1') {
    const { Client } = await import('@modelcontextprotocol/sdk/client/index.js')
    const types = await import('@modelcontextprotocol/sdk/types.js')
    const client = new Client(...info)
    client.setRequestHandler(types.ElicitRequestSchema, elicit)
    client.setRequestHandler(types.ListRootsRequestSchema, roots)
    const { StdioClientTransport } = await import('@modelcontextprotocol/sdk/client/stdio.js')
    const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js')
    await client.connect(kind === 'stdio' ? new StdioClientTransport({ command: target, args: ['mcp'], env: process.env }) : new StreamableHTTPClientTransport(new URL(target), options))
    return client
  }
  const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client')
  const { StdioClientTransport } = await import('@modelcontextprotocol/client/stdio')
  const client = new Client(...info)
  client.setRequestHandler('elicitation/create', elicit)
  client.setRequestHandler('roots/list', roots)
  await client.connect(kind === 'stdio' ? new StdioClientTransport({ command: target, args: ['mcp'], env: process.env }) : new StreamableHTTPClientTransport(new URL(target), options))
  return client
}

// read asks the server for a name of its domain, as a browser would that can resolve it.
function read(url) {
  const at = kind === 'stdio' ? url : new URL(target)
  return new Promise((done, failed) => get({ host: at.hostname, port: at.port, path: url.pathname, headers: { host: url.host } }, async (res) => {
    let text = ''
    for await (const part of res) text += part
    done(text)
  }).on('error', failed))
}

const saved = {}
const fill = (v) => typeof v === 'string' && v[0] === '$' ? saved[v.slice(1)] : v

async function step(client, s) {
  answer = s.answer ?? true
  const args = Object.fromEntries(Object.entries(s.args).map(([k, v]) => [k, fill(v)]))
  const call = { name: s.tool, arguments: args }
  const options = { onprogress: () => { notes++ }, timeout: 120_000 }
  const res = version === '1' ? await client.callTool(call, undefined, options) : await client.callTool(call, options)
  const text = res.content.filter((c) => c.type === 'text').map((c) => c.text).join('\n')
  if (!text.includes(fill(s.want)) || !!res.isError !== !!s.failed) throw new Error(`isError ${res.isError}: ${text}`)
  if (s.image && !res.content.some((c) => c.type === 'image' && c.mimeType === 'image/png' && c.data.startsWith('iVBOR'))) throw new Error('no picture')
  for (const [name, field] of Object.entries(s.save ?? {})) saved[name] = res.structuredContent[field]
  if (s.fetch) {
    const got = await read(new URL(s.fetch.path, res.structuredContent.url))
    if (got !== s.fetch.want) throw new Error(`the port answers ${JSON.stringify(got)}`)
  }
}

const client = await clientOf()
const called = []
for (const [i, s] of steps.entries()) {
  if (s.local && kind !== 'stdio') continue
  const began = Date.now()
  let error = ''
  try { await step(client, s) } catch (e) { error = String(e?.stack ?? e) }
  called.push(s.tool)
  console.log(JSON.stringify({ name: `${i} ${s.tool}`, ok: error === '', error, ms: Date.now() - began }))
}
const offered = (await client.listTools()).tools.map((t) => t.name)
const missing = offered.filter((t) => !called.includes(t))
console.log(JSON.stringify({ name: 'every tool', ok: missing.length === 0, error: missing.join(', ') }))
const log = await client.readResource({ uri: 'sandbox://default/log' })
console.log(JSON.stringify({ name: 'resources', ok: log.contents[0].text.includes('made from template'), error: JSON.stringify(log) }))
console.log(JSON.stringify({ name: 'progress', ok: notes > 0, error: 'none was told' }))
console.log(JSON.stringify({ called }))
await client.close()

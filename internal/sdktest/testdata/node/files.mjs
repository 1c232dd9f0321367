// Files through the package e2b.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { FileNotFoundError, FilesystemEventType, FileType, InvalidArgumentError, Sandbox } from 'e2b'
import { check, finish, until } from './check.mjs'

const sbx = await Sandbox.create({ timeoutMs: 300_000 })
const { files } = sbx
const stream = (...parts) =>
  new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(typeof part === 'string' ? new TextEncoder().encode(part) : part)
      controller.close()
    },
  })
const drain = async (readable) => {
  const parts = []
  for await (const part of readable) parts.push(part)
  return Buffer.concat(parts)
}
const sum = (bytes) => createHash('sha256').update(bytes).digest('hex')

await check('files.write and files.read in every format', async () => {
  const info = await files.write('/tmp/a.txt', 'text €')
  assert.deepEqual([info.name, info.path, info.type], ['a.txt', '/tmp/a.txt', 'file'])
  assert.equal(await files.read('/tmp/a.txt'), 'text €')
  assert.deepEqual(await files.read('/tmp/a.txt', { format: 'bytes' }), new TextEncoder().encode('text €'))
  assert.equal(await (await files.read('/tmp/a.txt', { format: 'blob' })).text(), 'text €')
  assert.equal((await drain(await files.read('/tmp/a.txt', { format: 'stream' }))).toString(), 'text €')
  assert.equal(await files.read('/tmp/a.txt', { gzip: true }), 'text €')
})

await check('an empty file', async () => {
  await files.write('/tmp/empty', '')
  assert.equal(await files.read('/tmp/empty'), '')
  assert.equal((await files.read('/tmp/empty', { format: 'bytes' })).length, 0)
  assert.equal((await files.read('/tmp/empty', { format: 'blob' })).size, 0)
  assert.equal((await drain(await files.read('/tmp/empty', { format: 'stream' }))).length, 0)
})

await check('every kind of data', async () => {
  const bytes = randomBytes(1000)
  for (const [name, data] of [
    ['buffer', bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)],
    ['blob', new Blob([bytes])],
    ['stream', stream(bytes.subarray(0, 400), bytes.subarray(400))],
  ]) {
    await files.write(`/tmp/kind/${name}`, data)
    assert.deepEqual(Buffer.from(await files.read(`/tmp/kind/${name}`, { format: 'bytes' })), bytes, name)
  }
  await files.write('/tmp/kind/octet', 'octets', { useOctetStream: true })
  await files.write('/tmp/kind/zipped', 'zipped '.repeat(1000), { gzip: true })
  await files.write('/tmp/kind/form', stream('in a form'), { useOctetStream: false })
  assert.equal(await files.read('/tmp/kind/octet'), 'octets')
  assert.equal(await files.read('/tmp/kind/zipped'), 'zipped '.repeat(1000))
  assert.equal(await files.read('/tmp/kind/form'), 'in a form')
})

await check('several files at once', async () => {
  const names = ['one', 'deep/er/two', 'drei €'].map((name) => `/tmp/many/${name}`)
  const written = await files.write(names.map((path) => ({ path, data: path })))
  assert.deepEqual(written.map((w) => w.path), names)
  const octets = await files.writeFiles(names.map((path) => ({ path, data: stream(path, '!') })))
  assert.deepEqual(octets.map((w) => w.path), names)
  for (const path of names) assert.equal(await files.read(path), `${path}!`)
  assert.deepEqual(await files.write([]), [])
})

await check('names of all kinds', async () => {
  for (const name of ['with space', 'é€😀', '100%', 'a?b#c&d=e+f', `quote'"`, 'semi;colon', '-dash', '~tilde', 'back\\slash', '%41', ' lead', 'trail ']) {
    const path = `/tmp/names/${name}`
    const info = await files.write(path, name)
    assert.deepEqual([info.path, info.name], [path, name])
    assert.equal(await files.read(path), name, name)
    assert.equal(await files.exists(path), true, name)
    assert.equal((await files.getInfo(path)).name, name)
    await files.write(path, `${name}!`, { useOctetStream: true })
    assert.equal(await files.read(path), `${name}!`)
  }
  assert.equal((await files.list('/tmp/names')).length, 12)
})

await check('relative paths and the home of the user', async () => {
  assert.equal((await files.write('here.txt', 'x')).path, '/home/user/here.txt')
  assert.equal((await files.getInfo('~/here.txt')).path, '/home/user/here.txt')
  assert.equal((await files.write('~/here.txt', 'x', { user: 'root' })).path, '/root/here.txt')
  const info = await files.getInfo('/root/here.txt', { user: 'root' })
  assert.deepEqual([info.owner, info.group], ['root', 'root'])
})

await check('files.getInfo', async () => {
  await sbx.commands.run('cd /tmp && printf 12345 >info && chmod 640 info && ln -sf info link && mkdir -p dir')
  const file = await files.getInfo('/tmp/info')
  assert.equal(file.type, FileType.FILE)
  assert.deepEqual([file.name, file.path, file.size, file.mode & 0o777, file.owner], ['info', '/tmp/info', 5, 0o640, 'user'])
  assert.match(file.permissions, /rw-r-----/)
  assert.ok(Math.abs(file.modifiedTime - Date.now()) < 60_000)
  assert.equal(file.symlinkTarget, undefined)
  assert.equal((await files.getInfo('/tmp/dir')).type, FileType.DIR)
  const link = await files.getInfo('/tmp/link')
  assert.match(link.symlinkTarget, /info$/)
  await assert.rejects(files.getInfo('/tmp/nothing'), FileNotFoundError)
})

await check('files.list', async () => {
  await sbx.commands.run('mkdir -p /tmp/tree/a/b/c && touch /tmp/tree/1 /tmp/tree/a/2 /tmp/tree/a/b/3')
  const names = async (depth) => (await files.list('/tmp/tree', { depth })).map((e) => e.path.slice('/tmp/tree/'.length)).toSorted()
  assert.deepEqual(await names(undefined), ['1', 'a'])
  assert.deepEqual(await names(2), ['1', 'a', 'a/2', 'a/b'])
  assert.deepEqual(await names(9), ['1', 'a', 'a/2', 'a/b', 'a/b/3', 'a/b/c'])
  assert.deepEqual(await files.list('/tmp/tree/a/b/c'), [])
  await assert.rejects(files.list('/tmp/tree/1'), InvalidArgumentError)
  await assert.rejects(files.list('/tmp/nothing'), FileNotFoundError)
  await assert.rejects(files.list('/tmp', { depth: 0 }), InvalidArgumentError)
})

await check('files.exists', async () => {
  assert.equal(await files.exists('/tmp/tree/1'), true)
  assert.equal(await files.exists('/tmp/tree'), true)
  assert.equal(await files.exists('/tmp/tree/x'), false)
})

await check('files.makeDir', async () => {
  assert.equal(await files.makeDir('/tmp/new/deep/dir'), true)
  assert.equal(await files.makeDir('/tmp/new/deep/dir'), false)
  assert.equal((await files.getInfo('/tmp/new/deep')).owner, 'user')
  await assert.rejects(files.makeDir('/tmp/tree/1'), InvalidArgumentError)
  assert.equal(await files.makeDir('/workspace'), true)
  assert.equal((await sbx.commands.run('touch /workspace/mine && stat -c %U /workspace')).stdout, 'user\n')
})

await check('files.rename', async () => {
  await files.write('/tmp/old', 'moved')
  const info = await files.rename('/tmp/old', '/tmp/other/new')
  assert.deepEqual([info.path, info.name], ['/tmp/other/new', 'new'])
  assert.equal(await files.read('/tmp/other/new'), 'moved')
  assert.equal(await files.exists('/tmp/old'), false)
  assert.equal((await files.rename('/tmp/other', '/tmp/whole')).type, FileType.DIR)
  assert.equal(await files.read('/tmp/whole/new'), 'moved')
  await assert.rejects(files.rename('/tmp/nothing', '/tmp/x'), FileNotFoundError)
})

await check('files.remove', async () => {
  await files.remove('/tmp/whole')
  assert.equal(await files.exists('/tmp/whole'), false)
  await files.remove('/tmp/whole')
})

await check('what cannot be read or written', async () => {
  await assert.rejects(files.read('/tmp/nothing'), FileNotFoundError)
  await assert.rejects(files.read('/tmp'), InvalidArgumentError)
  await assert.rejects(files.read('/tmp/nothing', { format: 'stream' }), FileNotFoundError)
  await assert.rejects(files.write('/tmp/tree', 'x'), InvalidArgumentError)
})

await check('metadata of files', async () => {
  const metadata = { origin: 'agent', 'step-2': 'value with space' }
  assert.deepEqual((await files.write('/home/user/meta', 'x', { metadata })).metadata, metadata)
  assert.deepEqual((await files.getInfo('/home/user/meta')).metadata, metadata)
  assert.deepEqual((await files.list('/home/user')).find((e) => e.name === 'meta').metadata, metadata)
  assert.deepEqual((await files.rename('/home/user/meta', '/home/user/meta2')).metadata, metadata)
  await files.write('/home/user/meta2', 'x')
  assert.equal((await files.getInfo('/home/user/meta2')).metadata, undefined)
  await assert.rejects(files.write('/home/user/meta3', 'x', { metadata: { 'a b': 'x' } }), InvalidArgumentError)
})

await check('32 MiB', async () => {
  const big = randomBytes(32 << 20)
  await files.write('/tmp/big', new Blob([big]))
  assert.equal((await sbx.commands.run('sha256sum </tmp/big')).stdout.slice(0, 64), sum(big))
  assert.equal(sum(await files.read('/tmp/big', { format: 'bytes' })), sum(big))
  const pieces = Array.from({ length: 32 }, (_, i) => big.subarray(i << 20, (i + 1) << 20))
  await files.write('/tmp/streamed', stream(...pieces))
  assert.equal(sum(await drain(await files.read('/tmp/streamed', { format: 'stream' }))), sum(big))
})

await check('a download that is given up', async () => {
  const readable = await files.read('/tmp/big', { format: 'stream' })
  for await (const part of readable) {
    assert.ok(part.length > 0)
    break
  }
  assert.equal(await files.exists('/tmp/big'), true)
})

await check('files.watchDir', async () => {
  await files.makeDir('/tmp/watched/sub')
  const seen = []
  let ended = 0
  const watch = await files.watchDir('/tmp/watched', (event) => void seen.push(event), { onExit: () => void ended++, timeoutMs: 0 })
  const saw = (type, name) => until(`${type} of ${name}`, () => seen.some((e) => e.type === type && e.name === name))
  await files.write('/tmp/watched/file', 'x')
  await saw(FilesystemEventType.CREATE, 'file')
  await saw(FilesystemEventType.WRITE, 'file')
  await sbx.commands.run('chmod 600 /tmp/watched/file')
  await saw(FilesystemEventType.CHMOD, 'file')
  await files.rename('/tmp/watched/file', '/tmp/watched/name')
  await saw(FilesystemEventType.RENAME, 'file')
  await saw(FilesystemEventType.CREATE, 'name')
  await files.remove('/tmp/watched/name')
  await saw(FilesystemEventType.REMOVE, 'name')
  await files.write('/tmp/watched/sub/deep', 'x')
  await files.write('/tmp/watched/last', 'x')
  await saw(FilesystemEventType.CREATE, 'last')
  assert.ok(!seen.some((e) => e.name.includes('deep')))
  assert.ok(seen.every((e) => e.entry === undefined))
  await watch.stop()
  await until('the end of the watch', () => ended === 1)
})

await check('files.watchDir, recursive and with entries', async () => {
  const seen = []
  const watch = await files.watchDir('/tmp/watched', (event) => void seen.push(event), { recursive: true, includeEntry: true, timeoutMs: 0 })
  await files.write('/tmp/watched/sub/deep2', 'xyz')
  const created = await until('the event', () => seen.find((e) => e.name === 'sub/deep2' && e.type === FilesystemEventType.CREATE))
  assert.deepEqual([created.entry.path, created.entry.type, created.entry.owner], ['/tmp/watched/sub/deep2', FileType.FILE, 'user'])
  await sbx.commands.run('mkdir /tmp/watched/later')
  await until('the new directory', () => seen.some((e) => e.name === 'later'))
  await sbx.commands.run('touch /tmp/watched/later/in')
  await until('a file in it', () => seen.some((e) => e.name === 'later/in'))
  await watch.stop()
})

await check('a watch that cannot be', async () => {
  await assert.rejects(files.watchDir('/tmp/nothing', () => {}), FileNotFoundError)
  await assert.rejects(files.watchDir('/tmp/tree/1', () => {}), InvalidArgumentError)
})

await check('a watch whose time is up', async () => {
  let ended
  await files.watchDir('/tmp/watched', () => {}, { timeoutMs: 3000, onExit: (e) => (ended = e ?? 'no error') })
  assert.match(`${await until('the end', () => ended)}`, /TimeoutError|deadline/)
})

await sbx.kill()
await finish()

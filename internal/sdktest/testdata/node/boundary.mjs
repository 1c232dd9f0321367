// The same calls behind any boundary: the arguments are the template, its language and the table boundaries.json, in which
// stands what is run and what comes of it; host is the template behind gVisor, and the others have no processes.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { Sandbox } from '@e2b/code-interpreter'
import { check, finish, until } from './check.mjs'

const [template, language, path] = process.argv.slice(2)
const table = JSON.parse(readFileSync(path, 'utf8'))
const here = table[language]
const linux = template === 'host'
const asked = linux ? language : undefined // a template of one language needs no word for it
const place = { host: '', wasm: 'a WASM sandbox', v8: 'a V8 sandbox' }[template.split('-')[0]]
const cells = here.cells.filter((c) => !c.node || template !== 'wasm-javascript') // QuickJS has no modules of Node
const forms = ['text', 'html', 'markdown', 'svg', 'png', 'latex', 'json']

// holds holds a run to a cell of the table.
function holds(cell, got) {
  const shown = got.results.map((r) => ({
    ...Object.fromEntries(forms.filter((f) => r[f] !== undefined).map((f) => [f, r[f]])),
    ...(r.isMainResult ? { main: true } : {}),
  }))
  assert.deepEqual(shown, cell.results ?? ('text' in cell ? [{ text: cell.text, main: true }] : []), JSON.stringify(got.error))
  assert.equal(got.logs.stdout.join(''), cell.stdout ?? '')
  assert.equal(got.logs.stderr.join(''), cell.stderr ?? '')
  if (!cell.error) {
    assert.equal(got.error, undefined)
    return
  }
  const [name, value] = cell.error
  assert.equal(got.error?.name, name)
  assert.ok(got.error.value.includes(value), got.error.value)
  assert.ok(got.error.traceback.includes(cell.traceback ?? name), got.error.traceback)
}

const sbx = await Sandbox.create(template, { timeoutMs: 300_000, envs: { FROM_SANDBOX: 'yes' }, metadata: { of: template, kit: `node ${language}` } })
await sbx.files.write('in.txt', 'by client')
const code = (text, more = {}) => sbx.runCode(text, more.context ? more : { language: asked, ...more })

const counts = []
for (const cell of cells) {
  await check(`${cell.node ? 'node' : 'code'}: ${cell.name}`, async () => {
    const seen = { results: 0, errors: 0, stdout: [], stderr: [] }
    const got = await code(cell.code, {
      envs: cell.envs,
      onResult: () => seen.results++,
      onError: () => seen.errors++,
      onStdout: (m) => seen.stdout.push(m.line),
      onStderr: (m) => seen.stderr.push(m.line),
    })
    holds(cell, got)
    assert.deepEqual(seen, { results: got.results.length, errors: got.error ? 1 : 0, ...got.logs })
    counts.push(got.executionCount)
  })
}

await check('runs are counted', async () => {
  assert.deepEqual(counts, cells.map((_, i) => counts[0] + i))
})

await check('much output', async () => {
  const got = await code(here.lines)
  assert.equal(got.error, undefined)
  assert.equal(got.logs.stdout.join(''), Array.from({ length: 5000 }, (_, i) => `${i}\n`).join(''))
  holds({ text: '2' }, await code(here.two))
})

await check('the language by its name', async () => {
  assert.equal((await sbx.runCode(here.two, { language })).text, '2')
})

await check('contexts', async () => {
  await sbx.files.makeDir('/tmp/there')
  const context = await sbx.createCodeContext({ cwd: '/tmp/there', language: asked })
  assert.deepEqual([context.language, context.cwd], [language, '/tmp/there'])
  await code(here.set, { context })
  assert.equal((await code(here.isSet, { context })).text, here.yes)
  assert.equal((await code(here.isSet)).text, here.no)
  if (here.directory) assert.equal((await code(here.directory, { context })).text, '/tmp/there')
  assert.ok((await sbx.listCodeContexts()).some((c) => c.id === context.id))
  await sbx.restartCodeContext(context)
  assert.equal((await code(here.isSet, { context })).text, here.no)
  await sbx.removeCodeContext(context)
  assert.ok(!(await sbx.listCodeContexts()).some((c) => c.id === context.id))
  await assert.rejects(code('1', { context }), /not found/)
})

await check('files that code imports', async () => {
  for (const cwd of ['/home/user', '/tmp/there']) {
    await sbx.files.write(`${cwd}/${here.own.file}`, here.own.text)
    const context = await sbx.createCodeContext({ cwd, language: asked })
    for (const cell of here.own.cells) holds(cell, await code(cell.code, { context }))
    await sbx.removeCodeContext(context)
  }
})

await check('output comes while the code runs', async () => {
  const context = await sbx.createCodeContext({ language: asked })
  const heard = []
  let removed
  const got = await code(here.wait, {
    context,
    onStdout: (m) => {
      heard.push(m.line)
      removed = sbx.removeCodeContext(context) // or else the code never ends
    },
  })
  await removed
  assert.deepEqual([heard, got.error.name], [['begun\n'], 'KernelDied'])
})

// alive runs code until nothing is told any more of a state that was lost.
async function alive(lost) {
  let got = await code(here.two)
  if (lost) {
    assert.equal(got.error?.name, 'KernelDied')
    assert.match(got.error.value, /its state is lost/)
    got = await code(here.two)
  }
  holds({ text: '2' }, got)
}

await check('life after a loop without end', async () => {
  await assert.rejects(code(here.loop, { timeoutMs: 2000 }), /timed out|timeout/i)
  await alive(!linux)
})

await check('files', async () => {
  const { files } = sbx
  const all = new Uint8Array(256).map((_, i) => i)
  const info = await files.write('d/a.txt', 'é\n', { metadata: { k: 'v' } })
  assert.deepEqual([info.name, info.path], ['a.txt', '/home/user/d/a.txt'])
  await files.write([{ path: 'd/b', data: new Blob([all]) }, { path: 'd/e/f', data: '' }])
  assert.equal(await files.read('d/a.txt'), 'é\n')
  assert.deepEqual(await files.read('d/b', { format: 'bytes' }), all)
  assert.deepEqual((await files.list('d', { depth: 2 })).map((e) => [e.path, e.type]), [
    ['/home/user/d/a.txt', 'file'], ['/home/user/d/b', 'file'], ['/home/user/d/e', 'dir'], ['/home/user/d/e/f', 'file'],
  ])
  const a = await files.getInfo('d/a.txt')
  assert.deepEqual([a.size, a.owner, a.permissions, a.metadata], [3, 'user', '-rw-r--r--', { k: 'v' }])
  assert.deepEqual([await files.makeDir('d/g'), await files.makeDir('d/g')], [true, false])
  assert.equal((await files.rename('d/a.txt', 'd/g/c')).path, '/home/user/d/g/c')
  assert.deepEqual([await files.exists('d/a.txt'), await files.exists('d/g/c')], [false, true])
  await files.remove('d')
  await files.remove('d')
  assert.equal(await files.exists('d'), false)
  await assert.rejects(files.read('d/b'), /no such file or directory/)
  await assert.rejects(files.list('d'), /no such file or directory/)
  await assert.rejects(files.rename('d', 'e'), /no such file or directory/)
  await assert.rejects(files.list('in.txt'), /not a directory/)
  await assert.rejects(files.read('/home/user'), /not a file but a directory/)
})

await check('a directory is watched', async () => {
  const heard = []
  await sbx.files.makeDir('/tmp/w')
  const watching = await sbx.files.watchDir('/tmp/w', (e) => heard.push(`${e.name} ${e.type}`), { recursive: true })
  await sbx.files.write('/tmp/w/a', 'x')
  await sbx.files.rename('/tmp/w/a', '/tmp/w/b')
  await sbx.files.remove('/tmp/w/b')
  await until('five events', () => ['a create', 'a write', 'a rename', 'b create', 'b remove'].every((e) => heard.includes(e)))
  await watching.stop()
  await assert.rejects(sbx.files.watchDir('/tmp/none', () => {}), /no such file or directory/)
})

if (template !== 'wasm-javascript') {
  await check(`${language === 'python' ? 'code' : 'node'}: what it wrote`, async () => {
    assert.equal(await sbx.files.read('made/by_code.txt'), 'by code')
  })
}

const failed = (want) => (e) => {
  assert.deepEqual([e.exitCode, e.stdout, e.stderr], want)
  return true
}

await check('a program', async () => {
  await sbx.files.write(here.file, here.text)
  const said = { out: '', err: '' }
  const want = language === 'python' ? '1,a b é by client\n' : '1,a b é\n'
  const run = sbx.commands.run(`${here.program} ${here.file} 1 'a b'`, {
    envs: { A: 'é' },
    onStdout: (text) => (said.out += text),
    onStderr: (text) => (said.err += text),
  })
  await assert.rejects(run, failed([3, want, 'why\n']))
  assert.deepEqual(said, { out: want, err: 'why\n' })
  if (language === 'python') assert.equal(await sbx.files.read('out.txt'), 'by program')
})

await check('programs of other directories', async () => {
  await sbx.files.makeDir('sub')
  await sbx.files.write('sub/there', language === 'python' ? "print('there')" : "console.log('there')")
  for (const [path, cwd] of [['there', '/home/user/sub'], ['sub/there'], ['../sub/there', 'sub'], ['/home/user/sub/there', '/']]) {
    assert.equal((await sbx.commands.run(`${here.program} ${path}`, { cwd })).stdout, 'there\n', path)
  }
  await assert.rejects(sbx.commands.run(`${here.program} none`), (e) => e.exitCode !== 0 && e.stderr.includes('none'))
  await assert.rejects(sbx.commands.run(`${here.program} there`, { cwd: '/none' }), /does not exist/)
})

await check('a program in the background', async () => {
  const line = `${here.program} ${language === 'python' ? '-c' : '-e'} '${here.loop}'`
  const handle = await sbx.commands.run(line, { background: true })
  const listed = async () => (await sbx.commands.list()).some((p) => p.pid === handle.pid)
  assert.ok(await listed())
  assert.equal(await sbx.commands.kill(handle.pid), true)
  await assert.rejects(handle.wait(), (e) => e.exitCode !== 0)
  assert.ok(!(await listed()))
  assert.equal(await sbx.commands.kill(handle.pid), false)
  await assert.rejects(sbx.commands.run(line, { timeoutMs: 500 }), /timed out|timeout/i)
  if (template.startsWith('v8')) { // where all code of a tenant shares a process, which such loops end
    await until('the end of that process', async () => (await code(here.two)).text === '2')
  }
  await alive(false)
})

await check('life', async () => {
  const info = await sbx.getInfo()
  assert.deepEqual([info.metadata.of, info.state], [template, 'running'])
  if (!linux) assert.equal(info.templateId, template)
  await sbx.setTimeout(1_200_000)
  assert.ok((await sbx.getInfo()).endAt > info.endAt)
  assert.equal(await sbx.isRunning(), true)
  const other = await Sandbox.connect(sbx.sandboxId)
  assert.equal(await other.files.read('in.txt'), 'by client')
  assert.equal((await other.runCode(here.two, { language: asked })).text, '2')
  const mine = await Sandbox.list({ query: { metadata: { of: template, kit: `node ${language}` } } }).nextItems()
  assert.deepEqual(mine.map((s) => s.sandboxId), [sbx.sandboxId])
  assert.ok(Array.isArray(await sbx.getMetrics()))
})

// knock asks a port as a browser would ask what getHost names.
async function knock(port) {
  assert.ok(sbx.getHost(port).startsWith(`${port}-${sbx.sandboxId}.`))
  const answer = await fetch(process.env.E2B_SANDBOX_URL, { headers: { 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': String(port) } })
  assert.equal(answer.status, 502)
  throw new Error((await answer.json()).message)
}

// What cannot work is refused in one sentence; where there are processes, it is no matter of this program.
const calls = {
  run: (line) => sbx.commands.run(line),
  language: (name) => sbx.runCode('1', { language: name }),
  context: (name) => sbx.createCodeContext({ language: name }),
  directory: (cwd) => sbx.createCodeContext({ language: asked, cwd }),
  terminal: () => sbx.pty.create({ rows: 24, cols: 80, onData: () => {} }),
  root: () => sbx.files.write('/root/x', '', { user: 'root' }),
  port: (port) => knock(Number(port)),
  pause: () => sbx.pause(),
  'pause at the end': () => Sandbox.create(template, { lifecycle: { onTimeout: 'pause' } }),
}
if (!linux) {
  const words = { program: here.program, file: here.file, language, place, driver: template.split('-')[0] }
  const fill = (text) => text.replaceAll(/\{(program|file|language|place|driver)\}/g, (_, word) => words[word])
  for (const row of table.refused) {
    await check(`refused: ${row.call} ${row.is}`.trim(), () =>
      assert.rejects(async () => calls[row.call](fill(row.is)), (e) => {
        const text = e.message.trim()
        // Of what the code interpreter refuses, this SDK passes on the status only.
        for (const part of row.status ? [row.status] : row.says) assert.ok(text.includes(fill(part)), `${fill(part)} is not in: ${text}`)
        assert.ok(!text.includes('\n') && text.length < 300, text)
        return true
      }),
    )
  }
  await check('it lives on after all refusals', async () => {
    assert.equal((await code(here.two)).text, '2')
    assert.equal(await sbx.files.read('in.txt'), 'by client')
  })
}

await check('killed', async () => {
  assert.equal(await sbx.kill(), true)
  assert.equal(await sbx.isRunning(), false)
  assert.equal(await sbx.kill(), false)
  await assert.rejects(code('1'), /not found/)
  await assert.rejects(Sandbox.connect(sbx.sandboxId), /not found/i)
})

await finish()

// Commands and terminals through the package e2b.
import assert from 'node:assert/strict'
import { AuthenticationError, CommandExitError, InvalidArgumentError, NotFoundError, Sandbox, TimeoutError } from 'e2b'
import { check, finish, gate, until } from './check.mjs'

const sbx = await Sandbox.create({ timeoutMs: 300_000, envs: { FROM_SANDBOX: 'a', BOTH: 'sandbox' } })
const alive = async (pid) => (await sbx.commands.list()).some((p) => p.pid === pid)

await check('commands.run', async () => {
  const result = await sbx.commands.run('echo out; echo err >&2')
  assert.equal(result.exitCode, 0)
  assert.equal(result.stdout, 'out\n')
  assert.equal(result.stderr, 'err\n')
  assert.equal(result.error, undefined)
})

await check('a command that fails', async () => {
  await assert.rejects(sbx.commands.run('echo out; echo err >&2; exit 3'), (e) => {
    assert.ok(e instanceof CommandExitError, `${e}`)
    assert.deepEqual([e.exitCode, e.stdout, e.stderr, e.error], [3, 'out\n', 'err\n', 'exit status 3'])
    return true
  })
  await assert.rejects(sbx.commands.run('no-such-program'), (e) => e.exitCode === 127 && /not found/.test(e.stderr))
})

await check('output comes while the command runs', async () => {
  const said = []
  const { opened, open } = gate()
  const running = sbx.commands.run('echo first; until [ -e /tmp/go ]; do sleep 0.02; done; echo second; echo third >&2', {
    onStdout: (text) => {
      said.push(text)
      open()
    },
    onStderr: (text) => said.push(text),
  })
  await opened
  assert.deepEqual(said, ['first\n'])
  await sbx.files.write('/tmp/go', '')
  await running
  assert.deepEqual(said.toSorted(), ['first\n', 'second\n', 'third\n'])
})

await check('commands.run in the background', async () => {
  const command = await sbx.commands.run('echo started; until [ -e /tmp/end ]; do sleep 0.02; done; echo ended', { background: true })
  assert.ok(command.pid > 0)
  await until('the first output', () => command.stdout)
  assert.deepEqual([command.exitCode, command.error, command.stderr], [undefined, undefined, ''])
  const listed = (await sbx.commands.list()).find((p) => p.pid === command.pid)
  assert.equal(listed.cmd, '/bin/bash')
  assert.deepEqual(listed.args.slice(0, 2), ['-l', '-c'])
  await sbx.files.write('/tmp/end', '')
  const result = await command.wait()
  assert.equal(result.stdout, 'started\nended\n')
  assert.equal(command.exitCode, 0)
  assert.equal(await alive(command.pid), false)
})

await check('environment', async () => {
  const { stdout } = await sbx.commands.run('echo $FROM_SANDBOX $BOTH $MINE', { envs: { BOTH: 'command', MINE: "it's \"m\" $e" } })
  assert.equal(stdout, `a command it's "m" $e\n`)
})

await check('working directory', async () => {
  assert.equal((await sbx.commands.run('pwd')).stdout, '/home/user\n')
  assert.equal((await sbx.commands.run('pwd', { cwd: '/tmp' })).stdout, '/tmp\n')
  await sbx.files.makeDir('sub dir')
  assert.equal((await sbx.commands.run('pwd', { cwd: 'sub dir' })).stdout, '/home/user/sub dir\n')
  await assert.rejects(sbx.commands.run('pwd', { cwd: '/no/such' }), (e) => e instanceof InvalidArgumentError && /does not exist/.test(e.message))
})

await check('user', async () => {
  assert.equal((await sbx.commands.run('id -un; echo $HOME')).stdout, 'user\n/home/user\n')
  assert.equal((await sbx.commands.run('id -un; echo $HOME', { user: 'root' })).stdout, 'root\n/root\n')
  await assert.rejects(sbx.commands.run('true', { user: 'nobody-of-this-name' }), AuthenticationError)
})

await check('commands.sendStdin and closeStdin', async () => {
  assert.equal(sbx.commands.supportsStdinClose, true)
  const cat = await sbx.commands.run('cat', { background: true, stdin: true })
  await cat.sendStdin('one ')
  await cat.sendStdin(new TextEncoder().encode('two '))
  await sbx.commands.sendStdin(cat.pid, 'drei €\n')
  await cat.closeStdin()
  assert.equal((await cat.wait()).stdout, 'one two drei €\n')
  const wc = await sbx.commands.run('wc -c', { background: true, stdin: true })
  await sbx.commands.sendStdin(wc.pid, 'x'.repeat(1 << 20))
  await sbx.commands.closeStdin(wc.pid)
  assert.equal((await wc.wait()).stdout.trim(), `${1 << 20}`)
  await assert.rejects(sbx.commands.sendStdin(999999, 'x'), NotFoundError)
  const deaf = await sbx.commands.run('cat; echo end of input')
  assert.equal(deaf.stdout, 'end of input\n')
})

await check('commands.connect', async () => {
  const { opened, open } = gate()
  const first = await sbx.commands.run('read -r a; echo "got $a"; read -r b; echo "got $b"; exit 4', { background: true, stdin: true })
  let heard = ''
  const second = await sbx.commands.connect(first.pid, {
    onStdout: (text) => {
      heard += text
      open()
    },
  })
  assert.equal(second.pid, first.pid)
  await first.sendStdin('1\n')
  await opened
  await second.sendStdin('2\n')
  for (const handle of [first, second]) {
    await assert.rejects(handle.wait(), (e) => e instanceof CommandExitError && e.exitCode === 4)
    assert.equal(handle.stdout, 'got 1\ngot 2\n')
  }
  assert.equal(heard, 'got 1\ngot 2\n')
  await assert.rejects(sbx.commands.connect(999999), NotFoundError)
})

await check('a handle that disconnects', async () => {
  let heard = ''
  const command = await sbx.commands.run('read -r line; echo "read $line" >/tmp/read; exec sleep 600', {
    background: true,
    stdin: true,
    timeoutMs: 0,
    onStdout: (text) => (heard += text),
  })
  await command.disconnect()
  assert.equal(await alive(command.pid), true)
  await sbx.commands.sendStdin(command.pid, 'on\n')
  await until('the command to go on', () => sbx.files.exists('/tmp/read'))
  assert.equal(heard, '')
  assert.equal(await sbx.commands.kill(command.pid), true)
  await until('the end of the command', async () => !(await alive(command.pid)))
  assert.equal(await sbx.commands.kill(command.pid), false)
})

await check('handle.kill', async () => {
  const command = await sbx.commands.run('sleep 600', { background: true })
  assert.equal(await command.kill(), true)
  await assert.rejects(command.wait(), (e) => e instanceof CommandExitError && /signal: killed/.test(e.message))
  assert.equal(await command.kill(), false)
})

await check('a command whose time is up', async () => {
  let pid = ''
  for (const timeoutMs of [1000, 4000, 16_000]) { // until the shell has begun by then
    await sbx.commands.run('rm -f /tmp/pid')
    await assert.rejects(sbx.commands.run('echo $$ >/tmp/pid; exec sleep 600', { timeoutMs }), TimeoutError)
    if (await sbx.files.exists('/tmp/pid')) pid = (await sbx.files.read('/tmp/pid')).trim()
    if (pid) break
  }
  assert.ok(pid)
  await until('the end of the process', async () => (await sbx.commands.run(`[ -e /proc/${pid} ] || echo gone`)).stdout === 'gone\n')
})

await check('a command that is aborted', async () => {
  const abort = new AbortController()
  const running = sbx.commands.run('echo x; exec sleep 600', { signal: abort.signal, onStdout: () => abort.abort() })
  await assert.rejects(running)
  const left = (await sbx.commands.list()).filter((p) => p.args.join(' ').includes('sleep 600'))
  assert.equal(left.length, 1, 'an aborted request does not kill its command')
  assert.equal(await sbx.commands.kill(left[0].pid), true)
})

await check('much output', async () => {
  const { stdout } = await sbx.commands.run("head -c 8388608 /dev/zero | tr '\\0' x")
  assert.equal(stdout.length, 8388608)
  const euros = await sbx.commands.run('for i in {1..200}; do printf "€%.0s" {1..1000}; done')
  assert.equal(euros.stdout, '€'.repeat(200_000))
  const both = await sbx.commands.run('for i in {1..500}; do echo out $i; echo err $i >&2; done')
  assert.equal(both.stdout.split('\n').length, 501)
  assert.equal(both.stderr.split('\n').length, 501)
})

await check('many commands at a time', async () => {
  const results = await Promise.all(Array.from({ length: 40 }, (_, i) => sbx.commands.run(`echo ${i}`)))
  assert.deepEqual(results.map((r) => r.stdout), Array.from({ length: 40 }, (_, i) => `${i}\n`))
})

await check('a child that outlives its command', async () => {
  const result = await sbx.commands.run('sleep 600 >/dev/null 2>&1 & echo $!')
  assert.equal((await sbx.commands.run(`kill -9 ${result.stdout.trim()} && echo alive`)).stdout, 'alive\n')
})

await check('pty.create', async () => {
  let screen = ''
  const shell = await sbx.pty.create({
    cols: 91,
    rows: 31,
    cwd: '/tmp',
    envs: { WORD: 'w' },
    onData: (bytes) => {
      screen += new TextDecoder().decode(bytes)
    },
  })
  const type = (text) => sbx.pty.sendInput(shell.pid, new TextEncoder().encode(text))
  await type('echo "[$WORD $TERM $((40+2)) $(pwd) $(stty size)]"\n')
  await until('the answer', () => screen.includes('[w xterm-256color 42 /tmp 31 91]'))
  await sbx.pty.resize(shell.pid, { cols: 120, rows: 40 })
  await type('echo "<$(stty size)>"\n')
  await until('the new size', () => screen.includes('<40 120>'))
  await type('exit 7\n')
  await assert.rejects(shell.wait(), (e) => e instanceof CommandExitError && e.exitCode === 7)
})

await check('Ctrl-C in a terminal', async () => {
  let screen = ''
  const shell = await sbx.pty.create({ cols: 80, rows: 24, onData: (bytes) => void (screen += new TextDecoder().decode(bytes)) })
  const type = (text) => sbx.pty.sendInput(shell.pid, new TextEncoder().encode(text))
  await type('echo re""ady; sleep 600\n')
  await until('the command', () => screen.includes('ready'))
  await type('\x03')
  await type('echo st""atus $?\n')
  await until('its end', () => screen.includes('status 130'))
  assert.equal(await shell.kill(), true)
})

await check('pty.connect and pty.kill', async () => {
  const shell = await sbx.pty.create({ cols: 80, rows: 24, user: 'root', timeoutMs: 0, onData: () => {} })
  await shell.disconnect()
  let screen = ''
  const again = await sbx.pty.connect(shell.pid, { onData: (bytes) => void (screen += new TextDecoder().decode(bytes)) })
  await sbx.pty.sendInput(shell.pid, new TextEncoder().encode('echo "($(id -un))"\n'))
  await until('the answer', () => screen.includes('(root)'))
  assert.equal(await sbx.pty.kill(shell.pid), true)
  await assert.rejects(again.wait(), (e) => e instanceof CommandExitError && /signal: killed/.test(e.message))
  assert.equal(await sbx.pty.kill(shell.pid), false)
  await assert.rejects(sbx.pty.connect(shell.pid + 100000), NotFoundError)
})

await sbx.kill()
await finish()

// Template builds through the package e2b. Nothing here needs a network: what would (pip, apt, npm) is only written down.
import assert from 'node:assert/strict'
import { mkdtempSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BuildError, Sandbox, Template, TemplateError, defaultBuildLogger, waitForFile, waitForPort, waitForProcess, waitForTimeout, waitForURL } from 'e2b'
import { check, finish, until } from './check.mjs'

const context = mkdtempSync(join(tmpdir(), 'context-'))
mkdirSync(join(context, 'app/static'), { recursive: true })
writeFileSync(join(context, 'app/main.py'), 'print("hello from the template")\n')
writeFileSync(join(context, 'app/static/logo.txt'), 'logo\n')
writeFileSync(join(context, 'app/skipped.log'), 'no\n')
writeFileSync(join(context, 'single.txt'), 'single\n')
symlinkSync('single.txt', join(context, 'link.txt'))
const name = `built-${process.pid}`
const open = () => Template({ fileContextPath: context, fileIgnorePatterns: ['**/*.log'] })
const has = async (sbx, command, expected) => assert.equal((await sbx.commands.run(command)).stdout, expected)

let info
await check('Template.build', async () => {
  const template = open()
    .fromTemplate('base')
    .setUser('root')
    .makeDir(['/opt/app', '/opt/data'], { mode: 0o755 })
    .copy('app', '/opt/app/')
    .copy('single.txt', '/opt/data/renamed.txt', { mode: 0o600, user: 'user' })
    .copyItems([{ src: ['single.txt', 'link.txt'], dest: '/opt/items/', resolveSymlinks: true, forceUpload: true }])
    .setEnvs({ STAGE: 'built', SPACED: 'a b' })
    .runCmd(['echo one >/opt/run', 'echo "$STAGE $(id -un)" >>/opt/run'])
    .runCmd('echo as $(id -un) >/home/user/ran', { user: 'user' })
    .makeSymlink('/opt/run', '/opt/link', { force: true })
    .rename('/opt/data/renamed.txt', '/opt/data/final.txt', { force: true })
    .remove('/opt/items/link.txt', { force: true, recursive: true })
    .setWorkdir('/opt/app')
    .setUser('user')
    .setStartCmd('echo started >/tmp/started; exec sleep infinity', waitForFile('/tmp/started'))
  const logs = []
  info = await Template.build(template, name, { tags: ['v1'], cpuCount: 1, memoryMB: 512, onBuildLogs: (entry) => logs.push(entry) })
  assert.equal(info.name, name)
  assert.ok(info.templateId && info.buildId)
  assert.ok(logs.length > 3 && logs.every((l) => l.timestamp instanceof Date && typeof l.message === 'string'))
})

await check('a sandbox of what was built', async () => {
  const sbx = await Sandbox.create(name, { timeoutMs: 120_000 })
  await has(sbx, 'pwd; python3 main.py', '/opt/app\nhello from the template\n')
  await has(sbx, 'echo "$STAGE,$SPACED"; cat /opt/link', 'built,a b\none\nbuilt root\n')
  await has(sbx, 'cat /home/user/ran; stat -c "%U %a" /opt/data/final.txt', 'as user\nuser 600\n')
  await has(sbx, 'cat /opt/app/static/logo.txt; ls /opt/items; ls /opt/app', 'logo\nsingle.txt\nmain.py\nstatic\n')
  await has(sbx, 'cat /tmp/started', 'started\n')
  for (const template of [name, info.templateId]) {
    const found = await Sandbox.list({ query: { template } }).nextItems()
    assert.deepEqual(found.map((s) => s.sandboxId), [sbx.sandboxId], template)
  }
  await sbx.kill()
  const tagged = await Sandbox.create(`${name}:v1`, { timeoutMs: 60_000 })
  await tagged.kill()
})

await check('Template.buildInBackground and getBuildStatus', async () => {
  const build = await Template.buildInBackground(open().fromTemplate(name).runCmd('echo second >/tmp/second').setReadyCmd(waitForTimeout(1)), `${name}-2`)
  let status = await Template.getBuildStatus(build)
  assert.ok(['building', 'waiting', 'ready'].includes(status.status), status.status)
  status = await until('the build', async () => {
    const s = await Template.getBuildStatus(build, { logsOffset: 0 })
    assert.notEqual(s.status, 'error', JSON.stringify(s))
    return s.status === 'ready' && s
  }, 240_000)
  assert.equal(status.buildID, build.buildId)
  const skipped = await Template.getBuildStatus(build, { logsOffset: 100000 })
  assert.deepEqual(skipped.logEntries, [])
})

await check('a build of the same steps takes them from the cache', async () => {
  const steps = () => open().fromTemplate('base').copy('single.txt', '/tmp/').runCmd('date +%s%N >/tmp/when')
  const when = async (template) => {
    await Template.build(template, `${name}-cached`)
    const sbx = await Sandbox.create(`${name}-cached`, { timeoutMs: 60_000 })
    const { stdout } = await sbx.commands.run('cat /tmp/when')
    await sbx.kill()
    return stdout
  }
  const first = await when(steps())
  assert.equal(await when(steps()), first)
  assert.notEqual(await when(steps().skipCache().runCmd('true')), undefined)
  assert.notEqual(await when(open().skipCache().fromTemplate('base').copy('single.txt', '/tmp/').runCmd('date +%s%N >/tmp/when')), first)
})

await check('a step that fails', async () => {
  const logs = []
  await assert.rejects(
    Template.build(open().fromTemplate('base').runCmd('echo to the log; echo why >&2; exit 9'), `${name}-bad`, { onBuildLogs: (l) => logs.push(l.message) }),
    (e) => e instanceof BuildError && /9/.test(e.message),
  )
  assert.ok(logs.some((l) => l.includes('to the log')) && logs.some((l) => l.includes('why')), logs.join('\n'))
})

await check('what cannot be built', async () => {
  await assert.rejects(Template.build(open().fromTemplate('there-is-no-such-template'), `${name}-bad`), (e) => e instanceof BuildError || e instanceof TemplateError)
  await assert.rejects(Template.build(open().fromImage('127.0.0.1:1/nothing:here'), `${name}-bad`), BuildError)
  const aws = open().fromAWSRegistry('1.dkr.ecr.eu-west-1.amazonaws.com/i', { accessKeyId: 'a', secretAccessKey: 's', region: 'eu-west-1' })
  await assert.rejects(Template.build(aws, `${name}-bad`), (e) => e instanceof BuildError && /501/.test(e.message))
  await assert.rejects(Template.getBuildStatus({ templateId: 'nothing', buildId: '00000000-0000-0000-0000-000000000000' }), BuildError)
  assert.throws(() => open().fromTemplate('base').copy('../outside', '/'), TemplateError)
})

await check('a Dockerfile', async () => {
  const template = open().fromDockerfile('FROM e2bdev/base\nENV KIND=docker\nWORKDIR /srv\nCOPY single.txt ./\nRUN cat single.txt >copied && echo $KIND >>copied\n')
  assert.match(Template.toDockerfile(template), /^FROM e2bdev\/base\n/)
  await Template.build(template, { alias: `${name}-docker`, onBuildLogs: defaultBuildLogger({ minLevel: 'error' }) })
  const sbx = await Sandbox.create(`${name}-docker`, { timeoutMs: 60_000 })
  await has(sbx, 'cat /srv/copied', 'single\ndocker\n')
  await sbx.kill()
})

await check('Template.exists', async () => {
  assert.equal(await Template.exists(name), true)
  assert.equal(await Template.aliasExists(name), true)
  assert.equal(await Template.exists('there-is-no-such-template'), false)
})

await check('tags', async () => {
  const assigned = await Template.assignTags(`${name}:v1`, ['stable', 'v1.0'])
  assert.equal(assigned.buildId, info.buildId)
  const tags = async () => (await Template.getTags(info.templateId)).map((t) => t.tag)
  for (const tag of ['v1', 'stable', 'v1.0']) assert.ok((await tags()).includes(tag), tag)
  await (await Sandbox.create(`${name}:stable`, { timeoutMs: 60_000 })).kill()
  await Template.removeTags(name, 'stable')
  assert.ok(!(await tags()).includes('stable'))
  await assert.rejects(Sandbox.create(`${name}:stable`), /40[04]/)
})

await check('builders that only write down steps', async () => {
  const docker = (template) => Template.toDockerfile(template)
  assert.match(docker(open().fromDebianImage()), /^FROM debian:/)
  assert.match(docker(open().fromUbuntuImage()), /^FROM ubuntu:/)
  assert.match(docker(open().fromFedoraImage()), /^FROM fedora:/)
  assert.match(docker(open().fromAlpineImage()), /^FROM alpine:/)
  assert.match(docker(open().fromArchImage()), /^FROM archlinux:/)
  assert.match(docker(open().fromNodeImage()), /^FROM node:/)
  assert.match(docker(open().fromBunImage()), /^FROM oven\/bun:/)
  assert.match(docker(open().fromBaseImage()), /^FROM e2bdev\/base/)
  const python = open().fromPythonImage('3.13').pipInstall(['six']).npmInstall('is-number', { g: true }).bunInstall().aptInstall('curl', { noInstallRecommends: true }).gitClone('https://example.com/r.git', 'r', { depth: 1, branch: 'main' })
  assert.match(docker(python), /^FROM python:3\.13\nRUN pip install six\nRUN npm install -g is-number\nRUN bun install\n.*apt-get install -y --no-install-recommends curl\nRUN git clone/s)
  for (const registry of [open().fromAWSRegistry('i', { accessKeyId: 'a', secretAccessKey: 's', region: 'r' }), open().fromGCPRegistry('i', { serviceAccountJSON: { a: 1 } }), open().fromImage('i', { username: 'u', password: 'p' })]) {
    assert.ok(JSON.parse(await Template.toJSON(registry)).fromImageRegistry.type)
  }
  assert.match(await Template.toJSON(open().fromTemplate('mcp-gateway').addMcpServer('exa')), /mcp-gateway pull exa/)
  assert.match(await Template.toJSON(open().fromTemplate('devcontainer').betaDevContainerPrebuild('/w')), /devcontainer build/)
  assert.match(await Template.toJSON(open().fromTemplate('devcontainer').betaSetDevContainerStart('/w')), /devcontainer up/)
  assert.match(waitForPort(80).getCmd(), /ss /)
  assert.match(waitForURL('http://localhost:1/').getCmd(), /curl/)
  assert.match(waitForProcess('nginx').getCmd(), /pgrep/)
})

await finish()

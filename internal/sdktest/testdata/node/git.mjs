// The git helpers of the package e2b, with repositories within the sandbox.
import assert from 'node:assert/strict'
import { GitUpstreamError, InvalidArgumentError, Sandbox } from 'e2b'
import { check, finish } from './check.mjs'

const sbx = await Sandbox.create({ timeoutMs: 300_000 })
const { git, files } = sbx
const work = '/home/user/work'
const mine = { authorName: 'A', authorEmail: 'a@example.com' }

await check('git.init and git.configureUser', async () => {
  await git.init('/home/user/origin.git', { bare: true, initialBranch: 'main' })
  await git.init(work, { initialBranch: 'main' })
  await git.configureUser('Test', 'test@example.com')
  assert.equal(await git.getConfig('user.name'), 'Test')
  await git.setConfig('core.abbrev', '9', { scope: 'local', path: work })
  assert.equal(await git.getConfig('core.abbrev', { scope: 'local', path: work }), '9')
  assert.equal(await git.getConfig('no.such'), undefined)
})

await check('git.add, git.status and git.commit', async () => {
  await files.write(`${work}/a.txt`, 'a\n')
  await files.write(`${work}/b c.txt`, 'b\n')
  const before = await git.status(work)
  assert.deepEqual([before.isClean, before.hasUntracked, before.untrackedCount], [false, true, 2])
  await git.add(work, { files: ['a.txt'] })
  assert.equal((await git.status(work)).stagedCount, 1)
  await git.add(work)
  await git.commit(work, 'first "commit"', mine)
  const after = await git.status(work)
  assert.deepEqual([after.isClean, after.currentBranch], [true, 'main'])
  await git.commit(work, 'empty', { allowEmpty: true })
  assert.equal((await sbx.commands.run('git log --format=%an,%s', { cwd: work })).stdout, 'Test,empty\nA,first "commit"\n')
})

await check('branches', async () => {
  await git.createBranch(work, 'topic')
  await git.createBranch(work, 'spare')
  await git.checkoutBranch(work, 'topic')
  const { branches, currentBranch } = await git.branches(work)
  assert.deepEqual([branches.toSorted(), currentBranch], [['main', 'spare', 'topic'], 'topic'])
  await git.checkoutBranch(work, 'main')
  await git.deleteBranch(work, 'spare')
  await git.deleteBranch(work, 'topic', { force: true })
  assert.deepEqual((await git.branches(work)).branches, ['main'])
})

await check('git.reset and git.restore', async () => {
  await files.write(`${work}/a.txt`, 'changed\n')
  await git.restore(work, { paths: ['a.txt'] })
  assert.equal(await files.read(`${work}/a.txt`), 'a\n')
  await files.write(`${work}/a.txt`, 'staged\n')
  await git.add(work)
  await git.restore(work, { paths: ['a.txt'], staged: true })
  assert.equal((await git.status(work)).hasStaged, false)
  await git.reset(work, { mode: 'hard', target: 'HEAD' })
  assert.equal(await files.read(`${work}/a.txt`), 'a\n')
  await assert.rejects(git.reset(work, { mode: 'odd' }), InvalidArgumentError)
})

await check('remotes, git.push and git.pull', async () => {
  await assert.rejects(git.pull(work), GitUpstreamError)
  await git.remoteAdd(work, 'origin', '/home/user/wrong.git')
  await git.remoteAdd(work, 'origin', '/home/user/origin.git', { overwrite: true, fetch: true })
  assert.equal(await git.remoteGet(work, 'origin'), '/home/user/origin.git')
  assert.equal(await git.remoteGet(work, 'other'), undefined)
  await git.push(work, { remote: 'origin', branch: 'main' })
  assert.equal((await git.status(work)).upstream, 'origin/main')
  await git.pull(work)
})

await check('git.clone', async () => {
  await git.clone('/home/user/origin.git', { path: '/home/user/copy', branch: 'main' })
  assert.equal(await files.read('/home/user/copy/b c.txt'), 'b\n')
  await git.clone('file:///home/user/origin.git', { path: '/home/user/shallow', depth: 1 })
  assert.equal((await sbx.commands.run('git rev-list --count HEAD', { cwd: '/home/user/shallow' })).stdout, '1\n')
  await files.write('/home/user/copy/new.txt', 'n\n')
  await git.add('/home/user/copy')
  await git.commit('/home/user/copy', 'more')
  await git.push('/home/user/copy')
  await git.pull(work, { remote: 'origin', branch: 'main' })
  assert.equal(await files.read(`${work}/new.txt`), 'n\n')
  await assert.rejects(git.clone('/home/user/nothing.git'))
})

await check('git.dangerouslyAuthenticate', async () => {
  await git.dangerouslyAuthenticate({ username: 'u', password: 'p w', host: 'git.example.com' })
  assert.equal(await files.read('/home/user/.git-credentials'), 'https://u:p%20w@git.example.com\n')
})

await sbx.kill()
await finish()

// Measures a server through E2B's own client. Prints one JSON object of lists of milliseconds.
import { Sandbox } from '@e2b/code-interpreter'

const rounds = Number(process.argv[2])
const took = { create: [], command: [], code: [], kill: [] }
const time = async (name, what) => {
  const begin = performance.now()
  const value = await what()
  took[name].push(performance.now() - begin)
  return value
}
const pause = ms => new Promise(done => setTimeout(done, ms))

const first = await Sandbox.create() // the client's own start is not the server's
await first.commands.run('true')
await first.runCode('1 + 1')
for (let i = 0; i < rounds; i++) {
  await time('command', () => first.commands.run('true'))
  const run = await time('code', () => first.runCode('1 + 1'))
  if (run.text !== '2') throw new Error(`1 + 1 is ${run.text}: ${JSON.stringify(run.error)}`)
}
await first.kill()
for (let i = 0; i < rounds; i++) {
  await pause(400) // until the pool is full again
  const sandbox = await time('create', () => Sandbox.create())
  await time('kill', () => sandbox.kill())
}
console.log(JSON.stringify(took))

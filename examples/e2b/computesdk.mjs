// ComputeSDK's provider for E2B against Firebreak.
//
//     firebreak serve                 # in another terminal; it prints three lines to export
//     npm install computesdk @computesdk/e2b
//     node computesdk.mjs
import { compute } from 'computesdk'
import { e2b } from '@computesdk/e2b'

compute.setConfig({ provider: e2b({ apiKey: process.env.E2B_API_KEY }) })

const sandbox = await compute.sandbox.create({ timeout: 300_000, envs: { WHO: 'compute' } })
try {
  await sandbox.filesystem.mkdir('/tmp/work')
  await sandbox.filesystem.writeFile('/tmp/work/hello.py', 'import os\nprint("hello from", os.environ["WHO"])\n')
  const ran = await sandbox.runCommand('python3 hello.py', { cwd: '/tmp/work' })
  console.log(ran.exitCode, ran.stdout.trim())
  const failed = await sandbox.runCommand('echo why >&2; exit 3')
  console.log(failed.exitCode, failed.stderr.trim())
  console.log((await sandbox.filesystem.readdir('/tmp/work')).map((entry) => entry.name).join(' '))
  console.log(await sandbox.filesystem.exists('/tmp/nothing'))
  console.log((await compute.sandbox.list()).some((other) => other.sandboxId === sandbox.sandboxId))
  console.log((await sandbox.getUrl({ port: 8080 })).startsWith(`https://8080-${sandbox.sandboxId}.`))
} finally {
  await sandbox.destroy()
}
console.log(await compute.sandbox.getById(sandbox.sandboxId))

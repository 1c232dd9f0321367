// Code, files and a command through E2B's JavaScript SDK against Firebreak.
//
//     firebreak serve                 # in another terminal; it prints three lines to export
//     npm install @e2b/code-interpreter
//     node hello.mjs
import { Sandbox } from '@e2b/code-interpreter'

const sandbox = await Sandbox.create()
await sandbox.files.write('numbers.txt', '1\n2\n39\n')
await sandbox.runCode("numbers = [int(line) for line in open('numbers.txt')]")
console.log((await sandbox.runCode('sum(numbers)')).text)
console.log((await sandbox.commands.run('uname -s')).stdout.trim())
console.log((await sandbox.runCode('1/0')).error.name)
await sandbox.kill()

// Prints the public methods of the JavaScript SDKs, as their type declarations have them: "Class.method" for a static
// one, "Class#method" for one of an object, and a bare name for a function.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

const HIDDEN = /^(ConnectionConfig|ClientFactory|ApiClient|EnvdApiClient|VolumeConnectionConfig|LogEntry.*|.*Error|Result|Execution|OutputMessage)$/
const require = createRequire(import.meta.url)
const api = new Set()
for (const name of ['e2b', '@e2b/code-interpreter']) {
  const text = readFileSync(join(dirname(require.resolve(name)), 'index.d.ts'), 'utf8')
  let current
  for (const line of text.split('\n')) {
    const declared = line.match(/^declare (?:abstract )?class (\w+)/)
    if (declared) current = HIDDEN.test(declared[1]) ? undefined : declared[1]
    if (line.startsWith('}')) current = undefined
    const func = line.match(/^declare function (\w+)\(/)
    if (func) api.add(func[1])
    const method = current && line.match(/^ {2}(static )?(?:get )?(\w+)(?:<.*?>)?\(/)
    if (method && method[2] !== 'constructor') api.add(`${current}${method[1] ? '.' : '#'}${method[2]}`)
  }
}
process.stdout.write(JSON.stringify({ api: [...api] }) + '\n')

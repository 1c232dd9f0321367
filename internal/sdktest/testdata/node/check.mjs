// What the programs of this directory share: named checks, each of which prints one line of JSON, and at the end which
// functions of the SDKs were called, as the JavaScript engine counted them.
import { Session } from 'node:inspector/promises'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const LIMIT = 400_000 // of one check, so that a hang is one failure and not the loss of all checks after it

const profiler = new Session()
profiler.connect()
await profiler.post('Profiler.enable')
await profiler.post('Profiler.startPreciseCoverage', { callCount: true, detailed: false })

class Skipped extends Error {}

// skip ends a check that cannot be made here.
export function skip(reason) {
  throw new Skipped(reason)
}

function print(line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

// check runs one check and prints how it went. The checks of a program run one after the other.
export async function check(name, run, more = {}) {
  const start = performance.now()
  const line = { name, ok: true, ...more }
  let timer
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`no end after ${LIMIT / 1000} s`)), LIMIT)
  })
  try {
    await Promise.race([run(), late])
  } catch (e) {
    line.ok = false
    if (e instanceof Skipped) line.skip = e.message
    else line.error = `${e?.stack ?? e}${e?.cause ? `\ncaused by ${e.cause}` : ''}`
  }
  clearTimeout(timer)
  line.ms = Math.round(performance.now() - start)
  print(line)
}

// until waits for a condition that is bound to come true, and says what it waited for if it does not.
export async function until(what, condition, limit = 60_000) {
  const end = performance.now() + limit
  for (;;) {
    const got = await condition()
    if (got) return got
    if (performance.now() > end) throw new Error(`waited ${limit / 1000} s for ${what}`)
    await new Promise((go) => setTimeout(go, 50))
  }
}

// gate is a promise with its key.
export function gate() {
  let open
  const opened = new Promise((resolve) => (open = resolve))
  return { opened, open }
}

// finish prints which functions of the SDKs this program called, and ends it.
export async function finish() {
  const { result } = await profiler.post('Profiler.takePreciseCoverage')
  const called = new Set()
  for (const script of result) {
    if (!/\/node_modules\/(e2b|@e2b\/code-interpreter)\/dist\/index\.m?js$/.test(script.url)) continue
    const source = readFileSync(fileURLToPath(script.url), 'utf8')
    const owners = classes(source)
    for (const { functionName, ranges } of script.functions) {
      const { startOffset, count } = ranges[0]
      if (count === 0 || !functionName) continue
      const owner = owners.findLast((c) => c.start < startOffset && startOffset < c.end)
      const fixed = /static (async |get )?$/.test(source.slice(Math.max(0, startOffset - 20), startOffset))
      called.add(owner ? `${owner.name}${fixed ? '.' : '#'}${functionName.replace(/^get /, '')}` : functionName)
    }
  }
  print({ called: [...called] })
  process.exit(0)
}

// classes finds where the classes of a bundle lie, which all begin and end at the margin.
function classes(source) {
  const found = []
  for (const m of source.matchAll(/^(?:var |let |const )?(\w+) = class\b/gm)) {
    found.push({ name: m[1], start: m.index, end: source.indexOf('\n}', m.index) })
  }
  return found
}

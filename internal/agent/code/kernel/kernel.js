'use strict'
// Runs JavaScript and TypeScript for a code context: requests come from the agent as frames on one descriptor, and what
// there is besides output goes back as frames on another. The inspector evaluates as Chrome's console does: the last
// expression is the value, const may be declared again, and await stands anywhere. It is called from a vm script,
// because only those can be interrupted while they run.
/* global importFrom */
const fs = require('fs')
const inspector = require('inspector')
const moduleOf = require('module')
const util = require('util')
const vm = require('vm')

const maxFrame = 8 << 20
const maxText = 1 << 20
const requests = 3
const answers = 4
const forms = {
  'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/svg+xml': 'svg', 'image/png': 'png',
  'image/jpeg': 'jpeg', 'application/pdf': 'pdf', 'text/latex': 'latex', 'application/json': 'json',
  'application/javascript': 'javascript'
}
const session = new inspector.Session()
session.connect()
const here = moduleOf.createRequire(process.cwd() + '/')

let id = 0
let busy = false
let acks = 0
let interrupt = null // ends the run that waits for a promise
let evaluate = null
const enter = new vm.Script('(f => f())', { filename: 'firebreak' }).runInThisContext()
const guarded = new vm.Script('globalThis[Symbol.for("firebreak.run")]()', { filename: 'firebreak' })
Object.defineProperty(globalThis, Symbol.for('firebreak.run'), { value: () => enter(() => evaluate()) })

function send (frame) {
  const body = Buffer.from(JSON.stringify(frame))
  let rest = Buffer.concat([Buffer.from(body.length + '\n'), body])
  while (rest.length > 0) rest = rest.subarray(fs.writeSync(answers, rest))
}

function cut (text) {
  return text.length <= maxText ? text : text.slice(0, maxText) + `… (${text.length} characters in all)`
}

function render (value) {
  const out = {}
  try {
    out.text = cut(typeof value === 'string' ? value : util.inspect(value))
  } catch (error) {
    out.text = '<a value that cannot be shown>'
  }
  const own = Symbol.for('Jupyter.display') // as Deno's libraries have it
  if (value !== null && typeof value === 'object' && typeof value[own] === 'function') {
    for (const [mime, data] of Object.entries(value[own]())) out[forms[mime] ?? mime] = data
  }
  if (Buffer.byteLength(JSON.stringify(out)) > maxFrame - (64 << 10)) {
    return { text: '(left out: larger than a result may be) ' + out.text }
  }
  return out
}

// What was printed before must come before it, and the output takes another way: the agent says when it has it.
function show (value, main) {
  if (!busy) { // a forgotten promise of an earlier run: nobody waits for it
    send({ type: 'result', id, main: false, forms: render(value) })
    return
  }
  acks++
  send({ type: 'result', id, main, forms: render(value), ack: acks })
  while (inbox.read().ack !== acks);
}

// inbox reads frames: in turns of the event loop, or at once where a run waits for an answer.
const inbox = {
  rest: Buffer.alloc(0),
  next () {
    const line = this.rest.indexOf(10)
    if (line < 0) return null
    const end = line + 1 + Number(this.rest.subarray(0, line))
    if (this.rest.length < end) return null
    const frame = JSON.parse(this.rest.subarray(line + 1, end).toString())
    this.rest = this.rest.subarray(end)
    return frame
  },
  read () {
    for (;;) {
      const frame = this.next()
      if (frame !== null) return frame
      const chunk = Buffer.alloc(64 << 10)
      this.take(chunk, fs.readSync(requests, chunk))
    }
  },
  take (chunk, n) {
    if (n === 0) process.exit(0)
    this.rest = Buffer.concat([this.rest, chunk.subarray(0, n)])
  },
  serve () {
    const frame = this.next()
    if (frame !== null) {
      run(frame).catch(failed).finally(() => this.serve())
      return
    }
    const chunk = Buffer.alloc(64 << 10)
    fs.read(requests, chunk, 0, chunk.length, null, (error, n) => {
      if (error) process.exit(1)
      this.take(chunk, n)
      this.serve()
    })
  }
}

async function run (request) {
  if (request.code === undefined) return
  id = request.id
  busy = true
  const before = Object.keys(request.env).map(name => [name, process.env[name]])
  Object.assign(process.env, request.env)
  try {
    const value = await valueFor(request.language === 'typescript' ? plain(request.code) : request.code)
    if (value !== undefined) show(value, true)
  } catch (error) {
    failed(error)
  }
  for (const [name, value] of before) {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  busy = false
  send({ type: 'done', id })
}

function failed (error) {
  const isError = util.types.isNativeError(error) || error instanceof Error
  let text = isError ? String(error.stack ?? error) : 'Uncaught ' + util.inspect(error)
  text = text.split('\n').filter(line => !/^ +at .*(firebreak|node:internal|node:inspector|node:vm|\[eval\])/.test(line)).join('\n')
  send({
    type: 'error', id, name: String(isError ? error.name : typeof error), traceback: cut(text),
    value: cut(isError ? String(error.message) : util.inspect(error))
  })
}

function interrupted () {
  const error = new Error('the run was interrupted')
  error.name = 'Interrupted'
  error.stack = 'Interrupted: the run was interrupted'
  return error
}

async function valueFor (code) {
  const stop = new Promise((resolve, reject) => { interrupt = () => reject(interrupted()) })
  const awake = setInterval(() => {}, 1 << 30) // node ends when nothing is left to wait for but a promise
  stop.catch(() => {})
  try {
    let answer = await Promise.race([post(imports(code)), stop])
    if (isImport(answer)) answer = await Promise.race([post(imports(statements(code))), stop])
    if (answer.exceptionDetails !== undefined) {
      const thrown = answer.exceptionDetails.exception
      throw materialize(thrown)
    }
    return await Promise.race([materialize(answer.result), stop]) // the value may be a promise
  } finally {
    interrupt = null
    clearInterval(awake)
  }
}

function isImport (answer) {
  const text = answer.exceptionDetails?.exception?.description ?? ''
  return text.startsWith('SyntaxError: Cannot use import statement outside a module')
}

function post (expression) {
  return new Promise((resolve, reject) => {
    evaluate = () => session.post('Runtime.evaluate', { expression: `${expression}\n//# sourceURL=cell-${id}`, replMode: true, awaitPromise: true },
      (error, answer) => error ? reject(error) : resolve(answer))
    try {
      guarded.runInThisContext({ breakOnSigint: true })
    } catch (error) {
      reject(error.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED' ? interrupted() : error)
    }
  })
}

// materialize gets the value that the inspector only describes.
function materialize (remote) {
  if (remote.objectId === undefined) {
    if (remote.unserializableValue === undefined) return remote.value
    return remote.unserializableValue.endsWith('n') ? BigInt(remote.unserializableValue.slice(0, -1)) : Number(remote.unserializableValue)
  }
  let value
  const key = Symbol.for('firebreak.value')
  Object.defineProperty(globalThis, key, { value: v => { value = { it: v } }, configurable: true })
  session.post('Runtime.callFunctionOn', {
    objectId: remote.objectId, functionDeclaration: 'function () { "use strict"; globalThis[Symbol.for("firebreak.value")](this) }'
  }, () => {})
  delete globalThis[key]
  session.post('Runtime.releaseObject', { objectId: remote.objectId }, () => {})
  return value === undefined ? remote.description : value.it
}

// imports lets import() work: what the inspector evaluates belongs to no module. Strings and comments stay as they are.
function imports (code) {
  if (!code.includes('import')) return code
  return code.replace(
    /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|\/\/[^\n]*|\/\*[^]*?\*\/)|(?<![\w$.])import(?=\s*\()/g,
    (all, skipped) => skipped ?? 'globalThis[Symbol.for("firebreak.import")]')
}

// statements makes import() of the import statements of a module.
function statements (code) {
  return code.replace(
    /^[ \t]*import\s+(?:([\w$]+)\s*,?\s*)?(?:\*\s+as\s+([\w$]+)\s+)?(?:\{([^}]*)\}\s*)?(?:from\s*)?(['"][^'"\n]+['"])[ \t]*;?/gm,
    (all, one, star, some, from) => {
      const names = (some ?? '').split(',').map(n => n.trim()).filter(Boolean).map(n => n.replace(/\s+as\s+/, ': '))
      if (one) names.unshift(`default: ${one}`)
      const call = `await import(${from})`
      if (star) return one ? `const ${star} = ${call}, ${one} = ${star}.default;` : `const ${star} = ${call};`
      return names.length > 0 ? `const { ${names.join(', ')} } = ${call};` : `${call};`
    })
}

function plain (code) {
  if (typeof moduleOf.stripTypeScriptTypes === 'function') return moduleOf.stripTypeScriptTypes(code)
  let typescript
  try {
    typescript = here('typescript')
  } catch {
    const error = new Error(`TypeScript needs Node.js 22.13 or later, or the package typescript where ${process.cwd()} finds it; this is ${process.version}`)
    error.name = 'Unsupported'
    throw error
  }
  const { ScriptTarget, ModuleKind } = typescript
  return typescript.transpileModule(code, {
    compilerOptions: { target: ScriptTarget.ES2022, module: ModuleKind.ESNext, verbatimModuleSyntax: true }
  }).outputText
}

// What is printed must have left when its run is done; a pipe that is full would be written to later.
for (const stream of [process.stdout, process.stderr]) stream._handle?.setBlocking?.(true)
process.on('SIGINT', () => { if (interrupt) interrupt() })
// Not to die of what a timer or a forgotten promise throws, as a console does not.
for (const event of ['uncaughtException', 'unhandledRejection']) {
  process.on(event, error => { process.stderr.write('Uncaught ' + util.inspect(error) + '\n') })
}
Object.defineProperty(globalThis, Symbol.for('firebreak.import'), { value: importFrom })
Object.assign(globalThis, { require: here, display: value => show(value, false) })
process.argv = [process.argv[0]]
send({ type: 'ready' })
inbox.serve()

// What every isolate begins with: it evaluates code that the host has made ready, and tells what comes of it as lines of
// JSON. The code shares this isolate and may change whatever it reaches of it: it can only spoil what is told of itself,
// and the host believes nothing of that. What is used after code has run is taken out of its reach here, so that code
// that changes prototypes by mistake still gets answers.
import util from 'node:util'
import { loader, placed } from 'modules.js'
import * as files from 'files.js'
import * as waiting from 'waiting.js'
import { createRequire } from 'node:module'
import { abortIsolate } from 'cloudflare:workers'

const { inspect, format, promisify } = util
const evaluate = globalThis.eval
const { stringify, parse } = JSON
const { create, keys, values, entries, assign, defineProperty, getOwnPropertyDescriptor } = Object
const encoder = new TextEncoder()
const encode = encoder.encode.bind(encoder)
const { Response, IdentityTransformStream, Error, String, Promise, Symbol, queueMicrotask } = globalThis
const maxText = 1 << 20
const maxHeld = 64 << 10 // characters of output that wait for more
const builtin = createRequire('file:///') // loads a module only when it is used, which is not in most isolates
const forms = {
  'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/svg+xml': 'svg', 'image/png': 'png',
  'image/jpeg': 'jpeg', 'application/pdf': 'pdf', 'text/latex': 'latex', 'application/json': 'json',
  'application/javascript': 'javascript'
}
const exit = Symbol('exit')
const makesCode = /\bFunction\b|[.[]\s*['"`]?constructor\b/ // which may have an import() that nobody sees

const imported = loader(create(null)) // by code contexts
const cell = { id: '', given: { from: create(null) } } // their code, which is no module

let tell = () => {} // of the present run
let crash = report // ends a program

// What is printed goes out in few pieces: when the code lets go of the processor, and before all else that is told.
let held = ''
let heldOf = 'stdout'
let due = false

function flush () {
  due = false
  if (held === '') return
  const text = held
  held = ''
  tell({ type: 'print', stream: heldOf, text })
}

function say (stream, text) {
  if (stream !== heldOf || held.length + text.length > maxHeld) flush()
  heldOf = stream
  held += text
  if (due) return
  due = true
  queueMicrotask(flush)
}

function send (frame) {
  flush()
  tell(frame)
}

function cut (text) {
  return text.length <= maxText ? text : text.slice(0, maxText) + `… (${text.length} characters in all)`
}

function render (value) {
  const out = {}
  try {
    out.text = cut(typeof value === 'string' ? value : inspect(value))
  } catch {
    out.text = '<a value that cannot be shown>'
  }
  const own = Symbol.for('Jupyter.display')
  if (value !== null && typeof value === 'object' && typeof value[own] === 'function') {
    for (const [mime, data] of entries(value[own]())) out[forms[mime] ?? mime] = data
  }
  return out
}

function failure (error) {
  const isError = error instanceof Error
  let text = isError ? String(error.stack ?? error) : 'Uncaught ' + inspect(error)
  text = text.split('\n').filter(line => !/^ +at (?:.* \(|async )?(?:(?:kernel|modules|waiting|files)\.js:\d|node-internal:)/.test(line)).map(placed).join('\n')
  return {
    type: 'error', name: String(isError ? error.name : typeof error), traceback: cut(text),
    value: cut(isError ? String(error.message) : inspect(error))
  }
}

function report (error) {
  if (error !== exit) say('stderr', failure(error).traceback + '\n')
}

function print (stream) {
  return (...values) => say(stream, format(...values) + '\n')
}

function prepare () {
  const out = print('stdout')
  const err = print('stderr')
  assign(console, { log: out, info: out, debug: out, dir: value => out(inspect(value)), table: out, error: err, warn: err, trace: err })
  const refuse = async () => { throw new TypeError('fetch is refused: a V8 sandbox has no network') }
  assign(globalThis, { fetch: refuse, require: imported.requirer(cell), display: value => send({ type: 'result', main: false, forms: render(value) }) })
  defineProperty(globalThis, '$import', { value: imported.importer(cell), configurable: true })
  process.exit = status => {
    send({ type: 'exit', status: Number(status ?? 0) & 255 })
    crash(exit)
    throw exit
  }
  const stream = name => ({ write: text => { say(name, String(text)); return true } })
  defineProperty(process, 'stdout', { value: stream('stdout'), configurable: true })
  defineProperty(process, 'stderr', { value: stream('stderr'), configurable: true })
  watchCalls()
  promiseTimers()
  addEventListener('unhandledrejection', event => crash(event.reason))
}

// watchCalls has errors in what is called later end the program.
function watchCalls () {
  for (const [place, name, soon] of [
    [globalThis, 'setTimeout'], [globalThis, 'setInterval'], [globalThis, 'setImmediate'], [globalThis, 'queueMicrotask', true], [process, 'nextTick', true]
  ]) {
    const later = place[name].bind(place)
    place[name] = (call, ...rest) => {
      if (!soon) waiting.waits()
      if (typeof call !== 'function') return later(call, ...rest)
      return later((...values) => {
        try {
          call(...values)
        } catch (error) {
          crash(error)
        }
      }, ...rest)
    }
  }
}

async function run (request) {
  const before = keys(request.env).map(name => [name, getOwnPropertyDescriptor(process.env, name)?.value])
  assign(process.env, request.env)
  if (request.argv !== undefined) process.argv = request.argv
  try {
    place(request)
    if (request.at !== undefined) {
      cell.id = request.at
      assign(cell.given.from, request.from)
      imported.add(request.modules ?? {})
    }
    // The value comes in a box, so that one that has a method "then" is not waited for twice.
    let value = evaluate(request.code)
    if (request.boxed) value = (await value)[0]
    value = await value
    if (value !== undefined && !request.program) send({ type: 'result', main: true, forms: render(value) })
  } catch (error) {
    if (error !== exit) send(failure(error))
  }
  if (!request.program) {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
}

// place has a run stand where it belongs, among its files if it may look at them.
function place ({ dir, files: given }) {
  if (dir !== undefined) files.stand(dir)
  if (given !== undefined) files.give(given, send, say)
}

// giveInput is the standard input, which was read to its end.
function giveInput (text) {
  waiting.waits()
  const fs = builtin('node:fs')
  const { Readable } = builtin('node:stream')
  let input = builtin('node:buffer').Buffer.from(text, 'base64')
  const stdin = assign(Readable.from(input.length > 0 ? [input] : [], { objectMode: false }), { fd: 0, isTTY: false })
  defineProperty(process, 'stdin', { value: stdin, configurable: true })
  const { readFileSync } = fs
  fs.readFileSync = (path, options) => {
    if (path !== 0 && path !== '/dev/stdin') return readFileSync(path, options)
    const encoding = typeof options === 'string' ? options : options?.encoding
    const all = input
    input = input.subarray(input.length) // a second one finds the end
    return encoding ? all.toString(encoding) : all
  }
}

// program runs a program of modules. What nobody catches ends it at once.
async function program (request, finish) {
  crash = error => {
    if (error !== exit) send(failure(error))
    finish()
  }
  if (values(request.modules).some(module => makesCode.test(module.code))) waiting.waits()
  assign(process.env, request.env)
  process.argv = request.argv
  try {
    place(request)
    if (request.input !== undefined) giveInput(request.input)
    await loader(request.modules, request.main).run()
    send({ type: 'ran' })
  } catch (error) {
    crash(error)
  }
}

// nextTurn is workerd's next turn once it is asked for: when all is done that waits for nothing. A timer of no time costs more.
function nextTurn () {
  const { readable, writable } = new IdentityTransformStream()
  const turn = readable.getReader().read()
  return () => {
    writable.close()
    return turn
  }
}

// answer runs what is asked for when all of it is there. The answer begins at once, so that it has passed through the host when
// there is something to tell. If a program may still wait when it has run, workerd ends the answer when nothing is left to wait
// for.
function answer (asked) {
  const { readable, writable } = new IdentityTransformStream()
  follow(asked, writable.getWriter(), nextTurn()).catch(() => {}) // who asked went away
  return new Response(readable)
}

async function follow (asked, writer, turn) {
  const write = writer.write.bind(writer)
  const close = writer.close.bind(writer)
  const request = parse(await asked)
  let lines = '' // which go out together: each write costs a round of workerd
  let begun = false
  let ran = false
  let over = false
  const mine = frame => {
    if (lines === '' && begun) queueMicrotask(pass)
    lines += stringify(frame) + '\n'
    if (lines.length > maxHeld) pass()
  }
  const pass = () => {
    if (lines !== '' || !begun) write(encode(lines || '\n')).catch(() => {}) // an empty line says that the code has paused
    lines = ''
    begun = true
  }
  const finish = () => {
    over = true
    if (tell === mine) { // and no later run has begun
      files.tellChanges()
      flush()
      tell = () => {}
    }
    mine({ type: 'done' })
    pass()
    close().catch(() => {})
  }
  tell = mine
  const running = request.main !== undefined ? program(request, finish) : run(request).then(finish)
  running.then(() => { ran = true })
  turn().then(() => {
    if (!over) (ran && !waiting.mayWait() ? finish : pass)()
  })
}

// promiseTimers has promisify make of timers what it makes of Node's.
function promiseTimers () {
  const { setTimeout, setImmediate } = globalThis
  defineProperty(setTimeout, promisify.custom, { value: (after, value) => new Promise(resolve => setTimeout(resolve, after, value)) })
  defineProperty(setImmediate, promisify.custom, { value: value => new Promise(resolve => setImmediate(resolve, value)) })
}

// rehearse does once what all runs do, so that V8 has compiled it before the first one.
async function rehearse () {
  await (await answer(stringify({ code: '({})', env: {} }))).text()
  const code = '(function () { console.log(0, "", { a: [0] }) })'
  await (await answer(stringify({ modules: { '/': { kind: 'cjs', code } }, main: '/', env: { REHEARSED: '' }, argv: process.argv }))).text()
  delete process.env.REHEARSED
  failure(new Error(''))
  crash = report
}

export default {
  async fetch (request) {
    if (request.url.endsWith('/end')) abortIsolate('ended')
    if (request.url.endsWith('/run')) return answer(request.text())
    prepare()
    await rehearse()
    waiting.watch()
    return new Response(null, { status: 204 })
  }
}

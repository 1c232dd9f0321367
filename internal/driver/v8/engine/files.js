// The sandbox's files, for code that uses node:fs. It works on a copy, which lies below a directory of workerd's own file
// system: that is in this isolate's memory and ends with the request. What the code changes is told to the host soon, and at
// the end of the run.
import { createRequire } from 'node:module'
import { waits } from 'waiting.js'

const builtin = createRequire('file:///')
export const ofPromises = /^(node:)?fs\/promises$/
const root = '/tmp/.firebreak-sandbox'
const maxPiece = 1 << 20 // bytes of a file that are told at once
const maxTold = 32 << 20 // bytes that one run may tell
const soon = 20 // ms until a change is told; longer each time, for who changes without end
const latest = 320
const { assign, defineProperty, keys } = Object
const { Map, Error, Promise, URL, Uint8Array, setTimeout, clearTimeout } = globalThis
const { min } = Math
const { isArray } = Array

// Those that have no path and change nothing, or neither.
const byDescriptor = /^(close|fdatasync|fstat|fsync|read|readv)(Sync)?$/
const onlyReads = /^(access|exists|l?stat|statfs|opendir|readFile|readdir|readlink|realpath|createReadStream|openAsBlob|watch|watchFile|unwatchFile)(Sync)?$/
const twoPaths = /^(copyFile|cp|link|rename)(Sync)?$/
const opened = /^(open|readFile|writeFile|appendFile|createReadStream|createWriteStream)$/
const texts = {
  ENOENT: 'no such file or directory', EEXIST: 'file already exists', ENOTDIR: 'not a directory', EISDIR: 'illegal operation on a directory',
  ENOTEMPTY: 'directory not empty', EPERM: 'operation not permitted', EINVAL: 'invalid argument', ELOOP: 'too many symbolic links encountered'
}

let fs // as workerd has it
let path
let Buffer
let dir = '/'
let refused // why there are no files
let known = new Map() // what the host has, by path
let links = new Map() // what links say, by path: those of workerd must be absolute
let tell = () => {}
let complain = () => {}
let told = 0
let dirty = false
let timer
let delay = soon

// inner is where a path of the sandbox lies. What is no path is node:fs's to refuse.
function inner (given) {
  if (given instanceof URL) given = decodeURIComponent(given.pathname)
  if (given instanceof Uint8Array) given = Buffer.from(given).toString()
  if (typeof given !== 'string' || given.includes('\0')) return given
  const at = path.posix.resolve(dir, given)
  if (at === '/dev' || at.startsWith('/dev/') || at === root || at.startsWith(root + '/')) return at
  return at === '/' ? root : root + at
}

function outer (at) {
  if (at === root) return '/'
  return at.startsWith(root + '/') ? at.slice(root.length) : at
}

function shown (value, name, at) {
  if (typeof value === 'string') return outer(value)
  if (!isArray(value) || !/^readdir/.test(name)) return value
  const above = String(at).slice(1) + '/'
  const bare = name => name.startsWith(above) ? name.slice(above.length) : name // of a recursive one
  return value.map(entry => {
    if (typeof entry === 'string') return bare(entry)
    if (typeof entry?.parentPath !== 'string') return entry
    defineProperty(entry, 'name', { value: path.posix.basename(entry.name), enumerable: true })
    return defineProperty(entry, 'parentPath', { value: outer(entry.parentPath), enumerable: true })
  })
}

// plain makes an error what Node's would be, of a call with these paths.
function plain (error, name, [from, to] = []) {
  const text = texts[error?.code]
  if (text === undefined || error.told) return error
  const call = name.replace(/Sync$/, '')
  const syscall = opened.test(call) ? (error.code === 'EISDIR' ? 'read' : 'open') : call === 'readdir' ? 'scandir' : call.toLowerCase()
  const before = String(error.message)
  const message = `${error.code}: ${text}, ${syscall}${from === undefined ? '' : ` '${from}'`}${to === undefined ? '' : ` -> '${to}'`}`
  const stack = String(error.stack)
  defineProperty(error, 'message', { value: message, configurable: true, writable: true })
  defineProperty(error, 'stack', { value: stack.replace(before, () => message), configurable: true, writable: true })
  defineProperty(error, 'told', { value: true })
  assign(error, { syscall, ...(from === undefined ? {} : { path: from }), ...(to === undefined ? {} : { dest: to }) })
  return error
}

function touch () {
  dirty = true
  if (timer !== undefined) return
  timer = setTimeout(() => {
    timer = undefined
    delay = min(2 * delay, latest)
    tellChanges()
  }, delay)
}

// named are the paths of a call as its errors name them.
function named (name, args) {
  const all = twoPaths.test(name) || /^symlink/.test(name) ? 2 : byDescriptor.test(name) ? 0 : 1
  return args.slice(0, all).filter(at => typeof at !== 'number').map(at => at instanceof URL ? at.pathname : String(at))
}

// paths leads the arguments of a call into the copy, and returns those that are paths.
function paths (name, args) {
  if (/^symlink/.test(name)) {
    const at = inner(args[1])
    const target = args[0] instanceof Uint8Array ? Buffer.from(args[0]).toString() : args[0]
    if (typeof target === 'string' && typeof at === 'string') {
      args[0] = inner(path.posix.resolve(path.posix.dirname(outer(at)), target))
      links.set(outer(at), target)
    }
    args[1] = at
    return [at]
  }
  if (/^mkdtemp/.test(name) && String(args[0]).endsWith('/')) args[0] += 'tmp-'
  const all = twoPaths.test(name) ? 2 : 1
  for (let i = 0; i < all && i < args.length; i++) args[i] = inner(args[i])
  return args.slice(0, all).filter(at => typeof at === 'string')
}

function opensToRead (name, args) {
  return /^open(Sync)?$/.test(name) && (typeof args[1] === 'function' || args[1] === undefined || args[1] === 'r' || args[1] === 0)
}

// differs are the calls that workerd's file system does otherwise than Node's.
function differs (name, args) {
  const options = args[1]
  if (/^mkdir(Sync)?$/.test(name) && !options?.recursive && fs.existsSync(args[0])) throw assign(new Error('exists'), { code: 'EEXIST' })
  if (/^readlink(Sync)?$/.test(name)) {
    const kept = links.get(outer(fs.realpathSync(path.posix.dirname(args[0])) + '/' + path.posix.basename(args[0])))
    if (kept !== undefined && outer(fs.readlinkSync(args[0])) === path.posix.resolve(path.posix.dirname(outer(args[0])), kept)) return { value: kept }
  }
}

// led is a function of node:fs on the copy. Its end comes by its return, its promise or its callback.
function led (name, call, promises) {
  const writes = !byDescriptor.test(name) && !onlyReads.test(name)
  return function (...args) {
    if (refused !== undefined) throw new Error(refused)
    const said = named(name, args)
    const at = byDescriptor.test(name) ? [] : paths(name, args)
    const changes = writes && !opensToRead(name, args)
    const end = value => {
      if (changes) touch()
      return shown(value, name, at[0])
    }
    const back = args.at(-1)
    const called = !promises && !/Sync$/.test(name) && typeof back === 'function'
    if (called) args[args.length - 1] = (error, ...values) => back(error && plain(error, name, said), ...values.map(end))
    const answer = (error, value) => {
      if (called) return void process.nextTick(args.at(-1), error, value)
      if (promises) return error === null ? Promise.resolve(value) : Promise.reject(error)
      if (error !== null) throw error
      return value
    }
    try {
      const instead = differs(name, args)
      if (instead !== undefined) return answer(null, instead.value)
      const value = call.apply(this, args)
      if (promises && typeof value?.then === 'function') return value.then(end, error => { throw plain(error, name, said) })
      return /^create/.test(name) ? streamed(end(value), name, said) : end(value)
    } catch (error) {
      if (called && texts[error?.code] === undefined) throw error // of arguments that are none
      return answer(plain(error, name, said))
    }
  }
}

function streamed (stream, name, said) {
  const { emit } = stream
  stream.emit = function (event, ...values) {
    if (event === 'open' && typeof stream.path === 'string') stream.path = outer(stream.path)
    if (event === 'finish' || event === 'close') touch()
    return emit.call(this, event, ...(event === 'error' ? values.map(error => plain(error, name, said)) : values))
  }
  return stream
}

// lead has code find the copy by all ways to node:fs.
function lead (say) {
  const shared = builtin('node:fs')
  fs = { ...shared }
  path = builtin('node:path')
  Buffer = builtin('node:buffer').Buffer
  const { resolve } = path
  path.resolve = path.posix.resolve = (...parts) => resolve(dir, ...parts)
  const promises = { ...shared.promises } // which cannot be changed
  for (const [place, isPromises] of [[shared, false], [promises, true]]) {
    for (const name of keys(place)) {
      if (/^glob/.test(name)) delete place[name] // which finds nothing
      else if (/^[a-z]/.test(name) && typeof place[name] === 'function') place[name] = led(name, place[name], isPromises)
    }
  }
  defineProperty(shared, 'promises', { value: promises, enumerable: true, configurable: true })
  const { getBuiltinModule } = process
  process.getBuiltinModule = name => ofPromises.test(name) ? promises : getBuiltinModule(name)
  for (const name of ['write', 'writev', 'writeFile', 'appendFile', 'truncate', 'close', 'createWriteStream']) {
    const { prototype } = promises.FileHandle
    const call = prototype[name]
    prototype[name] = function (...args) {
      const value = call.apply(this, args)
      touch()
      return value?.then ? value.finally(touch) : value
    }
  }
  for (const name of ['writeSync', 'writeFileSync', 'appendFileSync']) {
    const call = shared[name]
    shared[name] = (to, ...args) => {
      if (to !== 1 && to !== 2) return call(to, ...args)
      const data = typeof args[0] === 'string' ? args[0] : Buffer.from(args[0].buffer, args[0].byteOffset, args[0].byteLength).toString()
      say(to === 1 ? 'stdout' : 'stderr', data)
      return name === 'writeSync' ? Buffer.byteLength(data) : undefined
    }
  }
}

// stand has a run's code stand in a directory, whether it uses files or not.
export function stand (at) {
  dir = at
  process.cwd = () => dir
  process.chdir = to => {
    if (fs === undefined) throw new Error('process.chdir needs a program that uses node:fs')
    const next = inner(String(to))
    if (!fs.existsSync(next) || !fs.statSync(next).isDirectory()) throw plain(assign(new Error('chdir'), { code: 'ENOENT' }), 'chdir', [String(to)])
    dir = outer(next)
  }
}

// give lays the copy out for a run, which tells by send what it changes, and by say what it writes to its descriptors.
export function give (files, send, say) {
  waits()
  clearTimeout(timer)
  if (fs === undefined) lead(say)
  tell = send
  complain = say
  refused = files.refused
  timer = undefined
  delay = soon
  dirty = false
  told = 0
  known = new Map()
  links = new Map()
  fs.rmSync(root, { recursive: true, force: true })
  fs.mkdirSync(root, { recursive: true })
  for (const at of files.directories ?? []) {
    fs.mkdirSync(root + at)
    known.set(at, null)
  }
  for (const at of keys(files.files ?? {})) {
    const data = Buffer.from(files.files[at], 'base64')
    fs.writeFileSync(root + at, data)
    known.set(at, data)
  }
  for (const at of keys(files.links ?? {})) {
    const target = files.links[at]
    fs.symlinkSync(inner(path.posix.resolve(path.posix.dirname(at), target)), root + at)
    known.set(at, target)
    links.set(at, target)
  }
}

// found is what the copy holds now: of a directory null, of a link what it says, of a file its contents.
function found () {
  const all = new Map()
  const walk = above => {
    for (const name of fs.readdirSync(root + above)) {
      const at = above + '/' + name
      const is = fs.lstatSync(root + at)
      if (is.isDirectory()) {
        all.set(at, null)
        walk(at)
      } else if (is.isSymbolicLink()) all.set(at, target(at))
      else all.set(at, fs.readFileSync(root + at))
    }
  }
  walk('')
  return all
}

function target (at) {
  const now = outer(fs.readlinkSync(root + at))
  const said = links.get(at)
  return said !== undefined && path.posix.resolve(path.posix.dirname(at), said) === now ? said : now
}

function same (a, b) {
  if (a === null || b === null || typeof a === 'string' || typeof b === 'string') return a === b
  return a !== undefined && a.length === b.length && Buffer.compare(a, b) === 0
}

function kindOf (value) {
  return value === null ? 'directory' : typeof value === 'string' ? 'link' : 'file'
}

// tellChanges tells what has changed since it last did.
export function tellChanges () {
  if (!dirty || refused !== undefined) return
  dirty = false
  try {
    tellThem(found())
  } catch (error) {
    complain('stderr', `${error.message}\n`)
  }
}

function tellThem (now) {
  for (const at of known.keys()) {
    if (!now.has(at)) tell({ type: 'file', kind: 'gone', path: at })
  }
  for (const [at, value] of now) {
    const before = known.get(at)
    if (same(before, value)) continue
    const kind = kindOf(value)
    if (before !== undefined && kindOf(before) !== kind) tell({ type: 'file', kind: 'gone', path: at })
    if (kind === 'file') tellFile(at, value)
    else tell({ type: 'file', kind, path: at, ...(kind === 'link' ? { target: value } : {}) })
  }
  known = now
}

function tellFile (at, data) {
  if ((told += data.length) > maxTold) throw new Error(`the code has written more than ${maxTold >> 20} MiB of files: ${at} and what comes after it are not kept`)
  let from = 0
  do {
    const piece = data.subarray(from, from + maxPiece)
    tell({ type: 'file', kind: 'file', path: at, at: from, data: Buffer.from(piece).toString('base64') })
    from += piece.length
  } while (from < data.length)
}

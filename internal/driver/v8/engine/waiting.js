// Whether the code of this isolate may have something to wait for. A program that never reached for what can wait has ended
// when its code has, which is told at once; of all others only workerd knows when nothing is left.
const { Reflect, Set, globalThis: global } = globalThis
const { defineProperty, getOwnPropertyDescriptor, getOwnPropertyNames, getPrototypeOf } = Object

// Of what workerd adds to the language, these do their work at once.
const instant = new Set([
  'btoa', 'atob', 'queueMicrotask', 'structuredClone', 'reportError', 'TextEncoder', 'TextDecoder', 'URL', 'URLSearchParams',
  'URLPattern', 'Headers', 'Event', 'CustomEvent', 'ErrorEvent', 'EventTarget', 'DOMException', 'constructor', 'global', 'self',
  'navigator', 'origin', 'performance', 'process', 'Buffer', 'display',
  'addEventListener', 'removeEventListener', 'dispatchEvent', 'clearTimeout', 'clearInterval', 'clearImmediate',
  'setTimeout', 'setInterval', 'setImmediate' // of which the calls are noted
])

// Of the language, these can wait, or can have import().
const waiting = new Set(['Atomics', 'FinalizationRegistry', 'WebAssembly', 'eval'])

const modules = new Set(['assert', 'events', 'os', 'path', 'punycode', 'querystring', 'string_decoder', 'url', 'util'])

let may = false

// mayWait reports whether the code has reached for anything that can wait.
export function mayWait () {
  return may
}

// waits notes that the code can wait from now on.
export function waits () {
  may = true
}

// needs notes that the code uses a module of Node.
export function needs (module) {
  if (!modules.has(module.replace(/^node:/, '').replace(/\/.*/, ''))) waits()
}

// watch has all that can wait note its first use.
export function watch () {
  const { getBuiltinModule } = process
  process.getBuiltinModule = name => {
    waits()
    return getBuiltinModule(name)
  }
  for (const name of getOwnPropertyNames(global)) {
    const own = getOwnPropertyDescriptor(global, name)
    if (own.configurable && (own.enumerable ? !instant.has(name) : waiting.has(name))) guard(name, own)
  }
  for (let from = getPrototypeOf(global); from !== Object.prototype; from = getPrototypeOf(from)) {
    for (const name of getOwnPropertyNames(from)) {
      if (!instant.has(name) && getOwnPropertyDescriptor(global, name) === undefined) guard(name)
    }
  }
}

// guard puts itself before a name, until that is used.
function guard (name, own) {
  const uncover = () => {
    waits()
    if (own) defineProperty(global, name, own)
    else delete global[name]
  }
  defineProperty(global, name, {
    configurable: true,
    enumerable: own?.enumerable ?? false,
    get: () => {
      uncover()
      return global[name]
    },
    set: value => {
      uncover()
      Reflect.set(global, name, value)
    }
  })
}

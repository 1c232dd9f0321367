// The modules of a program, which come with it: workerd's own modules may use no timers while they are loaded. Each is a
// function: of CommonJS as Node has it, of ES modules a generator. That says first what it exports, and pauses, so that modules
// which import each other find each other's functions; when it goes on, its code runs.
import { createRequire } from 'node:module'
import { needs } from 'waiting.js'
import { ofPromises } from 'files.js'

const evaluate = globalThis.eval
const load = createRequire('file:///')
const builtin = spec => ofPromises.test(spec) ? load('node:fs').promises : load(spec)
const { parse } = JSON
const { max } = Math
const { assign, create, defineProperty, hasOwn, keys, values } = Object
const { Error, SyntaxError, URL, String, Promise } = globalThis
const heads = create(null) // by URL of CommonJS's code: how much stands before its first line
const filesOf = /^(node:)?fs(\/promises)?$/
const relative = /^(\.{0,2}\/|\.{1,2}$|file:)/

function fail (Type, code, message) {
  const error = new Type(message)
  if (code) error.code = code
  error.stack = `${error.name}${code ? ` [${code}]` : ''}: ${message}`
  return error
}

// placed makes the column in a line of a stack trace that of the file.
export function placed (line) {
  const found = /:1:(\d+)\)?$/.exec(line)
  if (found === null) return line
  const from = max(line.lastIndexOf(' ', found.index), line.lastIndexOf('(', found.index)) + 1
  const url = line.slice(from, found.index)
  return hasOwn(heads, url) ? line.slice(0, from) + `${url}:1:${found[1] - heads[url]}` + (line.endsWith(')') ? ')' : '') : line
}

function noPackage (spec, by) {
  return fail(Error, 'ERR_MODULE_NOT_FOUND', `Cannot find package '${spec}' ${by}`)
}

function define (space, name, get) {
  if (!hasOwn(space, name)) defineProperty(space, name, { get, enumerable: true, configurable: true })
}

function own (object, name) {
  return object !== undefined && hasOwn(object, name) ? object[name] : undefined
}

// loader returns what loads the modules of a program, whose first is main, or those that a code context imports.
export function loader (modules, main) {
  const made = create(null) // by path
  let fresh = [] // of which it is not yet looked whether they find what they import
  let first // CommonJS's, if main is one

  function compile ({ id, given }) {
    const url = id.replace(/[\s'"]/g, '_')
    if (given.kind === 'cjs') heads[url] = given.code.indexOf('{') + 1
    try {
      return evaluate(given.code + '\n//# sourceURL=' + url)
    } catch (error) {
      throw fail(SyntaxError, '', `${error.message} in ${id}`)
    }
  }

  function link (id) {
    if (made[id]) return made[id]
    const given = modules[id]
    const m = { id, given, space: create(null), deps: [], begun: false, ran: false, module: undefined, error: undefined, done: undefined }
    defineProperty(m.space, Symbol.toStringTag, { value: 'Module' })
    if (given.kind === 'error') throw fail(given.name === 'SyntaxError' ? SyntaxError : Error, given.code, `${given.text} in ${id}`)
    if (given.kind === 'json') {
      m.module = { exports: json(m) }
      m.ran = true
    }
    if (given.kind === 'cjs') m.module = { exports: {}, id, filename: id, loaded: false, children: [], paths: [] }
    made[id] = m
    if (m.module) define(m.space, 'default', () => m.module.exports)
    else linkES(m)
    fresh.push(m)
    return m
  }

  function json (m) {
    try {
      return parse(m.given.code)
    } catch (error) {
      throw fail(SyntaxError, '', `${error.message} in ${m.id}`)
    }
  }

  function linkES (m) {
    try {
      const make = compile(m)
      for (const spec of m.given.deps ?? []) m.deps.push(dependency(m, spec))
      const url = 'file://' + m.id
      const meta = { url, filename: m.id, dirname: directory(m.id), main: m.id === main, resolve: spec => new URL(spec, url).href }
      m.body = make(requirer(m), importer(m), meta, imports(m), exports => {
        for (const name of keys(exports)) define(m.space, name, exports[name])
      })
      m.body.next()
    } catch (error) {
      delete made[m.id]
      throw error
    }
  }

  function imports ({ given, deps }) {
    const all = create(null)
    const list = given.imports ?? []
    for (let i = 0; i < list.length; i++) {
      const { of, name } = list[i]
      const { space } = deps[of]
      define(all, i, name === '' ? () => space : () => space[name])
    }
    return all
  }

  function dependency (m, spec) {
    const id = own(m.given.from, spec)
    if (id !== undefined) return link(id)
    const found = outside(m, spec, 'imported from ' + m.id)
    return { space: { ...found, default: found }, begun: true }
  }

  // outside is a module that does not come with the program.
  function outside (m, spec, by) {
    if (relative.test(spec)) throw fail(Error, 'ERR_MODULE_NOT_FOUND', `Cannot find module '${new URL(spec, 'file://' + m.id).pathname}' ${by}`)
    needs(spec)
    try {
      return builtin(spec)
    } catch {
      throw noPackage(spec, by)
    }
  }

  // settle completes what was linked: what comes through export *, and whether there is what is imported by name.
  function settle () {
    for (let more = true; more;) {
      more = false
      for (const m of fresh) {
        for (const star of m.given.stars ?? []) {
          const { space } = m.deps[star]
          for (const name of keys(space)) {
            if (name === 'default' || hasOwn(m.space, name)) continue
            define(m.space, name, () => space[name])
            more = true
          }
        }
      }
    }
    for (const m of fresh) check(m)
    fresh = []
  }

  // find links a module, and all that it needs and is new. Of what cannot be linked nothing stays.
  function find (id) {
    try {
      const m = link(id)
      settle()
      return m
    } catch (error) {
      forget(fresh)
      throw error
    }
  }

  function forget (all) {
    for (const m of all) delete made[m.id]
    fresh = []
  }

  function check ({ given, deps }) {
    for (const { of, name } of given.imports ?? []) {
      if (name === '' || deps[of].given?.kind === 'cjs') continue // tells when it has run
      if (!hasOwn(deps[of].space, name)) throw fail(SyntaxError, '', `The requested module '${given.deps[of]}' does not provide an export named '${name}'`)
    }
  }

  function start (m, above = []) {
    if (above.includes(m)) return // it imports itself, by way of others
    m.done ??= go(m, [...above, m])
    return m.done
  }

  async function go (m, above) {
    for (const dep of m.deps) {
      if (dep.given) await start(dep, above)
    }
    if (m.error) throw m.error.value
    if (m.begun) return
    if (m.module) return run(m)
    m.begun = true
    await m.body.next()
    m.ran = true
  }

  // need runs a module at once, for require.
  function need (m) {
    if (m.error) throw m.error.value
    if (m.module) return run(m)
    if (m.begun) return m.space
    if (m.given.async) throw fail(Error, 'ERR_REQUIRE_ASYNC_MODULE', `require() cannot be used on an ES module with await at its top: ${m.id}`)
    m.begun = true
    try {
      for (const dep of m.deps) {
        if (dep.given) need(dep)
      }
      m.body.next()
      m.ran = true
    } catch (error) {
      m.error = { value: error }
      throw error
    }
    m.done = Promise.resolve()
    return m.space
  }

  function run (m) {
    if (m.given.kind === 'json' || m.begun) return m.module.exports
    m.begun = true
    first ??= m.id === main ? m.module : undefined
    try {
      compile(m).call(m.module.exports, m.module.exports, requirer(m), m.module, m.id, directory(m.id), importer(m))
    } catch (error) {
      m.begun = false
      throw error
    }
    m.module.loaded = true
    m.ran = true
    const { exports } = m.module
    if (exports !== null && (typeof exports === 'object' || typeof exports === 'function')) {
      for (const name of keys(exports)) define(m.space, name, () => exports[name])
    }
    return exports
  }

  function requirer (m) {
    const require = spec => {
      const id = own(m.given.from, String(spec))
      if (id === undefined) return outside(m, String(spec), 'required by ' + m.id)
      return need(find(id))
    }
    require.main = first
    require.cache = {}
    require.resolve = spec => own(m.given.from, String(spec)) ?? String(spec)
    return require
  }

  function importer (m) {
    return async spec => {
      spec = String(spec)
      let id = own(m.given.from, spec)
      if (id === undefined && !relative.test(spec)) {
        if (filesOf.test(spec)) { // as they are now, not as they were
          const found = builtin(spec)
          return { ...found, default: found }
        }
        needs(spec)
        return await import(spec).catch(() => { throw noPackage(spec, 'imported from ' + m.id) })
      }
      if (id === undefined) id = new URL(spec, 'file://' + m.id).pathname
      if (!hasOwn(modules, id)) return outside(m, spec, 'imported from ' + m.id)
      const found = find(id)
      await start(found)
      return found.space
    }
  }

  return {
    requirer,
    importer,

    // run runs the program.
    run () {
      return start(find(main))
    },

    // add takes modules that may be imported from now on. Those that have run are kept as they are; those that failed, or were
    // to run with one that did, are loaded anew.
    add (more) {
      assign(modules, more)
      forget(values(made).filter(m => !m.ran))
    }
  }
}

function directory (id) {
  return id.slice(0, id.lastIndexOf('/')) || '/'
}

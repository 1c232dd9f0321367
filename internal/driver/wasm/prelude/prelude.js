// What JavaScript in QuickJS begins with, in code contexts and in programs: the console, process and timers that code for
// Node.js expects, as far as there can be any here. What there cannot be says so. QuickJS's own std and os are
// there without import.
(() => {
  const { std, os } = globalThis
  const place = 'a WASM sandbox'
  const instead = 'use a template with V8, or one of Linux programs'
  os.chdir(std.getenv('PWD'))

  // inspect shows a value as Node's util.inspect does, in short.
  function inspect (value, depth = 2, seen = new Set()) {
    switch (typeof value) {
      case 'string': return seen.size > 0 ? quote(value) : value
      case 'bigint': return value + 'n'
      case 'symbol': return value.toString()
      case 'number': return Object.is(value, -0) ? '-0' : String(value)
      case 'function': return describe(value)
      case 'object': break
      default: return String(value)
    }
    if (value === null) return 'null'
    if (value instanceof Error) return value.stack ? `${value.name}: ${value.message}\n${value.stack}`.trimEnd() : `${value.name}: ${value.message}`
    if (value instanceof Date) return isNaN(value) ? 'Invalid Date' : value.toISOString()
    if (value instanceof RegExp) return String(value)
    if (value instanceof Promise) return 'Promise { }'
    if (seen.has(value)) return '[Circular]'
    if (depth < 0) return Array.isArray(value) ? '[Array]' : '[Object]'
    seen.add(value)
    const show = v => inspect(v, depth - 1, seen)
    const text = compound(value, show)
    seen.delete(value)
    return text
  }

  function quote (text) {
    return "'" + text.replace(/\\/g, '\\\\').replace(/'/g, "\\'").replace(/\n/g, '\\n') + "'"
  }

  function describe (f) {
    const kind = /^class\b/.test(Function.prototype.toString.call(f)) ? 'class' : 'Function'
    return f.name ? `[${kind === 'class' ? 'class ' + f.name : kind + ': ' + f.name}]` : `[${kind} (anonymous)]`
  }

  function compound (value, show) {
    const most = 100
    const list = (items, open, close) => {
      const shown = items.slice(0, most)
      if (items.length > most) shown.push(`... ${items.length - most} more items`)
      if (shown.length === 0) return open.trim() + close.trim()
      const line = open + shown.join(', ') + close
      return line.length <= 76 && !line.includes('\n') ? line : open.trimEnd() + '\n  ' + shown.join(',\n').replace(/\n/g, '\n  ') + '\n' + close.trim()
    }
    const pairs = Object.keys(value).filter(k => !Array.isArray(value) && !ArrayBuffer.isView(value) || !/^\d+$/.test(k))
      .map(k => (/^[A-Za-z_$][\w$]*$/.test(k) ? k : quote(k)) + ': ' + show(value[k]))
    if (Array.isArray(value)) return list([...value.slice(0, most + 1).map(show), ...pairs], '[ ', ' ]')
    if (ArrayBuffer.isView(value)) return list([...Array.prototype.slice.call(value, 0, most + 1).map(show), ...pairs], `${value.constructor.name}(${value.length}) [ `, ' ]')
    if (value instanceof Map) return list([...[...value].map(([k, v]) => show(k) + ' => ' + show(v)), ...pairs], `Map(${value.size}) { `, ' }')
    if (value instanceof Set) return list([...[...value].map(show), ...pairs], `Set(${value.size}) { `, ' }')
    const name = Object.getPrototypeOf(value)?.constructor?.name
    return list(pairs, name && name !== 'Object' ? name + ' { ' : '{ ', ' }')
  }

  function format (values) {
    let [first, ...rest] = values
    if (typeof first === 'string') {
      first = first.replace(/%[sdifjoO%]/g, mark => {
        if (mark === '%%') return '%'
        if (rest.length === 0) return mark
        const value = rest.shift()
        switch (mark) {
          case '%s': return typeof value === 'string' ? value : inspect(value)
          case '%d': return String(Number(value))
          case '%i': return String(parseInt(value))
          case '%f': return String(parseFloat(value))
          case '%j': return JSON.stringify(value)
        }
        return inspect(value)
      })
      return [first, ...rest.map(v => inspect(v))].join(' ')
    }
    return values.map(v => inspect(v)).join(' ')
  }

  let margin = ''
  const counts = {}
  const times = {}

  function printer (to) {
    return (...values) => {
      to.puts((margin + format(values)).replaceAll('\n', '\n' + margin) + '\n')
      to.flush()
    }
  }
  const out = printer(std.out)
  const err = printer(std.err)
  globalThis.console = {
    log: out, info: out, debug: out, dir: v => out(inspect(v)), table: v => out(inspect(v)), warn: err, error: err, trace: err,
    assert: (ok, ...values) => { if (!ok) err(...(values.length > 0 ? ['Assertion failed:', ...values] : ['Assertion failed'])) },
    group: (...values) => { if (values.length > 0) out(...values); margin += '  ' },
    groupEnd: () => { margin = margin.slice(2) },
    count: (name = 'default') => { counts[name] = (counts[name] ?? 0) + 1; out(`${name}: ${counts[name]}`) },
    time: (name = 'default') => { times[name] = Date.now() },
    timeEnd: (name = 'default') => { out(`${name}: ${Date.now() - (times[name] ?? Date.now())}ms`) }
  }

  const stream = to => ({ write: text => { to.puts(String(text)); to.flush(); return true } })
  globalThis.process = {
    env: std.getenviron(), argv: ['node', ...(globalThis.scriptArgs ?? [])], platform: 'wasi', cwd: () => os.getcwd()[0], version: '', versions: {},
    exit: status => std.exit(Number(status ?? 0) & 255), stdout: stream(std.out), stderr: stream(std.err)
  }
  globalThis.setTimeout ??= (f, ms, ...args) => os.setTimeout(() => f(...args), ms)
  globalThis.clearTimeout ??= os.clearTimeout
  globalThis.setInterval ??= (f, ms, ...args) => os.setInterval(() => f(...args), ms)
  globalThis.clearInterval ??= os.clearInterval
  globalThis.global = globalThis
  globalThis.require = name => { throw new Error(`require('${name}') finds nothing: ${place} has no modules of Node.js; ${instead}`) }
  globalThis.fetch = async () => { throw new TypeError(`fetch is refused: ${place} has no network`) }
  Object.defineProperty(globalThis, Symbol.for('firebreak.inspect'), { value: inspect })
})()

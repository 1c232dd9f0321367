// Runs JavaScript for a code context in QuickJS: requests come as frames in one stream, and what there is besides output
// goes back as frames in another, as between the agent and kernel.js of Node. A value is the last expression's; const, let
// and class may be declared again; await stands anywhere.
import('qjs:std').then(std => import('qjs:os').then(os => {
  'use strict'
  const requests = std.open('/dev/kernel/requests', 'r')
  const answers = std.open('/dev/kernel/answers', 'w')
  const maxText = 1 << 20
  const maxFrame = (8 << 20) - (64 << 10)
  let id = 0
  os.chdir(std.getenv('PWD'))

  const utf8 = {
    length (text) {
      let n = 0
      for (const c of text) n += c < '\x80' ? 1 : c < '\u0800' ? 2 : c.length === 2 ? 4 : 3
      return n
    }
  }

  function send (frame) {
    const body = JSON.stringify(frame)
    answers.puts(utf8.length(body) + '\n' + body)
    answers.flush()
  }

  function receive () {
    const line = requests.getline()
    return line === null ? null : JSON.parse(requests.readAsString(Number(line)))
  }

  function cut (text) {
    return text.length <= maxText ? text : text.slice(0, maxText) + `… (${text.length} characters in all)`
  }

  // inspect shows a value as Node's util.inspect does, in short.
  function inspect (value, depth = 3, seen = new Set()) {
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

  function printer (to) {
    return (...values) => {
      to.puts(format(values) + '\n')
      to.flush()
    }
  }
  const out = printer(std.out)
  const err = printer(std.err)
  globalThis.console = { log: out, info: out, debug: out, dir: v => out(inspect(v)), table: v => out(inspect(v)), warn: err, error: err, trace: err }
  globalThis.process = { env: std.getenviron(), argv: ['js'], platform: 'wasi', cwd: () => os.getcwd()[0], version: '' }
  globalThis.setTimeout ??= (f, ms, ...args) => os.setTimeout(() => f(...args), ms)
  globalThis.clearTimeout ??= os.clearTimeout
  globalThis.setInterval ??= (f, ms, ...args) => os.setInterval(() => f(...args), ms)
  globalThis.clearInterval ??= os.clearInterval
  globalThis.global = globalThis

  function render (value) {
    const out = {}
    try {
      out.text = cut(inspect(value))
    } catch {
      out.text = '<a value that cannot be shown>'
    }
    const own = Symbol.for('Jupyter.display') // as Deno's libraries have it
    if (value !== null && typeof value === 'object' && typeof value[own] === 'function') Object.assign(out, named(value[own]()))
    if (utf8.length(JSON.stringify(out)) > maxFrame) return { text: '(left out: larger than a result may be) ' + out.text }
    return out
  }

  function named (bundle) {
    const forms = {
      'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/svg+xml': 'svg', 'image/png': 'png',
      'image/jpeg': 'jpeg', 'application/pdf': 'pdf', 'text/latex': 'latex', 'application/json': 'json', 'application/javascript': 'javascript'
    }
    return Object.fromEntries(Object.entries(bundle).map(([mime, data]) => [forms[mime] ?? mime, data]))
  }
  globalThis.display = value => send({ type: 'result', id, main: false, forms: render(value) })

  // again makes declarations that may be repeated of those at the top, because scripts share one scope. Strings, comments,
  // templates and expressions in slashes are passed over.
  function again (code) {
    const token = /\/\/[^\n]*|\/\*[^]*?\*\/|'(?:\\[^]|[^'\\\n])*'|"(?:\\[^]|[^"\\\n])*"|[A-Za-z_$][\w$]*|\d[\w.]*|\s+|[^]/g
    let depth = 0
    let before = '' // the last token that is not white space
    let text = ''
    let found
    while ((found = token.exec(code)) !== null) {
      let t = found[0]
      if (t === '`') t = template(code, found.index)
      else if (t === '/' && /^$|^[=(,:;!&|?{}[+\-*%<>~^]$|^(return|typeof|case|in|of|await|void|delete)$/.test(before)) t = slashes(code, found.index)
      token.lastIndex = found.index + t.length
      if (/[({[]/.test(t) && t.length === 1) depth++
      if (/[)}\]]/.test(t) && t.length === 1) depth--
      const first = /^$|^[;}]$/.test(before) || /\n\s*$/.test(text) || text === ''
      if (depth === 0 && first && (t === 'const' || t === 'let')) text += 'var'
      else if (depth === 0 && first && t === 'class') {
        const name = /^class\s+([A-Za-z_$][\w$]*)/.exec(code.slice(found.index))
        text += name === null ? t : `var ${name[1]} = class`
      } else text += t
      if (!/^\s/.test(t) && !/^\/[/*]/.test(t)) before = t
    }
    return text
  }

  function template (code, from) {
    let depth = 0
    for (let i = from + 1; i < code.length; i++) {
      if (code[i] === '\\') i++
      else if (code[i] === '$' && code[i + 1] === '{') depth++
      else if (code[i] === '}' && depth > 0) depth--
      else if (code[i] === '`' && depth === 0) return code.slice(from, i + 1)
    }
    return code.slice(from)
  }

  function slashes (code, from) {
    const found = /^\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/\w*/.exec(code.slice(from))
    return found === null ? '/' : found[0]
  }

  async function run (request) {
    id = request.id
    const before = Object.keys(request.env).map(name => [name, globalThis.process.env[name]])
    Object.assign(globalThis.process.env, request.env)
    try {
      if (request.language === 'typescript') throw Object.assign(new Error('TypeScript needs Node.js or V8; this is QuickJS'), { name: 'Unsupported' })
      let { value } = await std.evalScript(again(request.code), { async: true, backtrace_barrier: true })
      value = await value
      if (value !== undefined) send({ type: 'result', id, main: true, forms: render(value) })
    } catch (error) {
      failed(error)
    }
    for (const [name, value] of before) {
      if (value === undefined) delete globalThis.process.env[name]
      else globalThis.process.env[name] = value
    }
    std.out.flush()
    send({ type: 'done', id })
  }

  function failed (error) {
    const isError = error instanceof Error
    const stack = isError ? `${error.name}: ${error.message}\n${error.stack ?? ''}`.trimEnd() : 'Uncaught ' + inspect(error)
    send({
      type: 'error', id, name: String(isError ? error.name : typeof error), traceback: cut(stack),
      value: cut(isError ? String(error.message) : inspect(error))
    })
  }

  async function serve () {
    send({ type: 'ready' })
    for (let request = receive(); request !== null; request = receive()) {
      if (request.code !== undefined) await run(request)
    }
    std.exit(0)
  }
  serve()
}))

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

  const inspect = globalThis[Symbol.for('firebreak.inspect')]

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

  const comment = '//[^\\n]*(?![^\\n])|/\\*(?:[^*]|\\*(?!/))*\\*/'
  const comments = new RegExp(comment, 'g')
  const gap = `(?:\\s|${comment})*`
  const name = '([\\w$\\u0080-\\uffff]+)'
  const names = `(?:${name}${gap}(?:,${gap})?)?(?:\\*${gap}as\\b${gap}${name}${gap})?(?:\\{([^}]*)\\}${gap})?`
  const importing = new RegExp(`import\\b${gap}(?:${names}from\\b${gap})?("[^"\\n]+"|'[^'\\n]+')`, 'y')

  // again makes declarations that may be repeated of those at the top, because scripts share one scope, and import() of import
  // statements. Strings, comments, templates and expressions in slashes are passed over.
  function again (code) {
    const token = /\/\/[^\n]*|\/\*[^]*?\*\/|'(?:\\[^]|[^'\\\n])*'|"(?:\\[^]|[^"\\\n])*"|[A-Za-z_$][\w$]*|\d[\w.]*|\s+|[^]/g
    let depth = 0
    let before = '' // the last token that is not white space
    let line = true // none is before it in its line
    let text = ''
    let found
    while ((found = token.exec(code)) !== null) {
      let t = found[0]
      if (t === '`') t = template(code, found.index)
      else if (t === '/' && /^$|^[=(,:;!&|?{}[+\-*%<>~^]$|^(return|typeof|case|in|of|await|void|delete)$/.test(before)) t = slashes(code, found.index)
      token.lastIndex = found.index + t.length
      if (t === '(' || t === '{' || t === '[') depth++
      if (t === ')' || t === '}' || t === ']') depth--
      const written = depth === 0 && (line || before === ';' || before === '}') ? declared(code, token, t) : t
      text += written
      if (t.trim() === '') line ||= t.includes('\n')
      else if (!t.startsWith('//') && !t.startsWith('/*')) {
        before = t === 'import' && written !== t ? ';' : t
        line = false
      }
    }
    return text
  }

  // declared is what to write for the token t, which may begin a statement at the top.
  function declared (code, token, t) {
    if (t === 'const' || t === 'let') return 'var'
    const from = token.lastIndex - t.length
    if (t === 'class') {
      const name = /^class\s+([A-Za-z_$][\w$]*)/.exec(code.slice(from, from + 1000))
      return name === null ? t : `var ${name[1]} = class`
    }
    if (t !== 'import') return t
    importing.lastIndex = from
    const found = importing.exec(code)
    if (found === null) return t
    token.lastIndex = importing.lastIndex
    const [whole, one, all, some, module] = found
    const lines = '\n'.repeat(whole.split('\n').length - 1) // so that those after it keep their numbers
    const call = `await import(${module})`
    if (all) return `var ${all} = ${call}${one ? `, { default: ${one} } = ${all}` : ''};` + lines
    const parts = (some ?? '').replace(comments, ' ').split(',').map(n => n.trim().replace(/\s+as\s+/, ': ')).filter(Boolean)
    if (one) parts.unshift(`default: ${one}`)
    return `var { ${parts.join(', ')} } = ${call};` + lines // which has no value
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
    const whole = /\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/\w*/y
    whole.lastIndex = from
    const found = whole.exec(code)
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

  function shown (thrown) {
    return typeof thrown === 'string' ? inspect([thrown]).slice(2, -2) : inspect(thrown) // with its quotes
  }

  function failed (error) {
    const isError = error instanceof Error
    const stack = isError ? `${error.name}: ${error.message}\n${error.stack ?? ''}`.trimEnd() : 'Uncaught ' + shown(error)
    send({
      type: 'error', id, name: String(isError ? error.name : typeof error), traceback: cut(stack),
      value: cut(isError ? String(error.message) : shown(error))
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

// Code through the package @e2b/code-interpreter.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { E2B, InvalidArgumentError, Sandbox } from '@e2b/code-interpreter'
import { check, finish, gate, skip } from './check.mjs'

const sbx = await Sandbox.create({ timeoutMs: 300_000, envs: { FROM_SANDBOX: 'yes' } })

await check('runCode keeps the state', async () => {
  const first = await sbx.runCode('x = 41')
  assert.deepEqual([first.text, first.results.length, first.error], [undefined, 0, undefined])
  const second = await sbx.runCode('x += 1; x')
  assert.equal(second.text, '42')
  assert.equal(second.results[0].isMainResult, true)
  assert.equal(second.executionCount, first.executionCount + 1)
  assert.deepEqual(JSON.parse(JSON.stringify(second)).results[0].text, '42')
})

await check('output comes while the code runs', async () => {
  const { opened, open } = gate()
  const lines = []
  const running = sbx.runCode(
    'import os, sys, time\nprint("first", flush=True)\nwhile not os.path.exists("/tmp/go"): time.sleep(0.02)\nprint("second")\nprint("err", file=sys.stderr)',
    {
      onStdout: (m) => {
        lines.push(m.line)
        open()
      },
      onStderr: (m) => lines.push(`${m.error} ${m.line}`),
    },
  )
  await opened
  assert.deepEqual(lines, ['first\n'])
  await sbx.files.write('/tmp/go', '')
  const done = await running
  assert.equal(done.logs.stdout.join(''), 'first\nsecond\n')
  assert.equal(done.logs.stderr.join(''), 'err\n')
  assert.ok(lines.includes('true err\n'))
})

await check('an error has its traceback', async () => {
  let called
  const failed = await sbx.runCode('def f():\n    return 1/0\nf()', { onError: (e) => (called = e) })
  assert.equal(failed.error.name, 'ZeroDivisionError')
  assert.equal(failed.error.value, 'division by zero')
  assert.match(failed.error.traceback, /Traceback[\s\S]*return 1\/0/)
  assert.equal(called.name, 'ZeroDivisionError')
  assert.equal((await sbx.runCode('x')).text, '42')
})

await check('environment of a run', async () => {
  const code = 'import os; (os.environ.get("FROM_SANDBOX"), os.environ.get("MINE"))'
  assert.equal((await sbx.runCode(code, { envs: { MINE: 'm' } })).text, "('yes', 'm')")
  assert.equal((await sbx.runCode(code)).text, "('yes', None)")
})

await check('a time-out leaves the context usable', async () => {
  await sbx.runCode('kept = "still here"')
  await assert.rejects(sbx.runCode('import time\nwhile True: time.sleep(0.1)', { timeoutMs: 1500 }), /timed out|timeout/i)
  assert.equal((await sbx.runCode('kept')).text, 'still here')
})

await check('await at the top level', async () => {
  assert.equal((await sbx.runCode('import asyncio\nawait asyncio.sleep(0, "awaited")')).text, 'awaited')
})

await check('results of all kinds', async () => {
  const shown = []
  const run = await sbx.runCode(
    `
class Rich:
    def _repr_html_(self): return '<b>h</b>'
    def _repr_markdown_(self): return '**m**'
    def _repr_svg_(self): return '<svg/>'
    def _repr_latex_(self): return '$l$'
    def _repr_json_(self): return {'j': 1}
    def _repr_png_(self): return b'\\x89PNG'
    def _repr_jpeg_(self): return b'\\xff\\xd8'
    def _repr_pdf_(self): return b'%PDF'
    def _repr_javascript_(self): return 'js()'
    def __repr__(self): return 'rich'
display('shown')
Rich()
`,
    { onResult: (r) => shown.push(r) },
  )
  assert.equal(run.results.length, 2)
  assert.deepEqual(run.results.map((r) => r.isMainResult), [false, true])
  assert.equal(run.results[0].text, 'shown')
  const rich = run.results[1]
  assert.deepEqual([rich.text, rich.html, rich.markdown, rich.svg, rich.latex, rich.javascript], ['rich', '<b>h</b>', '**m**', '<svg/>', '$l$', 'js()'])
  assert.deepEqual(rich.json, { j: 1 })
  assert.deepEqual([rich.png, rich.jpeg, rich.pdf].map((b) => Buffer.from(b, 'base64').length), [4, 2, 4])
  for (const format of ['html', 'png', 'svg', 'json', 'latex']) assert.ok(rich.formats().includes(format), format)
  assert.equal(shown.length, 2)
})

await check('createCodeContext', async () => {
  await sbx.files.makeDir('/tmp/there')
  const context = await sbx.createCodeContext({ language: 'python', cwd: '/tmp/there' })
  assert.deepEqual([context.language, context.cwd], ['python', '/tmp/there'])
  assert.equal((await sbx.runCode('import os; y = 7; os.getcwd()', { context })).text, '/tmp/there')
  assert.equal((await sbx.runCode('"y" in globals()')).text, 'False')
  assert.ok((await sbx.listCodeContexts()).some((c) => c.id === context.id && c.cwd === '/tmp/there'))
  await sbx.restartCodeContext(context)
  assert.equal((await sbx.runCode('"y" in globals()', { context })).text, 'False')
  await sbx.removeCodeContext(context.id)
  assert.ok(!(await sbx.listCodeContexts()).some((c) => c.id === context.id))
  await assert.rejects(sbx.runCode('1', { context }), /not found/i)
  await assert.rejects(sbx.removeCodeContext(context), /not found/i)
  await assert.rejects(sbx.restartCodeContext('no-such-context'), /not found/i)
  await assert.rejects(sbx.runCode('1', { context, language: 'python' }), InvalidArgumentError)
})

await check('javascript, typescript and bash', async () => {
  await sbx.runCode('let n = 20', { language: 'javascript' })
  assert.equal((await sbx.runCode('n + 1', { language: 'js' })).text, '21')
  const thrown = await sbx.runCode('throw new TypeError("t")', { language: 'javascript' })
  assert.deepEqual([thrown.error.name, thrown.error.value], ['TypeError', 't'])
  await sbx.runCode('v=5; cd /tmp', { language: 'bash' })
  assert.deepEqual((await sbx.runCode('echo $v $PWD', { language: 'bash' })).logs.stdout.join(''), '5 /tmp\n')
  assert.equal((await sbx.runCode('exit 3', { language: 'bash' })).error.name.length > 0, true)
})

await check('typescript', async () => {
  // Node.js before 22.13 needs the package, where the context looks for it.
  const compiler = createRequire(import.meta.url).resolve('typescript')
  await sbx.files.write('node_modules/typescript/package.json', '{"name": "typescript", "main": "typescript.js"}')
  await sbx.files.write('node_modules/typescript/typescript.js', new Blob([readFileSync(compiler)]))
  await sbx.runCode('interface Sum { of: number }\nenum Kind { A = 3 }', { language: 'typescript' })
  const run = await sbx.runCode('const s: Sum = { of: 2 + Kind.A }; s.of', { language: 'ts' })
  assert.equal(run.text, '5', JSON.stringify(run))
})

await check('a language that is not there', async () => {
  await assert.rejects(sbx.runCode('1', { language: 'cobol' }), /400/) // this SDK passes on no more
})

await check('runs of one context wait for each other', async () => {
  const order = []
  await Promise.all([1, 2, 3].map(async (n) => {
    await sbx.runCode(`import time; time.sleep(0.1); print(${n})`)
    order.push(n)
  }))
  assert.equal(order.length, 3)
})

await check('a paused sandbox keeps its contexts', async () => {
  await sbx.runCode('before = [1, 2]')
  await sbx.pause()
  await sbx.connect()
  assert.equal((await sbx.runCode('before')).text, '[1, 2]')
})

await check('a killed sandbox', async () => {
  const short = await new E2B().Sandbox.create({ timeoutMs: 60_000 })
  const { opened, open } = gate()
  const running = assert.rejects(short.runCode('print(1, flush=True)\nimport time\ntime.sleep(600)', { onStdout: open }), /killed|terminated/)
  await opened
  await short.kill()
  await running
  await assert.rejects(short.runCode('1'), /timeout|not found/i)
})

const libraries = (await sbx.runCode('import matplotlib, pandas')).error
const rich = (name, run) => check(name, async () => (libraries ? skip(`the template has no matplotlib and pandas: ${libraries.value}`) : run()))

await rich('a matplotlib chart', async () => {
  const run = await sbx.runCode(`
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4, 5, 6], label='rising')
plt.title('A title'); plt.xlabel('x (s)'); plt.ylabel('y')
plt.show()
`)
  assert.equal(run.error, undefined, run.error?.traceback)
  const [{ png, chart }] = run.results
  assert.deepEqual([...Buffer.from(png, 'base64').subarray(0, 4)], [0x89, 0x50, 0x4e, 0x47])
  assert.deepEqual([chart.type, chart.title, chart.x_label, chart.x_unit, chart.y_label], ['line', 'A title', 'x (s)', 's', 'y'])
  assert.deepEqual(chart.elements, [{ label: 'rising', points: [[1, 4], [2, 5], [3, 6]] }])
})

await rich('bars, pies, points, boxes and several charts', async () => {
  const kind = async (code) => (await sbx.runCode(`import matplotlib.pyplot as plt\n${code}\nplt.show()`)).results[0].chart
  assert.deepEqual((await kind("plt.bar(['a', 'b'], [1, 2])")).elements.map((e) => [e.label, e.value]), [['a', 1], ['b', 2]])
  assert.equal((await kind("plt.pie([1, 3], labels=['a', 'b'])")).type, 'pie')
  assert.equal((await kind('plt.scatter([1, 2], [3, 4])')).type, 'scatter')
  assert.equal((await kind('plt.boxplot([1, 2, 3, 9])')).type, 'box_and_whisker')
  const both = await kind('f, (a, b) = plt.subplots(1, 2); a.plot([1], [1]); b.bar(["x"], [1])')
  assert.deepEqual([both.type, both.elements.map((e) => e.type)], ['superchart', ['line', 'bar']])
})

await rich('a pandas frame', async () => {
  const run = await sbx.runCode('import pandas as pd\npd.DataFrame({"a": [1, 2], "b": ["x", "y"]})')
  assert.match(run.results[0].html, /<table/)
  assert.deepEqual(run.results[0].data, { a: [1, 2], b: ['x', 'y'] })
})

await sbx.kill()
await finish()

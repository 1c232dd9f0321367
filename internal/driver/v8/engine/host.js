// The worker that firebreak talks to. It makes isolates and passes requests on to them; what comes back it does not look
// at. It has nothing that an isolate could want: no network, no files, no secrets, and nothing it holds is given to them.
import kernel from 'kernel.js'
import modules from 'modules.js'
import waiting from 'waiting.js'
import files from 'files.js'
import typescript from 'typescript.js'
import sucrase from 'typescript.json'

const code = {
  compatibilityDate: '2026-11-01',
  compatibilityFlags: ['allow_insecure_inefficient_logged_eval'],
  allowExperimental: true, // for eval
  mainModule: 'kernel.js',
  modules: { 'kernel.js': kernel, 'modules.js': modules, 'waiting.js': waiting, 'files.js': files },
  globalOutbound: null,
  env: {}
}

// The isolate that makes JavaScript of TypeScript. No code runs in it but its own, and it is made when it is first needed.
const stripper = {
  compatibilityDate: '2026-11-01',
  mainModule: 'typescript.js',
  modules: { ...sucrase, 'typescript.js': typescript },
  globalOutbound: null,
  env: {}
}

export default {
  // POST /NAME/new makes the isolate, which must not have been there; /NAME/run runs code in it; /NAME/end ends it.
  // /typescript/strip makes JavaScript.
  async fetch (request, env) {
    const [, name, verb] = new URL(request.url).pathname.split('/')
    if (name === 'ping') return new Response('pong')
    const isolate = env.loader.get(name, () => {
      if (name === 'typescript') return stripper
      if (verb !== 'new') throw new Error('there is no such isolate')
      return code
    })
    try {
      return await isolate.getEntrypoint().fetch(new Request('http://isolate/' + verb, { method: 'POST', body: request.body }))
    } catch (error) {
      return new Response(String(error), { status: verb === 'end' ? 200 : 410 })
    }
  }
}

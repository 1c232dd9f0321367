// Makes JavaScript of TypeScript, which it does not check: types are taken out, and what only TypeScript has (enums,
// parameter properties) is written as JavaScript. Line numbers stay.
import { transform } from './index'

const maxMessage = 300

export default {
  // POST {code, keep}: keep all imports, also those of what may be types only.
  async fetch (request) {
    const { code, keep } = await request.json()
    try {
      return Response.json(transform(code, { transforms: ['typescript'], disableESTransforms: true, keepUnusedImports: keep }))
    } catch (error) {
      return Response.json({ error: error instanceof RangeError ? 'it is nested too deep' : String(error?.message).slice(0, maxMessage) })
    }
  }
}

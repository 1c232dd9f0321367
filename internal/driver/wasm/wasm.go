// Package wasm is the driver that runs WebAssembly: each sandbox is a module of its template in this very process, with a
// file system in memory and the agent's protocol served by Go functions. There are no system calls, no processes, no
// sockets and no threads in it, and it ends with the process that made it.
package wasm

// user is the one account of a sandbox.
const user = "user"

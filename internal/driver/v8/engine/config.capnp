using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  v8Flags = ["--max-heap-size=HEAP", "--single-threaded-gc"],
  services = [ (name = "host", worker = .host), (name = "nowhere", network = (allow = [])) ],
  sockets = [ (name = "http", address = "127.0.0.1:PORT", http = (), service = "host") ],
);

const host :Workerd.Worker = (
  modules = [ (name = "host.js", esModule = embed "host.js"), (name = "kernel.js", text = embed "kernel.js"), (name = "modules.js", text = embed "modules.js"), (name = "waiting.js", text = embed "waiting.js"), (name = "files.js", text = embed "files.js"),
    (name = "typescript.js", text = embed "typescript.js"), (name = "typescript.json", json = embed "typescript.json") ],
  compatibilityDate = "2026-11-01",
  compatibilityFlags = ["experimental"],
  bindings = [ (name = "loader", workerLoader = ()) ],
  globalOutbound = "nowhere",
);

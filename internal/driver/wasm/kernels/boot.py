import os, signal, sys, threading, time
# WASI has no descriptors that are inherited, no signals and no sockets.
os.set_inheritable = getattr(os, "set_inheritable", lambda fd, inheritable: None)
signal.signal = getattr(signal, "signal", lambda number, handler: None)
signal.SIGINT = getattr(signal, "SIGINT", 2)
os.chdir(os.environ["PWD"])


class _Finder:
    """Gives asyncio a loop that needs no sockets, once it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "asyncio":
            return None
        import importlib.util
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        _patch(module)


def _patch(asyncio):
    class Selector:
        def get_map(self):
            return {}

        def select(self, timeout=None):
            if timeout is None:
                raise RuntimeError("everything waits, and nothing can happen: there are no sockets and no threads here")
            if timeout > 0:
                time.sleep(timeout)
            return []

        def close(self):
            pass

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self):
            super().__init__(Selector())

        def _make_self_pipe(self):
            pass

        def _close_self_pipe(self):
            pass

        def _write_to_self(self):
            pass

    class Policy(asyncio.DefaultEventLoopPolicy):
        _loop_factory = Loop

    asyncio.set_event_loop_policy(Policy())


sys.meta_path.insert(0, _Finder())

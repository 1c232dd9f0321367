# What Python begins with, in code contexts and in programs. WASI has no directory to be in, no descriptors that are
# inherited, no signals, no threads and no sockets.
import os, sys
os.set_inheritable = getattr(os, "set_inheritable", lambda fd, inheritable: None)
os.chdir(os.environ["PWD"])
sys.path.remove("/dev/prelude")
os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(":")[2]


class _Finder:
    """Mends modules once they are imported."""

    def __init__(self, mends):
        self.mends = mends

    def find_spec(self, name, path=None, target=None):
        mend = self.mends.pop(name, None)
        if mend is None:
            return None
        import importlib.util
        spec = importlib.util.find_spec(name)
        spec.loader = _Loader(spec.loader, mend)
        return spec


class _Loader:
    def __init__(self, loader, mend):
        self.loader, self.mend = loader, mend

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.mend(module)


def _signal(signal):
    signal.signal = getattr(signal, "signal", lambda number, handler: None)
    signal.SIGINT = getattr(signal, "SIGINT", 2)


def _asyncio(asyncio):
    """Gives asyncio a loop that needs no sockets."""
    import time

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


def _refuse(*_, **__):
    raise OSError("a WASM sandbox has no network")


def _socket(socket):
    socket.getaddrinfo = socket.gethostbyname = socket.create_connection = socket.create_server = socket.socketpair = _refuse


def _subprocess(subprocess):
    def refuse(*_, **__):
        raise OSError("a WASM sandbox runs no other programs: use a template of Linux programs")
    subprocess.Popen.__init__ = refuse
    subprocess.Popen.__del__ = lambda self: None


sys.meta_path.insert(0, _Finder({"signal": _signal, "asyncio": _asyncio, "socket": _socket, "subprocess": _subprocess}))

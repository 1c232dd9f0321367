# Runs Python for a code context: requests come from the agent as frames on one descriptor, and what there is besides
# output goes back as frames on another. CPython 3.8 and its standard library are all that it needs. Names that user
# code must not meet stay in this module; its own namespace is a fresh __main__.
import ast
import builtins
import json
import linecache
import os
import signal
import sys
import threading
import types

MAX_FRAME = 8 << 20  # the agent takes no larger one
MAX_TEXT = 1 << 20  # of a text or a traceback
MAX_CELLS = 1 << 20  # cells' source bytes that tracebacks can still show
FORMS = {
    "html": "text/html", "markdown": "text/markdown", "svg": "image/svg+xml", "png": "image/png", "jpeg": "image/jpeg",
    "pdf": "application/pdf", "latex": "text/latex", "json": "application/json", "javascript": "application/javascript",
}
MIMES = {mime: form for form, mime in FORMS.items()}
MIMES.update({"text/plain": "text", "e2b/data": "data", "e2b/chart": "chart"})


class Channel:
    """The two pipes. An interrupt waits until a frame is whole."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.lock = threading.Lock()
        self.whole = True  # the main thread is not within a frame
        self.interrupted = False

    def receive(self):
        size = self.source.readline(16)
        return self.source.read(int(size)) if size else None

    def send(self, *frames):
        rest = b""
        for frame in frames:
            body = dump(frame)
            rest += b"%d\n%s" % (len(body), body)
        with self.lock:
            while rest:
                rest = rest[os.write(self.sink, rest):]


class Kernel:
    def __init__(self, channel, charts):
        self.channel, self.charts = channel, charts
        self.pid, self.id, self.count, self.acks = os.getpid(), 0, 0, 0
        self.running, self.loop, self.cells = False, None, []
        self.held = []  # the value of the last expression, which travels with what follows it
        self.main = types.ModuleType("__main__")
        self.main.__dict__.update({"__builtins__": builtins, "display": self.display})
        self.names = self.main.__dict__

    def serve(self):
        while True:
            try:
                text = self.channel.receive()
                if text is None:
                    return
                request = json.loads(text)
                if "code" in request:
                    self.run(request)
            except KeyboardInterrupt:  # it came after the last moment
                self.running = False
                self.done()

    def run(self, request):
        self.id, self.channel.interrupted = request["id"], False
        before = {name: os.environ.get(name) for name in request["env"]}
        os.environ.update(request["env"])
        try:
            self.running = True
            self.execute(request["code"])
            self.figures()
            self.running = False
        except BaseException as error:
            self.running = False
            self.report(error)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.done()

    def done(self):
        if os.getpid() != self.pid:  # a fork of the user's ran to the end of its code: the kernel is its parent
            flush()
            os._exit(0)
        flush()
        self.say({"type": "done", "id": self.id})

    def say(self, *frames):
        held, self.held = self.held, []
        self.channel.send(*held, *frames)

    def interrupt(self, *_):
        if not self.channel.whole:
            self.channel.interrupted = True
        elif self.running:
            raise KeyboardInterrupt

    def execute(self, code):
        self.count += 1
        name = "<cell %d>" % self.count
        tree, code = self.parse(code, name)
        self.remember(name, code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if tree.body:
            self.evaluate(tree, name, "exec")
        if last is None:
            return
        value = self.evaluate(ast.Expression(last.value), name, "eval")
        if value is not None and not silenced(code, last):
            self.names["_"] = value
            self.show(value, True)

    def parse(self, code, name):
        try:
            return compile(code, name, "exec", ast.PyCF_ONLY_AST, True), code
        except SyntaxError:
            plain = translate(code)
            if plain == code:
                raise
            try:
                tree = compile(plain, name, "exec", ast.PyCF_ONLY_AST, True)
            except SyntaxError:
                tree = None
            if tree is None:
                raise
            self.names["__shell__"], self.names["__magic__"] = shell, magic
            return tree, plain

    def remember(self, name, code):
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        self.cells.append((name, len(code)))
        while len(self.cells) > 1 and sum(size for _, size in self.cells) > MAX_CELLS:
            linecache.cache.pop(self.cells.pop(0)[0], None)

    def evaluate(self, tree, name, mode):
        code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
        value = eval(code, self.names)
        return self.wait(value) if code.co_flags & 0x80 else value  # a coroutine: there was an await

    def wait(self, coroutine):
        import asyncio
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            self.loop.run_until_complete(asyncio.wait([task], timeout=1))
            raise

    def report(self, error):
        import traceback
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        try:
            text = "".join(traceback.format_exception(type(error), error, trace))
        except Exception as other:
            text = "%s, whose traceback cannot be shown: %r" % (type(error).__name__, other)
        try:
            value = str(error)
        except Exception:
            value = ""
        flush()
        self.say({"type": "error", "id": self.id, "name": type(error).__name__, "value": cut(value), "traceback": cut(text)})

    def display(self, *values, raw=False, **_):
        for value in values:
            self.show(value, False, raw)

    def show(self, value, main, raw=False):
        frame = {MIMES.get(mime, mime): data for mime, data in value.items()} if raw else self.render(value)
        frame = {"type": "result", "id": self.id, "main": main, "forms": fit(frame)}
        flush()
        if main:
            self.held.append(frame)
            return
        if threading.current_thread() is not threading.main_thread() or os.getpid() != self.pid:
            self.channel.send(frame)
            return
        # What was printed before must come before it, and the output takes another way: the agent says when it has it.
        self.acks += 1
        frame["ack"] = self.acks
        self.channel.whole = False
        try:
            self.say(frame)
            while json.loads(self.channel.receive() or '{"ack":0}').get("ack") not in (self.acks, 0):
                pass
        finally:
            self.channel.whole = True
        if self.channel.interrupted:
            self.channel.interrupted = False
            raise KeyboardInterrupt

    def render(self, value):
        forms = {}
        try:
            forms["text"] = cut(unquoted(repr(value)))
        except Exception as error:
            forms["text"] = "<%s whose repr raised %s>" % (type(value).__name__, type(error).__name__)
        if isinstance(value, type):
            return forms
        for form in FORMS:
            data = represented(value, "_repr_%s_" % form)
            if data is not None:
                forms[form] = data
        bundle = represented(value, "_repr_mimebundle_")
        if isinstance(bundle, dict):
            forms.update({MIMES.get(mime, mime): data for mime, data in bundle.items()})
        if is_a(value, "pandas", "DataFrame"):
            forms["data"] = table(value)
        if is_a(value, "matplotlib.figure", "Figure"):
            forms.update(self.picture(value))
        return {form: data for form, data in forms.items() if data is not None}

    def picture(self, figure):
        import io
        png = io.BytesIO()
        figure.savefig(png, format="png", bbox_inches="tight")
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close(figure)  # so that it is not shown once more
        try:
            if isinstance(self.charts, bytes):
                names = {"__name__": "firebreak_charts"}
                exec(compile(self.charts, "<charts>", "exec"), names)
                self.charts = names["chart"]
            chart = self.charts(figure)
        except Exception:
            chart = None  # the picture is there
        return {"png": png.getvalue(), "chart": chart}

    def figures(self, *_, **__):
        """Shows the figures that are open, as a notebook does at the end of a cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        for number in pyplot.get_fignums():
            self.show(pyplot.figure(number), False)

    def find_spec(self, name, path=None, target=None):
        """As a finder of modules: gives pyplot a show() that works here, once it is imported."""
        if name != "matplotlib.pyplot":
            return None
        import importlib.util
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # it may be installed later
        else:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                if not os.environ.get("MPLBACKEND"):
                    module.switch_backend("agg")
                module.show = self.figures
            spec.loader.exec_module = exec_module
        return spec


def cut(text):
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "… (%d characters in all)" % len(text)


def unquoted(text):
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def silenced(code, last):
    """Whether a semicolon follows the last expression, as in a notebook."""
    lines = code.encode().split(b"\n")[last.end_lineno - 1:]
    return b"\n".join([lines[0][last.end_col_offset:]] + lines[1:]).lstrip().startswith(b";")


def represented(value, method):
    try:  # the type's own, because some objects have an answer to every name
        data = getattr(type(value), method, None)
        data = None if data is None else data(value)
    except Exception:
        return None
    return data[0] if isinstance(data, tuple) and data else data


def is_a(value, module, name):
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def table(frame):
    if frame.size > 200000:
        return None
    return clean({str(name): frame.iloc[:, i].tolist() for i, name in enumerate(frame.columns)})


def clean(value):
    """What JSON can say of a value."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (bytes, bytearray)):
        import base64
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [clean(v) for v in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if str(value) in ("NaT", "<NA>"):
        return None
    for method in ("isoformat", "tolist"):
        if hasattr(value, method):
            return clean(getattr(value, method)())
    return str(value)


def dump(value):
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError):
        return json.dumps(clean(value)).encode()


def fit(forms):
    """Leaves the largest forms out until the rest fits into a frame."""
    sizes = {}
    for form in list(forms):
        try:
            forms[form] = clean(forms[form])
            sizes[form] = len(dump(forms[form]))
        except Exception:
            del forms[form]
    while sum(sizes.values()) > MAX_FRAME - (64 << 10):
        largest = max(sizes, key=sizes.get)
        forms["text"] = "(%s of %d bytes left out: larger than a result may be) " % (largest, sizes[largest]) + forms.get("text", "")
        del sizes[largest], forms[largest]
    return forms


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # the user's code closed or replaced it


def translate(code):
    """Makes Python of the lines that only notebooks understand."""
    lines = []
    for line in code.split("\n"):
        text = line.lstrip()
        call = {"!": "__shell__(%r)", "%": "__magic__(%r)"}.get(text[:1])
        lines.append(line[:len(line) - len(text)] + call % text[1:] if call else line)
    return "\n".join(lines)


def shell(command):
    import subprocess
    flush()
    subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL)


def magic(line):
    import shlex
    name, _, rest = line.strip().partition(" ")
    if name == "pip":
        shell(shlex.quote(sys.executable) + " -m pip " + rest)
    elif name == "cd":
        os.chdir(os.path.expanduser(rest.strip() or "~"))
    elif name != "matplotlib":  # figures are always shown
        raise SyntaxError("the magic %%%s of IPython does not exist here: there are !command, %%pip, %%cd and %%matplotlib" % name)


def main(source, sink):
    for fd in (source.fileno(), sink):
        os.set_inheritable(fd, False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    channel = Channel(source, sink)
    kernel = Kernel(channel, channel.receive())
    signal.signal(signal.SIGINT, kernel.interrupt)
    sys.argv, sys.modules["__main__"] = [""], kernel.main
    sys.meta_path.insert(0, kernel)
    channel.send({"type": "ready"})
    kernel.serve()


main(source, 4)

import os
_sink = os.open("/dev/kernel/answers", os.O_WRONLY)
_source = open("/dev/kernel/requests", "rb")
_text = _source.read(int(_source.readline())).replace(b"main(source, 4)", b"main(source, sink)")
exec(compile(_text, "<kernel>", "exec"),
     {"__name__": "firebreak_kernel", "__file__": "<kernel>", "source": _source, "sink": _sink})

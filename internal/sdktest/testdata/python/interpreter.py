"""Code through the package e2b_code_interpreter."""

import base64

from check import Interpreter, check, do, raises, run, skip
from e2b import TimeoutException
from e2b_code_interpreter.charts import ChartType


async def main():
    sbx = await do(Interpreter.create(timeout=300, envs={"FROM_SANDBOX": "yes"}))

    async def state():
        first = await do(sbx.run_code("x = 41"))
        assert first.text is None and first.error is None and first.results == []
        second = await do(sbx.run_code("x += 1; x"))
        assert second.text == "42" and second.results[0].is_main_result
        assert second.execution_count == first.execution_count + 1
        assert '"42"' in second.to_json()

    await check("run_code keeps the state", state)

    async def streams():
        said = []

        def heard(message):
            said.append(message.line)
            if message.line == "first\n":
                return sbx.files.write("/tmp/go", "")  # or else the code never ends

        code = 'import os, sys, time\nprint("first")\nwhile not os.path.exists("/tmp/go"): time.sleep(0.02)\nprint("second")\nprint("err", file=sys.stderr)'
        done = await do(sbx.run_code(code, on_stdout=heard, on_stderr=lambda m: said.append(f"{m.error} {m.line}")))
        assert "".join(done.logs.stdout) == "first\nsecond\n" and "".join(done.logs.stderr) == "err\n"
        assert "True err\n" in said, said

    await check("output comes while the code runs", streams)

    async def error():
        errors = []
        failed = await do(sbx.run_code("def f():\n    return 1/0\nf()", on_error=errors.append))
        assert (failed.error.name, failed.error.value) == ("ZeroDivisionError", "division by zero")
        assert "return 1/0" in failed.error.traceback and len(errors) == 1
        assert (await do(sbx.run_code("x"))).text == "42"

    await check("an error has its traceback", error)

    async def environment():
        code = 'import os; (os.environ.get("FROM_SANDBOX"), os.environ.get("MINE"))'
        assert (await do(sbx.run_code(code, envs={"MINE": "m"}))).text == "('yes', 'm')"
        assert (await do(sbx.run_code(code))).text == "('yes', None)"

    await check("environment of a run", environment)

    async def late():
        await do(sbx.run_code('kept = "still here"'))
        await raises(TimeoutException, lambda: sbx.run_code("import time\nwhile True: time.sleep(0.1)", timeout=1.5))
        assert (await do(sbx.run_code("kept"))).text == "still here"

    await check("a time-out leaves the context usable", late)

    async def contexts():
        await do(sbx.files.make_dir("/tmp/there"))
        context = await do(sbx.create_code_context(cwd="/tmp/there", language="python"))
        assert (context.language, context.cwd) == ("python", "/tmp/there")
        assert (await do(sbx.run_code("import os; y = 7; os.getcwd()", context=context))).text == "/tmp/there"
        assert (await do(sbx.run_code('"y" in globals()'))).text == "False"
        assert any(c.id == context.id for c in await do(sbx.list_code_contexts()))
        await do(sbx.restart_code_context(context))
        assert (await do(sbx.run_code('"y" in globals()', context=context))).text == "False"
        await do(sbx.remove_code_context(context.id))
        assert not any(c.id == context.id for c in await do(sbx.list_code_contexts()))
        await raises(Exception, lambda: sbx.run_code("1", context=context), "not found")

    await check("contexts", contexts)

    async def languages():
        await do(sbx.run_code("let n = 20", language="javascript"))
        assert (await do(sbx.run_code("n + 1", language="js"))).text == "21"
        await do(sbx.run_code("v=5", language="bash"))
        assert "".join((await do(sbx.run_code("echo $v", language="bash"))).logs.stdout) == "5\n"
        await raises(Exception, lambda: sbx.run_code("1", language="cobol"), "cobol")

    await check("javascript and bash", languages)

    async def results():
        shown = []
        code = "class R:\n    def _repr_html_(self): return '<b>h</b>'\n    def __repr__(self): return 'rich'\ndisplay('shown')\nR()"
        done = await do(sbx.run_code(code, on_result=shown.append))
        assert [r.text for r in done.results] == ["shown", "rich"] and done.results[1].html == "<b>h</b>"
        assert len(shown) == 2 and "html" in list(done.results[1].formats())

    await check("results of all kinds", results)

    async def paused():
        await do(sbx.run_code("before = [1, 2]"))
        await do(sbx.pause())
        await do(sbx.connect())
        assert (await do(sbx.run_code("before"))).text == "[1, 2]"

    await check("a paused sandbox keeps its contexts", paused)

    libraries = (await do(sbx.run_code("import matplotlib, pandas"))).error

    async def chart():
        if libraries:
            skip(f"the template has no matplotlib and pandas: {libraries.value}")
        code = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [4, 5, 6], label='rising')\nplt.title('A title')\nplt.show()"
        done = await do(sbx.run_code(code))
        assert done.error is None, done.error.traceback
        result = done.results[0]
        assert base64.b64decode(result.png)[:4] == b"\x89PNG"
        assert result.chart.type == ChartType.LINE and result.chart.title == "A title"
        assert [(e.label, e.points) for e in result.chart.elements] == [("rising", [(1, 4), (2, 5), (3, 6)])]
        for code in [
            "plt.bar(['a', 'b'], [1, 2])",
            "plt.pie([1, 3], labels=['a', 'b'])",
            "plt.scatter([1, 2], [3, 4])",
            "plt.boxplot([1, 2, 3, 9])",
            "plt.subplots(1, 2)",
        ]:
            assert (await do(sbx.run_code(f"{code}\nplt.show()"))).results[0].chart is not None, code

    await check("matplotlib charts", chart)

    async def frame():
        if libraries:
            skip(f"the template has no matplotlib and pandas: {libraries.value}")
        done = await do(sbx.run_code('import pandas as pd\npd.DataFrame({"a": [1, 2], "b": ["x", "y"]})'))
        assert "<table" in done.results[0].html and done.results[0].data == {"a": [1, 2], "b": ["x", "y"]}

    await check("a pandas frame", frame)

    async def killed():
        short = await do(Interpreter.create(timeout=60))
        await do(short.run_code("1"))
        await do(short.kill())
        await raises(TimeoutException, lambda: short.run_code("1"))

    await check("a killed sandbox", killed)

    await do(sbx.kill())


run(main)

"""Code, files and a chart through E2B's Python SDK against Firebreak.

    firebreak serve                 # in another terminal; it prints three lines to export
    pip install e2b-code-interpreter
    python hello.py
"""

from e2b_code_interpreter import Sandbox

with Sandbox.create() as sandbox:
    sandbox.files.write("numbers.txt", "1\n2\n39\n")
    sandbox.run_code("numbers = [int(line) for line in open('numbers.txt')]")
    print(sandbox.run_code("sum(numbers)").text)
    print(sandbox.commands.run("uname -s").stdout.strip())
    print(sandbox.run_code("1/0").error.name)

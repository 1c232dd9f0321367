from e2b_code_interpreter import Sandbox
import time
for tpl,lang,src in (("wasm-python","python","x=20\nx+1"),("wasm-javascript","javascript","let y=6*7; y")):
    t=time.time(); s=Sandbox.create(template=tpl, timeout=60); print(tpl, "create %.1f ms"%((time.time()-t)*1e3))
    t=time.time(); print(s.run_code(src, language=lang).text, "%.1f ms"%((time.time()-t)*1e3))
    t=time.time(); print(s.run_code("x+2" if lang=="python" else "y+1", language=lang).text, "%.1f ms"%((time.time()-t)*1e3))
    s.files.write("/home/user/a.txt","hi"); print(s.files.read("/home/user/a.txt"))
    try: print(s.commands.run("python -c 'print(1)'" if lang=="python" else "js -e 'console.log(1)'").stdout)
    except Exception as e: print("ERR",e)
    try: print(s.commands.run("ls | wc").stdout)
    except Exception as e: print("ERR",e)
    try: s.kill()
    except Exception as e: print(e)
s=Sandbox.create(template="wasm-python", timeout=60); print(s.sandbox_id)

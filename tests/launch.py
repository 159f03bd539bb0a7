"Commands in processes of their own, forked from one that has imported the library: as a shell starts them, or as torchrun does."
import gc, multiprocessing, os, runpy, socket, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace
from conftest import server

def _work(name, args, environ, said):
    gc.freeze()  # what the server has imported
    os.environ.update(environ)
    with open(said, 'w') as f:
        for fd in 1, 2: os.dup2(f.fileno(), fd)
    multiprocessing.set_start_method(None, force=True)  # of the loader's processes
    sys.argv = [name, *args]
    if name.endswith('.py'): runpy.run_path(name, run_name='__main__')
    else:
        from mae_nb import cli
        sys.exit(getattr(cli, name)(args))

def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]

def start(name, args, processes, home):
    "Start a command (or a script) in so many processes, 0: without a launcher's variables."
    shared = dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    if processes: shared |= dict(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes, MASTER_ADDR='localhost', MASTER_PORT=free_port())
    ranks = [shared | (dict(RANK=r, LOCAL_RANK=r) if processes else {}) for r in range(max(1, processes))]
    words = [str(a) for a in args]
    jobs = [server().Process(target=_work, args=(str(name), words, {k: str(v) for k,v in e.items()}, f'{home}/{i}')) for i,e in enumerate(ranks)]
    for j in jobs: j.start()
    return jobs

def launch(name, *args, processes=0, timeout=300):
    "Run a command (or a script) to its end; when one process fails, the others get ten seconds. Exit code, and what was said."
    code = None  # of the first that failed
    with tempfile.TemporaryDirectory() as home:
        jobs = start(name, args, processes, home)
        until = time.time() + timeout
        try:
            while any(j.exitcode is None for j in jobs) and time.time() < until:
                if code is None and (failed := [j.exitcode for j in jobs if j.exitcode]):
                    code = failed[0]
                    until = min(until, time.time() + 10)
                time.sleep(0.02)
        finally:
            for j in jobs: j.kill()
        for j in jobs: j.join()
        said = ''.join(Path(home, str(i)).read_text() for i in range(len(jobs)))
    return SimpleNamespace(returncode=code or next((j.exitcode for j in jobs if j.exitcode), 0), said=said)

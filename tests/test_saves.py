"Around a save: killed at every system call, disks that are full, other launchers, longer runs, runs of other versions."
import json, math, os, shutil, socket, subprocess, sys, threading, warnings
from dataclasses import replace
from pathlib import Path
import pytest
from PIL import Image
from launch import free_port
from mae_nb.cli import mae_pretrain
from mae_nb.core.dist import init_distributed
from mae_nb.core.files import read_json, read_jsonl, read_tensors, save_json
from mae_nb.core.launch import launch_info
from mae_nb.tasks.config import PretrainConfig
from mae_nb.tasks.pretrain import pretrain
from mae_nb.train import engine
from mae_nb.train.checkpoint import checkpoints
from mae_nb.train.optim import cosine_lr
from mae_nb.weights.hub import from_pretrained

ROOT,BIN = Path(__file__).parent.parent,Path(sys.executable).parent
ENV = {k: v for k,v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')} | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs fork, signals and gloo as Linux has them')
compiler = pytest.mark.skipif(not shutil.which(os.environ.get('CC', 'cc')), reason='needs a C compiler')

@pytest.mark.slow
@linux
@compiler
@pytest.mark.timeout(1800)
def test_killed_at_every_system_call():
    "B1, B12, B14: before each call, in the middle of each write, again while it is resumed, while it overwrites; and the disk full from each call on."
    r = subprocess.run([sys.executable, ROOT/'tools/kill_at_every_call.py'], env=ENV, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    last = r.stdout.splitlines()[-1]
    print(last)
    assert int(last.split()[0]) > 350 and 'bit for bit' in last

# -- troubles, each alone and in two processes, and every launcher

SCRIPT = '''
import json, os, signal, sys, time, traceback
sys.path.insert(0, os.path.join(sys.argv[1], 'tools'))
import kill_at_every_call as tool
tool.make_task()
from dataclasses import replace
import mae_nb.core.files as files
from mae_nb.core.dist import all_gather_object

class Troubled(tool.Small):
    eval_steps,trouble = 2,''
    def here(self, step, rank=None): return self.step == step and self.dist.rank == (self.dist.size - 1 if rank is None else rank)
    def batches(self, start, log):
        self.step = start
        return super().batches(start, log)
    def loss(self, forward, x):
        self.step += 1
        if self.trouble == 'disk' and self.here(4, 0): files.save_file = full
        return super().loss(forward, x)*(float('nan') if self.trouble == 'nan' and self.here(5) else 1)
    def evaluate(self, model, step):
        if self.trouble == 'image' and self.here(4): raise ValueError('cannot read test/0017.jpg')
        if self.trouble in ('TERM', 'TERM to one') and self.step == 4 and (self.trouble == 'TERM' or self.here(4)):
            os.kill(os.getpid(), signal.SIGTERM)
            if self.dist.size == 1: time.sleep(60)  # a long evaluation
        return dict(seen=len(all_gather_object(1, self.dist)))

def full(tensors, path):
    open(path, 'wb').write(b'half')
    raise OSError(28, 'No space left on device')

def processes(folder, trouble, environments):
    "Train in so many processes; their exit codes."
    def one(environ):
        def do():
            os.environ.update(environ)
            Troubled.trouble = trouble
            sys.stderr = sys.stdout = open(f'{folder}.{environ.get("AS", 0)}.txt', 'a')
            cfg = replace(tool.small, output_dir=folder, resume='auto')
            code = tool.run_guarded('run', lambda: tool.run(Troubled, cfg))
            sys.stdout.flush()
            return code
        pid = os.fork()
        if pid: return pid
        try: code = do()
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [one(e) for e in environments]]

for line in sys.stdin: print('exit codes', json.dumps(processes(*json.loads(line))), flush=True)
'''

LAUNCHERS = {
    'operator': lambda r, n: dict(RANK=r, WORLD_SIZE=n, MASTER_ADDR='localhost'),
    'torchrun': lambda r, n: dict(RANK=r, WORLD_SIZE=n, LOCAL_RANK=r, MASTER_ADDR='localhost'),
    'srun': lambda r, n: dict(SLURM_PROCID=r, SLURM_STEP_NUM_TASKS=n, SLURM_LOCALID=r, SLURM_JOB_ID=9, SLURM_STEP_ID=0, SLURM_STEP_NODELIST='localhost'),
    'Open MPI': lambda r, n: dict(OMPI_COMM_WORLD_RANK=r, OMPI_COMM_WORLD_SIZE=n, OMPI_COMM_WORLD_LOCAL_RANK=r, OMPI_COMM_WORLD_LOCAL_SIZE=n),
    'MPICH': lambda r, n: dict(PMI_RANK=r, PMI_SIZE=n, MPI_LOCALRANKID=r, MASTER_ADDR='localhost')}

def started_by(launcher, n=2):
    port = free_port()
    return [{k: str(v) for k,v in (LAUNCHERS[launcher](r, n) | dict(MASTER_PORT=port, AS=r)).items()} for r in range(n)]

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('saves')

@pytest.fixture(scope='module')
def start(home):
    "Start runs: a process that has imported everything, and forks."
    (home/'script.py').write_text(SCRIPT)
    p = subprocess.Popen([sys.executable, home/'script.py', ROOT], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def ask(name, trouble='', environments=({},)):
        p.stdin.write(json.dumps([str(home/name), trouble, list(environments)]) + '\n'); p.stdin.flush()
        for line in p.stdout:  # gloo writes there, too
            if 'exit codes ' in line: return json.loads(line.rpartition('exit codes ')[2])
    yield ask
    p.stdin.close(); p.wait()

def files_of(run): return {f.name: f.read_bytes() for f in (run/'checkpoints/step-00000006').glob('*.safetensors')}
def steps_of(run): return [int(c.name[5:]) for c in checkpoints(run)]

@pytest.fixture(scope='module')
def peace(start, home):
    "The files that one process makes, and those that two make."
    assert start('peace-1') == [0] and start('peace-2', '', started_by('operator')) == [0, 0]
    return {n: files_of(home/f'peace-{n}') for n in (1, 2)}

@pytest.mark.slow
@linux
@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('trouble,codes,saved', [('disk', {3}, 2), ('nan', {4}, 4), ('image', {2}, 4), ('TERM', {143}, 4), ('TERM to one', {143}, 4)])
def test_troubles(start, peace, home, trouble, codes, saved, processes):
    "The exit code as documented, nothing lost that was saved, and resumed the files of a run without trouble, bit for bit."
    name = f'{trouble}-{processes}'
    group = lambda: started_by('operator') if processes == 2 else ({},)
    found = start(name, trouble, group())
    if trouble == 'image' and processes == 2: assert found[1] == 2 and found[0]  # the other was waiting, and is left alone
    else: assert set(found) == codes
    assert steps_of(home/name) == [saved]
    assert not list((home/name).rglob('.*.tmp'))
    assert start(name, '', group()) == [0]*processes
    assert files_of(home/name) == peace[processes]
    assert [r['step'] for r in read_jsonl(home/name/'log.jsonl') if 'seen' in r] == [2, 4, 6]  # each evaluation once

@pytest.mark.slow
@linux
@pytest.mark.parametrize('launcher', list(LAUNCHERS))
def test_launchers(start, peace, home, launcher):
    "B10, B19: whoever starts them, two processes find each other, and say how."
    assert start(launcher, '', started_by(launcher)) == [0, 0]
    assert files_of(home/launcher) == peace[2]
    said = (home/f'{launcher}.0.txt').read_text()
    if launcher != 'torchrun': assert 'started  2 processes, by' in said and 'localhost' in said

@pytest.mark.slow
@linux
def test_a_stale_rank(start, home):
    assert start('stale', '', [dict(RANK='1')]) == [2]
    said = (home/'stale.0.txt').read_text()
    assert 'RANK=1 is set, but not WORLD_SIZE: unset it' in said and 'Traceback' not in said and not (home/'stale').exists()

RESTARTED = '''
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # when one has failed, torchrun ends the other: let it say its line first
sys.path.insert(0, os.path.join(sys.argv[1], 'tools'))
import kill_at_every_call as tool
tool.make_task()
from dataclasses import replace
class Ill(tool.Small):
    def loss(self, forward, x): return super().loss(forward, x)*float('nan')
    def summary(self): return 'begins'
sys.exit(tool.run_guarded('run', lambda: tool.run(Ill, replace(tool.small, output_dir=sys.argv[2], resume='auto'))))
'''

@pytest.mark.slow
@linux
def test_a_loss_that_is_not_finite_is_not_tried_again(home):
    "torchrun starts the processes again, and they end before they begin."
    (home/'ill.py').write_text(RESTARTED)
    r = subprocess.run([BIN/'torchrun', '--standalone', '--nproc-per-node', '2', '--max-restarts', '1', home/'ill.py', ROOT, home/'ill'], env=ENV, capture_output=True, text=True, timeout=300)
    assert r.returncode == 1 and r.stdout.count('begins') == 1, r.stdout + r.stderr
    assert r.stderr.count('not tried again') == 2 and 'exitcode  : 4' in r.stderr, r.stderr

# -- what a run shows

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(8): Image.effect_noise((16, 16), 60 + i).save(folder/f'{i}.png')
    return folder

@pytest.fixture
def tiny(pictures, tmp_path): return PretrainConfig(data=str(pictures), output_dir=str(tmp_path/'run'), img_size=(16, 16), patch_size=8, decoder_depth=1, batch_size=4, epochs=10,
                                                    warmup_epochs=1., log_every=1, save_every=4, ema_decay=0.5, device='cpu')
def quietly(cfg): said = []; pretrain(cfg, said.append); return said

@pytest.mark.slow
def test_a_run_shows_its_newest_checkpoint(tiny):
    "B1: with the weights of an earlier checkpoint in the run's folder, or none, `from_pretrained` takes the newest, and resuming repairs the folder."
    quietly(tiny)
    run = Path(tiny.output_dir)
    older,newest = checkpoints(run)
    right = read_tensors(newest/'model.safetensors')
    for stale in older, None:
        for f in 'model.safetensors', 'ema.safetensors':
            (run/f).unlink()
            if stale: shutil.copy(stale/f, run/f)
        for ema,part in (False, 'model'), (True, 'ema'):
            found,wanted = from_pretrained(run, use_ema=ema).state_dict(),read_tensors(newest/f'{part}.safetensors')
            assert all(found[k].equal(v) for k,v in wanted.items())
        quietly(replace(tiny, resume='auto'))
        for f in 'model.safetensors', 'ema.safetensors': assert (run/f).samefile(newest/f)
    assert right

@pytest.mark.slow
def test_where_there_are_no_hard_links(tiny, monkeypatch):
    def no_links(*args): raise OSError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', no_links)
    quietly(tiny)
    run = Path(tiny.output_dir)
    assert (run/'model.safetensors').read_bytes() == (checkpoints(run)[-1]/'model.safetensors').read_bytes() and (run/'model.safetensors').stat().st_nlink == 1

@pytest.mark.parametrize('resume', ['auto', None])
def test_leftovers_neither_block_nor_stay(tiny, resume):
    "B14: of a process that was killed while it wrote its first file; files of others stay, and block."
    run = Path(tiny.output_dir); run.mkdir()
    (run/'.config.json.123.tmp').write_text('{"da')
    (run/'.model.safetensors.123.tmp').write_bytes(b'half')
    (run/'.inputs.json.123.tmp').write_text('{')
    quietly(replace(tiny, epochs=2, resume=resume))
    assert sorted(p.name for p in run.iterdir()) == ['checkpoints', 'config.json', 'ema.safetensors', 'inputs.json', 'log.jsonl', 'model.json', 'model.safetensors']
    other = run.parent/'other'; other.mkdir()
    (other/'.thesis.tmp').write_text('please keep')
    with pytest.raises(FileExistsError): quietly(replace(tiny, output_dir=str(other)))
    assert (other/'.thesis.tmp').exists()

@pytest.mark.slow
def test_a_run_of_others_is_not_changed(tiny, tmp_path):
    "A damaged checkpoint is put aside in one's own run; in the run that a new one starts from it is passed over."
    quietly(tiny)
    run = Path(tiny.output_dir)
    (checkpoints(run)[-1]/'optim.safetensors').write_bytes(b'')
    before = sorted(run.rglob('*'))
    said = quietly(replace(tiny, output_dir=str(tmp_path/'new'), resume=str(run)))
    assert any('passed over' in line for line in said) and sorted(run.rglob('*')) == before

# -- longer runs, runs of other versions

@pytest.mark.slow
def test_prolonged(tiny, pictures):
    "From 10 to 20 epochs, when it was finished and when it was not: from there on the learning rate is that of a run of 20 epochs; told, and read back."
    quietly(tiny)
    run = Path(tiny.output_dir)
    unfinished = run.parent/'unfinished'; shutil.copytree(run, unfinished)
    shutil.rmtree(unfinished/'checkpoints'/'step-00000020')
    peak = tiny.blr*4/256
    for folder,step in (run, 20), (unfinished, 16):
        said = quietly(replace(tiny, output_dir=str(folder), epochs=20, resume='auto'))
        line = next(l for l in said if l.startswith('longer'))
        now,was = (cosine_lr(step, peak, 0., 2, total) for total in (40, 20))
        assert line == f'longer   40 steps, 20 before: the schedule is stretched, the learning rate after step {step} is {now:.3g} instead of {was:.3g}'
        log = {r['step']: r['lr'] for r in read_jsonl(folder/'log.jsonl')}
        assert list(log) == list(range(1, 41))
        for s,lr in log.items(): assert lr == pytest.approx(cosine_lr(s - 1, peak, 0., 2, 40 if s > step else 20), abs=1e-12)
        assert read_json(folder/'config.json')['epochs'] == 20 and steps_of(folder) == [36, 40]
        assert not any(l.startswith('longer') for l in quietly(replace(tiny, output_dir=str(folder), epochs=20, resume='auto')))
    with pytest.raises(ValueError, match='epochs: now 10, before 20'): quietly(replace(tiny, resume='auto'))  # not shortened

@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(tiny):
    "B17: it lacks a field that has come since, and has one that is gone."
    quietly(tiny)
    run = Path(tiny.output_dir)
    def older(c):
        del c['exif_transpose'], c['mask_sampling']
        c['colour'] = 'blue'
        return c
    shutil.rmtree(checkpoints(run)[-1])
    save_json(older(read_json(run/'config.json')), run/'config.json')
    state = read_json(checkpoints(run)[-1]/'state.json')
    save_json(state | dict(config=older(state['config'])), checkpoints(run)[-1]/'state.json')
    with pytest.raises(ValueError, match="mask_sampling: now 'block', before 'random'"): quietly(replace(tiny, resume='auto', mask_sampling='block'))
    said = quietly(replace(tiny, resume='auto'))
    assert any('without exif_transpose, mask_sampling: taken at the default' in l for l in said) and any('with colour, unknown here' in l for l in said)
    assert steps_of(run) == [16, 20]

@pytest.mark.slow
def test_measured_statistics_are_kept(tiny, monkeypatch):
    "B17: mean and deviation are taken from the checkpoint, not measured again; other ones are refused."
    quietly(tiny)
    run = Path(tiny.output_dir)
    shutil.rmtree(checkpoints(run)[-1])
    import mae_nb.tasks.pretrain as task
    def measure(dataset): raise AssertionError('measured again')
    monkeypatch.setattr(task, 'channel_stats', measure)
    for _ in range(2): quietly(replace(tiny, resume='auto'))
    with pytest.raises(ValueError, match='mean: now'): quietly(replace(tiny, resume='auto', mean=(0.5,)*3, std=(0.5,)*3))

@pytest.mark.slow
def test_the_last_window_is_logged(tiny):
    "B20: of 20 steps in windows of 9, the last two; and the clock goes on (B13)."
    quietly(replace(tiny, log_every=9))
    run = Path(tiny.output_dir)
    log = read_jsonl(run/'log.jsonl')
    assert [r['step'] for r in log] == [9, 18, 20]
    records = [r | (dict(seconds=1000. + r['step']) if 'seconds' in r else {}) for r in log] + [dict(step=20, epoch=10., top1=5.)]
    (run/'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))  # an evaluation is the last line
    quietly(replace(tiny, log_every=9, epochs=12, resume='auto'))
    assert read_jsonl(run/'log.jsonl')[-1]['seconds'] >= 1020

def test_training_goes_on_while_a_state_is_written(tiny, monkeypatch):
    "Several steps are taken during a slow save, the next save waits for it, and all checkpoints are those of a run that waits for each."
    quietly(replace(tiny, output_dir=tiny.output_dir + '-waits', keep_checkpoints=9))
    begun,pace,spans,reached = threading.Event(),threading.Event(),[],[0]
    real_save,real_steps = engine.save_checkpoint,engine.train_steps
    def slow(run, step, parts, *args):
        first = reached[0]
        begun.set()
        if step < 20: pace.wait(60)
        spans.append((step, first, reached[0]))
        real_save(run, step, parts, *args)
    def counted(*args):
        for record in real_steps(*args):
            reached[0] = record['step']
            if record['step'] % 4 == 0:
                begun.clear()
                pace.clear()
            if record['step'] % 4 == 3 and record['step'] > 4:
                begun.wait(60)
                pace.set()
            yield record
    monkeypatch.setattr(engine, 'save_checkpoint', slow)
    monkeypatch.setattr(engine, 'train_steps', counted)
    quietly(replace(tiny, keep_checkpoints=9))
    assert [step for step,*_ in spans] == [4, 8, 12, 16, 20]
    assert all(first - step <= 3 and last - step >= 3 for step,first,last in spans[:-1]), spans
    for c in checkpoints(tiny.output_dir):
        for part in 'model', 'ema', 'optim', 'rng':
            name = f'checkpoints/{c.name}/{part}.safetensors'
            assert (Path(tiny.output_dir)/name).read_bytes() == (Path(tiny.output_dir + '-waits')/name).read_bytes()
    assert len(checkpoints(tiny.output_dir)) == 5

@pytest.mark.parametrize('at', [8, 20])
def test_a_save_that_fails_while_training_goes_on(tiny, monkeypatch, at):
    "The error ends the run, not at the next save but within a few steps; the checkpoint before is intact."
    real_save,real_steps = engine.save_checkpoint,engine.train_steps
    failed,steps = threading.Event(),[]
    def full(run, step, *args):
        if step != at: return real_save(run, step, *args)
        failed.set()
        raise OSError(28, 'No space left on device')
    def counted(*args):
        for record in real_steps(*args):
            steps.append(record['step'])
            yield record
            if record['step'] == at: failed.wait(60)
    monkeypatch.setattr(engine, 'save_checkpoint', full)
    monkeypatch.setattr(engine, 'train_steps', counted)
    with pytest.raises(OSError, match='No space left'): quietly(replace(tiny, save_every=4 if at == 20 else 8))
    assert at <= steps[-1] <= at + 3
    monkeypatch.undo()
    quietly(replace(tiny, save_every=4 if at == 20 else 8, resume='auto'))
    assert checkpoints(tiny.output_dir)[-1].name == 'step-00000020'

def test_memory_is_pinned_for_cuda_only(tiny, monkeypatch):
    "B25: not for a run on the CPU of a machine with a GPU."
    import torch
    from mae_nb.tasks.pretrain import PretrainTask
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert PretrainTask(tiny).batches(0).pin_memory is False

@pytest.mark.parametrize('env,told', [
    (dict(RANK=''), None), (dict(RANK='', WORLD_SIZE=''), None), (dict(MV2_COMM_WORLD_RANK='', MV2_COMM_WORLD_SIZE=''), None), (dict(WORLD_SIZE='2', LOCAL_RANK='1'), None),
    (dict(RANK='x', WORLD_SIZE='2'), 'RANK=x is not an integer'), (dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='h', MASTER_PORT='p'), 'MASTER_PORT=p is not an integer'),
    (dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='h', MASTER_PORT=''), 'but not MASTER_PORT'), (dict(SLURM_PROCID='0', SLURM_STEP_NUM_TASKS='2', SLURM_STEP_ID='y'), 'SLURM_STEP_ID=y is not an integer')])
def test_variables_that_are_empty_or_no_numbers(env, told):
    if not told: assert launch_info(env) is None
    else:
        with pytest.raises(ValueError, match=told): launch_info(env)

@linux
def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(('0.0.0.0', 0))
        taken.listen()
        for k,v in dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='localhost', MASTER_PORT=str(taken.getsockname()[1])).items(): monkeypatch.setenv(k, v)
        with pytest.raises(ValueError, match='cannot meet the others at localhost:.*Set MASTER_ADDR'):
            with init_distributed('cpu', lambda line: None): pass

@pytest.mark.parametrize('name,bytes_,why', [
    ('config.json', b'{"torn', None), ('config.json', b'[]', None), ('log.jsonl', b'\0'*99, None), ('log.jsonl', b'', None), ('inputs.json', b'[]', 'inputs.json is corrupted'), ('log.jsonl', b'[1]\n3\n', 'line 1 is no JSON, or no record')])
def test_damaged_records_of_a_run(tiny, name, bytes_, why):
    "With an intact checkpoint a run resumes, or the error names the corrupted file."
    quietly(replace(tiny, epochs=2))
    (Path(tiny.output_dir)/name).write_bytes(bytes_)
    longer = replace(tiny, epochs=4, resume='auto')
    if why:
        with pytest.raises(ValueError, match=why): quietly(longer)
        assert steps_of(Path(tiny.output_dir)) == [4]
    else:
        quietly(longer)
        assert read_json(Path(tiny.output_dir)/'config.json')['epochs'] == 4

@pytest.mark.parametrize('content,why', [
    ('null', 'lists no files'), ('[]', 'lists no files'), ({'files': []}, 'lists no files'), ({'config': None}, "state.json lacks config"), ({'window': None, 'scaler': None}, "state.json lacks scaler, window")])
def test_damaged_state_of_a_checkpoint(tiny, content, why):
    quietly(replace(tiny, epochs=2))
    path = checkpoints(tiny.output_dir)[-1]/'state.json'
    if isinstance(content, dict): content = json.dumps({k: v for k,v in (read_json(path) | content).items() if v is not None})
    path.write_text(content)
    with pytest.raises(ValueError, match=why): quietly(replace(tiny, epochs=2, resume='auto'))

def test_weights_without_checkpoints_are_not_replaced(tiny):
    quietly(replace(tiny, epochs=2))
    run = Path(tiny.output_dir)
    shutil.rmtree(run/'checkpoints')
    before = (run/'model.safetensors').read_bytes()
    with pytest.raises(ValueError, match='shows weights, but it has no checkpoints'): quietly(replace(tiny, epochs=2, resume='auto'))
    assert (run/'model.safetensors').read_bytes() == before

@pytest.mark.slow
def test_more_max_steps_prolong(tiny):
    quietly(replace(tiny, max_steps=4))
    assert any(l.startswith('longer   6 steps, 4 before') for l in quietly(replace(tiny, max_steps=6, resume='auto')))
    with pytest.raises(ValueError, match='max_steps: now 5, before 6'): quietly(replace(tiny, max_steps=5, resume='auto'))
    quietly(replace(tiny, resume='auto'))
    assert steps_of(Path(tiny.output_dir))[-1] == 20

@pytest.mark.slow
def test_whoever_waits_for_the_others_says_so():
    port = free_port()
    code = ('from functools import partial; from mae_nb.core import dist; dist._report_wait = partial(dist._report_wait, seconds=0.1)\n'
            'with dist.init_distributed("cpu"): pass')
    env = ENV | dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=str(port))
    with subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, text=True) as waits:
        line = waits.stdout.readline()
        waits.kill()
    assert line.startswith(f'rank 1 has waited 0.1 s for others at localhost:{port}')

"Each notebook is a test: all its cells run, in a process of their own; `pytest --flags slow` runs the cells so marked, too."
import gc, multiprocessing, os, sys
from pathlib import Path

gc.disable()  # while modules are imported: they are no garbage

os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('TQDM_DISABLE', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # tests run side by side, with one thread each
import pytest

MOST_MEMORY = 3.  # GB that a notebook may take
LONGEST_FIRST = (  # so that no process waits for one of them at the end
    'test_saves test_site test_processes test_demo_page 00_tour test_finetune 46_show test_data test_ablations test_datatrees 10_linprobe 92_cli 44_tokenizer '
    '20a_stack 20b_denoise 21b_igpt_run 25b_bert_run 23c_beit_run 25c_neighbours 22_mpp test_relatives_igpt test_relatives_text test_relatives_dae test_relatives_beit '
    'test_transfer_detect test_transfer_segment 32e_segment 33d_detect '
    '12_transfer 09_finetune 08_pretrain index 66_pretrain_task 61_distributed 80a_evaluation 83b_ablate 65c_tokenizer_task 81_knn').split()

def pytest_addoption(parser):
    parser.addoption('--flags', nargs='*', default=[], help='test flags (settings.ini, tst_flags) of cells to run')

def pytest_collect_file(file_path, parent):
    if file_path.suffix == '.ipynb' and not any(p[0] in '._' for p in file_path.relative_to(parent.config.rootpath).parts):
        return NotebookFile.from_parent(parent, path=file_path)

def pytest_collection_modifyitems(items):
    rank = {stem: i for i,stem in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))

def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)  # seldom: there is memory enough
    gc.enable()

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    "Note the processor seconds of a test and of the processes that it waited for, for --junitxml."
    before = os.times()
    try: return (yield)
    finally:
        if not isinstance(item, NotebookItem): item.user_properties.append(('processor seconds', round(sum(os.times()[:4]) - sum(before[:4]), 1)))

def server():
    "Where processes for notebooks and commands come from: one that has imported what all of them need."
    context = multiprocessing.get_context('forkserver' if sys.platform == 'linux' else 'spawn')
    if sys.platform == 'linux': context.set_forkserver_preload(['nbdev.test', 'matplotlib.pyplot', 'mae_nb.tasks.pretrain', 'mae_nb.tasks.finetune'])
    return context

def run_cells(path, skip_flags, force_flags, said, spent):
    "Run a notebook in this process, and leave with 1 if a cell failed; what is printed goes to the file `said`, GB and processor seconds to `spent`."
    gc.freeze()  # what the server has imported
    with open(said, 'w') as f:
        for fd in 1, 2: os.dup2(f.fileno(), fd)
    multiprocessing.set_start_method(None, force=True)  # workers of loaders start as they do for a reader, not as this process did
    from nbdev.test import test_nb
    ok,_ = test_nb(path, skip_flags=skip_flags, force_flags=force_flags)
    if sys.platform == 'linux':
        import resource
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent[:] = used.ru_maxrss/2**20, used.ru_utime + used.ru_stime
    sys.exit(not ok)

class NotebookFile(pytest.File):
    def collect(self):
        item = NotebookItem.from_parent(self, name='cells')
        item.add_marker('slow')
        yield item

class NotebookItem(pytest.Item):
    "Fails with all that the notebook printed, the cell's traceback at its end."
    def runtest(self):
        from nbdev.config import get_config
        context,said = server(),self.config._tmp_path_factory.mktemp(self.path.stem)/'said.txt'
        spent = context.Array('d', 2)
        skip_flags = get_config().tst_flags.split()
        child = context.Process(target=run_cells, args=(self.path, skip_flags, self.config.getoption('flags'), said, spent))
        child.start()
        try: child.join()
        finally: child.kill()
        if child.exitcode: raise AssertionError(f'{self.path.name}: exit code {child.exitcode}\n{said.read_text()}')
        memory,seconds = spent
        self.user_properties += [('GB', round(memory, 2)), ('processor seconds', round(seconds))]  # for --junitxml
        if memory > MOST_MEMORY: raise AssertionError(f'{self.path.name} took {memory:.1f} GB, more than {MOST_MEMORY}')

    def repr_failure(self, excinfo): return str(excinfo.value) if excinfo.errisinstance(AssertionError) else super().repr_failure(excinfo)
    def reportinfo(self): return self.path, None, str(self.path.relative_to(self.config.rootpath))

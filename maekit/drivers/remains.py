"""What a run leaves behind in its process, and must not find there: all that a process of its own would not have.

What torch has compiled and loaded stays: that is what a process goes on for. Of torch's warnings from C++ that come once in
a process, only the first run of one prints them.
"""

import ctypes
import gc
import os
import random
import signal
import sys
import warnings


class Remains:
    """Of the runs of this process. Made before the first."""

    def __init__(self):
        self.environ = dict(os.environ)
        self.path = list(sys.path)
        self.signals = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def begin(self):
        """Before a run: what it takes of memory is measured from here on, where the system can (Linux)."""
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # the largest size so far is the present one
        except OSError:
            pass

    def clear(self):
        """After a run. Returns False if there is what cannot be cleared, and the process should not go on."""
        sys.stdout.flush()
        sys.stderr.flush()
        _close_bars()
        gc.collect()  # data loaders end their workers
        self._restore_process()
        _restore_kit()
        _restore_torch()
        _return_memory()
        return not (_has_children() or "models_mae" in sys.modules)  # upstream's model, of one clone or another

    def _restore_process(self):
        for name in os.environ.keys() - self.environ.keys():
            del os.environ[name]
        for name, value in self.environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        sys.path[:] = self.path
        for number, handler in self.signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        with warnings.catch_warnings():  # which has all places forget that they have warned
            pass
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()


def _close_bars():
    """Progress bars of tqdm that are still open would have later ones move down a line."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def _restore_kit():
    if "maekit.errors" in sys.modules:
        sys.modules["maekit.errors"].each_for_itself(False)
    if "norms" in sys.modules:
        sys.modules["norms"].FUSED.clear()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _restore_torch():
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.default_generator.seed()  # from the system, as when it is imported
    torch.set_float32_matmul_precision("highest")
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
    if "torch.utils.data" in sys.modules:  # has to set its handler of SIGCHLD again
        torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = False
    if "torch._dynamo" in sys.modules:  # what it has compiled is for the next run, too; see compiling.compile_blocks
        torch._dynamo.config.suppress_errors = False
    if torch.cuda.is_initialized():
        _restore_cuda(torch)
    if torch.backends.mps.is_available():
        torch.mps.seed()
        torch.mps.empty_cache()


def _restore_cuda(torch):
    torch.cuda.synchronize()
    torch.cuda.seed_all()
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
    gc.collect()  # the CUDA graphs' memory
    torch.cuda.empty_cache()
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_device(0)


def _return_memory():
    """Give freed memory back to the system, and print what C code has not printed yet."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _has_children():
    """Whether Python processes that the run has started are still there."""
    return "multiprocessing" in sys.modules and bool(sys.modules["multiprocessing"].active_children())

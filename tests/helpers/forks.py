"""Children of this process, which have done its imports."""

import os
import sys
import warnings
from multiprocessing import get_context

import torch


def fork(function, *arguments, output):
    """Run a function in a child with one thread, whose output goes to a file; returns the process.

    Not where a GPU is in use: it cannot be used in the child.
    """

    def run():
        with output.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
        torch.set_num_threads(1)
        function(*arguments)

    output.write_text("")
    child = get_context("fork").Process(target=run)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        child.start()
    return child


def finished(child, output, seconds=300):
    """What a child has printed, once it has ended well."""
    child.join(seconds)
    assert child.exitcode == 0, output.read_text()
    return output.read_text()

import gc
import subprocess
import sys

from sgan import host

ENDING = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from sgan.host import end

class Late:
    def __del__(self):
        print("taken down")

late = Late()
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
ThreadPoolExecutor(1).submit(print, "pool")
print("status", file=sys.stderr)
end(7)
"""


def test_the_end_waits_for_threads_and_calls_what_is_registered_and_takes_nothing_down():
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (7, "status\n")
    assert ended.stdout == "pool\nthread\nregistered\n"


def test_the_end_needs_nobody_who_reads():
    command = "import time; from sgan.host import end; time.sleep(1); print(1); end(3)"
    script = f"PYTHONUNBUFFERED= {sys.executable} -c '{command}' | true"
    ended = subprocess.run(["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_ctrl_c_at_the_end_changes_nothing():
    waiting = (
        "import time, threading; from sgan.host import end; threading.Thread(target=time.sleep, args=(1,)).start()"
    )
    interrupted = "import os, signal; threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()"
    words = [sys.executable, "-c", f"{waiting}; {interrupted}; end(7)"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_importing_leaves_the_collector_as_it_was():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with host.importing():
                assert not gc.isenabled()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()

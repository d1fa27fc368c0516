"""The second rank of a run of two, which Lightning's launcher starts, forked and not started anew.

It is a process of its own, a child of the first rank and in its process group, as one started anew is.
"""

import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

from tests.command import become, end_with_the_tests


class ForkedRank:
    """What `subprocess.Popen` returns to the launcher, as far as that uses it."""

    def __init__(self, pid: int, to_rank: Connection) -> None:
        self.pid, self.returncode, self._to_rank = pid, None, to_rank

    def started(self, command: list[str], env: dict[str, str], cwd: str | None) -> "ForkedRank":
        self._to_rank.send((command, dict(env), cwd or os.getcwd()))
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def fork_the_second_rank() -> None:
    """Called by a forked process before it becomes the first rank, so that the second has nothing of it.

    The second one waits for its command line and environment; where none comes, it ends with the first.
    """
    from pytorch_lightning.strategies.launchers import subprocess_script

    to_rank, from_first = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        to_rank.close()
        _become_a_rank(from_first)
    from_first.close()
    subprocess_script.subprocess = SimpleNamespace(Popen=ForkedRank(pid, to_rank).started)


def _become_a_rank(from_first: Connection) -> NoReturn:
    code = 1
    try:
        end_with_the_tests()
        (_, flag, module, *arguments), environment, cwd = from_first.recv()
        assert flag == "-m"
        become(module, arguments, Path(cwd), environment, has_own_group=False)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except EOFError:  # the first rank has ended without a second one
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""A `python` for shell scripts whose `-m src.<command>` is forked from the tests' server, not started anew.

A process that is started takes ten seconds of a processor to import what it needs. Whatever else the script
asks of its Python is done by the real one.
"""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.command import LIMIT_S, become, begun

CLIENT = """#!{python} -S
import json, os, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as place:
    place.connect({address!r})
    asked = [os.getpid(), sys.argv[2], sys.argv[3:], os.getcwd(), dict(os.environ)]
    place.sendall(json.dumps(asked).encode() + b"\\n")
    sys.exit(int(place.makefile().readline() or 1))
"""


@contextmanager
def forked_python() -> Iterator[Path]:
    """The executable, which works for as long as this is open."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as place:
        address, client = Path(folder) / "socket", Path(folder) / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        client.chmod(0o755)
        place.bind(str(address))
        place.listen()
        threading.Thread(target=_serve, args=(place,), daemon=True).start()
        yield client
        place.shutdown(socket.SHUT_RDWR)


def _serve(place: socket.socket) -> None:
    while True:
        try:
            asking, _ = place.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_run, args=(asking,), daemon=True).start()


def _run(asking: socket.socket) -> None:
    """One command, whose output goes where the client's goes."""
    with asking, asking.makefile() as lines:
        pid, module, arguments, cwd, environment = json.loads(lines.readline())
        files = [Path(f"/proc/{pid}/fd/{number}") for number in (1, 2)]
        process = begun(files, become, module, arguments, Path(cwd), environment)
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
        asking.sendall(f"{abs(process.exitcode)}\n".encode())

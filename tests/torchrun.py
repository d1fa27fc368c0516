"""`torchrun ... -m src.train ...` with torch's own agents, whose processes are forked and not started anew.

A process that is started takes seconds to import what it needs. torchrun itself reads its
arguments, its agents meet and give out ranks as always, and each worker becomes `python -m src.train`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from tests.command import ENVIRONMENT, LIMIT_S, ROOT, become, begun, end_with_the_tests


def torchrun(place: Path, nodes: list[list[str]], arguments: list[str]) -> tuple[list[int], str]:
    """Exit code of each machine's agent, and all that they and their workers printed.

    Args:
        place: the output is kept there.
        nodes: what torchrun is given on each machine, before `-m`.
        arguments: of `src.train`.
    """
    log = place / "output.txt"
    log.unlink(missing_ok=True)
    agents = [begun([log, log], _agent, given, arguments) for given in nodes]
    for agent in agents:
        agent.join(LIMIT_S)
    late = [agent for agent in agents if agent.is_alive()]
    for agent in late:
        agent.kill()
        agent.join()
    assert not late, log.read_text()
    return [agent.exitcode for agent in agents], log.read_text()


def _agent(given: list[str], arguments: list[str]) -> None:
    import dataclasses

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def forking(config: LaunchConfig, entrypoint: str) -> Callable[..., None]:
        launch = elastic_launch(dataclasses.replace(config, start_method="fork"), _worker)
        return lambda *command: launch(arguments)

    os.environ.update(ENVIRONMENT)
    run.elastic_launch = forking
    try:
        run.run(run.parse_args([*given, "-m", "src.train", *arguments]))
    except ChildFailedError as error:
        print(error)
        raise SystemExit(1) from None


def _worker(arguments: list[str]) -> None:
    end_with_the_tests()
    try:
        become("src.train", arguments, ROOT, dict(os.environ))
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None

"""`darkroom cluster`: a Ray cluster's token, and what is wrong with one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from .command import App, Option

app = App("Look after a Ray cluster that `darkroom batch --ray` draws on.")


@app.command()
def token() -> None:
    """Make the token without which nobody may use the cluster, where there is none, and print its file.

    Copy it to every machine, to the same place, readable by its user alone. Whoever has it may run any code there.
    """
    from ..cluster.connect import make_token

    print(make_token())


@app.command()
def doctor(
    ray: Annotated[str, Option(metavar="HOST:PORT", help="The cluster's head.")],
    folder: Annotated[Path | None, Option(help="One that all machines shall see, and write into.")] = None,
) -> int:
    """Ask every machine for its versions, token, clock and folder, and say what is wrong. Exit 1 where anything is."""
    from ..cluster import connect

    with connect.connected(ray) as module:
        began = time.time()
        told = connect.on_each_node(module, connect.report, None if folder is None else str(folder.absolute()))
        wrong = connect.complaints(told, began, time.time())
        if folder is not None and not wrong:
            try:
                connect.check_folder(module, folder)
            except connect.ClusterError as error:
                wrong.append(str(error))
    for address, one in told.items():
        if not isinstance(one, Exception):
            print(
                f"{address}: darkroom {one['darkroom']}, ray {one['ray']}, torch {one['torch']}, Python {one['python']}"
            )
    for sentence in wrong:
        print(f"wrong: {sentence}")
    return 1 if wrong else 0

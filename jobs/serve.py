#!/usr/bin/env python
"""Serve a registered model over HTTP, with a page to try it on photos of your own.

    python jobs/serve.py models:/NAME@champion
    python jobs/serve.py models:/NAME@champion --against models:/NAME/1 --port 8080
    curl -F photo=@photo.jpg http://127.0.0.1:8000/predict

The model detects objects, labels pixels with classes, or refines masks. When the alias moves, the
next version is loaded beside the current one and takes over without a dropped request. Only this
machine can connect, unless --host says otherwise; clients must send the token in the environment
variable BSM_SERVE_TOKEN if there is one.
"""

from typing import Annotated

import tyro

from pipeline.cli import Result, run_verb
from pipeline.server.options import ServeOptions

DEFAULTS = ServeOptions()


def serve(
    *,
    model: Annotated[str, tyro.conf.Positional],
    options: Annotated[ServeOptions, tyro.conf.arg(name="")] = DEFAULTS,
    against: str = "",
    tracking_uri: str = "",
) -> Result:
    """Serve a registered model over HTTP.

    Args:
        model: models:/NAME@champion, or models:/NAME/VERSION.
        options: see `ServeOptions`.
        against: second model, which the page compares with the first.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default
            MLFLOW_TRACKING_URI, or else the embedded store runs/mlflow.db.
    """
    from pipeline.server.serve import start_server, wait_for_signal

    print(f"loading {' and '.join(filter(None, (model, against)))}")
    models = list(dict.fromkeys(filter(None, (model, against))))
    server = start_server(models, options, tracking=tracking_uri)
    for name, uri in server.versions.items():
        print(f"serving {name}" + (f", now {uri}" if name != uri else ""))
    print(f"page {server.address}  API {server.address}/docs  stop with Ctrl-C")
    versions = wait_for_signal(server, every_s=options.check_alias_s, print_line=print)
    print("stopping: requests that are being answered are finished first")
    server.stop()
    return {"address": server.address, "models": list(versions.values())}


if __name__ == "__main__":
    run_verb(serve)

"""Stands for the service under `--local`: serves nothing, but starts, reports and stops as it does."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    """Behave as the environment says: serve, fail at start, or never become ready."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    for option in ("--listen", "--metrics-listen", "--data-dir", "--parent-pid", "--ready-file"):
        parser.add_argument(option, required=True)
    given = parser.parse_args()
    behaviour = os.environ.get("FAKE_SERVICE", "serve")
    seen = {"listen": given.listen, "parent": given.parent_pid, "environment": sorted(os.environ)}
    Path(given.data_dir, "seen.json").write_text(json.dumps(seen))
    Path(given.data_dir, "pid").write_text(str(os.getpid()))
    if behaviour == "fail":
        sys.stderr.write("the data folder is in use\n")
        return 1
    if behaviour == "serve":
        partial = Path(given.ready_file + ".partial")
        partial.write_text(json.dumps({"address": "127.0.0.1:9", "metrics_address": ""}))
        partial.replace(given.ready_file)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())

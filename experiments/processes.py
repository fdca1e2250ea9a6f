"""Runs measurements in separate processes and describes the machine."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

IS_BUSY = 0.5  # load average from which on other programs are likely to disturb


def run_worker(module: str, *args: str) -> Any:
    """Run `python -m module arguments` and return the JSON in its last line of output."""
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_bytes(key: str) -> int:
    """Return VmRSS (resident memory) or VmHWM (its peak) in bytes; 0 except on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def machine() -> dict[str, Any]:
    """Return a description of the machine, from another process to keep this one small."""
    ask = (
        "import json, platform, torch; print(json.dumps({"
        "'cpu': torch.cpu.get_capabilities().get('cpu_name', platform.processor()), "
        "'features': [name for name in ('avx512_bf16', 'amx_bf16') "
        "if torch.cpu.get_capabilities().get(name)], "
        "'torch': torch.__version__, 'python': platform.python_version()}))"
    )
    facts: dict[str, Any] = json.loads(subprocess.check_output([sys.executable, "-c", ask]))
    facts["cores"], facts["kernel"] = os.cpu_count(), platform.release()
    facts["load_before"] = round(os.getloadavg()[0], 2)
    if facts["load_before"] > IS_BUSY:
        print(f"warning: the load average is {facts['load_before']}; close what runs besides")
    return facts

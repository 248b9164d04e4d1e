"""`event-tensor cache`: what kernels, schedules and tables take on disk, which are in use, and
clearing them."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from event_tensor.errors import UserError
from frontend.graph.rope_cache import TABLES
from frontend.report.console import Record, print_table
from persistent_runtime.cache.files import VARIABLE, base_directory, write_problem
from persistent_runtime.cache.kept_file import changed_keys
from persistent_runtime.cache.schedules import SCHEDULES
from persistent_runtime.cache.stores import CacheFolder, folders_of
from persistent_runtime.cpu.calibration.record import CALIBRATIONS
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS

STORES = (FUNCTIONS, SCHEDULES, TABLES, CALIBRATIONS)  # all that a start may find in the cache


def examine(clear: bool, clear_stale: bool) -> Record:
    """The folders as they were found, `removed` saying which are gone now; `problem` says why one
    is not used, and of the whole why nothing can be added to it.

    Raises UserError for a cache that cannot be read.
    """
    keys = {store: store.key() for store in STORES}
    current = {store.directory() for store in STORES}
    require_readable()
    entries = []
    for folder in folders_of(STORES):
        is_current = folder.path in current
        entries.append({
            "name": folder.path.name, "kind": folder.store.holds, "bytes": folder.bytes,
            "files": folder.files,
            "functions": folder.files if folder.store is FUNCTIONS else 0,
            "made": datetime.fromtimestamp(folder.made_s, UTC).isoformat(timespec="seconds"),
            "current": is_current, "problem": folder.problem,
            "changed": changed_keys(folder.key, keys[folder.store]) if folder.key else None,
            "removed": (clear or clear_stale and not is_current) and remove(folder)})
    return {"directory": str(base_directory()), "bytes": sum(e["bytes"] for e in entries),
            "removed_bytes": sum(e["bytes"] for e in entries if e["removed"]),
            "problem": write_problem(FUNCTIONS.directory()), "entries": entries}


def require_readable() -> None:
    try:
        os.scandir(base_directory()).close()
    except FileNotFoundError:
        pass  # nothing has been compiled yet
    except OSError as error:
        raise UserError(f"the kernel cache {base_directory()} cannot be read ({error.strerror}); "
                        f"set {VARIABLE} to another directory") from None


def remove(folder: CacheFolder) -> bool:
    """False where another process was faster."""
    try:
        folder.remove()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"cannot remove {folder.path}: {error.strerror}; remove it by hand"
                        ) from None
    return True


def show(record: Record) -> None:
    def state(entry: Record) -> str:
        if entry["removed"]:
            return "removed"
        if entry["problem"]:
            return f"not used: {entry['problem']}"
        if entry["current"]:
            return "current"
        changed = entry["changed"]
        if changed is None:
            return "unknown key"
        more = f" +{len(changed) - 1}" if len(changed) > 1 else ""
        return f"other {changed[0]}{more}"

    rows = [[e["name"], f"{e['bytes'] / 1e6:.1f}", e["files"], e["kind"], e["made"][:16], state(e)]
            for e in record["entries"]]
    print_table(f"kernel cache {record['directory']}, {record['bytes'] / 1e6:.1f} MB",
                ["entry", "MB", "files", "of", "made (UTC)", "state"], rows)
    if record["problem"]:
        print(f"nothing can be added to it ({record['problem']}): what it lacks is compiled at "
              f"every start, until {VARIABLE} names a directory that can be written")
    if record["removed_bytes"]:
        print(f"removed {record['removed_bytes'] / 1e6:.1f} MB; what is needed will be compiled "
              f"again")

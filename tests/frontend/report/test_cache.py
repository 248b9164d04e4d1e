"""`event-tensor cache` over all that is kept: functions, schedules, tables, of this and of earlier
installations."""

import json
from dataclasses import replace

import pytest

from frontend.report import cache
from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cache.stores import KEY_FILE


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A folder of each kind with one file, and the folder of an earlier installation, which had
    schedules and tables beside its functions."""
    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path))
    for store in cache.STORES:
        folder, reason = store.open()
        assert reason == "first start with this cache"
        KeptFile(folder / f"one{store.suffix}", {}).save(b"content")
    earlier = tmp_path / "cpu-0123"
    earlier.mkdir()
    (earlier / KEY_FILE).write_text(json.dumps({**cache.FUNCTIONS.key(), "numba": "0.1"}))
    for name in ("attention-1.compiled", "schedule-0.pickle", "rope-0.tables"):
        (earlier / name).write_bytes(b"content")
    return tmp_path


def test_every_kind_is_listed_with_what_it_holds(filled):
    entries = {e["name"].partition("-")[0]: e for e in cache.examine(False, False)["entries"]
               if e["current"]}
    assert {kind: (e["kind"], e["files"], e["functions"], e["changed"])
            for kind, e in entries.items()} == {
        "cpu": ("compiled functions", 1, 1, []), "schedules": ("proved schedules", 1, 0, []),
        "rope": ("rotary tables", 1, 0, []), "machine": ("calibrations", 1, 0, [])}


def test_an_earlier_installation_is_stale_and_goes_as_a_whole(filled):
    record = cache.examine(False, True)
    (stale,) = [e for e in record["entries"] if not e["current"]]
    assert (stale["name"], stale["changed"], stale["removed"]) == ("cpu-0123", ["numba"], True)
    assert len(list(filled.iterdir())) == len(cache.STORES)


def test_a_kind_that_changes_leaves_the_others_current(filled, monkeypatch):
    schedules = replace(cache.SCHEDULES, key=lambda: {**cache.SCHEDULES.key(), "numpy": "0.1"})
    monkeypatch.setattr(cache, "STORES", (cache.FUNCTIONS, schedules, cache.TABLES))
    current = {e["name"].partition("-")[0]: e["current"]
               for e in cache.examine(False, False)["entries"] if e["name"] != "cpu-0123"}
    assert current == {"cpu": True, "schedules": False, "rope": True}

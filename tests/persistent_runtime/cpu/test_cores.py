"""The number of workers: affinity and the quotas of control groups, over trees of made-up files."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_tensor.errors import UserError
from frontend.report import doctor
from persistent_runtime.cpu import cores
from persistent_runtime.cpu.backend import CpuBackend
from persistent_runtime.cpu.cgroup import Quota, cpu_quota

V1 = "7:cpuset:/elsewhere\n4:cpu,cpuacct:{path}\n1:name=systemd:/init\n"
V2 = "0::{path}\n"
NUMBERS = st.integers(1_000, 1_000_000)


def made_proc(folder, groups, mounts):
    """A folder like /proc/self. mounts: (root, point, type, options)."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw", "nonsense"]
    lines += [f"{30 + k} 22 0:{30 + k} {root} {str(point).replace(' ', chr(92) + '040')} "
              f"rw,nosuid shared:{k} master:1 - {kind} {kind} {options}"
              for k, (root, point, kind, options) in enumerate(mounts)]
    (proc / "mountinfo").write_text("\n".join(lines) + "\n")
    return proc


def write_v2(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(content)


def write_v1(folder, quota, period="100000\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    if period is not None:
        (folder / "cpu.cfs_period_us").write_text(period)


def v2_quota(folder, content, path="/"):
    """What a container finds whose group is the root of its namespace."""
    point = folder / "sys fs"  # a blank must be read, too
    write_v2(point / path.lstrip("/"), content)
    return cpu_quota(made_proc(folder, V2.format(path=path), [("/", point, "cgroup2", "rw")]))


@pytest.mark.parametrize(("content", "cpus"), [
    ("100000 100000\n", 1.0), ("150000 100000\n", 1.5), ("50000 100000\n", 0.5),
    ("200000\n", 2.0), ("max 100000\n", None), ("max\n", None), ("", None), ("-1 100000", None),
    ("0 100000", None), ("100000 0", None), ("1e5 100000", None), ("\x00\xff", None)])
def test_contents_of_cpu_max(tmp_path, content, cpus):
    quota = v2_quota(tmp_path, content)
    assert (quota and quota.cpus) == cpus
    assert quota is None or quota.file == str(tmp_path / "sys fs" / "cpu.max")


@pytest.mark.parametrize(("quota", "period", "cpus"), [
    ("100000\n", "100000\n", 1.0), ("75000\n", "50000\n", 1.5), ("-1\n", "100000\n", None),
    ("300000\n", None, 3.0), ("100000\n", "0\n", None), ("", "100000\n", None),
    ("many\n", "100000\n", None)])
def test_contents_of_version_1(tmp_path, quota, period, cpus):
    point = tmp_path / "cpu,cpuacct"
    write_v1(point / "docker/abc", quota, period)
    found = cpu_quota(made_proc(tmp_path, V1.format(path="/docker/abc"),
                                [("/", point, "cgroup", "rw,cpu,cpuacct")]))
    assert (found and found.cpus) == cpus


def test_a_container_that_sees_only_its_own_group(tmp_path):
    """Without a namespace of groups the mount's root is the container's group."""
    point = tmp_path / "cpu"
    write_v1(point, "250000")
    write_v1(point / "inner", "-1")
    found = cpu_quota(made_proc(tmp_path, V1.format(path="/docker/abc/inner"),
                                [("/docker/abc", point, "cgroup", "rw,cpu")]))
    assert found == Quota(250_000, 100_000, str(point / "cpu.cfs_quota_us"))


@pytest.mark.parametrize("path", ["/docker/abcd", "/other", "/../beside", "no path", ""])
def test_a_group_that_the_mount_does_not_show(tmp_path, path):
    point = tmp_path / "cpu"
    write_v1(point, "100000")
    mounts = [("/docker/abc", point, "cgroup", "rw,cpu")]
    assert cpu_quota(made_proc(tmp_path, V1.format(path=path), mounts)) is None


def test_both_versions_at_once(tmp_path):
    """A hybrid system: quotas may stand in either hierarchy."""
    old, new = tmp_path / "cpu", tmp_path / "unified"
    write_v1(old, "300000")
    write_v2(new, "200000 100000")
    proc = made_proc(tmp_path, V1.format(path="/") + V2.format(path="/"), [
        ("/", tmp_path / "cpuset", "cgroup", "rw,cpuset"), ("/", old, "cgroup", "rw,cpu"),
        ("/", new, "cgroup2", "rw,nsdelegate")])
    assert cpu_quota(proc).file == str(new / "cpu.max")


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo", "folder"])
def test_missing_files_limit_nothing(tmp_path, missing):
    proc = made_proc(tmp_path, V2.format(path="/gone"), [("/", tmp_path / "no", "cgroup2", "rw")])
    assert cpu_quota(proc) is None  # the group's folder is not there
    if missing != "folder":
        (proc / missing).unlink()
    assert cpu_quota(proc if missing != "folder" else tmp_path / "none") is None


@given(st.booleans(), st.integers(0, 2),
       st.lists(st.none() | st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_the_least_quota_of_nested_groups_holds(is_v2, hidden, levels):
    """levels: of each group its quota, from the mount's root down; hidden: groups above that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        above = "".join(f"/above{k}" for k in range(hidden))
        group, place = above or "/", folder / "mount"
        for depth, quota in enumerate(levels):
            if depth:
                place /= f"g{depth}"
                group = f"{group.rstrip('/')}/g{depth}"
            if is_v2:
                write_v2(place, "max 100000" if quota is None else "{} {}".format(*quota))
            else:
                write_v1(place, *(("-1", "100000") if quota is None else map(str, quota)))
        proc = made_proc(folder, (V2 if is_v2 else V1).format(path=group), [
            (above or "/", folder / "mount", *(("cgroup2", "rw") if is_v2 else ("cgroup", "cpu")))])
        found = cpu_quota(proc)
    least = min((quota / period for quota, period in filter(None, levels)), default=None)
    assert (found and found.cpus) == least


@pytest.mark.parametrize(("affinity", "quota_us", "count", "reason"), [
    (2, None, 2, "affinity"),
    (2, 100_000, 1, "cgroup quota of 1.0 CPUs (/q/cpu.max); affinity allows 2"),
    (8, 150_000, 1, "cgroup quota of 1.5 CPUs (/q/cpu.max); affinity allows 8"),
    (8, 390_000, 3, "cgroup quota of 3.9 CPUs (/q/cpu.max); affinity allows 8"),
    (8, 25_000, 1, "cgroup quota of 0.25 CPUs (/q/cpu.max); affinity allows 8"),
    (2, 400_000, 2, "affinity; cgroup quota of 4.0 CPUs (/q/cpu.max) allows 4")])
def test_the_count_and_where_it_comes_from(monkeypatch, affinity, quota_us, count, reason):
    limit(monkeypatch, affinity, quota_us)
    found = cores.find_cores()
    assert (found.count, found.reason) == (count, reason)
    assert CpuBackend().target(None).workers == count
    assert CpuBackend().workers_from(None) == reason
    assert CpuBackend().target(2).workers == 2  # who asks for more than a quota gets it
    assert CpuBackend().workers_from(2) == "as given"


@pytest.mark.parametrize(("configured", "count"), [(1, 1), (2, 2), (9, 4), (None, 4)])
def test_what_python_is_told_counts(monkeypatch, configured, count):
    """From Python 3.13 on PYTHON_CPU_COUNT says what programs may use; never more than there is."""
    limit(monkeypatch, 4, None)
    monkeypatch.setattr(os, "process_cpu_count", lambda: configured, raising=False)
    found = cores.find_cores()
    assert found.count == count
    assert ("PYTHON_CPU_COUNT" in found.reason) == (count < 4)


def limit(monkeypatch, affinity, quota_us):
    quota = quota_us and Quota(quota_us, 100_000, "/q/cpu.max")
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(affinity)),
                        raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)


def test_reports_say_where_the_number_comes_from(monkeypatch, command):
    limit(monkeypatch, 2, 100_000)
    reason = "cgroup quota of 1.0 CPUs (/q/cpu.max); affinity allows 2"
    monkeypatch.setattr(doctor, "check_generation", lambda progress: doctor.check_cache())
    record = json.loads(command("doctor", "--json").stdout)
    assert (record["cpu"]["cores"], record["cpu"]["cores_from"]) == (1, reason)
    shown = " ".join(command("doctor").stdout.split())
    assert "1: cgroup quota of 1.0 CPUs" in shown and "affinity allows 2" in shown


@pytest.mark.parametrize("workers", [65, 1_000, 100_000, 2**40])
def test_more_workers_than_could_ever_run_are_refused(monkeypatch, workers):
    limit(monkeypatch, 2, None)
    assert CpuBackend().target(64).workers == 64
    with pytest.raises(UserError, match=f"workers is {workers}, but only 2 .* at most 64"):
        CpuBackend().target(workers)
    limit(monkeypatch, 16, None)
    assert CpuBackend().target(128).workers == 128


def test_a_refusal_comes_before_the_model_is_read(command):
    done = command("generate", "no/such/model", "--prompt", "x", "--workers", 100_000)
    assert done.returncode == 2
    assert done.stderr.startswith("error: workers is 100000")

"""The warmup report: phases that sum, named misses, a page that stands by itself."""

import json
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import HANG_S
from paths import PYTHONPATH, TESTS
from slow_phase import DELAY_S, SLOWED, slowed

pytest.importorskip("numba")

import numba as nb

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.decode.phases import Phases
from frontend.report.warmup import runs as warmup_command
from frontend.report.warmup.after_ready import compilations
from frontend.report.warmup.page import page, ticks
from frontend.report.warmup.runs import STARTS, check_strict, comparison, phase_rows

SLOW_WARMUP = """
from frontend.cli import main
from frontend.report.warmup import runs
runs.CHILD = "slow_phase"
main()
"""


@pytest.fixture(scope="module")
def record(run_command, tmp_path_factory):
    """The report on the demo model, with one phase slowed; its page lies beside it."""
    file = tmp_path_factory.mktemp("warmup") / "page.html"
    done = run_command("warmup", "demo", "--json", "--strict", "--html", file, code=SLOW_WARMUP,
                       PYTHONPATH=PYTHONPATH)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"file": file}


def seconds_of(start):
    return {phase["name"]: phase["seconds"] for phase in start["phases"]}


def check_clocks(start):
    """Named phases cover a start, and what its parent saw covers it as well: that does not depend
    on what /proc says of the child, which is right to a hundredth of a second."""
    assert 0 <= seconds_of(start)["unattributed"] <= 0.1 * start["wall_s"]
    assert start["wall_s"] <= start["spawned_s"] + 0.02


@pytest.mark.parametrize("name", STARTS)
def test_phases_sum_to_the_wall_time_of_the_process(record, name):
    start = record[name]
    seconds = seconds_of(start)
    assert sum(seconds.values()) == pytest.approx(start["wall_s"], abs=1e-3)
    check_clocks(start)
    spans = sorted(span for phase in start["phases"] for span in phase["spans"])
    assert all(a[1] <= b[0] + 1e-6 for a, b in zip(spans, spans[1:], strict=False))


def test_the_phases_that_users_ask_for_are_there(record):
    made = {"schedule: instantiate", "schedule: prove graph", "schedule: place",
            "schedule: prune waits", "schedule: verify", "schedule: encode", "schedule: keep"}
    cold, warm = (set(seconds_of(record[name])) for name in ("cold", "warm"))
    assert {"interpreter", "import numba", "config", "open checkpoint",
            "tokenizer", "build graph", "derive events", "weights", "schedule: look up",
            "buffers", "prepare launch", "prefill", "first token",
            "compile: run_worker (cache hit)", "unattributed"} <= warm
    assert {"compile: attention", "import torch", *made} <= cold
    assert not made & warm  # what the cold start has proved


@pytest.mark.parametrize("name", STARTS)
def test_a_slowed_phase_shows_in_its_row(record, name):
    seconds = seconds_of(record[name])
    assert seconds[SLOWED] >= DELAY_S
    assert seconds["build graph"] < seconds[SLOWED]


def test_cold_compiles_and_warm_does_not(record):
    cold, warm = record["cold"], record["warm"]
    assert cold["cache"]["hits"] == warm["cache"]["misses"] == 0
    assert cold["cache"]["misses"] == warm["cache"]["hits"] == len(warm["functions"])
    assert {f["reason"] for f in cold["functions"]} == {"first start with this cache"}
    assert record["compilations_after_ready"] == 0
    assert warm["compilations"] == 1 < warm["after_ready"]["schedules"]
    assert warm["counts"]["tasks"] > warm["counts"]["calls"] > 0
    assert record["your_cache"]["state"] in ("ready", "invalidated", "empty")
    assert {"versions", "cpu", "commit"} <= set(record)


class Tags(HTMLParser):
    """Collects attributes, and fails unless tags that need it are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(record):
    text = record["file"].read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {name for name, _ in tags.attributes} & {"src", "href"}
    assert "http" not in text and "@import" not in text
    for name, _ in phase_rows(record):
        assert f"<td>{name}</td>" in text
    pictures = [text[a:text.index("</svg>", a) + 6] for a in find_all(text, "<svg")]
    assert len(pictures) == len(STARTS)
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        width = float(root.get("viewBox").split()[2])
        for bar in root.iter("rect"):
            assert float(bar.get("x")) + float(bar.get("width")) <= width
        assert SLOWED in "".join(root.itertext())


def find_all(text, part):
    position = text.find(part)
    while position >= 0:
        yield position
        position = text.find(part, position + 1)


# what a reader sees: pictures with bars, and no text that its picture cuts off
LOOK = """(() => {
    const inside = (text, svg) => text.left >= svg.left - 1 && text.right <= svg.right + 1;
    return [...document.querySelectorAll("svg")].map(svg => ({
        width: svg.getBoundingClientRect().width,
        bars: [...svg.querySelectorAll("rect")].filter(r => r.getBoundingClientRect().width > 0)
            .length,
        cut: [...svg.querySelectorAll("text")].filter(t => !inside(
            t.getBoundingClientRect(), svg.getBoundingClientRect())).map(t => t.textContent)}));
})()"""


def test_the_page_opens_in_a_browser(record, tmp_path):
    pytest.importorskip("PyQt6.QtWebEngineWidgets", exc_type=ImportError)
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [sys.executable, TESTS / "support" / "browser.py", record["file"], LOOK, picture],
        capture_output=True, text=True, timeout=HANG_S, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] and found["messages"] == found["requests"] == []
    assert len(found["value"]) == len(STARTS)
    for svg in found["value"]:
        assert svg["width"] > 300 and svg["bars"] > 10 and svg["cut"] == []
    assert picture.stat().st_size > 10_000


def test_baselines_are_started_in_the_same_way(command, record, tiny_model, tmp_path, monkeypatch):
    """Beside our own starts, which are those of `record`."""
    start_twice = warmup_command.start_twice

    def start_others_twice(module, *given):
        is_ours = module == warmup_command.CHILD
        return {name: record[name] for name in STARTS} if is_ours else start_twice(module, *given)

    monkeypatch.setattr(warmup_command, "start_twice", start_others_twice)
    file = tmp_path / "page.html"
    done = command("warmup", tiny_model("llama", num_hidden_layers=1), "--compare",
                   "transformers,torch-compile", "--prompt-tokens", 16, "--html", file, "--json")
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    assert list(compared["compare"]) == ["transformers", "torch-compile"]
    for name, starts in compared["compare"].items():
        for start in (starts[kind] for kind in STARTS):
            seconds = seconds_of(start)
            assert sum(seconds.values()) == pytest.approx(start["wall_s"], abs=1e-3)
            check_clocks(start)
            assert {"import torch", "import transformers", "weights", "prefill"} <= set(seconds)
            assert ("compile: decode step" in seconds) == (name == "torch-compile")
        row = comparison(name, starts)
        assert row[0] == name and len(row) == len(comparison("event-tensor", record))
    assert "torch-compile, warm start" in file.read_text(encoding="utf-8")


def test_a_cold_start_finds_empty_caches_and_a_warm_one_what_it_left(monkeypatch):
    def start(module, argument, folders, what):
        contents = {name: sorted(Path(folder).glob("*")) for name, folder in folders.items()}
        for folder in map(Path, folders.values()):
            folder.mkdir(exist_ok=True)
            (folder / "kernel").write_text("")
        return {name: [path.name for path in paths] for name, paths in contents.items()}

    monkeypatch.setattr(warmup_command, "start", start)
    for _ in range(2):
        assert warmup_command.start_twice("a.module", {}, "a model") == {
            "cold": dict.fromkeys(warmup_command.CACHES, []),
            "warm": dict.fromkeys(warmup_command.CACHES, ["kernel"])}


@pytest.mark.parametrize("name, named", [
    ("llama-cpp", "nothing to compile"), ("cuda-graph", "needs a GPU"), ("nobody", "supported"),
    ("transformers,transformers", "twice")])
def test_a_baseline_that_cannot_be_started_is_refused_by_name(run_command, name, named):
    done = run_command("warmup", "demo", "--compare", name, "--backend", "cpu")
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr


def test_names_are_escaped(record):
    assert "<b>" not in page(record | {"model": "<b>"})


def test_ticks_are_round_and_few():
    assert ticks(1.0) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert ticks(4.4) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_warmup_of_a_decoder_in_a_longer_process():
    decoder = compile_decode_loop("demo", max_context=64)
    before = decoder.warmup()
    assert "prefill" not in seconds_of(before)
    decoder.generate([1, 2, 3], max_new_tokens=2)
    record = decoder.warmup()
    assert record["wall_s"] == decoder.warmup()["wall_s"]
    seconds = seconds_of(record)
    assert {"before compile_decode_loop", "waiting for a prompt", "prefill"} <= set(seconds)
    assert sum(seconds.values()) == pytest.approx(record["wall_s"], abs=1e-3)


def test_a_slowed_phase_shows_in_this_process_too(monkeypatch):
    monkeypatch.setattr(Phases, "__call__", slowed("buffers", 0.05))
    decoder = compile_decode_loop("demo", max_context=64, phases=Phases())
    assert seconds_of(decoder.warmup())["buffers"] >= 0.05


def test_a_compilation_after_ready_is_noticed():
    with compilations() as names:
        @nb.njit
        def surprise(x):
            return x + 1

        surprise(1)
    assert names == ["surprise"]
    starts = {"cold": {"after_ready": {"names": []}}, "warm": {"after_ready": {"names": names}}}
    with pytest.raises(UserError, match="1 compilations after ready .surprise"):
        check_strict({"compilations_after_ready": 1, **starts})


def test_triton_compilations_are_listed_by_stage(tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from frontend.report.warmup.triton_stages import record_stages
    from persistent_runtime.cache.compilations import COMPILATIONS
    from persistent_runtime.gpu.worker.sync import notify_event

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.knobs.compilation, "listener", record_stages)
    begin_s = time.monotonic()
    for is_hit in (False, True):
        before = len(COMPILATIONS)
        source = ASTSource(notify_event, {"counter": "i64"})
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
        found = COMPILATIONS[before:]
        assert all(c.cache_hit == is_hit and c.begin_s >= begin_s - 1e-3 for c in found)
        stages = [c.function.rpartition(" ")[2] for c in found]
        assert is_hit or {"ir", "ttir", "ptx", "cubin", "store"} <= set(stages)


@pytest.mark.parametrize(("arguments", "words"), [
    (("no/such/model",), ["no/such/model"]),
    (("demo", "--prompt-tokens", "0"), ["--prompt-tokens is 0"]),
    (("demo", "--schedule", "magic"), ["magic", "static"]),
])
def test_mistakes_are_answered_in_one_line(command, arguments, words):
    done = command("warmup", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in words:
        assert word in done.stderr

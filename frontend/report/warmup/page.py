"""The warmup report as one HTML page that needs nothing else: a cascade of phases per start."""

from __future__ import annotations

from html import escape

from frontend.report.console import Record
from frontend.report.warmup.runs import STARTS, phase_rows, sentences

WIDTH, LABEL, VALUE, ROW = 960, 310, 90, 18  # pixels
SHORT_SHARE = 0.002  # phases that take less are drawn as one row
# first words of a phase's name → what it belongs to
GROUPS = {"interpreter": "imports", "import": "imports", "find": "imports", "config": "model",
          "open": "model", "tokenizer": "model", "weights": "model", "build": "graph",
          "derive": "graph", "schedule": "graph", "compile": "compile", "capture": "compile",
          "buffers": "run",
          "make": "run", "prepare": "run", "prefill": "run", "first": "run"}
COLOURS = {"imports": "#4878a8", "model": "#3f8f6b", "graph": "#8a63a8", "compile": "#c4553d",
           "run": "#c9922e", "other": "#8a8a8a"}
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.35rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid #e4e4e4 }
td:first-child, th:first-child { text-align: left }
tr.total td { font-weight: 600 }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 1em }
.quiet { color: #666 }
"""


def page(record: Record) -> str:
    """The whole document."""
    title = f"Warmup of {record['model']}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{summary(record)}</p>", f"<p>{legend()}</p>"]
    for name in STARTS:
        start = record[name]
        parts += [f"<h2>{name} start: {start['wall_s']:.2f} s to the first token</h2>",
                  cascade(start)]
    for name, starts in record["compare"].items():
        for kind in STARTS:
            parts += [f"<h2>{escape(name)}, {kind} start: {starts[kind]['wall_s']:.2f} s</h2>",
                      cascade(starts[kind])]
    parts += ["<h2>All phases</h2>", table(record), "<h2>Caches, counts, shapes</h2>",
              "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences(record)) + "</ul>",
              "<h2>Device functions</h2>", functions(record),
              f'<p class="quiet">{origin(record)}</p>']
    body = "\n".join(parts)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
            f"</body>\n</html>\n")


def summary(record: Record) -> str:
    cold, warm = (record[name]["wall_s"] for name in STARTS)
    return (f"From the start of the process to the first token, {record['prompt_tokens']} prompt "
            f"tokens: {cold:.2f} s with nothing compiled, {warm:.2f} s with a warm cache. The "
            f"phases of a start never overlap and add up to its wall time.")


def legend() -> str:
    return "".join(f'<span class="key" style="background:{colour}"></span>{group}'
                   for group, colour in COLOURS.items())


def group_of(phase: str) -> str:
    return GROUPS.get(phase.partition(" ")[0].rstrip(":"), "other")


def cascade(start: Record) -> str:
    """SVG: time to the right, one row per phase; very short ones in one row together."""
    wall_s = start["wall_s"]
    rows = [p for p in start["phases"] if p["share"] >= SHORT_SHARE or p["name"] == "unattributed"]
    short = [p for p in start["phases"] if p not in rows]
    rows.insert(-1, {"name": f"{len(short)} shorter phases",
                     "seconds": sum(p["seconds"] for p in short),
                     "spans": [span for p in short for span in p["spans"]]})
    scale = (WIDTH - LABEL - VALUE) / wall_s
    height = ROW * (len(rows) + 2)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
             f'aria-label="phases over {wall_s:.2f} seconds">']
    for tick in ticks(wall_s):
        x = LABEL + tick * scale
        parts += [f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - ROW}" stroke="#ddd"/>',
                  f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle" fill="#666">'
                  f'{tick:g} s</text>']
    for k, phase in enumerate(rows):
        y = k * ROW
        name = escape(phase["name"])
        label = f"{name}: {phase['seconds'] * 1e3:.1f} ms"
        parts.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{name}</text>')
        parts += [f'<rect x="{LABEL + begin * scale:.2f}" y="{y + 3}" '
                  f'width="{max((end - begin) * scale, 0.5):.2f}" height="{ROW - 6}" '
                  f'fill="{COLOURS[group_of(phase["name"])]}"><title>{label}</title></rect>'
                  for begin, end in phase["spans"]]
        parts.append(f'<text x="{WIDTH}" y="{y + 13}" text-anchor="end">'
                     f'{phase["seconds"] * 1e3:.1f} ms</text>')
    return "\n".join([*parts, "</svg>"])


def ticks(wall_s: float) -> list[float]:
    """At most ten round numbers of seconds from 0 on."""
    step = next(s * 10.0**e for e in range(-4, 5) for s in (1, 2, 5) if s * 10.0**e * 10 >= wall_s)
    return [round(k * step, 6) for k in range(int(wall_s / step) + 1)]


def table(record: Record) -> str:
    def cells(phase: Record | None) -> str:
        if phase is None:
            return "<td>-</td><td></td>"
        return f"<td>{phase['seconds'] * 1e3:.1f}</td><td>{phase['share']:.1%}</td>"

    rows = [f"<tr><td>{escape(name)}</td>{''.join(map(cells, phases))}</tr>"
            for name, phases in phase_rows(record)]
    total = "".join(f"<td>{record[name]['wall_s'] * 1e3:.1f}</td><td>100%</td>" for name in STARTS)
    return ("<table><thead><tr><th>phase</th><th>cold ms</th><th></th><th>warm ms</th><th></th>"
            f"</tr></thead><tbody>{''.join(rows)}"
            f'<tr class="total"><td>process start to first token</td>{total}</tr></tbody></table>')


def functions(record: Record) -> str:
    rows = "".join(
        f"<tr><td>{escape(f['function'])}</td><td>{name}</td><td>{f['cache']}</td>"
        f"<td>{f['seconds'] * 1e3:.1f}</td><td>{escape(f['note'] or f['reason'])}</td></tr>"
        for name in STARTS for f in record[name]["functions"])
    return ("<table><thead><tr><th>device function</th><th>start</th><th>cache</th><th>ms</th>"
            f"<th>why</th></tr></thead><tbody>{rows}</tbody></table>")


def origin(record: Record) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return escape(f"{record['cpu']}; {packages}; commit {record['commit']}; {record['date']}")

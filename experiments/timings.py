"""Tables of what was timed: two ways of one thing, in alternation, as ratios."""

from collections.abc import Iterable, Mapping

from experiments.markdown import content, rows, span, thousands
from search_r3.benchmarks.peers.names import ROWS
from search_r3.markdown import table


def prefix() -> str:
    """Shared prompts against whole texts: ratio by round, and the share of the machine's own product."""
    header = ("model", "what", ">prompt", ">tokens run", ">faster", ">share of the limit")
    lines = []
    for found in rows("prefix/prefix.json"):
        run, ratio = found["tokens_run"], found["shared_over_whole"]
        shares = [found[f"{way}_share_of_limit"]["median"] for way in ("whole", "shared")]
        faster = f"{ratio['median']:.2f} ({span((ratio['lowest'], ratio['highest']), '.2f')})"
        tokens, limits = (" to ".join(map(each, two)) for each, two in (
            (thousands, run.values()), ("{:.0%}".format, shares)))  # fmt: skip
        lines.append((found["model"], found["what"], str(found["prompt_tokens"]), tokens, faster, limits))
    return table(header, lines)


def padding() -> str:
    """Rows dealt by the token budget alone against rows dealt by their padding, in both precisions."""
    header = ("model", "precision", ">tokens", ">run", ">faster", ">tokens per second", ">share of the limit")
    lines = []
    for found in (*rows("padding/fp32.json"), *rows("padding/bf16.json")):
        ratio, ways = found["padding_over_budget"], ("budget", "padding")
        speeds, limits = (
            [found[f"{way}_{what}"]["median"] for way in ways] for what in ("tokens_per_s", "share_of_limit")
        )
        run, per_second = (
            " to ".join(map(thousands, map(round, two))) for two in (found["tokens_run"].values(), speeds)
        )
        faster = f"{ratio['median']:.2f} ({span((ratio['lowest'], ratio['highest']), '.2f')})"
        limit = " to ".join(map("{:.0%}".format, limits))
        name = {"model": "nano_base"}.get(found["model"].split("/")[-1], found["model"].split("/")[-1])
        cells = (name, found["precision"], thousands(found["tokens"]), run, faster, per_second, limit)
        lines.append(cells)
    return table(header, lines)


def waiting() -> str:
    """Tokens per second by how threads wait, beside more and more busy processes."""

    def told(line: Mapping, policy: str) -> str:
        return thousands(round(line[f"{policy}_tokens_per_s"]["median"]))

    return table(
        ("busy processes beside it", "passive", "active", "passive / active"),
        [
            (
                str(line["busy_processes"]),
                told(line, "passive"),
                told(line, "active"),
                "{median:.2f} ({lowest:.2f}-{highest:.2f})".format(**line["passive_over_active"]),
            )
            for line in content("waiting/metrics.json")["rows"]
        ],
    )


def bench() -> str:
    """Ours beside its peers on an idle machine."""
    return _ratios(_bench_rows())


def bench_busy() -> str:
    """The same beside a process that only counts."""
    return _ratios(_ordered(rows("bench/busy.json")))


def _ratios(found_rows: Iterable[dict]) -> str:
    """Figures of both sides, ratio by round with its range, aim, share of the machine's limit."""
    header = ("row", "model", ">threads", ">busy", "against", ">ours", ">peer", ">ratio", ">aim", ">limit")
    lines = []
    for found in found_rows:
        sides = [found[side]["median"] if side in found else None for side in ("ours", "peer")]
        figures = ["" if each is None else _three_digits(each) for each in sides]
        ratio = f"{found['ratio']:.2f} ({span(found['spread'], '.2f')})" if "ratio" in found else ""
        aim = "" if found["aim"] is None else f"{found['aim']:g}{'' if ratio else ' s'}"
        shares = found.get("share_of_limit")
        limit = " and ".join(f"{each['median']:.0%}" for each in shares.values()) if shares else ""
        name = f"{found['name']}, {found['unit']}"
        lines.append((
            name, found["model"], str(found["threads"]), str(found["busy"]), found.get("peer_name", ""),
            *figures, ratio, aim, limit,
        ))  # fmt: skip
    return table(header, lines)


def bench_equal() -> str:
    """What each row held equal before it was timed, and how far apart the two sides were at most."""
    found: dict[tuple[str, str], float] = {}
    for line in _bench_rows():
        for each in line["equal"]:
            key = (line["name"], each["what"])
            found[key] = max(found.get(key, 0.0), each["difference"])
    return table(
        ("row", "held equal", ">largest difference"),
        [(name, what, f"{difference:.2g}") for (name, what), difference in found.items()],
    )


def _bench_rows() -> list[dict]:
    """Those of all calls, in the order of the benchmark; what a later one measured again is its own."""
    found = {
        tuple(each[key] for key in ("name", "model", "threads", "busy")): each
        for file in ("metrics.json", "metrics_2.json", "refresh.json")
        for each in rows(f"bench/{file}")
    }
    return _ordered(found.values())


def _ordered(found: Iterable[dict]) -> list[dict]:
    order = list(ROWS)
    return sorted(
        found, key=lambda each: (order.index(each["name"].partition(" ")[0]), each["model"], each["threads"])
    )


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def gpu() -> str:
    """Encoding, SFT and decoding on a GPU: speed, share of what the same GPU reached, memory."""
    lines = []
    for model in ("qwen2_5_1_5b", "smollm2_135m"):
        for found in rows(f"gpu/{model}.json"):
            if found["row"] == "limits":
                continue
            of = "bytes per second" if found["row"] == "decode" else "operations per second"
            share = f"{found['share_of_limit']:.1%} of {of}"
            cells = (thousands(found["tokens_per_s"]), share, f"{found['peak_gb']:.1f} GB")
            lines.append((model, found["row"], found["what"], thousands(found["tokens"]), *cells))
    return table(("sizes of", "row", "how", ">tokens", ">tokens per second", ">limit", ">memory"), lines)


def gpu_graphs() -> str:
    """Decoding launched step by step and as CUDA graphs: milliseconds a step, rows that are the same."""
    measured = content("gpu/graphs.json")
    n_rows = measured["prompts"] * measured["group_size"]
    lines = [
        (
            found["how"], *(f"{found[each]:.1f}" for each in ("plain_ms", "graphs_ms")),
            f"{found['plain_ms'] / found['graphs_ms']:.1f}", f"{found['equal_rows']} of {n_rows}",
        )
        for found in measured["rows"]
    ]  # fmt: skip
    return table(("", ">launched, ms", ">graphs, ms", ">times as fast", ">same rows"), lines)

"""What a registry of a whole hub would take, computed from the unit costs that other benchmarks measured.

    python benchmarks/hub_plan.py [--models 2000000] [--gigabytes 8] [--tensors 300] [--a-day 5000]

writes benchmarks/results/hub_plan.json in a second. Nothing is measured here: the unit costs come from
results/remote.json, enrolment.json, search_recall.json, registry_backends.json, exchange_scale.json and
lineage_scale.json. What is assumed about the hub and about prices is an option each, and is written into the result.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from testbeds.measured import write_result

RESULTS = Path(__file__).parent / "results"
HOUR = 3600.0


def known(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def plan(asked: argparse.Namespace) -> dict[str, Any]:
    """The plan: unit costs, and what follows from them.

    Returns:
        Assumptions, unit costs, totals for the whole hub and for a day.
    """
    remote, enrolment, exchange = known("remote")["cases"]["7B"], known("enrolment"), known("exchange_scale")
    search, backends, lineage = known("search_recall")["largest"], known("registry_backends"), known("lineage_scale")
    total = remote["bytes"]
    fetched = min(remote["add"]["bytes"] / total, 1.0) * asked.gigabytes * 1e9
    unit = {
        "bytes_fetched": fetched,
        "requests": remote["add"]["requests"],
        "cpu_seconds_to_enrol": remote["add"]["seconds"] * fetched / remote["add"]["bytes"],
        "cpu_microseconds_a_tensor": enrolment["tensors"]["cpu_us_per_tensor"],
        "milliseconds_to_write": backends["sizes"][-1]["milliseconds"]["postgresql"]["add_one"],
        "registry_bytes": exchange["rows"][-1]["registry_bytes_a_model"],
        "exported_bytes": exchange["rows"][-1]["bytes_a_model"],
        "index_bytes": 264,
        "query_milliseconds_a_million": search["top_10_ms_median"] * 1e6 / search["models"],
        "lineage_cpu_milliseconds": lineage["last"]["ms_per_model"],
    }
    hub = _totals(unit, asked, asked.models)
    return {
        "assumed": {key: value for key, value in vars(asked).items() if key != "out"},
        "unit": unit, "hub": hub, "day": _totals(unit, asked, asked.a_day),
        "writer_hours": asked.models * unit["milliseconds_to_write"] / 1e3 / HOUR,
    }  # fmt: skip


def _totals(unit: dict[str, float], asked: argparse.Namespace, models: int) -> dict[str, float]:
    cpu = models * unit["cpu_seconds_to_enrol"] / HOUR
    fetched = models * unit["bytes_fetched"]
    hours = max(cpu / asked.cores, fetched * 8 / (asked.gigabits * 1e9) / HOUR)
    lineage = models * unit["lineage_cpu_milliseconds"] / 1e3 / HOUR
    return {
        "models": models,
        "terabytes_held_by_the_hub": models * asked.gigabytes / 1e3,
        "terabytes_fetched": fetched / 1e12,
        "share_fetched": fetched / (models * asked.gigabytes * 1e9),
        "requests_million": models * unit["requests"] / 1e6,
        "core_hours_to_enrol": cpu,
        "days_on_the_cluster": hours / 24,
        "core_hours_of_lineage_if_linear": lineage,
        "registry_gigabytes": models * unit["registry_bytes"] / 1e9,
        "exported_gigabytes": models * unit["exported_bytes"] / 1e9,
        "index_megabytes": models * unit["index_bytes"] / 1e6,
        "query_milliseconds": unit["query_milliseconds_a_million"] * models / 1e6,
        "dollars_of_cores": (cpu + lineage) * asked.dollars_a_core_hour,
        "dollars_of_traffic": fetched / 1e9 * asked.dollars_a_gigabyte,
    }


def main() -> None:
    """Compute the plan and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2_000_000)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="mean size of a model")
    parser.add_argument("--a-day", type=int, default=5_000, help="new models")
    parser.add_argument("--cores", type=int, default=128)
    parser.add_argument("--gigabits", type=float, default=10.0, help="of network to the hub")
    parser.add_argument("--dollars-a-core-hour", type=float, default=0.04)
    parser.add_argument("--dollars-a-gigabyte", type=float, default=0.0, help="traffic into a cloud is mostly free")
    parser.add_argument("--out", type=Path, default=RESULTS / "hub_plan.json")
    asked = parser.parse_args()
    write_result(asked.out, plan(asked))


if __name__ == "__main__":
    main()

"""`aif demo`: all steps once, from interaction logs to ranked ids, with every figure measured in the run."""

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from aif_jax import kernels
from aif_jax.bundle import Bundle, export_bundle
from aif_jax.cli.building import tables_of
from aif_jax.cli.demo_result import DemoResult, percentiles
from aif_jax.cli.html_report import write_report
from aif_jax.cli.latency import Comparison, SequentialServer, compare
from aif_jax.cli.requests import DrawnRequests, draw_requests
from aif_jax.data import load
from aif_jax.data.dataset import Dataset
from aif_jax.files import make_directory, write_atomic
from aif_jax.integrations.usearch import TwoTowerRetriever
from aif_jax.models import add_signatures
from aif_jax.models.store import save_model, weights_of
from aif_jax.nearline import Tables
from aif_jax.observe import chrome_trace
from aif_jax.progress import progress_bar
from aif_jax.serving import Engine, EngineConfig, Shapes
from aif_jax.timeline import as_rich, as_svg, bars_of
from aif_jax.training import REFIT, TrainResult, candidate_lists, evaluate, floors, preset, train
from aif_jax.training.evaluate import Metrics
from aif_jax.types import Candidates, Request

ARCHITECTURES = ("two_tower", "cold", "aif")
CANDIDATES = 2048
K = 200
WARMUP = 10


def run_demo(
    data: str,
    out: Path | None,
    *,
    requests: int,
    network_ms: float,
    epochs: int | None,
    console: Console,
) -> DemoResult:
    """Run the demo and write its report.

    Args:
        data: data set, as `aif_jax.data.load` takes it.
        out: output folder; ``runs/demo-NAME`` by default.
        requests: number of requests to measure.
        network_ms: wait added to the ANN search.
        epochs: training epochs; the preset's by default.
        console: console to print to.
    """
    began = time.perf_counter()
    console.rule("[bold]1  data")
    dataset = load(data)
    out = Path("runs") / f"demo-{dataset.name}" if out is None else out
    make_directory(out)
    about = dataset.summary
    console.print(about, highlight=False)
    if dataset.name in REFIT:
        dataset = dataset.with_validation_in_training()
        console.print(
            "training includes the validation part: this set is split by date, and it is nearest to the test"
        )

    console.rule("[bold]2  training and quality")
    trained: dict[str, TrainResult] = {}
    measured: dict[str, Metrics] = {}
    for architecture in ARCHITECTURES:
        model_config, train_config = preset(dataset.name, architecture)
        if epochs is not None:
            train_config = train_config.replace(epochs=epochs)
        console.print(f"[bold]{architecture}[/]")
        result = train(model_config, dataset, train_config, progress=True)
        lists = candidate_lists(dataset, "test", model_config.heads[0])
        trained[architecture] = result
        measured[architecture] = evaluate(
            result.model, dataset, "test", lists=lists, buckets=train_config.long_buckets
        )
        save_model(
            result.model,
            out / architecture / "model",
            metrics=measured[architecture].to_json(),
            notes={"data": dataset.name, "steps": result.steps},
        )
    quality = quality_rows(dataset, trained, measured)
    console.print(quality_table(quality))
    note = quality_note(quality, dataset)
    console.print(note, highlight=False)

    console.rule("[bold]3  export and index")
    aif = trained["aif"]
    step = time.perf_counter()
    bundle = export_bundle(
        aif.model,
        out / "bundle",
        metrics=measured["aif"].to_json(),
        notes={"data": dataset.name},
        k_max=K,
        overwrite=True,
    )
    console.print(bundle.explain(), markup=False, highlight=False)
    tables = tables_of(bundle, dataset, console=console)
    tables.items.save(out / "items.aifrows")
    tables.behaviours.save(out / "behaviours.aifrows")
    console.print(
        f"{len(tables.items):,} item rows; export and index took {time.perf_counter() - step:.1f} s"
    )

    console.rule("[bold]4  serving the same requests both ways")
    count = min(CANDIDATES, dataset.n_items // 2)
    drawn = draw_requests(dataset, requests + WARMUP, long_length=bundle.spec.long_length, k=min(K, count))
    retrieve = retriever(trained["two_tower"], dataset, drawn, count, network_ms)
    comparison, engine_facts = serve(aif, bundle, tables, dataset, drawn, retrieve, count, console)
    result = DemoResult(
        dataset=about,
        head=aif.model.config.heads[0],
        quality=quality,
        quality_note=note,
        latency=comparison.latency,
        after_retrieval=after_retrieval(comparison),
        latency_note=(
            f"{len(comparison.rankings)} requests of different users, {count:,} candidates each, the two "
            f"ways taking turns. Retrieval is an ANN search (usearch) plus a wait of {network_ms:g} ms in "
            f"place of the network hop; both ways use it. No user state was cached. Scores of the two ways "
            f"differ by at most {comparison.worst_difference:.0e} (relative)."
        ),
        timelines=median_timelines(comparison),
        hidden_ms=median_ranking(comparison).report.hidden_ms,
        candidates=count,
        facts={**engine_facts, **sizes(bundle, tables.items, dataset), **environment()},
    )
    print_latency(result, console)
    console.rule("[bold]5  one request in time")
    end_ms = max(bar.end_ms for bars in result.timelines.values() for bar in bars)
    for way, bars in result.timelines.items():
        console.print(as_rich(bars, title=way, until_ms=end_ms))
    console.print(f"hidden behind retrieval: {result.hidden_ms:.2f} ms of user-side work", highlight=False)

    result.write_json(out / "demo.json")
    write_report(result, out / "report.html")
    write_atomic(out / "timeline.svg", as_svg(result.timelines, standalone=True), begins=b"<")
    trace = chrome_trace([ranking.report for ranking in comparison.rankings[:20]], aligned=True)
    write_atomic(out / "trace.json", trace, begins=b"{")
    console.rule()
    console.print(
        f"report  {out / 'report.html'}\ntrace   {out / 'trace.json'}  (open it in ui.perfetto.dev)"
    )
    console.print(f"bundle  {out / 'bundle'}   (aif inspect {out / 'bundle'})")
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)
    return result


def retriever(
    two_tower: TrainResult, dataset: Dataset, drawn: DrawnRequests, count: int, network_ms: float
) -> Any:
    """Return a ``retrieve`` callable: ANN search over two-tower vectors, plus a wait for the network."""
    search = TwoTowerRetriever.build(two_tower.model, dataset, drawn.users, candidates=count)

    def retrieve(request: Request) -> Candidates:
        # The retrieval score is left out: no impression of the logs has scores of this model, so the
        # pre-ranker has not learnt from them. It has learnt from absent pair features.
        ids = search(request).ids
        time.sleep(network_ms / 1e3)
        return Candidates(ids)

    return retrieve


def serve(
    aif: TrainResult,
    bundle: Bundle,
    tables: Tables,
    dataset: Dataset,
    drawn: DrawnRequests,
    retrieve: Any,
    count: int,
    console: Console,
) -> tuple[Comparison, dict[str, str]]:
    """Serve the drawn requests both ways."""
    bucket = -(-count // 16) * 16
    k = drawn.requests[0].k
    catalogue = add_signatures(
        bundle.config, dataset.catalogue(aif.schema, content_width=bundle.spec.content_width)
    )
    sequential = SequentialServer(
        aif.model, dataset, aif.schema, catalogue, users=drawn.users, retrieve=retrieve, k=k, bucket=bucket
    )
    step = time.perf_counter()
    config = EngineConfig(k=k, shapes=Shapes(candidates=(bucket,)))
    with console.status("compiling the stages for their sizes"):
        engine = Engine(bundle, tables, users=drawn.users, retrieve=retrieve, config=config)
    started_s = time.perf_counter() - step
    with engine, progress_bar(console=console) as bar:
        task = bar.add_task("requests, both ways", total=len(drawn.requests) - WARMUP)
        comparison = compare(
            sequential, engine, drawn.requests, tick=lambda: bar.advance(task), warmup=WARMUP
        )
    return comparison, {"engine start (all sizes compiled)": f"{started_s:.1f} s"}


def quality_rows(
    dataset: Dataset, trained: Mapping[str, TrainResult], measured: Mapping[str, Metrics]
) -> list[dict[str, Any]]:
    """Return floors and models as rows of one table, and the best possible where it is known."""
    head = dataset.heads[0]
    rows: list[dict[str, Any]] = []

    def row(model: str, floor: bool, metrics: Any, **more: Any) -> None:
        rows.append(
            {
                "model": model, "floor": floor, "auc": metrics.auc, "gauc": metrics.gauc,
                "log_loss": metrics.log_loss, "hr_at_10": None, "parameters": "", **more,
            }
        )  # fmt: skip

    for name, metrics in floors(dataset, heads=(head,)).items():
        row(f"without learning: {name}", True, metrics)
    for name, metrics in measured.items():
        count = sum(value.size for value in weights_of(trained[name].model).values())
        row(name, False, metrics, hr_at_10=metrics.hit_rate.get(10), parameters=f"{count:,}")
    return rows


def quality_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows for the terminal."""
    table = Table("on held-out data", "AUC", "GAUC", "log loss", "HR@10", "parameters")
    for row in rows:
        figures = [
            "-" if row[n] is None else f"{row[n]:.4f}" for n in ("auc", "gauc", "log_loss", "hr_at_10")
        ]
        style = "dim" if row["floor"] else "bold cyan" if row["model"] == "aif" else ""
        table.add_row(row["model"], *figures, row["parameters"], style=style)
    return table


def quality_note(rows: list[dict[str, Any]], dataset: Dataset) -> str:
    """Return a sentence that compares the models with the floors and each other."""
    by_name = {row["model"]: row for row in rows}
    aif, cold = by_name["aif"], by_name["cold"]
    floor = {name: max(row[name] for row in rows if row["floor"]) for name in ("auc", "gauc")}
    behind = [name.upper() for name in floor if aif[name] <= floor[name]]
    standing = (
        f"aif is behind the best floor in {' and '.join(behind)}" if behind else "aif is above every floor"
    )
    gap = aif["gauc"] - cold["gauc"]
    best = dataset.notes.get("best_auc_neutral", {}).get("test")
    return f"{standing}; its GAUC is {abs(gap):.4f} {'above' if gap >= 0 else 'below'} cold's. One seed." + (
        f" The best AUC that any model could have on this made-up data is {best:.4f}." if best else ""
    )


def after_retrieval(comparison: Comparison) -> dict[str, list[float]]:
    """Return the time of each request after retrieval, in milliseconds."""
    return {
        "sequential": [
            total - next(bar.end_ms for bar in bars if bar.lane == "retrieval")
            for total, bars in zip(comparison.latency["sequential"], comparison.sequential_bars, strict=True)
        ],
        "aif": [
            total - ranking.report.retrieval_ms
            for total, ranking in zip(comparison.latency["aif"], comparison.rankings, strict=True)
        ],
    }


def median_ranking(comparison: Comparison) -> Any:
    """Return the ranking of the request whose AIF latency is the median."""
    return comparison.rankings[_median(comparison)]


def median_timelines(comparison: Comparison) -> dict[str, Any]:
    """Return that request's bars, both ways."""
    place = _median(comparison)
    return {
        "sequential": comparison.sequential_bars[place],
        "aif": bars_of(comparison.rankings[place].report.spans),
    }


def _median(comparison: Comparison) -> int:
    values = comparison.latency["aif"]
    return int(np.argsort(values)[len(values) // 2])


def print_latency(result: DemoResult, console: Console) -> None:
    """Print percentiles of both ways side by side."""
    table = Table("latency of a request, ms", "p50", "p90", "p99", "max")
    for name, measured in (("", result.latency), (", after retrieval", result.after_retrieval)):
        for way, values in measured.items():
            table.add_row(way + name, *(f"{value:.2f}" for value in percentiles(values).values()))
    console.print(table)
    console.print(result.latency_note, highlight=False)


def sizes(bundle: Bundle, index: Any, dataset: Dataset) -> dict[str, str]:
    """Return the sizes of the bundle and the item index."""
    rows = index.stats()
    return {
        "bundle": f"{sum(f.stat().st_size for f in bundle.path.rglob('*') if f.is_file()) / 1e6:.1f} MB",
        "item index": f"{len(index):,} rows; "
        + ", ".join(f"{k} {v}" for k, v in rows.items() if "bytes" in k),
    }


def environment() -> dict[str, str]:
    """Return the machine and the versions that the figures belong to."""
    report = kernels.implementations()
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "Python, jax, aif_jax": f"{platform.python_version()}, {jax.__version__}, {version('aif_jax')}",
        "kernels": ", ".join(f"{name}: {value}" for name, value in report.items()),
        "date": time.strftime("%Y-%m-%d"),
    }

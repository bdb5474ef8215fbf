"""The `aif` command line: arguments of each subcommand, whose work is in a module of its own."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aif_jax.errors import AifError
from aif_jax.extras import needs

app = typer.Typer(
    name="aif",
    help="Pre-ranking by asynchronous inference: train, export, index, rank; `aif demo` does all of it once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
index_app = typer.Typer(help="Build the tables in which the engine looks items up.", no_args_is_help=True)
app.add_typer(index_app, name="index")

BUILT_IN = (
    "synthetic, synthetic:small, movielens-1m:PATH, movielens-1m-new-users:PATH, movielens-100k:PATH or "
    "kuairand:PATH"
)
DATA_HELP = f"a config (a file in .toml), or {BUILT_IN}"

TRAINING = ("optax", "orbax.checkpoint", "grain")

Data = Annotated[str, typer.Option("--data", help=DATA_HELP)]
Out = Annotated[Path, typer.Option("--out", help="Output folder; created if absent.")]


@app.command(epilog="Example: aif demo --data synthetic:small --out demo")
def demo(
    data: Annotated[str, typer.Option("--data", help=BUILT_IN)] = "synthetic",
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder; runs/demo-NAME by default.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests to measure, each served both ways.", min=10)] = 200,
    network_ms: Annotated[
        float, typer.Option(help="Wait added to the ANN search in place of a network hop.", min=0)
    ] = 5.0,
    epochs: Annotated[
        int | None, typer.Option(help="Training epochs; the data set's preset by default.", min=1)
    ] = None,
) -> None:
    """Train, export, index and serve once, and show quality, latency and a request's timeline."""
    needs(*TRAINING, "usearch", "matplotlib", what="aif demo")
    from aif_jax.cli.demo import run_demo

    run_demo(data, out, requests=requests, network_ms=network_ms, epochs=epochs, console=Console())


@app.command(epilog="Example: aif init shop --example")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the project; created if absent.")],
    log: Annotated[
        Path | None, typer.Option(help="Parquet or CSV file of your log; its columns are guessed and said.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Write a made-up log to try it on.")] = False,
    user: Annotated[str | None, typer.Option(help="Column of user ids, where it is not guessed.")] = None,
    item: Annotated[str | None, typer.Option(help="Column of item ids.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    type: Annotated[str | None, typer.Option(help="Column of behaviour types.")] = None,
) -> None:
    """Write a project to edit: config, user source, retrieval, scripts that train and serve."""
    if log is not None and example:
        raise typer.BadParameter("give either --log or --example")
    needs("pyarrow", what="aif init")
    from aif_jax.cli.starting import run_init

    columns = {"user": user, "item": item, "time": time, "type": type}
    run_init(folder, log=log, example=example, columns=columns, console=Console())


@app.command(epilog="Example: aif train shop/config.toml --out shop/run")
def train(
    config: Annotated[
        str, typer.Argument(help=f"What to train on, and how: {DATA_HELP}.", show_default=False)
    ],
    out: Out,
    architecture: Annotated[
        str | None,
        typer.Option(help="Of one model: aif, exact, cold or two_tower, in place of the config's."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Training epochs of one model, in place of the config's.", min=1)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, order and dropout, in place of the config's.", min=0)
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for all models that are fitted, such as 1m or 2h.")
    ] = None,
    budget_ms: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds after retrieval that 4,096 candidates may take on this machine; the richest "
            "model that keeps them is trained."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Resume from the newest checkpoint in OUT.")] = False,
) -> None:
    """Train what a config describes, and save it to OUT with its metrics.

    A config with a model and without fit describes one model. Otherwise sizes and epochs are chosen from the
    data, and the result is reported beside baselines.
    """
    needs(*TRAINING, what="aif train")
    from aif_jax.cli.training import run_training
    from aif_jax.training import keep_freed_memory

    keep_freed_memory()
    run_training(
        config, out, architecture=architecture, epochs=epochs, seed=seed, budget=budget, stage_ms=budget_ms,
        resume=resume, console=Console(),
    )  # fmt: skip


@app.command(epilog="Example: aif evaluate shop/run --data shop/config.toml --out shop/evaluation")
def evaluate(
    path: Annotated[Path, typer.Argument(help="OUT of `aif train`, or of `aif export`: a bundle.")],
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; runs/evaluation-NAME by default.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another one, compared on the same impressions with paired errors.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    head: Annotated[
        list[str] | None, typer.Option(help="A head to evaluate, may come again; all by default.")
    ] = None,
    slice_by: Annotated[
        list[str] | None,
        typer.Option(
            "--slice", help="A categorical column of users, items or contexts to cut by, may come again."
        ),
    ] = None,
    frozen_histories: Annotated[
        bool, typer.Option("--frozen-histories", help="End histories where a user's rows of the part begin.")
    ] = False,
    lists: Annotated[int, typer.Option(help="Candidate lists for HR@K and NDCG@K; 0: none.", min=0)] = 1000,
    candidates: Annotated[int, typer.Option(help="Candidates in each list.", min=2)] = 200,
    rung: Annotated[
        int,
        typer.Option(
            help="Of a bundle: 1 without the long sequence, 2 user prior, 3 item prior.", min=0, max=3
        ),
    ] = 0,
    resamples: Annotated[int, typer.Option(help="Resamples of the bootstrap over users.", min=2)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of lists and bootstrap.")] = 0,
) -> None:
    """Evaluate a model or a bundle: metrics with errors, calibration, slices, floors, another model."""
    needs(*TRAINING, "matplotlib", what="aif evaluate")
    from aif_jax.cli.evaluating import run_evaluation

    run_evaluation(
        path,
        data,
        out,
        against=against,
        split=split,
        heads=head or (),
        slices=slice_by or (),
        frozen_histories=frozen_histories,
        lists=lists,
        candidates=candidates,
        rung=rung,
        resamples=resamples,
        seed=seed,
        console=Console(),
    )


@app.command(epilog="Example: aif export shop/run --out shop/bundle")
def export(
    model: Annotated[Path, typer.Argument(help="OUT of `aif train`.")],
    out: Out,
    precision: Annotated[
        str, typer.Option(help="Of item rows and user states: float32, bfloat16 or int8.")
    ] = "float32",
    score: Annotated[str | None, typer.Option(help="Score expression in place of the model's.")] = None,
) -> None:
    """Export a trained model as a bundle: what the engine serves, without any model code."""
    from aif_jax.cli.building import run_export

    run_export(model, out, precision=precision, score=score, console=Console())


@index_app.command(
    "build", epilog="Example: aif index build shop/bundle --data shop/config.toml --out shop/index"
)
def index_build(
    bundle: Annotated[Path, typer.Argument(help="OUT of `aif export`.")],
    out: Out,
    data: Annotated[str | None, typer.Option("--data", help=f"The catalogue of {DATA_HELP}.")] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            help="Or a Parquet file, or a directory of them: columns id, content, rankable, and raw features."
        ),
    ] = None,
    most_bad: Annotated[
        float, typer.Option(help="Share of a catalogue's items that may be set aside.", min=0, max=1)
    ] = 0.01,
) -> None:
    """Run the item module over a catalogue: item index and behaviour table, under OUT. Resumable."""
    if (data is None) == (catalogue is None):
        raise typer.BadParameter("give either --data or --catalogue")
    if catalogue is not None:
        needs("pyarrow", what="aif index build --catalogue")
        from aif_jax.cli.cataloguing import run_catalogue_build

        run_catalogue_build(bundle, catalogue, out, most_bad=most_bad, console=Console())
        return
    from aif_jax.cli.building import run_index_build

    run_index_build(bundle, str(data), out, console=Console())


@app.command(epilog="Example: aif rank shop/bundle shop/index --data shop/config.toml --user u7")
def rank(
    bundle: Annotated[Path, typer.Argument(help="OUT of `aif export`.")],
    index: Annotated[Path, typer.Argument(help="OUT of `aif index build`.")],
    data: Data,
    user: Annotated[str, typer.Option(help="Id of the user to rank for.")],
    candidates: Annotated[
        str, typer.Option(help="Item ids, comma separated; or @FILE with one a line; or all.")
    ] = "all",
    k: Annotated[int, typer.Option(help="Number of results.", min=1)] = 10,
) -> None:
    """Rank candidates for one user of a data set and print the report of the request."""
    from aif_jax.cli.ranking import run_rank

    run_rank(bundle, index, data, user=user, candidates=candidates, k=k, console=Console())


@app.command(epilog="Example: aif serve shop/bundle shop/index --data shop/config.toml")
def serve(
    bundle: Annotated[Path, typer.Argument(help="OUT of `aif export`.")],
    index: Annotated[Path, typer.Argument(help="OUT of `aif index build`.")],
    users: Annotated[
        str | None, typer.Option(help="The user source, MODULE:NAME: from a user id to a UserRecord.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help=f"Or the users of {DATA_HELP}.")] = None,
    retrieve: Annotated[
        str | None,
        typer.Option(help="Retrieval, MODULE:NAME; without it each request brings its candidates."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for any that is free.", min=0, max=65_535)
    ] = 8000,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of compiled programs; by default a private one, such as ~/.cache/aif_jax."),
    ] = None,
) -> None:
    """Serve a bundle over HTTP until the process is told to stop."""
    if (users is None) == (data is None):
        raise typer.BadParameter("give either --users or --data")
    needs("starlette", "uvicorn", what="aif serve")
    from aif_jax.cli.serving import run_serve

    run_serve(
        bundle, index, users=users, data=data, retrieve=retrieve, host=host, port=port, cache=cache,
        console=Console(),
    )  # fmt: skip


@app.command(epilog="Example: aif inspect shop/bundle")
def inspect(
    path: Annotated[
        Path, typer.Argument(help="A model, a bundle, an index or a table of one, or an archive.")
    ],
) -> None:
    """Describe what a path holds."""
    from aif_jax.cli.inspecting import run_inspect

    run_inspect(path, console=Console())


@app.command(epilog="Example: aif doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Check the environment of an engine on this machine; status 1 if there is a problem."""
    from aif_jax.cli.doctoring import run_doctor

    raise typer.Exit(run_doctor(as_json=as_json, console=Console()))


def main() -> None:
    """Run the command; errors of aif_jax and of the system print one message and exit with status 2."""
    try:
        app()
    except (AifError, OSError) as error:
        console = Console(stderr=True)
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)

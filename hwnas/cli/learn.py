"""Commands that learn from measurements: fit-predictor, predict, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hwnas.cli.shell import Json, Seed, Space, app, columns, finite, show
from hwnas.core.errors import InputError

_PREDICTION = ("prediction", "lower_90", "upper_90")
_SHOWN = ("mape", "medape", "rmse", "within_5", "within_10", "kendall")


@app.command("fit-predictor")
def fit_predictor_command(
    source: Annotated[Path, typer.Argument(help="run folder, or Parquet/CSV table with a column arch")],
    space: Space,
    metric: Annotated[str, typer.Option("--metric", help="column to predict, such as latency_ms")],
    out: Annotated[Path, typer.Option("--out", help="folder of the model")],
    table: Annotated[Path | None, typer.Option("--table", help="cost table of the primitives")] = None,
    model: Annotated[str, typer.Option("--model", help="auto, or a registered kind (see hwnas registry)")] = "auto",
    score: Annotated[str | None, typer.Option("--score", help="what auto optimises, such as mape")] = None,
    train: Annotated[int | None, typer.Option("--train", help="rows to draw and learn from")] = None,
    test: Annotated[int | None, typer.Option("--test", help="other rows to score on")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="error against rows, and what more would buy")] = False,
    transfer_from: Annotated[
        list[Path] | None, typer.Option("--transfer-from", help="networks measured on other devices")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Learn to predict the cost (or accuracy) of any network of a space, and say how well."""
    from hwnas.predict import fit_predictor

    report = fit_predictor(
        source,
        space,
        metric,
        table=table,
        model=model,
        score=score,
        train=train,
        test=test,
        curve=curve,
        transfer_from=transfer_from or (),
        seed=seed,
        out=out,
    ).to_json()
    show(report, _fitted(report, out), as_json)


def _fitted(report: dict[str, Any], out: Path) -> str:
    rows = {report["model"]: report["metrics"], **{f"{name} (baseline)": m for name, m in report["baselines"].items()}}
    lines = [[name, *("-" if m.get(key) is None else f"{m[key]:.4g}" for key in _SHOWN)] for name, m in rows.items()]
    scored = f"{report['n_test']} test rows" if report["n_test"] else "cross-validation"
    text = [f"{report['model']} fitted to {report['n_train']} networks, scored on {scored}", ""]
    text.append(columns(["model", *_SHOWN], lines))
    if better := _better_baselines(report):
        text.append(f"\n{' and '.join(better)} did better on these networks: measure more, or choose it by --model")
    left_out = {"without a value": report["left_out"], "copied from another's measurement": report["copies"]}
    if said := [f"{number} {why}" for why, number in left_out.items() if number]:
        text.append(f"\nrows left out: {', '.join(said)}")
    if report["noise"]:
        text.append(f"\nnoise floor of the measurements: MAPE {report['noise']['mape']:.2f} %")
    if expected := report.get("expected"):
        text.append(f"on the other devices: MAPE {expected['mape']:.2f} %, Spearman {expected['spearman']:.3f}")
    if curve := report.get("curve"):
        points = [[str(point["n"]), f"{point[report['score']]:.4g}"] for point in curve["points"]]
        text += ["", columns(["rows", report["score"]], points)]
        text += [curve["advice"]["text"]] if curve["advice"] else []
    return "\n".join([*text, f"saved to {out}"])


def _better_baselines(report: dict[str, Any]) -> list[str]:
    """The baselines that beat the model by the score that was asked for."""
    from hwnas.predict.metrics import HIGHER_IS_BETTER

    score, sign = report["score"], 1 if report["score"] in HIGHER_IS_BETTER else -1
    values = {name: metrics.get(score) for name, metrics in report["baselines"].items()}
    own = report["metrics"].get(score)
    return [name for name, value in values.items() if None not in (value, own) and sign * value > sign * own]


@app.command("audit")
def audit_command(
    run: Annotated[Path, typer.Argument(help="run folder with a cost table and measured networks")],
    space: Space,
    metric: Annotated[str, typer.Option("--metric", help="column to audit")] = "latency_ms",
    table: Annotated[Path | None, typer.Option("--table", help="another cost table than the run's")] = None,
    as_json: Json = False,
) -> None:
    """Compare the sum of the parts with the whole, and say which model the device needs."""
    from hwnas.predict import audit

    found = audit(run, space, metric, table)
    low, high = found.ratio[1:]
    lines = [
        f"{found.n} networks: the sum of parts is {found.ratio[0]:.3f} of the whole [{low:.3f}, {high:.3f}]",
        f"whole = {found.offset:.4g} {found.unit} + {found.slope:.4g} x sum; a block adds {found.per_block:.4g}",
        f"systematic share of the sum's squared error: {100 * found.systematic:.0f} %",
        columns(["model", "MAPE", ""], [[step.name, f"{step.mape:.2f} %", step.explanation] for step in found.steps]),
        f"recommended: {found.recommendation} ({found.why})",
    ]
    show(found.to_json(), "\n".join(lines), as_json)


@app.command("predict")
def predict_command(
    model: Annotated[Path, typer.Argument(help="folder of a predictor, or a cost table")],
    archs: Annotated[list[str] | None, typer.Argument(help="architectures in the space's notation")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Parquet or CSV with a column arch")] = None,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="ONNX model, to add up of a cost table's parts")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="file for the rows with their predictions")] = None,
    space: Annotated[str | None, typer.Option("--space", help="search space, where a cost table is given")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="column, where a cost table has several")] = None,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="answer outside the domain of validity")] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="with --onnx: leave out what the table does not know")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict networks: the value and its 90 % interval."""
    from hwnas.core.units import quantity_of
    from hwnas.predict import predict, predict_file

    if bool(archs) + (file is not None) + (onnx is not None) != 1:
        raise InputError("give architectures, --file or --onnx, one of the three")
    if allow_unknown and onnx is None:
        raise InputError("--allow-unknown is for --onnx")
    if out is not None and file is None:
        raise InputError("--out is for --file: it takes the rows of that file and their predictions")
    if onnx is not None:
        if space is not None or extrapolate:
            raise InputError("--space and --extrapolate are for architectures; an ONNX model is cut into its own parts")
        _predict_onnx(model, onnx, metric, allow_unknown, as_json)
        return
    if file is not None:
        predictions = predict_file(model, file, out, space=space, metric=metric, extrapolate=extrapolate)
    else:
        predictions = predict(model, archs or [], space=space, metric=metric, extrapolate=extrapolate)
    values = zip(predictions.value, predictions.lower, predictions.upper, strict=True)
    rows = [dict(zip(_PREDICTION, (finite(float(v)) for v in row), strict=True)) for row in values]
    lines = [["-" if value is None else f"{value:.6g}" for value in row.values()] for row in rows]
    unit, written = quantity_of(predictions.metric).unit, f"{len(rows)} predictions written to {out}"
    lines = [[*line, f"{predictions.metric} in {unit}"] for line in lines]
    report = {"metric": predictions.metric, "unit": unit, "predictions": rows}
    show(report, written if out else columns([*_PREDICTION, ""], lines), as_json)


def _predict_onnx(table: Path, onnx: Path, metric: str | None, allow_unknown: bool, as_json: bool) -> None:
    from hwnas.core.documents import PREDICTOR
    from hwnas.core.units import quantity_of
    from hwnas.predict import predict_onnx
    from hwnas.predict.inference import share_text

    if (table / PREDICTOR.file).is_file():
        raise InputError(f"{table} is a predictor of architectures; --onnx needs a cost table or a run folder")
    found = predict_onnx(table, onnx, metric=metric, allow_unknown=allow_unknown)
    report = found.to_json()
    unit = quantity_of(found.metric).unit
    lines = [f"{found.metric} {found.value:.6g} {unit}: the sum of {found.primitives} primitives"]
    if found.expected is not None:
        lines.append(
            f"expect about {found.expected:.6g} {unit}: the sum of parts is {found.value / found.expected:.3f} of the "
            f"whole (median of the run's {found.networks} networks)"
        )
    if found.unknown:
        lines.append(f"left out, {share_text(found.unknown_macs)} of the multiply-accumulates:")
        rows = [[each.operation, str(each.count), share_text(each.macs_share)] for each in found.unknown]
        lines.append(columns(["operation", "count", "share"], rows))
    row = dict(zip(_PREDICTION, (found.value, None, None), strict=True))
    show({"predictions": [row], **report}, "\n".join(lines), as_json)

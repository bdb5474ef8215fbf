"""`aif doctor`: for people, for machines, and its exit status."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from aif_jax import machine
from aif_jax.cli import app as cli
from aif_jax.doctor import Check, worst
from aif_jax.extras import EXTRAS


def doctor(**environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv = ['aif', 'doctor', '--json']; from aif_jax.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_doctor_command_prints_findings_and_advice() -> None:
    result = CliRunner().invoke(cli.app, ["doctor"], env={"COLUMNS": "200", "AIF_JAX_COMPILATION_CACHE": ""})
    assert isinstance(result.exception, (SystemExit, type(None))), result.output
    assert (result.exit_code == 1) == ("solve the problems" in result.output)
    for words in (
        "kernels agree",
        "XLA's pool",
        "huge pages",
        "Set AIF_JAX_COMPILATION_CACHE",
        "note",
        "train (",
    ):
        assert words in result.output


def test_doctor_command_json_gives_status_and_checks() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--json"], env={"COLUMNS": "20"})
    report = json.loads(result.output)
    assert report["status"] == worst([Check(**check) for check in report["checks"]])
    assert result.exit_code == int(report["status"] == "problem")
    threads = next(check for check in report["checks"] if check["name"] == "threads")["facts"]
    assert threads["cores"] == machine.cores()
    assert threads["xla_pool_counted"]
    listed = next(check for check in report["checks"] if check["name"] == "extras")["facts"]
    assert listed.keys() == EXTRAS.keys()
    assert listed["train"]["versions"]["grain"]


def test_doctor_command_unknown_kernels_or_pool_beyond_cores_is_a_problem_not_a_crash() -> None:
    many = 4 * machine.cores()
    ended = doctor(NPROC=str(many), PJRT_NPROC=str(many), AIF_JAX_KERNELS="sse9")
    report = json.loads(ended.stdout)
    assert (ended.returncode, report["status"]) == (1, "problem"), ended.stderr
    checks = {check["name"]: check for check in report["checks"]}
    threads, kernels = checks["threads"], checks["kernels"]
    assert (threads["status"], threads["facts"]["xla_pool"]) == ("problem", many)
    assert "NPROC=" in threads["advice"]
    assert kernels["status"] == "problem"
    assert "sse9" in kernels["found"]
    assert "AIF_JAX_KERNELS" in kernels["advice"]


def test_doctor_command_unknown_backend_is_a_problem_not_a_crash() -> None:
    ended = doctor(JAX_PLATFORMS="abacus")
    assert ended.returncode == 1, ended.stderr
    backend = next(check for check in json.loads(ended.stdout)["checks"] if check["name"] == "backend")
    assert backend["status"] == "problem"
    assert "abacus" in backend["found"]

"""The script of a Slurm job: read, checked by bash, and carried out on two nodes of a Slurm of shell scripts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import typer.testing

from posttrain.cli.app import app
from posttrain.errors import ConfigError
from posttrain.launching.slurm import SlurmJob, options_of, sbatch_script, submit
from tests.unit.launching.test_local import LONGEST, ROOT, left_over, until_step

RECIPE = "schema: 1\nmodel: embedded\nstages:\n- {method: dpo, data: package://preferences.jsonl}\n"

CLUSTER = {
    "sbatch": '#!/bin/bash\ngrep -q "partition=none" "$1" && { echo "invalid partition" >&2; exit 1; }\n'
    'echo "Submitted batch job 4242"\n',
    # Two machines: the same command twice, and the signals that srun passes on.
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks="$tasks $!"; done
trap 'kill -TERM $tasks 2> /dev/null' TERM
code=0
for task in $tasks; do
    while kill -0 $task 2> /dev/null; do this=0; wait $task || this=$?; done
    [ $this -gt $code ] && code=$this
done
exit $code
""",
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then echo localhost; sleep 0.2; echo localhost; else echo "$@" >> "$REQUEUED"; fi
""",
}


def job(folder: Path, **more: object) -> SlurmJob:
    given: dict[str, object] = {"nodes": 2, "processes_per_node": 1, "folder": folder, "log": "toy-%j.log"}
    return SlurmJob(("run", "--", "mine.yaml", "dpo.beta=0.2"), "mine", **{**given, **more})  # type: ignore[arg-type]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in CLUSTER.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_script_says_what_was_asked_for(tmp_path: Path) -> None:
    script = sbatch_script(job(tmp_path, nodes=4, processes_per_node=8, restarts=3, options={"partition": "gpu"}))
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1] == "# posttrain run -- mine.yaml dpo.beta=0.2: 32 processes on 4 machines"
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@300",
        "#SBATCH --partition=gpu",
    ):
        assert line in lines
    assert "--nnodes 4 --nproc-per-node 8 --max-restarts 3" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    # Slurm reads its options up to the first command.
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < lines.index("set -euo pipefail")


def test_odd_names_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my work's"
    script = sbatch_script(SlurmJob(("run", "--", "a b.yaml", "sft.data='$(rm)'"), "a b", 1, 1, folder, "x.log"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert f"cd {shlex.quote(str(folder))}\n" in script and shlex.quote(str(folder)) != str(folder)
    assert "'a b.yaml'" in script and "#SBATCH --job-name='posttrain-a b'" in script


def test_options_of_sbatch() -> None:
    assert options_of(["partition=gpu", "--time=1:00:00", "exclusive="]) == {
        "partition": "gpu",
        "time": "1:00:00",
        "exclusive": "",
    }
    script = sbatch_script(SlurmJob(("run",), "x", 1, 1, Path("/"), "x.log", options={"signal": "B:TERM@60"}))
    assert script.count("--signal=") == 1 and "B:TERM@60" in script


@pytest.mark.parametrize("setting", ["partition", "Partition=x", "a b=c", "=x", "time=1\n#SBATCH --x"])
def test_what_is_no_option_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="an option of sbatch"):
        options_of([setting])


def test_what_follows_from_the_command_is_not_set_twice() -> None:
    with pytest.raises(ConfigError, match="`nodes` is not to be set twice"):
        options_of(["nodes=3"])


def carry_out(script: str, folder: Path, how: str) -> subprocess.Popen[str]:
    """With the toy in the place of the recipe."""
    text, count = re.subn(r"-m posttrain .* &$", f"-m tests.toy_job {how} {folder} &", script, flags=re.MULTILINE)
    assert count == 1
    environment = {
        **os.environ,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "REQUEUED": str(folder / "requeued"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    path = folder / "job.sbatch"
    path.write_text(text)
    return subprocess.Popen(
        ["bash", str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.long
def test_two_nodes_find_each_other(tmp_path: Path, cluster: Path) -> None:
    process = carry_out(sbatch_script(job(ROOT)), tmp_path, "well")
    said, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, said
    assert "well: start 1" in said and not (tmp_path / "requeued").exists()
    assert (tmp_path / "logs" / "rank-1.log").exists()
    assert left_over(tmp_path) == []


@pytest.mark.long
def test_a_preempted_job_saves_and_is_queued_again(tmp_path: Path, cluster: Path) -> None:
    process = carry_out(sbatch_script(job(ROOT)), tmp_path, "well")
    until_step(tmp_path)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=LONGEST)
    assert process.returncode != 0
    assert re.search(r"^stopped after step \d+ of 40$", said, re.MULTILINE), said
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert left_over(tmp_path) == []


@pytest.mark.long
def test_a_job_that_fails_is_not_queued_again(tmp_path: Path, cluster: Path) -> None:
    process = carry_out(sbatch_script(job(ROOT)), tmp_path, "raise")
    said, _ = process.communicate(timeout=LONGEST)
    assert process.returncode != 0 and "ValueError: no number in the answer" in said
    assert not (tmp_path / "requeued").exists()
    assert left_over(tmp_path) == []


def invoke(*arguments: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, ["launch", "slurm", *arguments])


def test_the_verb_prints_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    result = invoke("mine.yaml", "dpo.beta=0.2", "--nodes", "4", "--processes-per-node", "8", "--set", "partition=gpu")
    assert result.exit_code == 0
    assert "#SBATCH --partition=gpu" in result.stdout and "#SBATCH --output=mine-%j.log" in result.stdout
    assert "-m posttrain run -- mine.yaml dpo.beta=0.2 &" in result.stdout
    assert subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=False).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def test_the_verb_submits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    result = invoke("mine.yaml", "--nodes", "2", "--submit", "--out", "there")
    assert (result.exit_code, result.stdout) == (0, "Submitted batch job 4242\n")
    script = (tmp_path / "there" / "mine" / "logs" / "job.sbatch").read_text()
    assert f"#SBATCH --output={tmp_path}/there/mine/logs/slurm-%j.log" in script
    assert "-m posttrain run --out there -- mine.yaml &" in script


def test_what_sbatch_refuses_is_shown(tmp_path: Path, cluster: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        submit(sbatch_script(job(tmp_path, options={"partition": "none"})), tmp_path / "job.sbatch")
    assert refused.value.found == "invalid partition"


def test_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(shutil.which("true") or "/bin/true").parent))
    with pytest.raises(ConfigError, match="there is no `sbatch` here"):
        submit("#!/bin/bash\n", tmp_path / "job.sbatch")

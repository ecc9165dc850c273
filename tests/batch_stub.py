"""Stands for the commands of a batch system: ``python batch_stub.py KIND COMMAND ARGUMENT ...``.

It takes exactly the arguments that such a command is to be given, and runs the script that it
gets as the batch system would: elsewhere, without our variables, each worker of an array by itself.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

JOB = 7
_ARRAY = {"slurm": "--array=1-", "sge": "-t 1-", "pbs": "-J 1-", "torque": "-t 1-"}
_PREFIX = {"slurm": "#SBATCH ", "sge": "#$ ", "pbs": "#PBS ", "torque": "#PBS "}


def install(folder: Path, kind: str) -> None:
    """Make the commands of a batch system in `folder`."""
    commands = {
        "slurm": ("sbatch", "squeue", "scancel"),
        "condor": ("condor_submit", "condor_q", "condor_rm"),
    }.get(kind, ("qsub", "qstat", "qdel"))
    (folder / "jobs").mkdir()
    for command in commands:
        text = f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {kind} {command} "$@"\n'
        (folder / command).write_text(text)
        (folder / command).chmod(0o755)


def main(kind: str, command: str, arguments: list[str]) -> str:
    jobs = Path(shutil.which(command) or "").parent / "jobs"
    with open(jobs / "calls", "a") as stream:
        print(command, *arguments, file=stream)
    if (jobs / "refuse").exists():
        sys.exit(f"{command}: error: no account given")
    actions = {
        "sbatch": (["--parsable", "worker.sh"], submit_array),
        "condor_submit": (["-terse", "worker.submit"], submit_condor),
        "qsub": ([*(["-terse"] if kind == "sge" else []), "worker.sh"], submit_array),
        "squeue": (["--noheader", "--array", f"--jobs={JOB}", "--format=%A"], listed),
        "condor_q": ([str(JOB), "-format", "%d\\n", "ProcId"], listed),
        "scancel": ([str(JOB)], cancel),
        "condor_rm": ([str(JOB)], cancel),
    }
    name = job_name(kind, jobs)
    if kind == "sge":
        actions |= {
            "qstat": (["-g", "d", "-u", getpass.getuser()], listed),
            "qdel": ([name], cancel),
        }
    else:
        actions |= {"qstat": (["-t", name], listed), "qdel": ([name], cancel)}
    expected, action = actions[command]
    if arguments != expected:
        sys.exit(f"{command}: error: {arguments} is not {expected}")
    return action(kind, jobs)


def job_name(kind: str, jobs: Path) -> str:
    if kind in ("slurm", "sge", "condor"):
        return str(JOB)
    array = (jobs / "array").exists()
    return f"{JOB}[].server" if array else f"{JOB}.server"


def submit_array(kind: str, jobs: Path) -> str:
    text = Path("worker.sh").read_text()
    directives = re.findall(rf"^{re.escape(_PREFIX[kind])}(.*)$", text, re.MULTILINE)
    (jobs / "directives").write_text("\n".join(directives))
    arrays = [one.removeprefix(_ARRAY[kind]) for one in directives if one.startswith(_ARRAY[kind])]
    count = int(arrays[0]) if arrays else 1
    if arrays:
        (jobs / "array").touch()
    if kind == "pbs" and arrays == ["1"]:
        sys.exit("qsub: illegal -J value")
    # it is copied when it is submitted
    script = shutil.copy("worker.sh", jobs / "copy.sh")
    for index in range(1, count + 1):
        place = f"[{index}]" if arrays else ""
        environ = {
            "slurm": {"SLURM_JOB_ID": f"{JOB + index}"},
            "sge": {"JOB_ID": f"{JOB}", "SGE_TASK_ID": f"{index}"},
        }.get(kind, {"PBS_JOBID": f"{JOB}{place}.server"})
        run(jobs, index, ["sh", str(script)], Path("/"), environ)
    return {"slurm": f"{JOB}", "sge": f"{JOB}.1-{count}:1"}.get(kind, job_name(kind, jobs))


def submit_condor(kind: str, jobs: Path) -> str:
    lines = Path("worker.submit").read_text().splitlines()
    told = dict(line.split(" = ", 1) for line in lines if " = " in line)
    assert lines[-1].startswith("queue ")
    count = int(lines[-1].split()[1])
    for index in range(count):
        place = jobs / f"scratch_{index}"
        place.mkdir()
        shutil.copy(told["executable"], place / "condor_exec.exe")
        for path in told["transfer_input_files"].split(","):
            shutil.copy(path.strip(), place)
            # what is transferred need not stay executable
            (place / Path(path.strip()).name).chmod(0o600)
        run(jobs, index, ["./condor_exec.exe"], place, {})
    return f"{JOB}.0 - {JOB}.{count - 1}"


def run(jobs: Path, index: int, command: list[str], folder: Path, environ: dict[str, str]) -> None:
    environ = {"PATH": os.defpath, "HEPSCALE_SCRATCH_DIR": os.environ["HEPSCALE_SCRATCH_DIR"],
               "TMPDIR": os.environ["HEPSCALE_SCRATCH_DIR"], **environ}  # fmt: skip
    with open(jobs / f"{index}.out", "wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    (jobs / f"{index}.pid").write_text(str(process.pid))


def running(jobs: Path) -> dict[int, int]:
    found = {}
    for path in jobs.glob("*.pid"):
        with contextlib.suppress(OSError):
            pid = int(path.read_text())
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(path.stem)] = pid
    return found


def listed(kind: str, jobs: Path) -> str:
    left = sorted(running(jobs))
    user = getpass.getuser()
    if kind == "slurm":
        if not left:
            sys.exit("slurm_load_jobs error: Invalid job id specified")
        return "\n".join(str(JOB + index) for index in left)
    if kind == "condor":
        return "\n".join(map(str, left))
    if kind == "sge":
        head = (
            "job-ID  prior   name       user  state submit/start at queue slots ja-task-ID\n-----"
        )
        rows = [f"{number:7} 0.55 hepscale-w {user} r 11/22/2026 10:00:00 all.q 1 {index}"
                for number in (JOB, JOB * 10) for index in left]  # fmt: skip
        return "\n".join([head, *rows])
    if not left:
        sys.exit(f"qstat: Unknown Job Id {job_name(kind, jobs)}")
    array = (jobs / "array").exists()
    rows = [f"{JOB}[].server hepscale-worker {user} 0 Q workq"] if array else []
    for index in range(1, len(list(jobs.glob("*.pid"))) + 1):
        place = f"[{index}]" if array else ""
        state = "R" if index in left else ("X" if kind == "pbs" else "C")
        rows.append(f"{JOB}{place}.server hepscale-worker {user} 00:00:00 {state} workq")
    return "\n".join(["Job id  Name  User  Time Use S Queue", "------ ---- ---- ---- - ---", *rows])


def cancel(kind: str, jobs: Path) -> str:
    for pid in running(jobs).values():
        os.kill(pid, signal.SIGTERM)
    return "done"


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], sys.argv[3:]))

"""Many runs: one process after the other on this machine, or each by a command template for a queue.

Every run has a folder with `job.json`, which says what it is, with which settings, and how far it came. So whoever
starts the same runs again skips what is done and goes on with what was stopped. `python -m mtx.launch FOLDER` runs one;
it is what a queue is given.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gin
from gin.config_parser import BindingStatement

from mtx import ginfile
from mtx.atomic import write
from mtx.errors import UserError
from mtx.gintext import Binding, parse

JOB, CONFIG, LOG = "job.json", "run.gin", "log.txt"
WAITING, QUEUED, RUNNING, DONE, FAILED, STOPPED = "waiting", "queued", "running", "done", "failed", "stopped"
STOPS = (130, 143)  # exit codes of a run that was told to stop and can go on: Ctrl-C, SIGTERM
PLACES = ("train.run_dir", "train.cache_dir")  # settings that change nothing of a run but where it lies
COMMAND = "{command}"
COMPILED = ".compiled"
PATIENCE = 60.0  # seconds that a run has to save what it has when it is told to stop


@dataclass(frozen=True)
class Job:
  """A run, as job.json has it.

  Attributes:
    name: for people. folder: where job.json, log.txt and what the run writes lie.
    command: what is run; empty where a function of this process is.
    settings: that decide the run's results; two runs with equal ones are the same.
    state: of those above. code: that the process ended with. seconds: over all attempts.
    cwd, host, pid: where the command runs, or did.
  config: what run.gin holds, not job.json: all bindings as they were when the job was made, so that a run which starts
    late does not read files that were changed since. Empty: run.gin is left as it is.
  """

  name: str
  folder: str
  command: list[str]
  settings: dict[str, str]
  state: str = WAITING
  code: int | None = None
  seconds: float = 0.0
  cwd: str = field(default_factory=os.getcwd)
  host: str = ""
  pid: int = 0
  config: str = ""

  @property
  def log(self) -> Path:
    return Path(self.folder) / LOG

  def said(self, lines: int = 3) -> str:
    """The end of what it printed, which after a failure says why."""
    text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
    return "\n  ".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def read(folder: Path) -> Job | None:
  """The job of a folder, None where there is none.

  Raises:
    UserError: job.json is damaged.
  """
  path = folder / JOB
  try:
    return replace(Job(**json.loads(path.read_text(encoding="utf-8"))), folder=str(folder))
  except FileNotFoundError:
    return None
  except (ValueError, TypeError, OSError) as error:
    raise UserError(f"{path} is no record of a run: {error}", hint="move it away to run it anew") from error


def train_job(name: str, folder: Path, files: Sequence[str], bindings: Sequence[str]) -> Job:
  """`mtx train` with the interpreter of this process. `train.run_dir` is the folder.

  Raises:
    UserError: a mistake in files or bindings.
  """
  settings = bound_settings(files, [*bindings, f"train.run_dir='{folder}'"], ["train"])
  command = [sys.executable, "-m", "mtx.run", "train", f"--gin_file={folder / CONFIG}"]
  return Job(name, str(folder), command, settings, config=gin.config_str(max_line_length=110))


def bound_settings(files: Sequence[str], bindings: Sequence[str], called: Sequence[str]) -> dict[str, str]:
  """Everything that gin binds, as text, but for what a recipe says of runs and for places. Binds it in this process.

  Raises:
    UserError: a mistake in files or bindings.
  """
  ginfile.load(files, bindings, called=called)
  found = {}
  for statement in parse(gin.config_str(max_line_length=10_000)):
    if isinstance(statement, BindingStatement):
      name = Binding(statement.scope, statement.selector, statement.arg_name or "", None, "").name
      if name not in PLACES and not re.search(r"(^|\.)recipe\.(?!run$)", name):
        found[name] = repr(statement.value)
  return found


def prepare(job: Job, kept: Callable[[Path], Any] | None = None) -> Job:
  """The job as it stands, or written for the first time.

  Args:
    kept: a run with other settings is moved to `old/`, and this is told where; None: it is refused.

  Raises:
    UserError: the folder has a run with other settings, or one that another process is running.
  """
  there = read(Path(job.folder))
  changed = differences(there.settings, job.settings) if there else []
  if changed and kept:
    kept(set_aside(Path(job.folder)))
  if there is None or (changed and kept):
    save(job)
    return job
  if changed:
    raise UserError(
      f"{job.folder} was run with other settings: {changed[0]}"
      + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
      + ".",
      hint="--anew keeps what is there under old/ and runs again; or choose another --out",
    )
  if there.state == RUNNING and there.host == socket.gethostname() and not _alive(there.pid):
    there = replace(there, state=STOPPED)
  return replace(there, command=job.command, name=job.name, config=job.config)


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """What differs between two runs' settings, in words."""
  said = lambda values, name: values.get(name, "not bound")
  names = dict.fromkeys((*before, *now))
  return [f"{n} was {said(before, n)} and is {said(now, n)}" for n in names if before.get(n) != now.get(n)]


def set_aside(folder: Path) -> Path:
  """Moves a run's folder to `old/` beside it, under the first free name."""
  old = folder.parent / "old"
  old.mkdir(exist_ok=True)
  number = 1
  while (there := old / f"{folder.name}.{number}").exists():
    number += 1
  os.replace(folder, there)
  return there


def save(job: Job) -> None:
  """Writes job.json, and run.gin before it, each in one rename."""
  folder = Path(job.folder)
  folder.mkdir(parents=True, exist_ok=True)
  if job.config:
    write(folder / CONFIG, job.config)
  record = {name: value for name, value in asdict(job).items() if name != "config"}
  write(folder / JOB, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def execute(job: Job, work: Callable[[], Any] | None = None) -> Job:
  """Runs a job in this process's care: `work`, or its command with all it prints going to log.txt.

  SIGTERM and Ctrl-C reach the command, which saves and ends; the job is then `stopped`.

  Raises:
    Whatever `work` does, and KeyboardInterrupt; the job is marked first.
  """
  began = time.monotonic()
  job = replace(job, state=RUNNING, host=socket.gethostname(), pid=os.getpid(), code=None)
  save(job)
  ended = FAILED
  try:
    if work is not None:
      work()
      code = 0
    else:
      code = _call(job)
    ended = DONE if code == 0 else STOPPED if code in STOPS else FAILED
    job = replace(job, code=code)
  except KeyboardInterrupt:
    ended = STOPPED
    raise
  finally:
    job = replace(job, state=ended, seconds=job.seconds + time.monotonic() - began, pid=0)
    save(job)
  return job


def _call(job: Job) -> int:
  """The exit code of a job's command; 143 where this process was told to end."""
  asked = []
  main = threading.current_thread() is threading.main_thread()
  with job.log.open("ab") as log:
    process = subprocess.Popen(
      job.command, cwd=job.cwd, env=_environment(job), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )
    # Its own number: it goes on where this process is killed, and must not be run twice at once.
    save(replace(job, pid=process.pid))

    def forward(number, frame):
      asked.append(number)
      process.terminate()

    before = signal.signal(signal.SIGTERM, forward) if main else None
    try:
      code = process.wait()
    except KeyboardInterrupt:
      # A terminal sends Ctrl-C to both processes; another sender to this one alone.
      process.terminate()
      _end(process)
      raise
    finally:
      if main:
        signal.signal(signal.SIGTERM, before)
  return 143 if asked and code else code


def _environment(job: Job) -> dict[str, str]:
  """This process's, in which runs of neighbouring folders share what XLA compiles: arms and seeds differ in little."""
  compiled = Path(job.cwd) / Path(job.folder).parent / COMPILED
  shared = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
  return os.environ.copy() if "JAX_COMPILATION_CACHE_DIR" in os.environ else {**shared, **os.environ}


def _end(process: subprocess.Popen) -> None:
  try:
    process.wait(PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


def one_by_one(
  jobs: Iterable[tuple[Job, Callable[[], Any] | None]], tell: Callable[[Job], Any]
) -> tuple[list[Job], bool]:
  """Runs what is not done yet. A run that fails is told and does not stop the others.

  Args:
    jobs: with the function that does a job's work in this process; None: its command does.
    tell: called with every job when it begins and when it has ended.

  Returns:
    The jobs as they ended, and whether all were come to: a run that was told to stop ends the row.
  """
  ended = []
  for job, work in jobs:
    if job.state == RUNNING:
      raise UserError(f"{job.folder} is being run by process {job.pid} on {job.host}.", hint="wait for it, or end it")
    if job.state != DONE:
      tell(replace(job, state=RUNNING))
      try:
        job = execute(job, work)
      except Exception as error:  # of `work`: whatever it is, the others are run
        why = f"mtx: {error.text}" if isinstance(error, UserError) else traceback.format_exc()
        job.log.write_text(why + "\n", encoding="utf-8")
        job = read(Path(job.folder)) or job
      tell(job)
    ended.append(job)
    if job.state == STOPPED:
      return ended, False
  return ended, True


def by_template(
  jobs: Sequence[Job], template: str, tell: Callable[[Job], Any], *, resubmit: bool = False, pause: float = 5.0
) -> list[Job]:
  """Hands every job that is not done to a shell command, then waits until all have ended.

  Args:
    template: `sbatch --wrap "{command}"`: {command} stands for the command of one run, {name} and {folder} for its
      name and folder. It may wait for the run or only queue it.
    tell: called with every job when it is queued and when it has ended.
    resubmit: also what is said to be queued or running, where a queue has lost it.
    pause: seconds between looks.

  Raises:
    UserError: a template without {command}.
  """
  if COMMAND not in template:
    raise UserError(
      f"--launch {template!r} has no {COMMAND}.", hint=f"for example --launch \"sbatch --wrap '{COMMAND}'\""
    )
  for job in jobs:
    if job.state == DONE or (job.state in (QUEUED, RUNNING) and not resubmit):
      continue
    job = replace(job, state=QUEUED, code=None)
    save(job)
    tell(job)
    folder = Path(job.folder).resolve()
    words = {"command": shlex.join([sys.executable, "-m", "mtx.launch", str(folder)]), "name": shlex.quote(job.name),
             "folder": shlex.quote(str(folder))}  # fmt: skip
    shell = re.sub(r"\{(command|name|folder)\}", lambda found: words[found[1]], template)
    with job.log.open("ab") as log:
      code = subprocess.run(
        shell, shell=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
      ).returncode
    now = read(folder) or job
    if code and now.state == QUEUED:  # it could not be handed over
      save(replace(now, folder=job.folder, state=FAILED, code=code))
  left = {job.folder: job for job in jobs if job.state != DONE}
  ended = {job.folder: job for job in jobs if job.state == DONE}
  while left:
    for where in list(left):
      now = read(Path(where)) or left[where]
      if now.state in (DONE, FAILED, STOPPED):
        ended[where] = now
        del left[where]
        tell(now)
    if left:
      time.sleep(pause)
  return [ended[job.folder] for job in jobs]


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return pid > 0


def main(words: Sequence[str] | None = None) -> int:
  """Runs the job of the folder that is named; its exit code."""
  words = sys.argv[1:] if words is None else words
  job = read(Path(words[0])) if len(words) == 1 else None
  if job is None or not job.command:
    print(f"usage: python -m mtx.launch FOLDER, with {JOB} in it", file=sys.stderr)
    return 2
  return execute(job).code or 0


if __name__ == "__main__":
  sys.exit(main())

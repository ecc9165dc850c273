"""Finish what ``stage0.sh`` has begun: verify, unpack, relocate, publish; then start the worker.

``python3 -I -S unpack.py ENVIRONMENT LAYERS STORE WORKER NEW LOCK [ARG ...]``: run by the Python
that ``stage0.sh`` has unpacked into the folder NEW, with the lock that it holds ("" if none). Its
own files may be renamed or removed while it runs, so what it needs is imported first; that this
works is tried by running it without arguments. The exit codes are those of ``stage0.sh``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Environment", "Layer", "UnpackError", "main", "read_environment"]

FORMAT = "1"
READY = ".hepscale-ready"
_DAMAGED, _NO_ROOM, _NOT_WRITTEN = 81, 82, 83
_NO_TOOL, _NO_PYTHON, _NOT_UNDERSTOOD, _TOO_LONG = 86, 87, 88, 89
_BLOCK_BYTES, _READ_AHEAD = 1 << 20, 4
_OTHER_VERSION = (
    "it was packed by another version of HepScale, or changed on its way",
    "submit the tasks again, with one version of HepScale on both sides",
)
# the likely cause, and what to do
_ADVICE = {
    _DAMAGED: (
        "it was cut short or changed on its way to this worker",
        "rm '{place}', then submit the tasks again",
    ),
    _NO_ROOM: (
        "the disk or the quota is full",
        "df -h '{place}', then give the worker another folder",
    ),
    _NOT_WRITTEN: (
        "it is read-only, belongs to someone else, or is being removed",
        "ls -ld '{place}', then give the worker another folder",
    ),
    _NO_TOOL: (
        "it is broken, or another program of this name comes first on PATH",
        "install tar, or set PATH for the worker",
    ),
    _NO_PYTHON: _OTHER_VERSION,
    _NOT_UNDERSTOOD: _OTHER_VERSION,
    _TOO_LONG: (
        "the worker's folder lies deep, and a conda package holds the path where it is installed",
        "give the worker a folder with a shorter path",
    ),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("No space left", "quota exceeded", "Wrote only")
_REFUSED_WORDS = ("Read-only file system", "Permission denied", "Operation not permitted")


class Layer(NamedTuple):
    """One archive of an environment."""

    kind: str
    sha256: str
    path: str


class Environment(NamedTuple):
    """What the file ENVIRONMENT says and is needed here."""

    digest: str
    layers: tuple[Layer, ...]
    # None: its own conda-unpack knows
    relocated: int | None
    text: str


class UnpackError(Exception):
    """The environment cannot be unpacked; `text` says why, and what to do."""

    def __init__(self, code: int, fact: str, item: str, place: str = "") -> None:
        super().__init__(fact)
        self.code = code
        cause, fix = _ADVICE[code]
        self.text = f"HepScale: {fact}\n  {item}\n"
        self.text += f"Likely cause: {cause}\nNext: {fix.format(place=place)}\n"


def read_environment(path: str, layers: str) -> Environment:
    """Return what the file `path` says; layers are looked for in the folder `layers`.

    Raises
    ------
    UnpackError
        If it cannot be understood.
    """
    facts: dict[str, str] = {}
    found = []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "layer":
                kind, sha256, _, name = value.split(" ", 3)
                found.append(Layer(kind, sha256, os.path.join(layers, name)))
            facts[key] = value
        if facts["hepscale-environment"] == FORMAT:
            count = None if facts["relocate"] == "conda-unpack" else int(facts["relocate"])
            return Environment(facts["digest"], tuple(found), count, text)
        wrong = f"its format is {facts['hepscale-environment']}"
    except (OSError, ValueError, KeyError) as error:
        wrong = f"{type(error).__name__}: {error}"
    raise UnpackError(_NOT_UNDERSTOOD, f"{path} does not describe an environment.", wrong)


def _sibling(name: str) -> Any:
    """Return the module beside this file: it runs alone, so there is no package."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"hepscale_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _relocate(prefix: str, final: str, count: int | None) -> None:
    module = _sibling("relocate")
    try:
        module.relocate(prefix, final, count)
    except module.PrefixTooLong as error:
        fact = "The path of the folder for unpacked environments is too long."
        raise UnpackError(_TOO_LONG, fact, str(error)) from None
    except ValueError as error:
        fact = "The layers do not belong to this environment."
        raise UnpackError(_NOT_UNDERSTOOD, fact, str(error)) from None


# -- layers ----------------------------------------------------------------------------------------


def _blocks(path: str) -> Iterator[bytes]:
    # only reading is inside "try": an error of a writer must not be taken for the layer's
    try:
        stream = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    with stream:
        while True:
            try:
                block = stream.read(_BLOCK_BYTES)
            except OSError as error:
                raise _damaged(path, error.strerror or str(error)) from None
            if not block:
                return
            yield block


def _hashed(path: str, digest: hashlib._Hash) -> Iterator[bytes]:
    """Yield the blocks of a file, which a thread of its own reads and hashes meanwhile."""
    waiting: queue.Queue[bytes | UnpackError] = queue.Queue(_READ_AHEAD)

    def read() -> None:
        try:
            for block in _blocks(path):
                waiting.put(block)
                digest.update(block)
            waiting.put(b"")
        except UnpackError as error:
            waiting.put(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while block := waiting.get():
        if isinstance(block, UnpackError):
            raise block
        yield block
    reader.join()


def _verify(layer: Layer, digest: str) -> None:
    if digest != layer.sha256:
        expected = f"its digest is {digest[:12]}..., not {layer.sha256[:12]}..."
        raise _damaged(layer.path, expected)


def _damaged(path: str, what: str) -> UnpackError:
    return UnpackError(_DAMAGED, f"A layer of the environment is damaged: {what}.", path, path)


def _unpack(layer: Layer, prefix: str, store: str) -> None:
    """Hash, decode and unpack a layer in one reading."""
    digest = hashlib.sha256()
    try:
        decoder = _sibling("decode").decoder(layer.path, prefix)
    except ImportError as error:
        fact = "The unpacked Python cannot read the environment's packages."
        raise UnpackError(_NO_PYTHON, fact, str(error)) from None
    trouble, feeding = "", True
    with _tar(prefix) as (tar, said):
        assert tar.stdin is not None
        for block in _hashed(layer.path, digest):
            # if unpacking fails, the digest says whose fault it is
            if feeding and not trouble:
                try:
                    for piece in decoder.pieces(block):
                        tar.stdin.write(piece)
                except decoder.error as error:
                    trouble = str(error)
                except BrokenPipeError:
                    feeding = False
    if tar.returncode:
        for line in said:
            _check_written(line.strip(), store)
    _verify(layer, digest.hexdigest())
    if trouble or (feeding and not decoder.is_whole):
        raise _damaged(layer.path, trouble or "it was cut short before its digest was taken")
    if tar.returncode:
        raise _tar_fails(said[0].strip() if said else f"it ended with {tar.returncode}")


@contextlib.contextmanager
def _tar(prefix: str) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """Run tar; when the block is left it has ended, and the list has the lines that it said."""
    environ = {key: value for key, value in os.environ.items() if key != "TAR_OPTIONS"}
    try:
        tar = subprocess.Popen(
            ["tar", "xof", "-", "-C", prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise _tar_fails(str(error)) from None
    assert tar.stdin is not None
    assert tar.stderr is not None
    with contextlib.suppress(OSError):
        fcntl.fcntl(tar.stdin, fcntl.F_SETPIPE_SZ, _BLOCK_BYTES)
    said: list[str] = []
    errors = tar.stderr
    # it may say something about every file
    reader = threading.Thread(
        target=lambda: said.extend(line.decode(errors="replace") for line in errors), daemon=True
    )
    reader.start()
    try:
        yield tar, said
    except BaseException:
        tar.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            tar.stdin.close()
        tar.wait()
        reader.join()
        errors.close()


def _tar_fails(item: str) -> UnpackError:
    return UnpackError(
        _NO_TOOL, "The tar of this machine does not work.", f"{shutil.which('tar')}: {item}"
    )


def _check_written(said: str, store: str) -> None:
    """Raise if a program says that it could not write."""
    if any(words in said for words in _FULL_WORDS):
        raise _not_written(errno.ENOSPC, said, store)
    if any(words in said for words in _REFUSED_WORDS):
        raise _not_written(errno.EACCES, said, store)


def _not_written(number: int | None, item: str, store: str) -> UnpackError:
    if number in _FULL:
        fact = f"There is no room to unpack the environment in {store}."
        return UnpackError(_NO_ROOM, fact, item, store)
    fact = f"The folder {store}, for unpacked environments, cannot be written."
    return UnpackError(_NOT_WRITTEN, fact, item, store)


# -- publishing ------------------------------------------------------------------------------------


def _fill(environment: Environment, new: str, store: str) -> None:
    """Make the folder `new`, which has the interpreter in it, complete."""
    for layer in environment.layers:
        if layer.kind == "interpreter":
            digest = hashlib.sha256()
            for block in _blocks(layer.path):
                digest.update(block)
            _verify(layer, digest.hexdigest())
    for layer in environment.layers:
        if layer.kind == "packages":
            _unpack(layer, new, store)
    if environment.relocated != 0:
        _relocate(new, os.path.join(store, environment.digest), environment.relocated)
    with open(os.path.join(new, READY), "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(environment.text)


def _publish(new: str, final: str) -> None:
    """Give the complete folder its name, unless another start was first."""
    name = f".old-{os.path.basename(final)}-{os.uname().nodename}-{os.getpid()}"
    old = os.path.join(os.path.dirname(final), name)
    while not _is_ready(final):
        try:
            os.rename(new, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        # the rest of a folder whose removal was interrupted
        with contextlib.suppress(FileNotFoundError):
            os.rename(final, old)
        if _is_ready(old):
            # published between the look and the renaming
            with contextlib.suppress(OSError):
                os.rename(old, final)
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def _is_ready(prefix: str) -> bool:
    python = os.path.join(prefix, "bin", "python3")
    return os.path.exists(os.path.join(prefix, READY)) and os.access(python, os.X_OK)


def _release(lock: str) -> None:
    with contextlib.suppress(OSError, IndexError):
        with open(os.path.join(lock, "owner"), encoding="utf-8") as stream:
            owner = stream.read().split()[0]
        if owner == str(os.getpid()):
            shutil.rmtree(lock, ignore_errors=True)


def _stop(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: list[str]) -> None:
    """Do what the module says; come back only to end with an exit code."""
    path, layers, store, worker, new, lock, *rest = argv
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    try:
        environment = read_environment(path, layers)
        final = os.path.join(store, environment.digest)
        try:
            _fill(environment, new, store)
            _publish(new, final)
        except OSError as error:
            raise _not_written(error.errno, str(error), store) from None
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        _release(lock)
        if not isinstance(error, UnpackError):
            raise
        sys.stderr.write(error.text)
        sys.exit(error.code)
    _release(lock)
    # Python ignores these, and what it starts would too
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    python = os.path.join(final, "bin", "python3")
    os.execv(python, [python, "-I", worker, *rest])


if __name__ == "__main__" and len(sys.argv) > 1:
    main(sys.argv[1:])

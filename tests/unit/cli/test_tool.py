"""How tools end: one line for paths that cannot be used, and no output of a session that hung up."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megafuser.errors import UserError, explained_paths
from tests.cli.tools import refusal


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP])
def test_a_path_that_cannot_be_used_is_named(code: int) -> None:
    with pytest.raises(UserError, match=f"^some/path: {os.strerror(code)}; "), explained_paths():
        raise OSError(code, os.strerror(code), "some/path")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full", "some/path"), OSError(errno.EACCES, "no file"), RuntimeError("a bug")]
)
def test_everything_else_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained_paths():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("tool", [("convert_hf_to_mcore", "--hf"), ("convert_mcore_to_hf", "--checkpoint")])
def test_impossible_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: tuple[str, str]) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(
        '{"format_version": 2, "kind": "specialist", "dtype": "fp32", "content": {}, "files": {}}'
    )
    name, source = tool
    for out, says in (("x" * 300, "File name too long"), ("a", "Symlink loop"), ("a/out", "Symlink loop")):
        assert says in refusal(capsys, name, source, tmp_path / "model", "--out", tmp_path / out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_ends_a_tool_as_an_error_does(number: signal.Signals, ignored: bool) -> None:
    if ignored and number == signal.SIGTERM:
        pytest.skip("who ends a conversion means it; nohup is about hanging up alone")
    code = f"""
        import os, signal, sys
        from megafuser.cli.tool import run_tool
        # whatever the tests themselves were started with, nohup included
        signal.signal({int(number)}, signal.SIG_IGN if {ignored} else signal.SIG_DFL)
        def convert():
            try:
                os.kill(os.getpid(), {int(number)})
                print("done")
                return 0
            finally:
                print("cleaned up")
        run_tool(convert)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:-1] == (["done", "cleaned up"] if ignored else ["cleaned up"])
    assert done.returncode == (0 if ignored else 128 + number)

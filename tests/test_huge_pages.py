"""The command line starts itself once more with large pages, once only, and not where it is told otherwise."""

import subprocess
import sys

import pytest

from clipjax.job import huge_pages


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Collects what would have been started, on a kernel that offers large pages."""
    calls = []
    monkeypatch.setattr(huge_pages.os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(huge_pages.sys, "platform", "linux")
    monkeypatch.setattr(huge_pages.sys, "orig_argv", ["python", "-m", "clipjax.cli", "train"])
    monkeypatch.setattr(huge_pages, "KERNEL", tmp_path / "enabled")
    huge_pages.KERNEL.write_text("always [madvise] never\n")
    monkeypatch.delenv(huge_pages.TUNABLES, raising=False)
    return calls


def test_same_command_with_the_tunable(started):
    huge_pages.restart_with_huge_pages()
    ((program, arguments, environment),) = started
    assert program == sys.executable
    assert arguments == [sys.executable, "-m", "clipjax.cli", "train"]
    assert environment[huge_pages.TUNABLES] == "glibc.malloc.hugetlb=1"


def test_other_tunables_stay(started, monkeypatch):
    monkeypatch.setenv(huge_pages.TUNABLES, "glibc.malloc.check=1")
    huge_pages.restart_with_huge_pages()
    assert started[0][2][huge_pages.TUNABLES] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("setting", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"])
def test_a_setting_of_the_user_wins(started, monkeypatch, setting):
    monkeypatch.setenv(huge_pages.TUNABLES, setting)
    huge_pages.restart_with_huge_pages()
    assert not started


def test_not_where_the_kernel_does_not_offer_them(started):
    huge_pages.KERNEL.write_text("always madvise [never]\n")
    huge_pages.restart_with_huge_pages()
    huge_pages.KERNEL.unlink()
    huge_pages.restart_with_huge_pages()
    assert not started


def test_not_on_other_systems(started, monkeypatch):
    monkeypatch.setattr(huge_pages.sys, "platform", "darwin")
    huge_pages.restart_with_huge_pages()
    assert not started


def test_a_real_command_ends_as_it_should(tmp_path):
    command = [sys.executable, "-m", "clipjax.cli", "train", "--config=none.py", "--workdir=w"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "clipjax train: There is no config file 'none.py'.\n"

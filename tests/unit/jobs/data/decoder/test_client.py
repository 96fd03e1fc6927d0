"""The decoder process: it may crash, hang, grow and be killed; the picture is lost, the stage is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support import hostile_decoder
from tests.support.decoder_processes import decoders
from tests.support.hostile_pictures import encoded, noise

from medgr2_jobs.data.decoder import client, limits
from medgr2_jobs.data.decoder.protocol import BadField

REPO = Path(__file__).parents[5]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process than the real one, under the same limits."""
    client.close()
    monkeypatch.setattr(client, "_WORKER", "tests.support.hostile_decoder")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    yield
    client.close()


REASONS = {
    "abort": r"crashes the decoder \(SIGABRT\)",
    "segv": r"crashes the decoder \(SIGSEGV\)",
    "exit": "ended the decoder process with exit code 7",
    "spin": "takes more than 30 seconds of processor time to decode; it was given up",
    "memory": "takes more than 1,280 MiB of memory to decode",
    "killed": r"crashes the decoder \(SIGKILL\)",
    "panic": "cannot be read: BaseException",
    "write": "cannot be read: OSError",
}


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("death", REASONS)
def test_whatever_a_picture_does_the_next_one_is_read(tmp_path: Path, death: str) -> None:
    for number, word in enumerate(("fine", death, "fine")):
        (tmp_path / f"{number}.png").write_text(word)
    assert client.picture(tmp_path / "0.png", 10**6).width == 8
    with pytest.raises(BadField, match=REASONS[death]):
        client.picture(tmp_path / "1.png", 10**6)
    assert client.picture(tmp_path / "2.png", 10**6).width == 8
    assert len(decoders()) == 1
    assert not (tmp_path / "1.png.out").exists() or not (tmp_path / "1.png.out").read_bytes()


@pytest.mark.usefixtures("hostile")
def test_who_waits_for_ever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("fine")
    client.picture(tmp_path / "a.png", 10**6)
    monkeypatch.setattr(limits, "WAIT_SECONDS", 0.5)
    (tmp_path / "a.png").write_text("wait")
    with pytest.raises(BadField, match=r"was not decoded in 0\.5 seconds"):
        client.picture(tmp_path / "a.png", 10**6)
    assert not decoders()


@pytest.mark.usefixtures("hostile")
def test_a_file_of_several_items_goes_on_behind_the_one_it_died_of(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("fine abort fine segv exit panic-not killed spin fine")
    replies = list(client.numbered({"request": "dicom", "path": str(tmp_path / "a.dcm")}))
    assert [reply.header["item"] for reply in replies] == list(range(9))
    assert [reply.bad is None for reply in replies] == [True, False, True, False, False, True, False, False, True]


@pytest.mark.usefixtures("hostile")
def test_who_was_killed_from_outside_is_asked_again(tmp_path: Path) -> None:
    """By a kernel without memory, because of another process: nothing is wrong with the picture."""
    (tmp_path / "a.png").write_text("killed-once")
    assert client.picture(tmp_path / "a.png", 10**6).width == 8
    assert (tmp_path / hostile_decoder.ONCE).exists()
    (tmp_path / hostile_decoder.ONCE).rmdir()
    (tmp_path / "a.dcm").write_text("fine killed-once fine")
    assert not any(r.bad for r in client.numbered({"request": "dicom", "path": str(tmp_path / "a.dcm")}))


@pytest.mark.usefixtures("hostile")
def test_the_disks_fault_is_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("disk")
    with pytest.raises(OSError, match="Input/output error"):
        client.picture(tmp_path / "a.png", 10**6)


@pytest.mark.usefixtures("hostile")
def test_what_libraries_print_is_heard_by_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("print")
    assert client.picture(tmp_path / "a.png", 10**6).width == 8
    out, err = capfd.readouterr()
    assert "patient" not in out + err


@pytest.fixture
def fresh() -> Iterator[None]:
    """No process from before, and none left behind."""
    client.close()
    yield
    client.close()


@pytest.mark.usefixtures("fresh")
def test_one_process_reads_all_pictures(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    first, pid = client.picture(data, 10**6), [child.pid for child in decoders()]
    assert len(pid) == 1
    for _ in range(20):
        assert client.picture(data, 10**6) == first
    assert [child.pid for child in decoders()] == pid
    with pytest.raises(BadField):
        client.picture(b"none", 10**6)
    assert [child.pid for child in decoders()] == pid, "a bad picture costs no process"


@pytest.mark.usefixtures("fresh")
def test_pictures_that_are_asked_for_meanwhile_have_a_process_of_their_own() -> None:
    """A reader is a generator: who reads two files in turn must not get one's replies for the other's."""
    import pydicom

    path = Path(pydicom.__file__).parent / "data/test_files/examples_ybr_color.dcm"
    request = {"request": "dicom", "path": str(path), "name": "a", "most": 3, "look_for_text": False, "max_pixels": 784}
    seen = 0
    for reply in client.numbered(request):
        assert reply.bad is None
        assert client.picture(encoded(noise(48), "PNG"), 10**6).width == 48
        seen += 1
    assert seen == 5
    assert len(decoders()) == 2


@pytest.mark.usefixtures("hostile")
def test_a_process_that_grew_makes_way_for_another(tmp_path: Path) -> None:
    """Decoders leak, and every picture shall have the same memory."""
    (tmp_path / "a.png").write_text("fine")
    (tmp_path / "b.png").write_text("leak")
    client.picture(tmp_path / "a.png", 10**6)
    [before] = decoders()
    client.picture(tmp_path / "b.png", 10**6)
    client.picture(tmp_path / "a.png", 10**6)
    assert before not in decoders()


@pytest.mark.usefixtures("fresh")
def test_a_fork_starts_its_own_process() -> None:
    data = encoded(noise(), "PNG")
    first = client.picture(data, 10**6)
    pid = os.fork()
    if pid == 0:
        try:
            same = client.picture(data, 10**6) == first
        finally:
            client.close()
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.picture(data, 10**6) == first, "and leaves ours alone"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_stage(how: signal.Signals) -> None:
    code = (
        "import time\nfrom medgr2_jobs.data.decoder import client\n"
        "try: client.picture(b'x', 1)\nexcept Exception: print(client._idle[0]._child.pid, flush=True)\ntime.sleep(60)"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert stage.stdout is not None
    decoder = psutil.Process(int(stage.stdout.readline()))
    stage.send_signal(how)
    stage.wait()
    deadline = time.monotonic() + 20
    while decoder.is_running() and decoder.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE


def test_torch_is_not_imported() -> None:
    code = "import sys, medgr2_jobs.data.decoder.worker as w, importlib\n" + (
        "for name in w.ANSWERS.values(): importlib.import_module('medgr2_jobs.data.decoder.' + name)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

"""A path that tells who the patient is does not pass, however it is spelt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from tests.unit.jobs.data.test_dicom import made, save

from medgr2_jobs.data import phi_in_paths


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Doe_Jane/1.dcm", "Doe^Jane"),
        ("x/JANE.DCM", "Doe^Jane"),
        ("x/pat4711.dcm", "PAT-4711"),
        ("1961-04-23/1.dcm", "19610423"),
        ("mu\u0308ller/1.dcm", "M\u00fcller"),
        ("scans/muller.dcm", "M\u00fcller"),
        ("\u738b/1.dcm", "\u738b^\u5c0f\u6771"),
        ("ward/li/1.dcm", "Li^Wei"),
        ("7/scan.dcm", "7"),
    ],
)
def test_spellings_of_a_value_are_found(path: str, value: str) -> None:
    dataset = Dataset()
    dataset.PatientName = value
    assert phi_in_paths.holds(path, phi_in_paths.identifying(dataset))


@pytest.mark.parametrize(
    ("path", "value"), [("clinic/1.dcm", "Li^Wei"), ("a/77.dcm", "7"), ("a/b.dcm", ""), (".", "^")]
)
def test_other_paths_stay_readable(path: str, value: str) -> None:
    dataset = Dataset()
    dataset.PatientName = value
    assert not phi_in_paths.holds(path, phi_in_paths.identifying(dataset))


def test_names_dates_and_uids_are_found_in_sequences_and_private_tags() -> None:
    inner, dataset = Dataset(), Dataset()
    inner.PatientID, inner.ReferencedSOPInstanceUID = "nested-id", "1.2.3.99"
    inner.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.ReferencedPatientSequence = [inner]
    dataset.ContentCreatorName, dataset.AcquisitionDate, dataset.Modality = "Writer^Wanda", "20200131", "CT"
    dataset.private_block(0x0011, "us", create=True).add_new(1, "PN", "Hidden^Harry")
    found = phi_in_paths.identifying(dataset)
    assert {"nested-id", "1.2.3.99", "Writer", "Wanda", "20200131", "Hidden", "Harry"} <= found
    assert not {"CT", "1.2.840.10008.5.1.4.1.1.2"} & found


def test_what_was_left_on_the_disk_stays_there(tmp_path: Path) -> None:
    """Pixels of a large file must not come into memory by looking for names."""
    dataset = made(np.zeros((64, 64), np.uint8))
    dataset.private_block(0x0011, "us", create=True).add_new(1, "OB", bytes(4096))
    save(tmp_path, dataset)
    opened = pydicom.dcmread(tmp_path / "scans/a.dcm", defer_size=1000)
    phi_in_paths.identifying(opened)
    for tag in (0x7FE00010, 0x00111001):
        assert opened.get_item(tag, keep_deferred=True).value is None

"""Which servers are inside the site: judged as an HTTP client connects, and outside where that cannot be told."""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from typing import Any

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.server_address import is_external, is_overheard
from medgr2_api.unsupported import unsupported

INSIDE = (
    "localhost:8000", "localhost.:8000", "127.0.0.1:8000", "127.255.0.1", "[::1]:8000", "10.1.2.3", "172.16.0.1",
    "172.31.255.254", "192.168.0.7", "[fd12:3456::1]", "0.0.0.0:8000", "[::]:8000", "vllm:8000", "gpu-1", "gpu_1",
    "vllm.models.svc:8000", "vllm.models.svc.cluster.local.", "gpu.hospital.internal", "VLLM.Models.SVC", "a.localhost",
    # as clients resolve them
    "0", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0X7F.0.0.1", "017700000001", "0300.0250.1", "10.1",
    "[::ffff:10.0.0.1]", "[::ffff:7f00:1]",
)  # fmt: skip
OUTSIDE = (
    "api.openai.com", "svc.example.com", "8.8.8.8", "[2001:4860:4860::8888]", "172.32.0.1", "192.169.0.1",
    "134744072", "0x08080808", "0x8.0x8.0x8.0x8", "01002004010", "8.8.2056", "8.526344", "8.8.8.8.", "134744072.",
    "[::ffff:8.8.8.8]", "[::ffff:808:808]", "[::8.8.8.8]", "[64:ff9b::8.8.8.8]", "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::a00:1]", "[2002:a00:1::]", "[2001:0:a00:1::]",
    # on no site's own network: link-local, where clouds have their metadata; shared by a carrier's customers; reserved
    "169.254.169.254", "[fe80::1]", "[fe80::1%25eth0]", "100.64.0.1", "100.100.100.200", "[fd00:ec2::254]",
    "metadata.google.internal", "metadata.google.internal.", "192.0.2.1", "198.18.0.1", "192.0.0.1", "240.0.0.1",
    "255.255.255.255", "224.0.0.1", "[ff02::1]", "0.1.2.3", "[2001:db8::1]",
    # read in different ways, or not at all
    "010.0.0.1", "0127.0.0.1", "127.0.0.1.", "127.0.0.01", "1.2.3.4.5", "127.0.0.256", "4294967296", "0x", "08",
    "127..1", "a..svc", ".svc", "-a.svc", "ai.", "vllm.", "%31%32%37.0.0.1", "localhos%74", "１２７.0.0.1", "①27.0.0.1",
    "127。0。0。1", "ⓛocalhost", "bücher", "xn--e1afmkfd.example", "10.0.0.1@8.8.8.8", "8.8.8.8@10.0.0.1", "a:b@vllm",
    "10.0.0.1\\@8.8.8.8", "8.8.8.8\\.svc", "vllm#@8.8.8.8", "vllm?@8.8.8.8", "vllm 8.8.8.8", "8.8.8.8\t.svc", "",
    "[::1", "[vllm]", "[127.0.0.1]", "10.0.0.1:80:80", "10.0.0.1:http", "10.0.0.1.nip.io", "localhost.example.com",
    "x.locals",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_inside(scheme: str) -> None:
    assert [host for host in INSIDE if is_external(f"{scheme}://{host}/v1")] == []
    assert [host for host in INSIDE if is_external(f"{scheme}://{host}")] == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_everything_else_is_outside(scheme: str) -> None:
    assert [host for host in OUTSIDE if not is_external(f"{scheme}://{host}/v1")] == []


def test_what_is_no_http_address_is_outside() -> None:
    assert all(map(is_external, ("", "vllm", "//vllm", "ftp://vllm", "http:/vllm", "http:vllm", "http:///vllm")))


def _forms(address: ipaddress.IPv4Address, rng: random.Random) -> str:
    """The address in one of the forms that `inet_aton` reads."""
    parts = rng.randint(1, 4)
    value, heads = int(address), list(address.packed[: parts - 1])
    numbers = [*heads, value & ((1 << 8 * (5 - parts)) - 1)]
    return ".".join(rng.choice((str, hex, lambda n: f"0{n:o}"))(number) for number in numbers)


def test_numeric_forms_are_judged_as_the_resolver_reads_them() -> None:
    rng = random.Random(7)
    judged = 0
    for _ in range(3000):
        address = ipaddress.IPv4Address(rng.choice((rng.getrandbits(32), 0x0A000000 | rng.getrandbits(24))))
        host = _forms(address, rng)
        assert socket.getaddrinfo(host, 80, flags=socket.AI_NUMERICHOST)[0][4][0] == str(address)
        if is_external(f"http://{host}/v1") is not is_external(f"http://{address}/v1"):
            assert host.count(".") == 3, host
            assert any(re.match("0[0-9]", part) for part in host.split(".")), host  # clients do not agree
            assert is_external(f"http://{host}/v1"), host
        judged += not is_external(f"http://{host}/v1")
    assert judged > 500


def test_what_the_resolver_takes_for_an_address_is_never_a_name_inside() -> None:
    """Any text of the characters that numbers are made of: what is inside resolves to an address that is."""
    rng = random.Random(8)
    for _ in range(20_000):
        host = "".join(rng.choice("0123456789abcdefx.") for _ in range(rng.randint(1, 12)))
        try:
            found = socket.getaddrinfo(host, 80, socket.AF_INET, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            continue
        if not is_external(f"http://{host}/v1"):
            assert not is_external(f"http://{found[0][4][0]}/v1"), host


def _overheard(generator: dict[str, Any], **data: Any) -> list[str]:
    models = {"policy": {"baseModel": "builtin://tiny-qwen2.5-vl"}, "rewardModel": {"baseModel": "models/qwen"}}
    found = unsupported(spec_with(models | {"generator": generator} | {f"data.{k}": v for k, v in data.items()}))
    assert all("unencrypted: use https" in problem.message for problem in found)
    return [problem.path for problem in found]


KEY = {"apiKeySecretRef": {"name": "provider", "key": "key"}}
FAR, NEAR = "http://api.example.com/v1", "http://vllm.models.svc/v1"


@pytest.mark.parametrize(
    ("generator", "refused"),
    [
        ({"openAI": {"model": "m", "baseURL": FAR, **KEY}}, True),
        ({"openAI": {"model": "m", "baseURL": "http://134744072/v1", **KEY}}, True),
        ({"openAI": {"model": "m", "baseURL": FAR}}, False),
        ({"openAI": {"model": "m", "baseURL": FAR, "external": False, **KEY}}, False),
        ({"openAI": {"model": "m", "baseURL": FAR.replace("http", "https", 1), **KEY}}, False),
        ({"openAI": {"model": "m", "baseURL": NEAR, "external": True, **KEY}}, False),
        ({"gemini": {"model": "m", **KEY}}, False),
        ({"gemini": {"model": "m", "baseURL": FAR, **KEY}}, True),
        ({"gemini": {"model": "m", "baseURL": NEAR, **KEY}}, False),
        ({"plugin": {"name": "p", "version": "1", "model": "m", "baseURL": FAR, **KEY}}, True),
        ({"plugin": {"name": "p", "version": "1", "model": "m", "baseURL": FAR, "external": False, **KEY}}, False),
    ],
)
def test_a_key_does_not_travel_unencrypted_to_a_server_outside(generator: dict[str, Any], refused: bool) -> None:
    (kind,) = generator
    assert _overheard(generator) == [f"spec.generator.{kind}.baseURL"] * refused


def test_nor_does_the_token_of_the_hub() -> None:
    generator = {"openAI": {"model": "m", "baseURL": NEAR}}
    token = {"hubTokenSecretRef": {"name": "hub", "key": "token"}}
    assert _overheard(generator, fetch={**token, "hubEndpoint": "http://hub.example.com"}) == [
        "spec.data.fetch.hubEndpoint"
    ]
    assert _overheard(generator, fetch={**token, "hubEndpoint": "http://mirror.lan"}) == []
    assert _overheard(generator, fetch={"hubEndpoint": "http://hub.example.com"}) == []


def test_a_path_says_nothing_of_the_host() -> None:
    assert is_external("http://8.8.8.8/.svc")
    assert is_external("https://api.example.com/@localhost")
    assert not is_external("http://10.0.0.1/api.example.com/v1")
    assert is_overheard("http://8.8.8.8/")
    assert not is_overheard("https://8.8.8.8/")

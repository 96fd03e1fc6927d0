"""Whether a server is inside the site, as far as its address tells: judged as an HTTP client would connect to it.

Only what is known to be inside counts so. An address that clients read differently, or not at all, is outside: images
that may not leave the site are then not sent to it.
"""

from __future__ import annotations

import ipaddress
import re

#: Host and port of an http(s) address. No user, no escapes, no other alphabets: clients disagree about these.
_ADDRESS = re.compile(r"(https?)://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]*)?(?:/[^\\\s]*)?")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_NUMBER = re.compile(r"0x([0-9a-f]*)|0([0-7]*)|([1-9][0-9]*)")
#: Ends of names that no public name server knows.
_INSIDE_NAMES = (".svc", ".svc.cluster.local", ".local", ".localhost", ".internal", ".lan")
#: Names of this kind that a cloud answers itself, for the virtual machines of its customers.
_METADATA_NAMES = ("metadata.google.internal",)
#: This host, and the ranges that a site gives out itself (RFC 1918, RFC 4193). Not link-local addresses, where clouds
#: have their metadata, nor 100.64.0.0/10, which a provider's customers share.
_INSIDE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/32", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::/128", "::1/128", "fc00::/7",
    )
)  # fmt: skip
#: AWS's metadata, the one such address inside these ranges.
_METADATA_ADDRESS = ipaddress.ip_address("fd00:ec2::254")


def is_external(base_url: str) -> bool:
    """Whether a server at this address is outside the cluster and the site, or may be."""
    found = _ADDRESS.fullmatch(base_url)
    if found is None:
        return True
    if found[2]:
        return not _inside_v6(found[2])
    host = found[3].lower()
    if _is_numeric(host):
        address = _ipv4(host)
        return address is None or not _inside(address)
    name = host.removesuffix(".")
    if _NAME.fullmatch(name) is None or name in _METADATA_NAMES:
        return True
    # a single name is looked up among the site's own; with a full stop behind it, it is a top-level domain
    return not (name.endswith(_INSIDE_NAMES) or "." not in host or name == "localhost")


def is_overheard(base_url: str) -> bool:
    """Whether what is sent there crosses networks of others unencrypted, a key with it: HTTP to a server outside."""
    return base_url.startswith("http:") and is_external(base_url)


def _is_numeric(host: str) -> bool:
    """Whether clients take it for an IPv4 address: by its last part (the URL standard), a final full stop or not."""
    last = host.removesuffix(".").rpartition(".")[2]
    return last.isdecimal() or re.fullmatch(r"0x[0-9a-f]*", last) is not None


def _ipv4(host: str) -> ipaddress.IPv4Address | None:
    """What `inet_aton` makes of one to four numbers, decimal, hexadecimal or octal, of which the last fills what is
    left; None where clients do not agree."""
    parts = host.split(".")
    if len(parts) > 4 or (len(parts) == 4 and any(re.match("0[0-9]", part) for part in parts)):
        return None  # 010.0.0.1 is 8.0.0.1 to some and 10.0.0.1 to others
    numbers = [_number(part) for part in parts]
    *heads, last = numbers
    value = 0
    for head in heads:
        if head is None or head > 255:
            return None
        value = value << 8 | head
    rest = 8 * (5 - len(parts))
    if last is None or last >= 1 << rest:
        return None
    return ipaddress.IPv4Address(value << rest | last)


def _number(text: str) -> int | None:
    found = _NUMBER.fullmatch(text)
    if found is None or text == "0x":
        return None
    hexadecimal, octal, decimal = found.groups()
    if hexadecimal is not None:
        return int(hexadecimal, 16)
    return int(decimal) if decimal is not None else int(octal or "0", 8)


def _inside_v6(text: str) -> bool:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    # NAT64 and other translations are not looked into: who translates is not known, so they are outside
    return _inside(address.ipv4_mapped or address)


def _inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address != _METADATA_ADDRESS and any(address in network for network in _INSIDE_NETWORKS)

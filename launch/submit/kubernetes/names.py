"""Names, labels and quantities as Kubernetes takes them.

Source: Kubernetes documentation, "Object Names and IDs", "Labels and Selectors", "Quantity".
"""

from __future__ import annotations

import re
from decimal import Decimal

LONGEST_LABEL, LONGEST_SUBDOMAIN = 63, 253
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
QUALIFIED = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))((?:[KMGTPE]i)|[numkMGTPE]|[eE][+-]?\d{1,3})?")
IMAGE = re.compile(
    r"(?P<name>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?::\d+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128})))?"
)
BINARY = {unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
DECIMAL = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal("1e3"),
    "M": Decimal("1e6"), "G": Decimal("1e9"), "T": Decimal("1e12"), "P": Decimal("1e15"),
    "E": Decimal("1e18"),
}  # fmt: skip

NEED_LABEL = "a DNS label: at most 63 of a-z, 0-9 and -, with a letter or digit at both ends"
NEED_SUBDOMAIN = "a DNS name: DNS labels joined by dots, at most 253 characters"
NEED_QUANTITY = "a quantity, such as 4, 500m or 32Gi"
NEED_LABEL_VALUE = (
    "a label's value: at most 63 of letters, digits, -, _ and ., with a letter or digit at both ends"
)
NEED_LABEL_KEY = "a label's key: such as team, or example.org/team"
NEED_IMAGE_NAME = "the name of an image, such as registry.example.org/foreframe:0.1.0"
NEED_IMAGE = "an image with a tag or digest, such as registry.example.org/foreframe:0.1.0"


def is_label(text: str) -> bool:
    """A DNS label of RFC 1123: what jobs, containers and volumes are named by."""
    return len(text) <= LONGEST_LABEL and LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """DNS labels joined by dots: what ConfigMaps, Secrets and claims are named by."""
    return len(text) <= LONGEST_SUBDOMAIN and all(LABEL.fullmatch(part) for part in text.split("."))


def is_label_value(text: str) -> bool:
    return not text or (len(text) <= LONGEST_LABEL and QUALIFIED.fullmatch(text) is not None)


def is_label_key(text: str) -> bool:
    """A name of at most 63 characters, which a DNS name and a slash may stand before."""
    prefix, slash, name = text.rpartition("/")
    is_named = len(name) <= LONGEST_LABEL and QUALIFIED.fullmatch(name) is not None
    return is_named and (not slash or is_subdomain(prefix))


def is_image(text: str) -> bool:
    """Whether an engine takes it: capital letters may stand in the name of a registry alone."""
    registry, slash, rest = text.partition("/")
    is_registry = bool(slash) and ("." in registry or ":" in registry)
    return IMAGE.fullmatch(f"{registry.lower()}/{rest}" if is_registry else text) is not None


def amount(text: str | int | float) -> Decimal | None:
    """What a quantity stands for: `500m` is 0.5, `1Gi` is 1073741824; None of what is no quantity.

    >>> amount("1.5Ki")
    Decimal('1536.0')
    """
    found = QUANTITY.fullmatch(str(text))
    if found is None or isinstance(text, bool):
        return None
    number, unit = Decimal(found[1]), found[2] or ""
    if unit[:1] in ("e", "E") and unit != "E" and unit != "Ei":
        return number.scaleb(int(unit[1:]))
    return number * (BINARY.get(unit) or DECIMAL[unit])


def as_label(text: str, longest: int = LONGEST_LABEL) -> str:
    """The nearest DNS label: small letters, a dash for what may not stand there, cut at the end.

    >>> as_label("ViT_L16, lr=1e-3")
    'vit-l16-lr-1e-3'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain[:longest].strip("-") or "job"

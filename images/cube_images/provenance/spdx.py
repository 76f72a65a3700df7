# SPDX-License-Identifier: Apache-2.0
"""Licence texts and Debian's licence names as SPDX expressions; what is not known for sure stays NOASSERTION."""

import re
from collections.abc import Iterable

NOASSERTION = "NOASSERTION"

# Short names of Debian's machine-readable copyright files that mean exactly one SPDX identifier.
_DEBIAN = {
    "agpl-3": "AGPL-3.0-only",
    "agpl-3+": "AGPL-3.0-or-later",
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "artistic-2.0": "Artistic-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "bsl-1": "BSL-1.0",
    "bsl-1.0": "BSL-1.0",
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "curl": "curl",
    "expat": "MIT",
    "mit": "MIT",
    "fsfap": "FSFAP",
    "fsful": "FSFUL",
    "fsfullr": "FSFULLR",
    "gfdl-1.2+": "GFDL-1.2-or-later",
    "gfdl-1.3": "GFDL-1.3-only",
    "gfdl-1.3+": "GFDL-1.3-or-later",
    "gpl-1": "GPL-1.0-only",
    "gpl-1+": "GPL-1.0-or-later",
    "gpl-2": "GPL-2.0-only",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-2+": "GPL-2.0-or-later",
    "gpl-2.0+": "GPL-2.0-or-later",
    "gpl-3": "GPL-3.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "gpl-3+": "GPL-3.0-or-later",
    "gpl-3.0+": "GPL-3.0-or-later",
    "isc": "ISC",
    "lgpl-2": "LGPL-2.0-only",
    "lgpl-2+": "LGPL-2.0-or-later",
    "lgpl-2.0+": "LGPL-2.0-or-later",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-2.1+": "LGPL-2.1-or-later",
    "lgpl-3": "LGPL-3.0-only",
    "lgpl-3+": "LGPL-3.0-or-later",
    "lgpl-3.0+": "LGPL-3.0-or-later",
    "mpl-1.1": "MPL-1.1",
    "mpl-2.0": "MPL-2.0",
    "openssl": "OpenSSL",
    "psf-2": "PSF-2.0",
    "python-2.0": "Python-2.0",
    "unlicense": "Unlicense",
    "zlib": "Zlib",
}
_OPEN_MODEL = {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0", "CC0-1.0", "CC-BY-4.0"}
_COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|GFDL|CC-BY-SA)\b")
# What a text must hold to be taken for a licence: several phrases of it, white space aside.
_TEXTS = (
    ("Apache-2.0", ("Apache License", "Version 2.0, January 2004", "TERMS AND CONDITIONS FOR USE")),
    ("MPL-2.0", ("Mozilla Public License Version 2.0", "Covered Software")),
    (
        "MIT",
        (
            "Permission is hereby granted, free of charge, to any person obtaining a copy",
            "The above copyright notice and this permission notice",
            "WITHOUT WARRANTY OF ANY KIND",
        ),
    ),
    (
        "ISC",
        ("Permission to use, copy, modify, and", "distribute this software for any purpose", "THE AUTHOR"),
    ),
    (
        "BSD-3-Clause",
        ("Redistribution and use in source and binary forms", "Neither the name", "endorse or promote products"),
    ),
    ("BSD-2-Clause", ("Redistribution and use in source and binary forms", "binary form must reproduce")),
    ("Unlicense", ("This is free and unencumbered software released into the public domain",)),
)


def recognise(text: str) -> str:
    """SPDX identifiers of the licence texts in `text`, joined by AND, or NOASSERTION."""
    flat = " ".join(text.split())
    found = [name for name, phrases in _TEXTS if all(" ".join(phrase.split()) in flat for phrase in phrases)]
    if "BSD-3-Clause" in found and "BSD-2-Clause" in found:
        found.remove("BSD-2-Clause")
    return " AND ".join(sorted(found)) or NOASSERTION


def _one(name: str) -> str:
    """One Debian short name; an unknown one becomes a reference that says whose name it is."""
    known = _DEBIAN.get(name.lower())
    return known or "LicenseRef-Debian-" + (re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-") or "unnamed")


def _terms(line: str) -> list[str]:
    """What has to be kept all together, from the first line of a `License` field (DEP 5, "Syntax").

    `and` binds more tightly than `or`, and a comma before either less tightly.
    """
    found = []
    for part in re.split(r",\s*(?:and\s+)?", re.sub(r",\s+or\s+", " or ", line.strip())):
        choices = [
            [_one(name) for name in re.split(r"\s+and\s+", choice) if name.strip()]
            for choice in re.split(r"\s+or\s+", part)
        ]
        choices = [names for names in choices if names]
        if len(choices) == 1:
            found += choices[0]
        elif choices:
            words = {" AND ".join(names) if len(names) == 1 else f"({' AND '.join(names)})" for names in choices}
            found.append(f"({' OR '.join(sorted(words))})" if len(words) > 1 else words.pop())
    return found


def debian_copyright(text: str) -> str:
    """The SPDX expression of a Debian copyright file; NOASSERTION when it is not machine-readable (DEP 5)."""
    if not re.match(r"\s*Format(-Specification)?:", text):
        return NOASSERTION
    found: set[str] = set()
    for stanza in re.split(r"\n\s*\n", text):
        if match := re.search(r"^License:[ \t]*(\S.*)$", stanza, re.MULTILINE):
            found.update(_terms(match[1]))
    return " AND ".join(sorted(found)) or NOASSERTION


def identifiers(expression: str) -> list[str]:
    """The licences that an expression names, each once."""
    return sorted(
        {word for word in re.findall(r"[A-Za-z0-9.+-]+", expression) if word not in {"AND", "OR", "WITH"}}
    )


def mentioned(text: str) -> list[str]:
    """Licences that a text refers to in Debian's folder of common licences."""
    return sorted({name.rstrip(".") for name in re.findall(r"/usr/share/common-licenses/([A-Za-z0-9.+-]+)", text)})


def needs_source(expression: str, mentions: Iterable[str] = ()) -> bool:
    """Whether who passes the program on has to offer its source: copyleft, or nothing that could be read."""
    words = " ".join((expression, *mentions))
    return bool(_COPYLEFT.search(words)) or (expression == NOASSERTION and not list(mentions))


def open_model(expression: str) -> bool:
    """Whether a model's licence is an open one, for which nothing need be accepted."""
    return expression in _OPEN_MODEL

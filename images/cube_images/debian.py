# SPDX-License-Identifier: Apache-2.0
"""Debian packages: chosen with apt in isolation, fetched by exact version and hash, offered as a local repository.

Nothing of the host's package state is read or changed; only the address of its mirror and how to reach it are
taken from its apt configuration.
"""

import json
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

from cube_images.errors import ImageError
from cube_images.lock import Package
from cube_images.paths import cache_dir, entry
from cube_images.run import RunError, run
from cube_images.wheels import sha256_file

ARCHITECTURE = "amd64"
MIRROR_VARIABLE = "CUBE_DEBIAN_MIRROR"
SECURITY_VARIABLE = "CUBE_DEBIAN_SECURITY_MIRROR"
SNAPSHOT_VARIABLE = "CUBE_DEBIAN_SNAPSHOT"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NETWORK_SECONDS = 900


@dataclass(frozen=True)
class Sources:
    """Where packages come from on this host: the main archive and the security archive."""

    main: str
    security: str


def host_sources(etc: Path = Path("/etc"), environment: Mapping[str, str] = os.environ) -> Sources:
    """The mirror that this host's apt uses, unless the environment names another.

    Raises `ImageError` when the host has no Debian source and the environment names none.
    """
    uris: dict[str, list[str]] = {"main": [], "security": []}
    for uri, suites in _entries(etc / "apt"):
        for suite in suites:
            if re.fullmatch(r"(bookworm|trixie|forky|stable|testing|sid)(-updates)?", suite):
                uris["main"].append(uri)
            elif re.fullmatch(r"[a-z]+-security", suite) and "debian" in uri:
                uris["security"].append(uri)
    # Other vendors name their suites after Debian's too; the archive itself is the one called debian.
    main = [uri for uri in uris["main"] if uri.rstrip("/").endswith("/debian")] or uris["main"]
    mirror = environment.get(MIRROR_VARIABLE) or (main[0] if main else "")
    if not mirror:
        raise ImageError(
            "this host's apt has no Debian source", f"set {MIRROR_VARIABLE} to the URI of a Debian mirror"
        )
    security = environment.get(SECURITY_VARIABLE) or (
        uris["security"][0]
        if uris["security"] and MIRROR_VARIABLE not in environment
        else f"{mirror.rstrip('/')}-security"
    )
    return Sources(mirror, security)


def _entries(apt: Path) -> Iterable[tuple[str, list[str]]]:
    """(URI, suites) of every enabled binary source, from both formats of apt's configuration."""
    for path in sorted([apt / "sources.list", *(apt / "sources.list.d").glob("*")]):
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", text):
                fields = dict(re.findall(r"^(\w[\w-]*):[ \t]*(.*)$", stanza, re.MULTILINE))
                if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes").lower() != "no":
                    for uri in fields.get("URIs", "").split():
                        yield uri, fields.get("Suites", "").split()
        elif path.suffix == ".list":
            for line in text.splitlines():
                if match := re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", line):
                    yield match[1], [match[2]]


class Apt:
    """apt with its own sources, lists and (empty) package state, in a folder of the cache."""

    def __init__(self, suite: str, sources: Sources) -> None:
        self._suite = suite
        text = "\n".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {_KEYRING}\n"
            for uri, suites in (
                (sources.main, f"{suite} {suite}-updates"),
                (sources.security, f"{suite}-security"),
            )
        )
        self._folder = cache_dir() / "apt" / sha256(text.encode()).hexdigest()[:16]
        for name in ("lists/partial", "archives/partial"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "debian.sources").write_text(text)
        (self._folder / "status").write_text("")

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::sourcelist": self._folder / "debian.sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self._folder / "lists",
            "Dir::State::status": self._folder / "status",
            "Dir::State::extended_states": self._folder / "extended_states",
            "Dir::Cache::archives": self._folder / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Architecture": ARCHITECTURE,
            "APT::Architectures": ARCHITECTURE,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "30",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the mirror's package lists; their signatures are checked by apt."""
        if not Path(_KEYRING).is_file():
            raise ImageError("the keys of the Debian archive are missing", "apt-get install debian-archive-keyring")
        run(
            ["apt-get", *self._options(), "--error-on=any", "update"],
            timeout=_NETWORK_SECONDS,
            hint=f"is the Debian mirror reachable? {MIRROR_VARIABLE} names another one",
        )

    def resolve(self, names: Sequence[str], *, alone: bool = False) -> list[Package]:
        """Exact packages for `names` and all that they depend on (or for `names` alone), newest version each."""
        if alone:
            shown = run(["apt-cache", *self._options(), "show", "--no-all-versions", *names]).text
            found = _stanzas(shown)
            if missing := set(names) - {package.name for package in found}:
                raise ImageError(f"the mirror has no package {', '.join(sorted(missing))} in {self._suite}")
            return found
        listed = run(
            ["apt-get", *self._options(), "--yes", "--print-uris", "install", "?essential", "base-files", *names],
            timeout=_NETWORK_SECONDS,
        ).text
        found = []
        for name, size, digest in re.findall(r"^'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})$", listed, re.MULTILINE):
            package, version, rest = name.split("_")
            found.append(Package(package, unquote(version), rest.removesuffix(".deb"), digest, int(size)))
        if not found:
            raise ImageError(f"apt could not choose packages for {', '.join(names)}")
        return found

    def offered(self, packages: Sequence[Package]) -> set[Package]:
        """Those of `packages` that the mirror still has in exactly that version."""
        command = ["apt-cache", *self._options(), "show", *(package.spec for package in packages)]
        try:
            shown = run(command).text
        except RunError as error:
            # Status 100: at least one version is unknown. One by one tells which.
            if error.returncode != 100 or len(packages) == 1:
                return set()
            half = len(packages) // 2
            return self.offered(packages[:half]) | self.offered(packages[half:])
        return set(_stanzas(shown)) & set(packages)

    def download(
        self, packages: Sequence[Package], folder: Path, on_tick: Callable[[], None] | None = None
    ) -> None:
        """Download the files of `packages` into `folder`, under apt's names."""
        run(
            ["apt-get", *self._options(), "--quiet", "download", *(package.spec for package in packages)],
            cwd=folder,
            timeout=_NETWORK_SECONDS,
            on_tick=on_tick,
            hint="is the Debian mirror reachable?",
        )


def _stanzas(text: str) -> list[Package]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
        if "SHA256" in fields:
            found.append(
                Package(
                    fields["Package"],
                    fields["Version"],
                    fields["Architecture"],
                    fields["SHA256"],
                    int(fields["Size"]),
                )
            )
    return found


def cached(package: Package) -> Path:
    """Where the cache keeps the file of a package."""
    return cache_dir() / "debs" / f"{package.sha256}.deb"


def _keep(path: Path, package: Package) -> None:
    if (found := sha256_file(path)) != package.sha256:
        raise ImageError(
            f"{package.spec} has SHA-256 {found}, but the lock says {package.sha256}", "do not use this mirror"
        )
    target = cached(package)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)


def snapshot_archive(environment: Mapping[str, str] = os.environ, etc: Path = Path("/etc")) -> str:
    """Base URI of the archive of superseded packages that this host knows, or "" when it knows none.

    The environment names it; else newer apt has it built in, and Debian's own images note it in their sources.
    """
    if SNAPSHOT_VARIABLE in environment:
        return environment[SNAPSHOT_VARIABLE]
    try:
        known = run(["apt-config", "dump"], timeout=10).text
    except RunError:
        known = ""
    for path in sorted((etc / "apt").glob("sources.list*/*.sources")):
        known += path.read_text(errors="replace")
    found = re.search(r"(https?://[^\s\"/]+)/archive/debian/", known)
    return found[1] if found else ""


def from_snapshot(package: Package, folder: Path, base: str) -> bool:
    """Fetch one package from a snapshot archive (its machine interface); False when it isn't there.

    Raises OSError when the archive can't be reached, `ImageError` for a file of another hash.
    """
    index = f"{base.rstrip('/')}/mr/binary/{quote(package.name)}/{quote(package.version)}/binfiles?fileinfo=1"
    path = folder / f"{package.sha256}.deb"
    try:
        with urllib.request.urlopen(index, timeout=20) as answer:  # noqa: S310 -- an address of the host's configuration
            listed = json.loads(answer.read(1 << 20))["result"]
        wanted = next(item["hash"] for item in listed if item["architecture"] == package.architecture)
        with (
            urllib.request.urlopen(f"{base.rstrip('/')}/file/{wanted}", timeout=60) as answer,  # noqa: S310
            path.open("wb") as out,
        ):
            shutil.copyfileobj(answer, out)
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError, StopIteration):
        return False
    _keep(path, package)
    return True


def _from_snapshots(packages: Sequence[Package], folder: Path, base: str) -> list[Package]:
    """Fetch what the archive has; returns the rest."""
    for number, package in enumerate(packages):
        try:
            if not from_snapshot(package, folder, base):
                return [package, *_from_snapshots(packages[number + 1 :], folder, base)]
        except OSError:
            return list(packages[number:])
    return []


def fetch(
    packages: Sequence[Package],
    suite: str,
    *,
    sources: Callable[[], Sources] = host_sources,
    environment: Mapping[str, str] = os.environ,
    on_tick: Callable[[], None] | None = None,
) -> list[Package]:
    """Bring `packages` into the cache: mirror first, then the snapshot archive. Returns those that are nowhere.

    Uses no network when all are cached. Every file is checked against its locked SHA-256.
    """
    missing = [package for package in packages if not _is_cached(package)]
    if not missing:
        return []
    apt = Apt(suite, sources())
    apt.update()
    (cache_dir() / "debs").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_dir() / "debs") as temporary:
        folder = Path(temporary)
        offered = sorted(apt.offered(missing))
        if offered:
            apt.download(offered, folder, on_tick)
        for package in offered:
            # apt writes an epoch's colon as %3a.
            name = f"{package.name}_{package.version.replace(':', '%3a')}_{package.architecture}.deb"
            _keep(folder / name, package)
        gone = [package for package in missing if package not in offered]
        base = snapshot_archive(environment) if gone else ""
        return _from_snapshots(gone, folder, base) if base else gone


def _is_cached(package: Package) -> bool:
    path = cached(package)
    if not path.is_file():
        return False
    if path.stat().st_size == package.size:
        return True
    path.unlink()
    return False


def extract(package: Package, folder: Path) -> None:
    """Unpack the files of a cached package into `folder`."""
    run(["dpkg-deb", "-x", cached(package), folder])


def repository(packages: Sequence[Package], suite: str, digest: str) -> Path:
    """A flat apt repository of exactly these cached packages; `digest` names it in the cache.

    Each file's hash is checked here, so that what is built from the repository is what the lock says.
    """

    def make(folder: Path) -> None:
        index = []
        for package in sorted(packages):
            source = cached(package)
            if sha256_file(source) != package.sha256:
                source.unlink()
                raise ImageError(
                    f"the cached file of {package.spec} was damaged and has been removed", "start again"
                )
            # No version in the name: apt would have to escape it, and not every reader undoes that alike.
            name = f"{package.name}_{package.sha256[:16]}_{package.architecture}.deb"
            try:
                os.link(source, folder / name)
            except OSError:
                shutil.copyfile(source, folder / name)
            control = run(["dpkg-deb", "--field", source]).stdout.decode().rstrip("\n")
            index.append(f"{control}\nFilename: ./{name}\nSize: {package.size}\nSHA256: {package.sha256}\n")
        (folder / "Packages").write_text("\n".join(index))
        # mmdebstrap looks for essential packages in the suite that it is asked for.
        (folder / "Release").write_text(f"Origin: cube\nSuite: {suite}\nCodename: {suite}\n")

    return entry(cache_dir() / "repositories" / digest, make)

"""The image of push-listener, built by buildah, and containers of it, as far as they can be had without an engine.

A container here has its own processes, files and users, and the network of the machine. That needs root.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.service import PROJECT, Program
from tests.support.tools import lacking, tool

DOCKERFILE = PROJECT / "deploy/docker/Dockerfile"
BASE = PROJECT / ".cache/deploy/base.tar"
"""A Debian with Python, which stands in for the base image: `scripts/deploy-tools` makes it."""

REQUIREMENTS = (PROJECT / "requirements.txt", PROJECT / "deploy/docker/requirements-build.txt")

# The wheels come from this machine, so that a build uses its package index and its certificates, whatever they are.
_PIP_CONF = "[global]\nno-index = true\nfind-links = /mnt\n"


@dataclass(frozen=True)
class Image:
    """A built image whose files are mounted."""

    root: Path
    config: dict[str, Any]
    """What it says of itself; the keys are those of Docker."""

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a container, with more variables."""
        return dict(line.split("=", 1) for line in self.config["Env"]) | variables

    @asynccontextmanager
    async def container(self, *arguments: str, env: Mapping[str, str]) -> AsyncIterator[Container]:
        """A container with these arguments in place of the image's; killed at the end if it is still there."""
        uid, _, gid = self.config["User"].partition(":")
        process = await asyncio.create_subprocess_exec(
            tool("unshare"), "--fork", "--pid", "--mount", "--mount-proc",
            f"--root={self.root}", f"--wd={self.config['WorkingDir']}", f"--setgid={gid}", f"--setuid={uid}",
            *self.config["Entrypoint"], *(arguments or self.config["Cmd"]),
            env=self.environment(**env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        container = Container(self, Program(process), dict(env))
        try:
            yield container
        finally:
            container.kill()
            await container.program.close()

    async def run(self, *arguments: str, env: Mapping[str, str]) -> tuple[int, str]:
        """Exit code and output of a container that ends by itself."""
        async with self.container(*arguments, env=env) as running:
            return await running.program.ended(), running.program.output


@dataclass(frozen=True)
class Container:
    """A running container."""

    image: Image
    program: Program
    env: dict[str, str]

    @property
    def pid(self) -> int:
        """The process id, outside the container, of its first process."""
        (child,) = self._children()
        return child

    def _children(self) -> list[int]:
        with suppress(FileNotFoundError):
            children = Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children").read_text()
            return [int(child) for child in children.split()]
        return []

    def status(self) -> dict[str, list[str]]:
        """What /proc says of its first process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def stop(self) -> None:
        """Sends the image's stop signal to the first process, as ``docker stop`` does."""
        os.kill(self.pid, signal.Signals[self.image.config["StopSignal"]])

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        for child in self._children():
            os.kill(child, signal.SIGKILL)

    async def healthcheck(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of the image's health check, with more arguments, inside the container."""
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        uid, _, gid = self.image.config["User"].partition(":")
        process = await asyncio.create_subprocess_exec(
            tool("nsenter"), f"--target={self.pid}", "--pid", "--mount", "--root", "--wd",
            f"--setgid={gid}", f"--setuid={uid}", *command, *arguments,
            env=self.image.environment(**self.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()


@contextmanager
def built(directory: Path, **build_args: str) -> Iterator[Image]:
    """The image, built from this checkout in an empty directory, while the block runs.

    Skips the test, or fails it where CI=true, if this machine cannot build it.
    """
    buildah = _buildah(directory / "storage")
    base = _base(buildah)
    wheels = directory / "wheels"
    _download_wheels(wheels, _python_version())
    pip_conf = directory / "pip.conf"
    pip_conf.write_text(_PIP_CONF)
    try:
        _run(
            *buildah, "build", "--isolation=chroot", "--format=docker", "--pull-never",
            *(f"--build-arg={name}={value}" for name, value in {"BASE": base, **build_args}.items()),
            f"--volume={wheels}:/mnt:ro", f"--volume={pip_conf}:/etc/pip.conf:ro",
            f"--file={DOCKERFILE}", "--tag=push-listener", str(PROJECT),
        )  # fmt: skip
        described = json.loads(_run(*buildah, "inspect", "--type=image", "push-listener"))
        container = _run(*buildah, "from", "--pull-never", "push-listener")
        with _read_only(_run(*buildah, "mount", container), directory / "root") as root:
            yield Image(root, described["Docker"]["config"])
    finally:
        subprocess.run([*buildah, "unmount", "--all"], check=False, capture_output=True)


@contextmanager
def _read_only(source: str, place: Path) -> Iterator[Path]:
    """The directory at another place, where nothing can be written: compose.yaml and Kubernetes ask for that."""
    place.mkdir()
    _run(tool("mount"), "--options=bind,ro", source, str(place))
    try:
        yield place
    finally:
        _run(tool("umount"), str(place))


def _buildah(storage: Path) -> list[str]:
    if os.geteuid() != 0:
        lacking("root, without which no image can be built here")
    buildah = [tool("buildah"), f"--root={storage}", f"--runroot={storage}-run"]
    # vfs works everywhere, and copies all files for each layer.
    overlay = [*buildah, "--storage-driver=overlay"]
    if subprocess.run([*overlay, "info"], check=False, capture_output=True).returncode == 0:
        return overlay
    shutil.rmtree(storage, ignore_errors=True)
    return [*buildah, "--storage-driver=vfs"]


def _base(buildah: list[str]) -> str:
    """The name of the base image, made of a tar file."""
    if not BASE.is_file():
        lacking("the base of the image")
    container = _run(*buildah, "from", "scratch")
    _run(*buildah, "add", "--quiet", container, str(BASE), "/")
    _run(*buildah, "commit", "--quiet", "--rm", container, "base")
    return "localhost/base"


def _python_version() -> str:
    """Of the base image, such as 3.11."""
    with tarfile.open(BASE) as files:
        found = {match[1] for name in files.getnames() if (match := re.search(r"/bin/python(3\.\d+)$", name))}
    (version,) = found
    return version


def _download_wheels(directory: Path, version: str) -> None:
    for requirements in REQUIREMENTS:
        _run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--require-hashes", f"--python-version={version}", f"--dest={directory}",
            f"--requirement={requirements}",
        )  # fmt: skip


def _run(*command: str) -> str:
    """The output of a command. Fails with all that it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} {command[1]}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()

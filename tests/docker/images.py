"""Images built and run by podman where no registry can be asked: every base comes from a Debian of debootstrap's.

Runs as root; needs podman, debootstrap and runc, and the indexes of Debian and Python.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = os.environ["PATH"] + ":/usr/sbin"
PROGRAMS = ("podman", "debootstrap", "runc")
# The machine's own certificates and pip settings, where it needs any to reach the index.
OWN = [path for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf") if Path(path).exists()]
SETTINGS = [f"--volume={path}:{path}:ro" for path in OWN]
# Without systemd there are no health timers, and the limits that podman asks for may lie above those of this machine.
LIMITS = ["--runtime=runc", "--no-healthcheck", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]


class Images:
    """The images of one store.

    :param work: folder of the store, of at most 40 characters; what it holds already is not built again.
    """

    def __init__(self, work):
        self.work = Path(work)
        self.work.mkdir(exist_ok=True)
        self.command = ["podman", "--root", self.work / "store", "--runroot", self.work / "run"]

    def podman(self, *arguments, check=True, **options):
        """Run podman to its end; what it prints goes to the test's output."""
        done = subprocess.run(
            [*self.command, *arguments], env=os.environ | {"PATH": PATH}, text=True, capture_output=True, **options
        )
        print(done.stdout[-5000:], done.stderr[-5000:])
        assert done.returncode == 0 or not check, f"{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done

    def debian(self):
        """A Debian with Python, such as the images of Python and Airflow are made on; gives its name."""
        root = self.work / "debian"
        if not root.exists():
            begun = self.work / "debian.begun"
            include = "--include=python3,python3-venv,ca-certificates"
            mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []
            command = ["debootstrap", "--variant=minbase", include, "bookworm", begun, *mirror]
            subprocess.run(command, env=os.environ | {"PATH": PATH}, check=True, stdout=subprocess.DEVNULL)
            begun.rename(root)
        if self.podman("image", "exists", "localhost/debian:test", check=False).returncode:
            packed = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
            self.podman("import", "-", "localhost/debian:test", stdin=packed.stdout)
        return "localhost/debian:test"

    def build(self, tag, dockerfile, base, context=ROOT, target=None, **arguments):
        """Build an image; gives its name.

        :param tag: its name; ``localhost/`` is put before one without a registry.
        :param dockerfile: relative to the checkout.
        :param base: the image that it begins with, by its argument BASE, or by its FROM where it has none.
        :param context: folder of what it copies.
        :param target: the stage that is built; the last one by default.
        :param arguments: of the build.
        """
        file = ROOT / dockerfile
        begins = [f"--build-arg=BASE={base}" if "ARG BASE" in file.read_text() else f"--from={base}"]
        begins += [f"--target={target}"] if target else []
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        self.podman(
            "build", "--isolation=chroot", "--network=host", "--format=docker", *SETTINGS, *begins, *given, "-f", file,
            "-t", tag, context,
        )  # fmt: skip
        return tag

    def run(self, *arguments, **options):
        """Run a container to its end: options of ``podman run``, image, command."""
        return self.podman("run", "--rm", *LIMITS, *arguments, **options)

    @contextlib.contextmanager
    def running(self, *arguments):
        """A container in the background for as long as the context is open; gives its id."""
        container = self.podman("run", "--detach", *LIMITS, *arguments).stdout.strip()
        try:
            yield container
        finally:
            self.podman("logs", container, check=False)
            self.podman("rm", "--force", "--time=10", container)


def wait_for(done, seconds=120):
    """Ask until the answer is yes."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.5)

"""What `make demo` makes on this machine, and how all of it goes."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from docker import APIClient
from docker.utils import kwargs_from_env

from worker.backends.names import INSTALLATION
from worker.images.local import LABEL

#: What bears the installation's name, on the command line: how it is found, how it goes, and by which label.
_BEARS: Final = (
    ("ps -a", "rm -f", INSTALLATION),
    ("volume ls", "volume rm", INSTALLATION),
    ("image ls", "rmi -f", f"{LABEL}installation"),
)


@dataclass
class Made:
    """What the demo makes on this machine, and how all of it goes: it has an installation of its own, which is not coming back."""

    folder: Path
    on_docker: bool
    installation: str | None = None  #: known once the daemon is ready; before that nothing bears it
    daemon: "subprocess.Popen[bytes] | None" = None

    def remove(self) -> None:
        """All of it, the containers first because they hold the rest."""
        self.end_daemon()
        if self.on_docker:
            self._sweep()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def end_daemon(self) -> None:
        """And with it its Postgres and its Redis."""
        if self.daemon is None or self.daemon.poll() is not None:
            return
        self.daemon.terminate()
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.terminate()  # twice: now
            self.daemon.wait()

    def left(self) -> str:
        """What a person types to remove what is here now."""
        steps = []
        if self.daemon is not None and self.daemon.poll() is None:
            steps.append(f"kill {self.daemon.pid}")
        if self.on_docker and self.installation is not None:
            steps += [
                f"docker {remove} $(docker {find} -q --filter label={label}={self.installation})" for find, remove, label in _BEARS
            ]
        if self.on_docker:
            steps.append(f"docker network rm {self.folder.name}")
        return "; ".join([*steps, f"rm -r {self.folder}"])

    def _sweep(self) -> None:
        client = APIClient(**kwargs_from_env(), version="auto")
        try:
            if self.installation is not None:
                self._sweep_labelled(client, self.installation)
            for network in client.networks(names=[self.folder.name]):
                client.remove_network(network["Id"])
        finally:
            client.close()

    def _sweep_labelled(self, client: APIClient, installation: str) -> None:
        things = {"label": f"{INSTALLATION}={installation}"}
        for container in client.containers(all=True, filters=things):
            client.remove_container(container["Id"], force=True, v=True)
        for volume in client.volumes(filters=things)["Volumes"] or ():
            client.remove_volume(volume["Name"])
        for image in client.images(filters={"label": f"{LABEL}installation={installation}"}):
            client.remove_image(image["Id"], force=True)

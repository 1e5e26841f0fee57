"""A manifest handed to a cluster through kubectl, which knows how to reach it and who asks."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from data_pipeline.errors import UsageError
from launch.submit.kubernetes.settings import KubernetesSettings
from pretrain.tracking.base import without_secrets

ANSWERS_S = 60.0


@dataclass(frozen=True)
class Kubectl:
    """words: the command with context and namespace, for all calls. manifest: what is handed over."""

    words: tuple[str, ...]
    manifest: Path

    @classmethod
    def of(cls, place: KubernetesSettings, manifest: Path) -> Kubectl:
        """Raises: UsageError without kubectl on PATH."""
        where = ("--context", place.context) if place.context else ()
        words = ("kubectl", *where, "-n", place.namespace)
        if shutil.which("kubectl") is None:
            raise UsageError(
                f"kubectl is not on PATH, nothing was started; the manifest is {manifest}: where there is "
                f"one, {shlex.join(words)} create -f {shlex.quote(str(manifest))}"
            )
        return cls(words, manifest)

    def check_references(self, place: KubernetesSettings) -> None:
        """Whether Secrets, claims and the account that pods need are there; pods would wait for ever.

        Raises: UsageError that names those that are not. Where this user may not look, nothing is said.
        """
        wanted = [f"secret/{name}" for name in place.secrets]
        wanted += [f"secret/{of.partition('/')[0]}" for of in place.secret_env.values()]
        wanted += [f"secret/{name}" for name in place.image_pull_secrets]
        wanted += [f"persistentvolumeclaim/{volume.claim}" for volume in place.volumes]
        wanted += [f"serviceaccount/{place.service_account}"] if place.service_account else []
        missing = []
        for each in dict.fromkeys(wanted):
            found = self._call("get", each, "-o", "name", "--ignore-not-found")
            if found.returncode == 0 and not found.stdout.strip():
                missing.append(each)
        if missing:
            raise UsageError(
                f"namespace {place.namespace} has no {', '.join(missing)}: make them there, or name others; "
                f"nothing was started"
            )

    def create(self) -> None:
        """Make what the manifest holds, after the server has said that it would take all of it.

        Not `apply`, which keeps a copy of each object in an annotation of it: a sweep's ConfigMap is larger
        than annotations may be (262144 bytes). Every submission has names of its own.
        Raises: UsageError with its reason; what was made by then is deleted.
        """
        asked = self._call("create", "--dry-run=server", "-f", str(self.manifest))
        if asked.returncode != 0:
            self._refuse(asked)
        try:
            made = self._call("create", "-o", "name", "-f", str(self.manifest))
        except UsageError:  # no answer; a moment ago none of it was there
            self._call("delete", "--ignore-not-found", "--wait=false", "-f", str(self.manifest))
            raise
        if made.returncode != 0:
            if names := made.stdout.split():  # an object that was there before is another's, and stays
                self._call("delete", "--ignore-not-found", "--wait=false", *names)
            self._refuse(made)

    def _refuse(self, done: subprocess.CompletedProcess[str]) -> NoReturn:
        said = without_secrets(" ".join((done.stderr or done.stdout).split()))
        raise UsageError(
            f"kubectl create was refused, nothing was started: {said[:1000] or 'without a word'}"
            f"; the manifest is {self.manifest}"
        )

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self.words, *arguments],
                capture_output=True, text=True, timeout=ANSWERS_S, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UsageError(
                f"the cluster did not answer kubectl {arguments[0]} within {ANSWERS_S:.0f} s: look at "
                f"{shlex.join(self.words)} get pods; the manifest is {self.manifest}"
            ) from error
        except OSError as error:
            raise UsageError(f"kubectl could not be run: {error.strerror}") from error

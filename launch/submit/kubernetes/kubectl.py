"""A manifest handed to a cluster through kubectl, which knows how to reach it and who asks."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
                f"one, {shlex.join(words)} apply -f {manifest.name}"
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

    def apply(self) -> None:
        """Make what the manifest holds, after the server has said that it would take all of it.

        Raises: UsageError with its reason; what was made by then is deleted.
        """
        self._told("apply", "--dry-run=server", "-f", str(self.manifest))
        try:
            self._told("apply", "-f", str(self.manifest))
        except UsageError:
            self._call("delete", "--ignore-not-found", "--wait=false", "-f", str(self.manifest))
            raise

    def _told(self, *arguments: str) -> None:
        done = self._call(*arguments)
        if done.returncode != 0:
            said = without_secrets(" ".join((done.stderr or done.stdout).split()))
            raise UsageError(
                f"kubectl {arguments[0]} was refused, nothing was started: {said[:1000] or 'without a word'}"
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

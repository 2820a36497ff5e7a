"""The releases of Axolotl that the plugin works with."""

from importlib.metadata import version

from packaging.version import Version

OLDEST = "0.20"


def check_host() -> None:
    """Refuse an Axolotl whose PEFT can neither save nor balance a routed adapter.

    Raises:
        RuntimeError: If it is too old. Axolotl 0.19 and 0.20 log an ImportError and go on.
    """
    found = version("axolotl")
    if Version(found) < Version(OLDEST):
        raise RuntimeError(
            f"axolotl-alphalora needs Axolotl {OLDEST} or newer, and {found} is installed: "
            f"pip install 'axolotl>={OLDEST},<0.22'."
        )

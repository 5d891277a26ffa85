"""The command ``vlmq``, also as ``python -m lightning_vlmq``.

A spawned worker imports the main module anew: this one costs it nothing.
"""

__all__ = ["main"]


def main() -> None:
    """Entry."""
    from lightning_vlmq.cli import main as run

    run()


if __name__ == "__main__":
    main()

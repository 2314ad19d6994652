"""Where the command starts: Ctrl-C is heard before anything that takes time is imported."""

from holdfast.interrupts import leave, on_interrupt


def main() -> None:
    on_interrupt(leave)
    from holdfast.cli.main import main as run

    run()


if __name__ == "__main__":
    main()

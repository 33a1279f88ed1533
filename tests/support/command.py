"""The command line in this process."""

from encodec_fast import cli


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of the command."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err

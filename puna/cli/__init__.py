"""The command line: parse, call the job, print. No arithmetic."""

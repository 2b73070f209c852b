"""The schema of a run folder: one frozen record for each kind of file and line, written and read here and nowhere else.

    MetricsLine(step=3, ...)  --to_json-->  a line of metrics.jsonl  --from_json-->  MetricsLine(step=3, ...)

A writer (training, evaluation) makes the record; a reader (report, command line, a resumed run) gets the record. No
other code knows a key. What a record's fields mean stands under them; `docs/run-folder.md` lists all of it. Reading
never raises: see `posttrain.runs.records.base`.

    run        run.json, summary.json           evaluation  figures and answers of the suites, pass@k
    stage      stage.json                       reward      what reward models are worth, and policies by them
    logs       metrics, samples, alarms, ...    preflight   checks, decoded rows, memory; the heartbeat
    sampled    rollouts, examinations           files       the table of all files
"""

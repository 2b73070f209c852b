"""What tells others of a run while it goes on: trackers of experiments, and messages to people.

    trackers/    one file a tracker: tensorboard, trackio, wandb, mlflow; and TRACKERS, the table of them
    feed.py      one thread a tracker, which reads the stage's files and tells what is new
    tracking.py  a stage's feeds: opened before step 1, watched, closed; one that fails is named once and dropped
    notify.py    a message to a webhook or to Slack on an end, a failure or an alarm

All of it reads the run folder, as the report does, so that no loop knows of a tracker and none can stop or slow it.
"""

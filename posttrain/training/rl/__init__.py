"""Stages that sample: tasks in, rollouts scored, trees out; the critic, the curriculum and the held-out tasks."""

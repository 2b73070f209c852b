"""What a run says about itself: metrics that know how they add up, alarms, and the run folder. Imports no torch."""
